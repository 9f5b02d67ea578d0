//! VCVTPS2PH's exceptions: a half-precision result has 11 bits, and is tiny below 2^-14. Flush-to-zero does not concern it
//! (SDM vol. 1, 14.4.1).

use iced_x86::Mnemonic;

use super::code;
use super::host::{self, Operands};
use crate::fx::mxcsr;
use crate::insn::{Insn, prefix};

/// The least normal number, and the largest number below it of 11 bits.
const NORMAL: f32 = 1.0 / 16384.0;
const BELOW: f32 = NORMAL - NORMAL / 2048.0;

/// [`mxcsr::UE`], if underflow is unmasked and one of the instruction's results is tiny, exact or not.
#[inline(always)]
pub(super) fn tiny(insn: &Insn, operands: &Operands, mxcsr: u32) -> u32 {
    if mxcsr & mxcsr::UE << mxcsr::MASK_SHIFT != 0 { 0 } else { tiny_lanes(insn, operands, mxcsr) }
}

#[cold]
fn tiny_lanes(insn: &Insn, operands: &Operands, mxcsr: u32) -> u32 {
    let converts = code(insn).mnemonic() == Mnemonic::Vcvtps2ph;
    let tiny = converts && lanes(insn, operands).iter().any(|&lane| is_tiny(lane, insn, mxcsr));
    if tiny { mxcsr::UE } else { 0 }
}

/// The numbers to convert.
fn lanes(insn: &Insn, operands: &Operands) -> Vec<f32> {
    let halves = if insn.prefixes & prefix::WIDE != 0 { 2 } else { 1 };
    let lane = |n: usize| f32::from_bits((operands.vector[1][n / 4] >> (32 * (n % 4))) as u32);
    (0..4 * halves).map(lane).collect()
}

/// Less than the least normal number after rounding to 11 bits.
fn is_tiny(value: f32, insn: &Insn, mxcsr: u32) -> bool {
    let magnitude = value.abs();
    if magnitude == 0.0
        || value.is_nan()
        || magnitude >= NORMAL
        || mxcsr & mxcsr::DAZ != 0 && value.is_subnormal()
    {
        return false;
    }
    let rounding = if insn.imm & 4 != 0 { u64::from((mxcsr & mxcsr::ROUNDING) >> 13) } else { insn.imm & 3 };
    let rounds_up = match rounding {
        0 => magnitude >= (BELOW + NORMAL) / 2.0,
        1 => value < 0.0 && magnitude > BELOW,
        2 => value > 0.0 && magnitude > BELOW,
        _ => false,
    };
    !rounds_up
}

/// The flags that the instruction sets though it is refused.
#[cold]
pub(super) fn flags(insn: &Insn, operands: &Operands, mxcsr: u32) -> u32 {
    let mut flags = 0;
    for lane in lanes(insn, operands) {
        let mut alone = Operands { vector: [[0; 2]; 4], ..*operands };
        alone.vector[1][0] = lane.to_bits().into();
        let mut control = mxcsr & !mxcsr::FLAGS | mxcsr::MASKS;
        host::run(insn.imm >> 8, &mut alone, &mut control);
        let mut raised = control & mxcsr::FLAGS;
        if is_tiny(lane, insn, mxcsr) && mxcsr::unmasked(mxcsr::UE, mxcsr) != 0 {
            raised |= mxcsr::UE;
        }
        if mxcsr::unmasked(raised, mxcsr) & (mxcsr::OE | mxcsr::UE) != 0 {
            // Hosts call the conversion of any denormal inexact.
            let significand = lane.to_bits() & 0x7F_FFFF | 0x80_0000;
            let len = 24 - significand.trailing_zeros();
            let inexact = lane.is_subnormal() || len > 11;
            raised = raised & !mxcsr::PE | if inexact { mxcsr::PE } else { 0 };
        }
        flags |= raised;
    }
    mxcsr::reported(flags, mxcsr)
}
