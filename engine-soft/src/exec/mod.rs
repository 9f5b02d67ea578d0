//! What instructions do, a family a file.
//!
//! Each family offers `lookup(&iced_x86::Instruction) -> Option<Exec>`; the decoder asks them in turn. A function is
//! chosen once, at decode time, by operand kinds and widths, so that executing asks nothing again.

pub mod control;
pub mod fpu;
pub mod integer;
pub mod system;

use engine::cpuid::CpuModel;
use iced_x86::Instruction;

use crate::insn::Exec;

/// The function that executes an instruction, where it needs no more than that.
pub(crate) fn lookup(i: &Instruction, model: CpuModel) -> Option<Exec> {
    let more = || integer::bmi::lookup(i).or_else(|| fpu::xsave::lookup(i));
    if let Some(exec) = (model == CpuModel::V3).then(more).flatten() {
        return Some(exec);
    }
    integer::lookup(i).or_else(|| control::lookup(i)).or_else(|| fpu::lookup(i)).or_else(|| system::lookup(i))
}

/// The run loop has to look around after this instruction, for reasons that only its family knows.
pub(crate) fn ends_block(_: &Instruction) -> bool {
    false
}
