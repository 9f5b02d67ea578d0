//! The neck: CPU state, run/exit contract, memory events, conformance suite.
