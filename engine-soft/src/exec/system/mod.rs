//! The instructions of operating systems: control registers, descriptor tables, ports, time, caches.

mod cache;
pub(crate) mod control;
mod descriptor;
mod port;
mod processor;

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use crate::cpu::Cpu;
use crate::insn::{Exec, Insn};
use crate::trap::Step;

/// The function that executes an instruction of this family.
#[must_use]
pub fn lookup(i: &Instruction) -> Option<Exec> {
    let memory = i.op0_kind() == OpKind::Memory;
    cache::lookup(i)
        .or_else(|| control::lookup(i, memory))
        .or_else(|| descriptor::lookup(i, memory))
        .or_else(|| port::lookup(i))
        .or_else(|| processor::lookup(i))
        .or_else(|| is_nop(i).then_some(nop as Exec))
}

/// What does nothing on this CPU. MPX and shadow stacks were made from no-operations, and stay such where they are not.
fn is_nop(i: &Instruction) -> bool {
    matches!(
        i.mnemonic(),
        Mnemonic::Nop
            | Mnemonic::Reservednop
            | Mnemonic::Endbr32
            | Mnemonic::Endbr64
            | Mnemonic::Rdsspd
            | Mnemonic::Rdsspq
            | Mnemonic::Cldemote
            | Mnemonic::Bndmk
            | Mnemonic::Bndcl
            | Mnemonic::Bndcu
            | Mnemonic::Bndcn
            | Mnemonic::Bndmov
            | Mnemonic::Bndldx
            | Mnemonic::Bndstx
    ) && i.code() != Code::INVALID
}

fn nop(_: &mut Cpu, _: &Insn) -> Step {
    Ok(())
}

impl Cpu {
    /// #GP(0) above privilege level 0.
    #[inline]
    fn privileged(&mut self) -> Step {
        if self.cpl == 0 { Ok(()) } else { self.gp() }
    }
}

#[cfg(test)]
mod tests;
