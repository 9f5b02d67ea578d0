//! CLC, STC, CMC, CLD, STD, LAHF, SAHF, SALC.

use iced_x86::{Instruction, Mnemonic as M};

use crate::cpu::Cpu;
use crate::flags::bit;
use crate::insn::{Exec, Insn};
use crate::trap::Step;

const AL: u8 = 0;
const AH: u8 = 1;
/// The flags that LAHF and SAHF move.
const LOW: u64 = bit::SF | bit::ZF | bit::AF | bit::PF | bit::CF;

pub(super) fn lookup(i: &Instruction) -> Option<Exec> {
    let exec: Exec = match i.mnemonic() {
        M::Clc => |cpu, _| carry(cpu, false),
        M::Stc => |cpu, _| carry(cpu, true),
        M::Cmc => |cpu, _| carry(cpu, !cpu.flags.cf()),
        M::Cld => cld,
        M::Std => std,
        M::Lahf => lahf,
        M::Sahf => sahf,
        M::Salc => salc,
        _ => return None,
    };
    Some(exec)
}

fn carry(cpu: &mut Cpu, on: bool) -> Step {
    cpu.flags.set_cf(on);
    Ok(())
}

fn cld(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.flags.control &= !bit::DF;
    Ok(())
}

fn std(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.flags.control |= bit::DF;
    Ok(())
}

fn lahf(cpu: &mut Cpu, _: &Insn) -> Step {
    let low = cpu.flags.status() & LOW | bit::FIXED;
    cpu.put(AH, low as u8);
    Ok(())
}

fn sahf(cpu: &mut Cpu, _: &Insn) -> Step {
    let low = u64::from(cpu.get::<u8>(AH)) & LOW;
    let rest = cpu.flags.status() & !LOW;
    cpu.flags.set_status(rest | low);
    Ok(())
}

fn salc(cpu: &mut Cpu, _: &Insn) -> Step {
    let value = if cpu.flags.cf() { 0xFF } else { 0 };
    cpu.put::<u8>(AL, value);
    Ok(())
}
