//! Flushes and fences (SDM vol. 2: CLFLUSH, CLFLUSHOPT, CLWB, LFENCE, SFENCE, MFENCE, WBINVD, INVD, INVLPG).
//!
//! Memory is always coherent here; what these do is to be seen, where somebody watches.

use engine::event::{FenceKind, FlushKind};
use iced_x86::{Code, Instruction, Mnemonic};

use crate::cpu::Cpu;
use crate::insn::{Exec, Insn};
use crate::trap::Step;

pub(super) fn lookup(i: &Instruction) -> Option<Exec> {
    Some(match (i.mnemonic(), i.code()) {
        (_, Code::Clflush_m8) => clflush,
        (_, Code::Clflushopt_m8) => clflushopt,
        (_, Code::Clwb_m8) => clwb,
        (Mnemonic::Lfence, _) => lfence,
        (Mnemonic::Sfence, _) => sfence,
        (Mnemonic::Mfence, _) => mfence,
        // Without that feature WBNOINVD is WBINVD with a prefix that means nothing.
        (Mnemonic::Wbinvd | Mnemonic::Wbnoinvd, _) => wbinvd,
        (Mnemonic::Invd, _) => invd,
        (Mnemonic::Invlpg, _) => invlpg,
        _ => return None,
    })
}

fn flush(cpu: &mut Cpu, insn: &Insn, kind: FlushKind) -> Step {
    let offset = cpu.offset(insn);
    cpu.flush_line(insn.seg, offset, kind)
}

fn clflush(cpu: &mut Cpu, insn: &Insn) -> Step {
    flush(cpu, insn, FlushKind::Clflush)
}

fn clflushopt(cpu: &mut Cpu, insn: &Insn) -> Step {
    flush(cpu, insn, FlushKind::Clflushopt)
}

fn clwb(cpu: &mut Cpu, insn: &Insn) -> Step {
    flush(cpu, insn, FlushKind::Clwb)
}

/// Orders loads, which concerns no store.
fn lfence(_: &mut Cpu, _: &Insn) -> Step {
    Ok(())
}

fn sfence(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.fence_alone(FenceKind::Sfence)
}

fn mfence(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.fence_alone(FenceKind::Mfence)
}

fn wbinvd(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.privileged()?;
    cpu.fence(FenceKind::Wbinvd);
    Ok(())
}

fn invd(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.privileged()?;
    cpu.fence(FenceKind::Invd);
    Ok(())
}

fn invlpg(cpu: &mut Cpu, insn: &Insn) -> Step {
    cpu.privileged()?;
    let va = cpu.linear(insn);
    cpu.flush_tlb_page(va);
    cpu.fence(FenceKind::Serialising);
    Ok(())
}
