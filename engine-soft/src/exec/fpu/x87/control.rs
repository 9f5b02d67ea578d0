//! x87 control instructions: control word, status word, initialisation, waiting.

use iced_x86::Code;

use super::super::{none_pending, x87_usable};
use super::begin;
use crate::cpu::Cpu;
use crate::cpu::control::{CR0_MP, CR0_TS};
use crate::fx::fsw;
use crate::insn::{Exec, Insn};
use crate::trap::{Step, vector};

pub fn lookup(code: Code) -> Option<Exec> {
    Some(match code {
        Code::Wait => fwait,
        Code::Fninit => fninit,
        Code::Fnclex => fnclex,
        Code::Fnstcw_m2byte => fnstcw,
        Code::Fldcw_m2byte => fldcw,
        Code::Fnstsw_m2byte => fnstsw,
        Code::Fnstsw_AX => fnstsw_ax,
        // Of the 8087 and 80287; since the 387 they do nothing.
        Code::Fneni | Code::Fndisi | Code::Fnsetpm => ignored,
        _ => return None,
    })
}

fn fwait(cpu: &mut Cpu, _: &Insn) -> Step {
    if cpu.cr0 & (CR0_MP | CR0_TS) == CR0_MP | CR0_TS {
        return cpu.raise(vector::NM, None);
    }
    none_pending(cpu)
}

fn fninit(cpu: &mut Cpu, _: &Insn) -> Step {
    x87_usable(cpu)?;
    cpu.fx.init();
    Ok(())
}

fn fnclex(cpu: &mut Cpu, _: &Insn) -> Step {
    x87_usable(cpu)?;
    cpu.fx.fsw &= !(fsw::FLAGS | fsw::SF | fsw::ES | fsw::BUSY);
    Ok(())
}

fn fnstcw(cpu: &mut Cpu, insn: &Insn) -> Step {
    x87_usable(cpu)?;
    cpu.store(insn, cpu.fx.fcw)
}

fn fldcw(cpu: &mut Cpu, insn: &Insn) -> Step {
    begin(cpu)?;
    cpu.fx.fcw = cpu.load::<u16>(insn)?;
    cpu.fx.settle();
    Ok(())
}

fn fnstsw(cpu: &mut Cpu, insn: &Insn) -> Step {
    x87_usable(cpu)?;
    cpu.store(insn, cpu.fx.fsw)
}

fn fnstsw_ax(cpu: &mut Cpu, _: &Insn) -> Step {
    x87_usable(cpu)?;
    cpu.put(0, cpu.fx.fsw);
    Ok(())
}

fn ignored(cpu: &mut Cpu, _: &Insn) -> Step {
    x87_usable(cpu)
}
