//! What an NV-DIMM is, and what survives a power cut.
