//! The general-purpose instructions that move and compute data (SDM vol. 1, 7.3; vol. 2).
//!
//! A handler is generic over width and operand kinds, which are types without values ([`operand`]); `lookup` picks the
//! one instance that an instruction needs. Where the SDM leaves a flag undefined, it gets what is cheapest of the things
//! that Intel processors do.

mod operand;

mod alu;
mod atomic;
mod bits;
pub mod bmi;
mod decimal;
mod flagops;
mod mov;
mod muldiv;
mod shift;
mod stack;
mod string;

use iced_x86::{Instruction, OpKind};

use crate::insn::Exec;

/// The function that executes a general-purpose data instruction; `None` if it is of another family.
#[must_use]
pub fn lookup(i: &Instruction) -> Option<Exec> {
    mov::lookup(i)
        .or_else(|| alu::lookup(i))
        .or_else(|| stack::lookup(i))
        .or_else(|| shift::lookup(i))
        .or_else(|| bits::lookup(i))
        .or_else(|| string::lookup(i))
        .or_else(|| muldiv::lookup(i))
        .or_else(|| atomic::lookup(i))
        .or_else(|| flagops::lookup(i))
        .or_else(|| decimal::lookup(i))
}

/// Width in bytes of an instruction's operands: that of the first one.
fn width(i: &Instruction) -> usize {
    match i.op0_kind() {
        OpKind::Register => i.op0_register().size(),
        _ => i.memory_size().size(),
    }
}
