//! Near jumps, calls and returns; loops; software interrupts.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use crate::cpu::Cpu;
use crate::insn::{Exec, Insn, RIP};
use crate::mem::MemValue;
use crate::mmu::canonical;
use crate::quick::tried;
use crate::trap::{Step, vector};
use crate::width::Width;

const RIP_SLOT: usize = RIP as usize;
const RCX: usize = 1;

/// Goes to an instruction pointer of width `W`.
#[inline(always)]
fn go<W: Width>(cpu: &mut Cpu, target: u64) {
    cpu.gpr[RIP_SLOT] = W::of(target).zext();
}

/// Target of a relative branch.
#[inline(always)]
fn relative(cpu: &Cpu, insn: &Insn) -> u64 {
    cpu.gpr[RIP_SLOT].wrapping_add(insn.imm)
}

/// A computed target has to be one: a non-canonical one is a fault of the branch itself.
#[inline(always)]
fn check<W: Width>(cpu: &mut Cpu, target: u64) -> Step {
    if W::BITS == 64 && !canonical(target) {
        return cpu.gp();
    }
    Ok(())
}

fn jcc<W: Width, const CONDITION: u8>(cpu: &mut Cpu, insn: &Insn) -> Step {
    if cpu.flags.condition(CONDITION) {
        go::<W>(cpu, relative(cpu, insn));
    }
    Ok(())
}

fn jmp<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Step {
    go::<W>(cpu, relative(cpu, insn));
    Ok(())
}

fn call<W: Width + MemValue>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let target = relative(cpu, insn);
    cpu.push(W::of(cpu.gpr[RIP_SLOT]))?;
    go::<W>(cpu, target);
    Ok(())
}

/// CALL in 64-bit code (see [`crate::quick`]).
#[inline(always)]
fn quick_call(cpu: &mut Cpu, insn: &Insn) -> Step {
    let target = relative(cpu, insn);
    cpu.try_push(cpu.gpr[RIP_SLOT])?;
    go::<u64>(cpu, target);
    Ok(())
}

/// RET in 64-bit code.
#[inline(always)]
fn quick_ret(cpu: &mut Cpu, _: &Insn) -> Step {
    let target: u64 = cpu.try_load(cpu.gpr[4])?;
    check::<u64>(cpu, target)?;
    cpu.gpr[4] = cpu.gpr[4].wrapping_add(8);
    go::<u64>(cpu, target);
    Ok(())
}

#[inline(always)]
fn target<W: Width + MemValue, const MEMORY: bool>(cpu: &mut Cpu, insn: &Insn) -> Step<u64> {
    let target = if MEMORY { cpu.load::<W>(insn)?.zext() } else { cpu.get::<W>(insn.r[0]).zext() };
    check::<W>(cpu, target)?;
    Ok(target)
}

fn jmp_indirect<W: Width + MemValue, const MEMORY: bool>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let target = target::<W, MEMORY>(cpu, insn)?;
    go::<W>(cpu, target);
    Ok(())
}

fn call_indirect<W: Width + MemValue, const MEMORY: bool>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let target = target::<W, MEMORY>(cpu, insn)?;
    cpu.push(W::of(cpu.gpr[RIP_SLOT]))?;
    go::<W>(cpu, target);
    Ok(())
}

/// RET, with the bytes of arguments to drop in the immediate (0 where there is none).
fn ret<W: Width + MemValue>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let target = cpu.peek::<W>(0)?.zext();
    check::<W>(cpu, target)?;
    let top = cpu.gpr[4].wrapping_add(W::BYTES as u64).wrapping_add(insn.imm & 0xFFFF);
    cpu.set_stack_pointer(top);
    go::<W>(cpu, target);
    Ok(())
}

/// The counter of LOOP and JCXZ, as wide as addresses are.
fn counter(cpu: &Cpu, insn: &Insn) -> u64 {
    match insn.addr_size {
        2 => cpu.gpr[RCX] & 0xFFFF,
        4 => cpu.gpr[RCX] & 0xFFFF_FFFF,
        _ => cpu.gpr[RCX],
    }
}

/// LOOP; with `ZERO` 0 LOOPNE, 1 LOOPE, 2 neither.
fn looping<W: Width, const ZERO: u8>(cpu: &mut Cpu, insn: &Insn) -> Step {
    match insn.addr_size {
        2 => cpu.gpr[RCX] = (cpu.gpr[RCX] as u16).wrapping_sub(1).merge(cpu.gpr[RCX]),
        4 => cpu.gpr[RCX] = u64::from((cpu.gpr[RCX] as u32).wrapping_sub(1)),
        _ => cpu.gpr[RCX] = cpu.gpr[RCX].wrapping_sub(1),
    }
    let wanted = ZERO == 2 || cpu.flags.zf() == (ZERO == 1);
    if wanted && counter(cpu, insn) != 0 {
        go::<W>(cpu, relative(cpu, insn));
    }
    Ok(())
}

fn jcxz<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Step {
    if counter(cpu, insn) == 0 {
        go::<W>(cpu, relative(cpu, insn));
    }
    Ok(())
}

fn int(cpu: &mut Cpu, insn: &Insn) -> Step {
    cpu.software_interrupt(insn.imm as u8)
}

fn int3(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.software_interrupt(vector::BP)
}

fn into(cpu: &mut Cpu, _: &Insn) -> Step {
    if cpu.flags.of() { cpu.software_interrupt(vector::OF) } else { Ok(()) }
}

/// Instance of a function for the operand size of a near branch.
macro_rules! by_size {
    ($size:expr, $function:ident $(, $arg:expr)*) => {
        match $size {
            2 => $function::<u16 $(, $arg)*> as Exec,
            4 => $function::<u32 $(, $arg)*>,
            _ => $function::<u64 $(, $arg)*>,
        }
    };
}

macro_rules! by_condition {
    ($size:expr, $condition:expr, $($n:literal)*) => {
        match $condition {
            $($n => by_size!($size, jcc, $n),)*
            _ => return None,
        }
    };
}

/// Operand size of a near branch.
fn branch_size(i: &Instruction) -> u8 {
    match i.op0_kind() {
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        OpKind::NearBranch64 => 8,
        OpKind::Register => i.op0_register().size() as u8,
        _ => i.memory_size().size() as u8,
    }
}

pub(super) fn lookup(i: &Instruction) -> Option<Exec> {
    let size = branch_size(i);
    let memory = i.op0_kind() == OpKind::Memory;
    if i.is_jcc_short_or_near() {
        // The decoder's conditions are in the order of the opcodes, after `None`.
        let condition = i.condition_code() as u8 - 1;
        return Some(by_condition!(size, condition, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15));
    }
    Some(match i.mnemonic() {
        Mnemonic::Jmp if i.is_jmp_short_or_near() => by_size!(size, jmp),
        Mnemonic::Jmp if i.is_jmp_near_indirect() && memory => by_size!(size, jmp_indirect, true),
        Mnemonic::Jmp if i.is_jmp_near_indirect() => by_size!(size, jmp_indirect, false),
        Mnemonic::Call if i.is_call_near() && size == 8 => tried!(quick_call, call::<u64>),
        Mnemonic::Call if i.is_call_near() => by_size!(size, call),
        Mnemonic::Call if i.is_call_near_indirect() && memory => by_size!(size, call_indirect, true),
        Mnemonic::Call if i.is_call_near_indirect() => by_size!(size, call_indirect, false),
        Mnemonic::Ret => match i.code() {
            Code::Retnw | Code::Retnw_imm16 => ret::<u16>,
            Code::Retnd | Code::Retnd_imm16 => ret::<u32>,
            Code::Retnq => tried!(quick_ret, ret::<u64>),
            _ => ret::<u64>,
        },
        Mnemonic::Loop => by_size!(size, looping, 2),
        Mnemonic::Loope => by_size!(size, looping, 1),
        Mnemonic::Loopne => by_size!(size, looping, 0),
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => by_size!(size, jcxz),
        Mnemonic::Int => int,
        Mnemonic::Int3 => int3,
        Mnemonic::Into => into,
        _ => return None,
    })
}
