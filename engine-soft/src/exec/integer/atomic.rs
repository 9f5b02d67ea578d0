//! XADD and the compares-and-exchanges. LOCK is [`Cpu::modify`]'s business.

use engine::event::{FenceKind, StoreKind};
use iced_x86::{Code, Instruction, Mnemonic as M, OpKind};

use super::operand::{Flat, Int, Mem, Place, Reg, by_memory, by_place, by_width, is_flat, tried};
use crate::cpu::Cpu;
use crate::flags::{Flags, bit};
use crate::insn::{Exec, Insn, prefix};
use crate::trap::Step;

/// RAX and AL.
const RAX: u8 = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;

pub(super) fn lookup(i: &Instruction) -> Option<Exec> {
    match i.mnemonic() {
        M::Xadd if i.op0_kind() == OpKind::Register => by_width!(super::width(i), xadd_registers),
        M::Xadd => by_width!(super::width(i), xadd_memory),
        M::Cmpxchg => by_place!(i, cmpxchg),
        _ => match i.code() {
            Code::Cmpxchg8b_m64 => Some(cmpxchg8b),
            Code::Cmpxchg16b_m128 => Some(cmpxchg16b),
            _ => None,
        },
    }
}

/// Of one register twice, the sum remains.
fn xadd_registers<W: Int>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let (a, b): (W, W) = (cpu.get(insn.r[0]), cpu.get(insn.r[1]));
    let sum = cpu.flags.add(a, b, false);
    cpu.put(insn.r[1], a);
    cpu.put(insn.r[0], sum);
    Ok(())
}

fn xadd_memory<W: Int>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let b: W = cpu.get(insn.r[1]);
    let old = cpu.modify(insn, |flags, a: W| (flags.add(a, b, false), a))?;
    cpu.put(insn.r[1], old);
    Ok(())
}

/// A store that changes nothing follows a comparison that failed; with LOCK there is none to be seen.
#[inline(always)]
fn unless_locked<T>(insn: &Insn, old: T) -> Option<T> {
    (insn.prefixes & prefix::LOCK == 0).then_some(old)
}

/// A register that was compared in vain is not written: its upper half stays.
#[inline(always)]
fn cmpxchg<W: Int, D: Place>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let (expected, new): (W, W) = (cpu.get(RAX), cpu.get(insn.r[1]));
    let old = D::modify_if(cpu, insn, |flags, old: W| {
        flags.sub(expected, old, false);
        let kept = if D::IS_MEMORY { unless_locked(insn, old) } else { None };
        (if old == expected { Some(new) } else { kept }, old)
    })?;
    if old != expected {
        cpu.put(RAX, old);
    }
    Ok(())
}

/// Only ZF changes.
fn set_equal(flags: &mut Flags, equal: bool) {
    let rest = flags.status() & !bit::ZF;
    flags.set_status(rest | if equal { bit::ZF } else { 0 });
}

fn cmpxchg8b(cpu: &mut Cpu, insn: &Insn) -> Step {
    let half = |cpu: &Cpu, r: usize| cpu.gpr[r] & 0xFFFF_FFFF;
    let expected = half(cpu, RDX) << 32 | half(cpu, usize::from(RAX));
    let new = half(cpu, RCX) << 32 | half(cpu, RBX);
    let old = cpu.modify_if(insn, |flags, old: u64| {
        set_equal(flags, old == expected);
        (if old == expected { Some(new) } else { unless_locked(insn, old) }, old)
    })?;
    if old != expected {
        cpu.gpr[usize::from(RAX)] = old & 0xFFFF_FFFF;
        cpu.gpr[RDX] = old >> 32;
    }
    Ok(())
}

fn cmpxchg16b(cpu: &mut Cpu, insn: &Insn) -> Step {
    let offset = cpu.offset(insn);
    if cpu.linear(insn) & 15 != 0 {
        return cpu.gp();
    }
    cpu.probe(insn.seg, offset, 16, true)?;
    let pair = |low: u64, high: u64| u128::from(high) << 64 | u128::from(low);
    let expected = pair(cpu.gpr[usize::from(RAX)], cpu.gpr[RDX]);
    let old: u128 = cpu.load_at(insn.seg, offset)?;
    let equal = old == expected;
    let locked = insn.prefixes & prefix::LOCK != 0;
    let new = if equal { Some(pair(cpu.gpr[RBX], cpu.gpr[RCX])) } else { unless_locked(insn, old) };
    if let Some(new) = new {
        let kind = if locked { StoreKind::Locked } else { StoreKind::Cached };
        cpu.store_at(insn.seg, offset, new, kind)?;
    }
    if locked {
        cpu.fence(if equal { FenceKind::Locked } else { FenceKind::LockedFailed });
    }
    set_equal(&mut cpu.flags, equal);
    if !equal {
        cpu.gpr[usize::from(RAX)] = old as u64;
        cpu.gpr[RDX] = (old >> 64) as u64;
    }
    Ok(())
}
