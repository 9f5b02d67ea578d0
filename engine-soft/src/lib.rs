//! The neck in software: an x86-64 system emulator that is exact, deterministic, and sees every store, flush and fence.
//!
//! An instruction is decoded once into an [`insn::Insn`], a fixed-size record whose first field is the function that
//! executes it, and cached in blocks by guest-physical address. The same records are what a translator starts from.

pub mod block;
mod breakpoint;
pub mod clock;
pub mod cpu;
mod decode;
mod events;
pub mod exec;
pub mod flags;
mod frame;
pub mod fx;
pub mod insn;
mod interrupt;
pub mod lapic;
pub mod lockstep;
pub mod mem;
pub mod mmu;
mod msr;
mod partition;
mod processor;
mod quick;
pub mod ram;
pub mod rig;
pub mod run;
mod schedule;
pub mod segment;
pub mod shared;
mod slow;
mod state;
mod stops;
pub mod trap;
mod vex;
pub mod width;
pub mod xlat;

pub use partition::Soft;
