//! The neck in software: an x86-64 system emulator that is exact, deterministic, and sees every store, flush and fence.
//!
//! An instruction is decoded once into an [`insn::Insn`], a fixed-size record whose first field is the function that
//! executes it, and cached in blocks by guest-physical address. The same records are what a translator starts from.

pub mod cpu;
pub mod exec;
pub mod flags;
pub mod fx;
pub mod insn;
pub mod mem;
pub mod trap;
pub mod width;
