//! ADD, ADC, SUB, SBB, CMP, AND, OR, XOR, TEST, INC, DEC, NEG, NOT.

use iced_x86::{Instruction, Mnemonic as M};

use super::operand::{
    Flat, Imm, Int, Mem, Place, Reg, Source, by_memory, by_place, by_places, by_width, is_flat, tried,
};
use crate::cpu::Cpu;
use crate::flags::Flags;
use crate::insn::{Exec, Insn};
use crate::trap::Step;
use crate::width::Width;

pub(super) fn lookup(i: &Instruction) -> Option<Exec> {
    match i.mnemonic() {
        M::Add => by_places!(i, binary, Add),
        M::Adc => by_places!(i, binary, Adc),
        M::Sub => by_places!(i, binary, Sub),
        M::Sbb => by_places!(i, binary, Sbb),
        M::And => by_places!(i, binary, And),
        M::Or => by_places!(i, binary, Or),
        M::Xor => by_places!(i, binary, Xor),
        M::Cmp => by_places!(i, compare, Sub),
        M::Test => by_places!(i, compare, And),
        M::Inc => by_place!(i, unary, Inc),
        M::Dec => by_place!(i, unary, Dec),
        M::Neg => by_place!(i, unary, Neg),
        M::Not => by_place!(i, unary, Not),
        _ => None,
    }
}

/// An operation on two operands.
trait Binary {
    fn apply<W: Width>(flags: &mut Flags, a: W, b: W) -> W;
}

/// An operation on one operand.
trait Unary {
    fn apply<W: Width>(flags: &mut Flags, a: W) -> W;
}

macro_rules! operation {
    ($($kind:ident $name:ident($flags:ident, $a:ident $(, $b:ident)?) $body:expr;)*) => {$(
        struct $name;

        impl $kind for $name {
            #[inline(always)]
            fn apply<W: Width>($flags: &mut Flags, $a: W $(, $b: W)?) -> W {
                $body
            }
        }
    )*};
}

operation! {
    Binary Add(flags, a, b) flags.add(a, b, false);
    Binary Adc(flags, a, b) { let carry = flags.cf(); flags.add(a, b, carry) };
    Binary Sub(flags, a, b) flags.sub(a, b, false);
    Binary Sbb(flags, a, b) { let borrow = flags.cf(); flags.sub(a, b, borrow) };
    Binary And(flags, a, b) flags.logic(W::of(a.zext() & b.zext()));
    Binary Or(flags, a, b) flags.logic(W::of(a.zext() | b.zext()));
    Binary Xor(flags, a, b) flags.logic(W::of(a.zext() ^ b.zext()));
    Unary Inc(flags, a) flags.inc(a);
    Unary Dec(flags, a) flags.dec(a);
    Unary Neg(flags, a) flags.sub(W::of(0), a, false);
    Unary Not(_flags, a) W::of(!a.zext());
}

#[inline(always)]
fn binary<W: Int, Op: Binary, D: Place, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let b: W = S::read(cpu, insn)?;
    D::modify(cpu, insn, |flags, a| (Op::apply(flags, a, b), ()))
}

/// CMP and TEST: as the operation, but only the flags are kept.
#[inline(always)]
fn compare<W: Int, Op: Binary, D: Source, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let a: W = D::read(cpu, insn)?;
    let b: W = S::read(cpu, insn)?;
    Op::apply(&mut cpu.flags, a, b);
    Ok(())
}

#[inline(always)]
fn unary<W: Int, Op: Unary, D: Place>(cpu: &mut Cpu, insn: &Insn) -> Step {
    D::modify(cpu, insn, |flags, a: W| (Op::apply(flags, a), ()))
}
