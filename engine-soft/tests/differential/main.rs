//! Instruction by instruction against the host CPU.
//!
//! One instruction's bytes run unchanged on the host and in the engine, from the same registers and the same memory at the
//! same address, and what they leave is compared: registers, flags, memory, or the fault. [`machine::Executor`] is who can
//! run one; [`form`] makes encodings of every form of an instruction; [`campaign`] draws operands, runs and compares.
//!
//! `NVSIM_DIFF_CASES` is the number of cases a form (default 1000), `NVSIM_DIFF_SEED` another seed.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod avx;
mod campaign;
mod draw;
mod form;
mod fpu;
mod integer;
mod interpreter;
mod machine;
mod native;
