//! PUSH, POP, PUSHA, POPA, PUSHF, POPF, ENTER, LEAVE, and the loads of a far pointer.

use engine::event::StoreKind;
use iced_x86::{Code, CodeSize, Instruction, Mnemonic as M, OpKind};

use super::operand::{Imm, Int, Mem, Place, Reg, Source, tried};
use crate::cpu::Cpu;
use crate::flags::bit;
use crate::insn::{Exec, Insn};
use crate::trap::Step;

const RSP: usize = 4;
const RBP: u8 = 5;
const SS: u8 = 2;

pub(super) fn lookup(i: &Instruction) -> Option<Exec> {
    // -8, -4, -2, or one of the multiples of these.
    let step = i.stack_pointer_increment().unsigned_abs();
    macro_rules! by_step {
        ($unit:expr, $f:ident $(::<$($after:ty),+>)?) => {
            match step / $unit {
                2 => Some($f::<u16 $($(, $after)+)?> as Exec),
                4 => Some($f::<u32 $($(, $after)+)?>),
                8 => Some($f::<u64 $($(, $after)+)?>),
                _ => None,
            }
        };
    }
    let segment = i.op_count() > 0 && i.op0_register().is_segment_register();
    if i.code_size() == CodeSize::Code64 && step == 8 && i.op0_kind() == OpKind::Register && !segment {
        match i.mnemonic() {
            M::Push => return Some(tried!(quick_push, push::<u64, Reg<0>>)),
            M::Pop => return Some(tried!(quick_pop, pop::<u64, Reg<0>>)),
            _ => {}
        }
    }
    match i.mnemonic() {
        M::Push if segment => by_step!(1, push_segment),
        M::Push => match i.op0_kind() {
            OpKind::Register => by_step!(1, push::<Reg<0>>),
            OpKind::Memory => by_step!(1, push::<Mem>),
            _ => by_step!(1, push::<Imm>),
        },
        M::Pop if segment => by_step!(1, pop_segment),
        M::Pop => match i.op0_kind() {
            OpKind::Register => by_step!(1, pop::<Reg<0>>),
            _ => by_step!(1, pop::<Mem>),
        },
        M::Pusha | M::Pushad => by_step!(8, push_all),
        M::Popa | M::Popad => by_step!(8, pop_all),
        M::Pushf | M::Pushfd | M::Pushfq => by_step!(1, push_flags),
        M::Popf | M::Popfd | M::Popfq => by_step!(1, pop_flags),
        _ => match i.code() {
            Code::Enterw_imm16_imm8 => Some(enter::<u16>),
            Code::Enterd_imm16_imm8 => Some(enter::<u32>),
            Code::Enterq_imm16_imm8 => Some(enter::<u64>),
            Code::Leavew => Some(leave::<u16>),
            Code::Leaved => Some(leave::<u32>),
            Code::Leaveq => Some(leave::<u64>),
            _ => far_lookup(i),
        },
    }
}

#[inline(always)]
fn push<W: Int, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value: W = S::read(cpu, insn)?;
    cpu.push(value)
}

#[inline(always)]
fn quick_push(cpu: &mut Cpu, insn: &Insn) -> Step {
    cpu.try_push(cpu.get::<u64>(insn.r[0]))
}

#[inline(always)]
fn quick_pop(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value: u64 = cpu.try_pop()?;
    cpu.put(insn.r[0], value);
    Ok(())
}

/// The new stack pointer is what a memory operand's address is computed from, and what a popped RSP replaces.
#[inline(always)]
fn pop<W: Int, D: Place>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let before = cpu.gpr[RSP];
    let value: W = cpu.pop()?;
    let done = D::write(cpu, insn, value);
    if done.is_err() {
        cpu.gpr[RSP] = before;
    }
    done
}

/// Of 32 bits, only the selector's 16 are written (as Intel processors do it).
fn push_segment<W: Int>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let selector = cpu.segments[usize::from(insn.r[0] % 6)].selector;
    if W::BITS != 32 {
        return cpu.push(W::of(selector.into()));
    }
    let top = cpu.gpr[RSP].wrapping_sub(4) & cpu.stack_mask();
    cpu.store_at(cpu.stack(), top, selector, StoreKind::Cached)?;
    cpu.set_stack_pointer(top);
    Ok(())
}

fn pop_segment<W: Int>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value: u16 = cpu.peek(0)?;
    cpu.load_segment(insn.r[0], value)?;
    cpu.shadow |= insn.r[0] == SS;
    // By the width that the stack has now: SS may be what was loaded.
    cpu.set_stack_pointer(cpu.gpr[RSP].wrapping_add(W::BYTES as u64));
    Ok(())
}

fn push_all<W: Int>(cpu: &mut Cpu, _: &Insn) -> Step {
    let before = cpu.gpr[RSP];
    for r in 0..8 {
        let value = if usize::from(r) == RSP { W::of(before) } else { cpu.get(r) };
        if let Err(trap) = cpu.push(value) {
            cpu.gpr[RSP] = before;
            return Err(trap);
        }
    }
    Ok(())
}

/// A fault finds the registers before it popped, and the stack pointer where it was. RSP's place is read for nothing.
fn pop_all<W: Int>(cpu: &mut Cpu, _: &Insn) -> Step {
    for n in 0..8 {
        let value: W = cpu.peek(u64::from(n) * W::BYTES as u64)?;
        if 7 - n != RSP as u8 {
            cpu.put(7 - n, value);
        }
    }
    cpu.set_stack_pointer(cpu.gpr[RSP].wrapping_add(8 * W::BYTES as u64));
    Ok(())
}

/// In virtual-8086 mode the flags are IOPL-sensitive.
fn virtual_8086_denies(cpu: &Cpu) -> bool {
    cpu.flags.control & bit::VM != 0 && cpu.flags.control & bit::IOPL != bit::IOPL
}

fn push_flags<W: Int>(cpu: &mut Cpu, _: &Insn) -> Step {
    if virtual_8086_denies(cpu) {
        return cpu.gp();
    }
    cpu.push(W::of(cpu.flags.get() & !(bit::VM | bit::RF)))
}

fn pop_flags<W: Int>(cpu: &mut Cpu, _: &Insn) -> Step {
    if virtual_8086_denies(cpu) {
        return cpu.gp();
    }
    let value: W = cpu.pop()?;
    let old = cpu.flags.get();
    let mut open = bit::STATUS | bit::TF | bit::DF | bit::NT | bit::AC | bit::ID;
    if cpu.cpl == 0 {
        open |= bit::IOPL;
    }
    if u64::from(cpu.cpl) <= (old & bit::IOPL) >> 12 {
        open |= bit::IF;
    }
    if W::BITS == 16 {
        open &= 0xFFFF;
    }
    let new = (old & !open | value.zext() & open) & !bit::RF;
    cpu.flags.set(new);
    if (old ^ new) & bit::AC != 0 {
        cpu.mode_changed();
    }
    Ok(())
}

/// The immediate holds the frame's size and, from bit 16, the nesting level.
fn enter<W: Int>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let (size, level) = (insn.imm & 0xFFFF, (insn.imm >> 16 & 31) as usize);
    let (stack, mask) = (cpu.stack(), cpu.stack_mask());
    let word = W::BYTES as u64;
    let mut top = cpu.gpr[RSP];
    let mut push = |cpu: &mut Cpu, value: W| {
        top = top.wrapping_sub(word) & mask;
        cpu.store_at(stack, top, value, StoreKind::Cached)?;
        Ok(top)
    };
    let base = cpu.get(RBP);
    let frame = push(cpu, base)?;
    for n in 1..level as u64 {
        let at = cpu.gpr[usize::from(RBP)].wrapping_sub(n * word) & mask;
        let display: W = cpu.load_at(stack, at)?;
        push(cpu, display)?;
    }
    if level > 0 {
        push(cpu, W::of(frame))?;
    }
    let top = top.wrapping_sub(size) & mask;
    // The processor tries a write at the new top of the stack.
    cpu.probe(stack, top, W::BYTES, true)?;
    cpu.put(RBP, W::of(frame));
    cpu.set_stack_pointer(top);
    Ok(())
}

fn leave<W: Int>(cpu: &mut Cpu, _: &Insn) -> Step {
    let frame = cpu.gpr[usize::from(RBP)] & cpu.stack_mask();
    let value: W = cpu.load_at(cpu.stack(), frame)?;
    cpu.put(RBP, value);
    cpu.set_stack_pointer(frame.wrapping_add(W::BYTES as u64));
    Ok(())
}

fn far_lookup(i: &Instruction) -> Option<Exec> {
    macro_rules! by_size {
        ($seg:expr) => {
            match i.op0_register().size() {
                2 => Some(load_far::<u16, $seg> as Exec),
                4 => Some(load_far::<u32, $seg>),
                8 => Some(load_far::<u64, $seg>),
                _ => None,
            }
        };
    }
    match i.mnemonic() {
        M::Les => by_size!(0),
        M::Lss => by_size!(SS),
        M::Lds => by_size!(3),
        M::Lfs => by_size!(4),
        M::Lgs => by_size!(5),
        _ => None,
    }
}

/// LDS and its like: the offset, and behind it the selector.
fn load_far<W: Int, const SEGMENT: u8>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value: W = cpu.load(insn)?;
    let behind = Insn { disp: insn.disp.wrapping_add(W::BYTES as u64), ..*insn };
    let selector: u16 = cpu.load(&behind)?;
    cpu.load_segment(SEGMENT, selector)?;
    cpu.put(insn.r[0], value);
    Ok(())
}
