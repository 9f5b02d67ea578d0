//! The flags of an AVX instruction that raises #XM: each half of a YMM register is as an XMM register's.

use iced_x86::Mnemonic;

use super::host::Operands;
use super::masked::register;
use super::{code, half};
use crate::exec::fpu::sse::exceptions;
use crate::insn::{Insn, prefix};

/// The flags that the instruction sets though it is refused; `None` if it is none that can overflow or underflow.
#[cold]
pub(super) fn flags(insn: &Insn, operands: &Operands, mxcsr: u32) -> Option<u32> {
    let code = code(insn);
    if code.mnemonic() == Mnemonic::Vcvtps2ph {
        return Some(half::flags(insn, operands, mxcsr));
    }
    let [a, b, c, _] = operands.vector;
    let memory = register(&operands.memory);
    let from_memory = operands.from_memory;
    let narrows = code.mnemonic() == Mnemonic::Vcvtpd2ps;
    let last = match (from_memory, narrows) {
        (true, _) => memory,
        (false, true) => b,
        (false, false) => c,
    };
    let wide = if narrows { from_wide(insn) } else { insn.prefixes & prefix::WIDE != 0 };
    let halves: Vec<_> = (0..if wide { 2 } else { 1 }).map(|n| [a[n], b[n], last[n]]).collect();
    exceptions::flags(code, insn.imm & 0xFF, &halves, mxcsr)
}

/// VCVTPD2PS has a destination of half its source's size.
fn from_wide(insn: &Insn) -> bool {
    insn.prefixes & prefix::WIDE != 0 || insn.op_size == 32
}
