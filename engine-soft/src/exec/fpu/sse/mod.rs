//! SSE to SSE4.2 on XMM registers.

mod compare;
mod convert;
pub mod exceptions;
mod float;
mod fused;
mod immediate;
mod lanes;
mod moves;
mod packed;

use iced_x86::{Instruction, OpKind};

use super::{aligned, sse_usable};
use crate::cpu::Cpu;
use crate::insn::{Exec, Insn};
use crate::trap::Step;

pub use float::{
    Cvtdq2pd, Cvtdq2ps, Cvtpd2dq, Cvtps2dq, Cvttpd2dq, Cvttps2dq, Float, compute, compute_lanes, masked,
};
pub use lanes::byte_signs;

/// The function that executes an SSE instruction.
pub fn lookup(i: &Instruction) -> Option<Exec> {
    moves::lookup(i)
        .or_else(|| packed::lookup(i))
        .or_else(|| float::lookup(i))
        .or_else(|| immediate::lookup(i))
        .or_else(|| compare::lookup(i))
        .or_else(|| convert::lookup(i))
        .or_else(|| lanes::lookup(i))
}

/// What an instruction on XMM registers depends on, of those that a translator may leave to the host: all that this family
/// has, but string comparisons, variable blends, and moves of single lanes to and from general registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concern {
    /// On its operands alone.
    Bits,
    /// On MXCSR too, where it leaves exception flags.
    Floats,
}

/// The concern of an instruction.
#[must_use]
pub fn concern(i: &Instruction) -> Option<Concern> {
    let bits = moves::lookup(i)
        .or_else(|| packed::lookup(i))
        .or_else(|| immediate::shuffles(i))
        .or_else(|| immediate::shifts(i))
        .or_else(|| lanes::signs_lookup(i));
    if bits.is_some() {
        return Some(Concern::Bits);
    }
    let floats = float::lookup(i)
        .or_else(|| immediate::arithmetic(i))
        .or_else(|| compare::lookup(i))
        .or_else(|| convert::lookup(i));
    floats.map(|_| Concern::Floats)
}

/// Whether an operand is memory.
pub fn in_memory(i: &Instruction, operand: u32) -> bool {
    i.op_kind(operand) == OpKind::Memory
}

/// A memory operand as the low part of an XMM register.
pub trait Source {
    /// Fetches it, zero-extended.
    fn fetch(cpu: &mut Cpu, insn: &Insn) -> Step<u128>;
}

macro_rules! source {
    ($($width:ty)*) => {$(
        impl Source for $width {
            #[inline(always)]
            fn fetch(cpu: &mut Cpu, insn: &Insn) -> Step<u128> {
                Ok(u128::from(cpu.load::<Self>(insn)?))
            }
        }
    )*};
}

source! { u16 u32 u64 }

impl Source for u128 {
    #[inline(always)]
    fn fetch(cpu: &mut Cpu, insn: &Insn) -> Step<u128> {
        aligned(cpu, insn)?;
        cpu.load(insn)
    }
}

/// 16 bytes that need not be aligned.
pub enum Unaligned {}

impl Source for Unaligned {
    #[inline(always)]
    fn fetch(cpu: &mut Cpu, insn: &Insn) -> Step<u128> {
        cpu.load(insn)
    }
}

/// The second operand, an XMM register.
pub enum Register {}

impl Source for Register {
    #[inline(always)]
    fn fetch(cpu: &mut Cpu, insn: &Insn) -> Step<u128> {
        Ok(cpu.fx.xmm(insn.r[1]))
    }
}

/// Begins an instruction `op xmm, xmm/m`: its second operand.
#[inline(always)]
pub fn begin<S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step<u128> {
    sse_usable(cpu)?;
    S::fetch(cpu, insn)
}
