//! General and debug registers.

use engine::state::{DebugRegisters, Registers};
use kvm_bindings::{kvm_debugregs, kvm_regs};

pub(super) fn from_kvm(regs: &kvm_regs) -> Registers {
    Registers {
        gpr: [
            regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9,
            regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ],
        rip: regs.rip,
        rflags: regs.rflags,
    }
}

pub(super) fn to_kvm(registers: &Registers) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = registers.gpr;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: registers.rip,
        rflags: registers.rflags,
    }
}

pub(super) fn debug_from_kvm(regs: &kvm_debugregs) -> DebugRegisters {
    DebugRegisters { address: regs.db, status: regs.dr6, control: regs.dr7 }
}

pub(super) fn debug_to_kvm(debug: &DebugRegisters) -> kvm_debugregs {
    kvm_debugregs { db: debug.address, dr6: debug.status, dr7: debug.control, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use engine::state::gpr;

    use super::*;

    #[test]
    fn every_register_has_its_name_and_returns() {
        let registers = Registers { gpr: std::array::from_fn(|n| n as u64 + 100), rip: 1, rflags: 2 };
        let regs = to_kvm(&registers);
        assert_eq!(regs.rsp, registers.gpr[gpr::RSP]);
        assert_eq!(regs.rbx, registers.gpr[gpr::RBX]);
        assert_eq!(regs.rdi, registers.gpr[gpr::RDI]);
        assert_eq!(from_kvm(&regs), registers);
    }

    #[test]
    fn debug_registers_return() {
        let debug = DebugRegisters { address: [1, 2, 3, 4], status: 0xFFFF_0FF0, control: 0x400 };
        assert_eq!(debug_from_kvm(&debug_to_kvm(&debug)), debug);
    }
}
