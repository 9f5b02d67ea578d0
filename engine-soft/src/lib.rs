//! The neck in software: decode, execute, MMU, local APIC.
