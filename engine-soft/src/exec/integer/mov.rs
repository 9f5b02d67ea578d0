//! MOV, its extending relatives, LEA, XCHG, BSWAP, CMOVcc, SETcc, XLAT and the sign extensions of the accumulator.

use engine::state::SystemRegisters;
use iced_x86::{Code, Instruction, Mnemonic as M, OpKind, Register};

use super::operand::{
    Flat, Imm, Int, Mem, Place, Reg, Source, by_memory, by_place, by_places, by_width, by_word, is_flat,
    tried,
};
use crate::cpu::Cpu;
use crate::insn::{Exec, Insn};
use crate::trap::Step;

/// RAX and RDX in register numbers of more than 8 bits; AL.
const RAX: u8 = 0;
const RDX: u8 = 2;
const AL: u8 = 0;

pub(super) fn lookup(i: &Instruction) -> Option<Exec> {
    match i.mnemonic() {
        M::Mov => mov_lookup(i),
        M::Movzx => extend_lookup::<false>(i),
        M::Movsx | M::Movsxd => extend_lookup::<true>(i),
        M::Lea => by_word!(super::width(i), lea),
        M::Xchg => by_place!(i, xchg),
        M::Bswap => by_word!(super::width(i), bswap),
        M::Cbw => Some(widen::<u8, u16>),
        M::Cwde => Some(widen::<u16, u32>),
        M::Cdqe => Some(widen::<u32, u64>),
        M::Cwd => Some(spread::<u16>),
        M::Cdq => Some(spread::<u32>),
        M::Cqo => Some(spread::<u64>),
        M::Xlatb => Some(xlat),
        _ => conditional_lookup(i),
    }
}

fn mov_lookup(i: &Instruction) -> Option<Exec> {
    let segment = |r: Register| r.is_segment_register();
    if segment(i.op1_register()) {
        return match (i.op0_kind(), i.op0_register().size()) {
            (OpKind::Memory, _) => Some(mov_from_segment::<u16, Mem>),
            (_, 2) => Some(mov_from_segment::<u16, Reg<0>>),
            (_, 4) => Some(mov_from_segment::<u32, Reg<0>>),
            _ => Some(mov_from_segment::<u64, Reg<0>>),
        };
    }
    if segment(i.op0_register()) {
        return match i.op1_kind() {
            OpKind::Memory => Some(mov_to_segment::<Mem>),
            _ => Some(mov_to_segment::<Reg<1>>),
        };
    }
    let general = |r: Register| r == Register::None || r.is_gpr();
    if !general(i.op0_register()) || !general(i.op1_register()) {
        return None;
    }
    by_places!(i, mov)
}

#[inline(always)]
fn mov<W: Int, D: Place, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value: W = S::read(cpu, insn)?;
    D::write(cpu, insn, value)
}

fn mov_from_segment<W: Int, D: Place>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let selector = cpu.segments[usize::from(insn.r[1] % 6)].selector;
    D::write(cpu, insn, W::of(selector.into()))
}

fn mov_to_segment<S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let selector: u16 = S::read(cpu, insn)?;
    cpu.load_segment(insn.r[0], selector)?;
    // The next instruction loads the stack pointer: nothing comes between.
    cpu.shadow |= usize::from(insn.r[0]) == SystemRegisters::SS;
    Ok(())
}

fn extend_lookup<const SIGNED: bool>(i: &Instruction) -> Option<Exec> {
    let (to, from) = (
        i.op0_register().size(),
        match i.op1_kind() {
            OpKind::Register => i.op1_register().size(),
            _ => i.memory_size().size(),
        },
    );
    macro_rules! from {
        ($($to:literal $from:literal $t:ty, $f:ty;)*) => {
            match (to, from, i.op1_kind()) {
                $(
                    ($to, $from, OpKind::Register) => Some(extend::<$t, $f, Reg<1>, SIGNED> as Exec),
                    ($to, $from, _) if is_flat(i) => {
                        Some(tried!(extend::<$t, $f, Flat, SIGNED>, extend::<$t, $f, Mem, SIGNED>))
                    }
                    ($to, $from, _) => Some(extend::<$t, $f, Mem, SIGNED>),
                )*
                _ => None,
            }
        };
    }
    from! {
        2 1 u16, u8; 4 1 u32, u8; 8 1 u64, u8;
        2 2 u16, u16; 4 2 u32, u16; 8 2 u64, u16;
        2 4 u16, u32; 4 4 u32, u32; 8 4 u64, u32;
    }
}

#[inline(always)]
fn extend<T: Int, F: Int, S: Source, const SIGNED: bool>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value: F = S::read(cpu, insn)?;
    cpu.put(insn.r[0], T::of(if SIGNED { value.sext() } else { value.zext() }));
    Ok(())
}

fn lea<W: Int>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let offset = cpu.offset(insn);
    cpu.put(insn.r[0], W::of(offset));
    Ok(())
}

#[inline(always)]
fn xchg<W: Int, D: Place>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let new: W = cpu.get(insn.r[1]);
    let old = D::modify(cpu, insn, |_, old| (new, old))?;
    cpu.put(insn.r[1], old);
    Ok(())
}

/// Of 16 bits it is undefined; Intel processors give 0.
fn bswap<W: Int>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value: W = cpu.get(insn.r[0]);
    let swapped = if W::BITS == 16 { 0 } else { value.zext().swap_bytes() >> (64 - W::BITS) };
    cpu.put(insn.r[0], W::of(swapped));
    Ok(())
}

/// CBW, CWDE, CDQE.
fn widen<F: Int, T: Int>(cpu: &mut Cpu, _: &Insn) -> Step {
    let value: F = cpu.get(RAX);
    cpu.put(RAX, T::of(value.sext()));
    Ok(())
}

/// CWD, CDQ, CQO.
fn spread<W: Int>(cpu: &mut Cpu, _: &Insn) -> Step {
    let value: W = cpu.get(RAX);
    cpu.put(RDX, W::of((value.sext() as i64 >> 63) as u64));
    Ok(())
}

/// The decoded operand is RBX alone.
fn xlat(cpu: &mut Cpu, insn: &Insn) -> Step {
    let index: u8 = cpu.get(AL);
    let at = Insn { disp: index.into(), ..*insn };
    let value: u8 = cpu.load(&at)?;
    cpu.put(AL, value);
    Ok(())
}

fn conditional_lookup(i: &Instruction) -> Option<Exec> {
    // `ConditionCode` counts from 1 in the order of the opcodes' low four bits.
    let condition = (i.condition_code() as u8).checked_sub(1)?;
    macro_rules! pick {
        ($($c:literal)*) => {
            match condition {
                $($c if is_set(i.code()) => match i.op0_kind() {
                    OpKind::Register => Some(set::<Reg<0>, $c> as Exec),
                    _ => Some(set::<Mem, $c>),
                },
                $c if is_move(i) => match i.op1_kind() {
                    OpKind::Register => by_cmov::<Reg<1>, $c>(i),
                    _ => by_cmov::<Mem, $c>(i),
                },)*
                _ => None,
            }
        };
    }
    pick!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
}

fn is_set(code: Code) -> bool {
    matches!(
        code,
        Code::Seto_rm8
            | Code::Setno_rm8
            | Code::Setb_rm8
            | Code::Setae_rm8
            | Code::Sete_rm8
            | Code::Setne_rm8
            | Code::Setbe_rm8
            | Code::Seta_rm8
            | Code::Sets_rm8
            | Code::Setns_rm8
            | Code::Setp_rm8
            | Code::Setnp_rm8
            | Code::Setl_rm8
            | Code::Setge_rm8
            | Code::Setle_rm8
            | Code::Setg_rm8
    )
}

/// CMOVcc: of the instructions with a condition, the one with two general operands.
fn is_move(i: &Instruction) -> bool {
    i.op_count() == 2 && i.op0_register().is_gpr() && i.op0_register().size() > 1
}

#[inline(always)]
fn set<D: Place, const C: u8>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value = u8::from(cpu.flags.condition(C));
    D::write(cpu, insn, value)
}

fn by_cmov<S: Source, const C: u8>(i: &Instruction) -> Option<Exec> {
    match super::width(i) {
        2 => Some(cmov::<u16, S, C>),
        4 => Some(cmov::<u32, S, C>),
        8 => Some(cmov::<u64, S, C>),
        _ => None,
    }
}

/// The source is read, and a 32-bit destination extended, whatever the condition.
#[inline(always)]
fn cmov<W: Int, S: Source, const C: u8>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let new: W = S::read(cpu, insn)?;
    let old: W = cpu.get(insn.r[0]);
    cpu.put(insn.r[0], if cpu.flags.condition(C) { new } else { old });
    Ok(())
}
