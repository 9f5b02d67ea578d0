//! SYSCALL, SYSRET, SYSENTER, SYSEXIT (SDM vol. 3, 5.8.7 and 5.8.8).

use engine::state::{Segment, SystemRegisters};
use iced_x86::{Code, Instruction};

use crate::cpu::{Cpu, control};
use crate::flags::bit;
use crate::insn::{Exec, Insn, RIP};
use crate::mmu::canonical;
use crate::trap::Step;

const RIP_SLOT: usize = RIP as usize;
const RCX: usize = 1;
const RDX: usize = 2;
const RSP: usize = 4;
const R11: usize = 11;

/// Bits of RFLAGS that SYSRET takes from R11.
const SYSRET_FLAGS: u64 = 0x3C_7FD7;

/// Flat code and stack segments of a level, as these instructions make them up.
fn enter(cpu: &mut Cpu, code: u16, stack: u16, cpl: u8, long: bool) {
    let level = u32::from(cpl) << 5;
    let usable = Segment::PRESENT | Segment::CODE_OR_DATA | Segment::GRANULARITY | level;
    let size = if long { Segment::LONG } else { Segment::BIG };
    let flat = Segment { selector: 0, base: 0, limit: !0, attributes: 0 };
    cpu.segments[SystemRegisters::CS] = Segment { selector: code, attributes: usable | size | 0xB, ..flat };
    cpu.segments[SystemRegisters::SS] =
        Segment { selector: stack, attributes: usable | Segment::BIG | 0x3, ..flat };
    cpu.cpl = cpl;
}

fn syscall(cpu: &mut Cpu, _: &Insn) -> Step {
    if !cpu.long || cpu.efer & control::EFER_SCE == 0 {
        return cpu.ud();
    }
    let flags = cpu.flags.get();
    cpu.gpr[RCX] = cpu.gpr[RIP_SLOT];
    cpu.gpr[R11] = flags & !bit::RF;
    cpu.gpr[RIP_SLOT] = cpu.msrs.lstar;
    cpu.flags.set(flags & !cpu.msrs.fmask & !(bit::RF | bit::VM));
    let code = (cpu.msrs.star >> 32) as u16 & 0xFFFC;
    enter(cpu, code, code.wrapping_add(8), 0, true);
    cpu.mode_changed();
    Ok(())
}

fn sysret<const LONG: bool>(cpu: &mut Cpu, _: &Insn) -> Step {
    if !cpu.long || cpu.efer & control::EFER_SCE == 0 {
        return cpu.ud();
    }
    if cpu.cpl != 0 || LONG && !canonical(cpu.gpr[RCX]) {
        return cpu.gp();
    }
    cpu.gpr[RIP_SLOT] = if LONG { cpu.gpr[RCX] } else { cpu.gpr[RCX] & 0xFFFF_FFFF };
    cpu.flags.set(cpu.gpr[R11] & SYSRET_FLAGS);
    let base = (cpu.msrs.star >> 48) as u16;
    let code = base.wrapping_add(if LONG { 16 } else { 0 }) | 3;
    enter(cpu, code, base.wrapping_add(8) | 3, 3, LONG);
    cpu.mode_changed();
    Ok(())
}

fn sysenter(cpu: &mut Cpu, _: &Insn) -> Step {
    let code = cpu.msrs.sysenter_cs as u16 & 0xFFFC;
    if !cpu.is_protected() || code == 0 {
        return cpu.gp();
    }
    let long = cpu.is_long_mode_active();
    let mask = if long { !0 } else { 0xFFFF_FFFF };
    cpu.flags.control &= !(bit::VM | bit::IF | bit::RF);
    cpu.gpr[RSP] = cpu.msrs.sysenter_esp & mask;
    cpu.gpr[RIP_SLOT] = cpu.msrs.sysenter_eip & mask;
    enter(cpu, code, code.wrapping_add(8), 0, long);
    cpu.mode_changed();
    Ok(())
}

fn sysexit<const LONG: bool>(cpu: &mut Cpu, _: &Insn) -> Step {
    let base = cpu.msrs.sysenter_cs as u16 & 0xFFFC;
    if !cpu.is_protected() || base == 0 || cpu.cpl != 0 {
        return cpu.gp();
    }
    if LONG && !(canonical(cpu.gpr[RCX]) && canonical(cpu.gpr[RDX])) {
        return cpu.gp();
    }
    let mask = if LONG { !0 } else { 0xFFFF_FFFF };
    cpu.gpr[RSP] = cpu.gpr[RCX] & mask;
    cpu.gpr[RIP_SLOT] = cpu.gpr[RDX] & mask;
    let code = base.wrapping_add(if LONG { 32 } else { 16 }) | 3;
    enter(cpu, code, code.wrapping_add(8), 3, LONG);
    cpu.mode_changed();
    Ok(())
}

pub(super) fn lookup(i: &Instruction) -> Option<Exec> {
    Some(match i.code() {
        Code::Syscall => syscall,
        Code::Sysretd => sysret::<false>,
        Code::Sysretq => sysret::<true>,
        Code::Sysenter => sysenter,
        Code::Sysexitd => sysexit::<false>,
        Code::Sysexitq => sysexit::<true>,
        _ => return None,
    })
}
