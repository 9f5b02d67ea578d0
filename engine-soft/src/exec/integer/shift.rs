//! Shifts and rotates, also through carry and of double width.
//!
//! A count of 0 keeps the flags. OF is defined for a count of 1 only; for others it is what the last of so many
//! single steps would leave. AF is cleared by shifts.

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::operand::{Imm, Int, Mem, Place, Reg, Source, by_width, by_word};
use crate::cpu::Cpu;
use crate::flags::Flags;
use crate::insn::{Exec, Insn};
use crate::trap::Step;
use crate::width::Width;

pub(super) fn lookup(i: &Instruction) -> Option<Exec> {
    macro_rules! by_count {
        ($op:ty) => {
            match (i.op0_kind(), i.op1_kind()) {
                (OpKind::Register, OpKind::Register) => {
                    by_width!(super::width(i), shift, $op, Reg<0>, Reg<1>)
                }
                (OpKind::Register, _) => by_width!(super::width(i), shift, $op, Reg<0>, Imm),
                (_, OpKind::Register) => by_width!(super::width(i), shift, $op, Mem, Reg<1>),
                _ => by_width!(super::width(i), shift, $op, Mem, Imm),
            }
        };
    }
    macro_rules! by_third {
        ($f:ident) => {
            match (i.op0_kind(), i.op2_kind()) {
                (OpKind::Register, OpKind::Register) => by_word!(super::width(i), $f, Reg<0>, Reg<2>),
                (OpKind::Register, _) => by_word!(super::width(i), $f, Reg<0>, Imm),
                (_, OpKind::Register) => by_word!(super::width(i), $f, Mem, Reg<2>),
                _ => by_word!(super::width(i), $f, Mem, Imm),
            }
        };
    }
    match i.mnemonic() {
        M::Shl | M::Sal => by_count!(Shl),
        M::Shr => by_count!(Shr),
        M::Sar => by_count!(Sar),
        M::Rol => by_count!(Rol),
        M::Ror => by_count!(Ror),
        M::Rcl => by_count!(Rcl),
        M::Rcr => by_count!(Rcr),
        M::Shld => by_third!(shld),
        M::Shrd => by_third!(shrd),
        _ => None,
    }
}

/// Bits of the count that matter.
#[inline(always)]
fn masked<W: Width>(count: u8) -> u32 {
    u32::from(count) & if W::BITS == 64 { 63 } else { 31 }
}

/// The top bit.
#[inline(always)]
fn top<W: Width>(value: u64) -> bool {
    value & W::SIGN != 0
}

/// The two top bits differ.
#[inline(always)]
fn turns<W: Width>(value: u64) -> bool {
    top::<W>(value ^ value << 1)
}

trait Shift {
    /// `count` is masked and not 0.
    fn apply<W: Width>(flags: &mut Flags, a: W, count: u32) -> W;
}

struct Shl;
struct Shr;
struct Sar;
struct Rol;
struct Ror;
struct Rcl;
struct Rcr;

impl Shift for Shl {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut Flags, a: W, count: u32) -> W {
        // One step less, so that the last bit out is still there.
        let before = a.zext() << (count - 1);
        let (carry, result) = (top::<W>(before), W::of(before << 1));
        flags.shifted(result, carry, top::<W>(result.zext()) != carry)
    }
}

impl Shift for Shr {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut Flags, a: W, count: u32) -> W {
        let before = a.zext() >> (count - 1);
        flags.shifted(W::of(before >> 1), before & 1 != 0, top::<W>(before))
    }
}

impl Shift for Sar {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut Flags, a: W, count: u32) -> W {
        let before = a.sext() as i64 >> (count - 1);
        flags.shifted(W::of((before >> 1) as u64), before & 1 != 0, false)
    }
}

impl Shift for Rol {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut Flags, a: W, count: u32) -> W {
        let n = count % W::BITS;
        let result = W::of(if n == 0 { a.zext() } else { a.zext() << n | a.zext() >> (W::BITS - n) });
        let carry = result.zext() & 1 != 0;
        flags.rotated(carry, top::<W>(result.zext()) != carry);
        result
    }
}

impl Shift for Ror {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut Flags, a: W, count: u32) -> W {
        let n = count % W::BITS;
        let result = W::of(if n == 0 { a.zext() } else { a.zext() >> n | a.zext() << (W::BITS - n) });
        flags.rotated(top::<W>(result.zext()), turns::<W>(result.zext()));
        result
    }
}

/// The operand with CF above it, turned left.
#[inline(always)]
fn turned<W: Width>(flags: &Flags, a: W, left: u32) -> u128 {
    let wide = u128::from(flags.cf()) << W::BITS | u128::from(a.zext());
    wide << left | wide >> (W::BITS + 1 - left)
}

impl Shift for Rcl {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut Flags, a: W, count: u32) -> W {
        let n = count % (W::BITS + 1);
        if n == 0 {
            return a;
        }
        let wide = turned(flags, a, n);
        let (result, carry) = (W::of(wide as u64), wide >> W::BITS & 1 != 0);
        flags.rotated(carry, top::<W>(result.zext()) != carry);
        result
    }
}

impl Shift for Rcr {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut Flags, a: W, count: u32) -> W {
        let n = count % (W::BITS + 1);
        if n == 0 {
            return a;
        }
        let wide = turned(flags, a, W::BITS + 1 - n);
        let result = W::of(wide as u64);
        flags.rotated(wide >> W::BITS & 1 != 0, turns::<W>(result.zext()));
        result
    }
}

fn shift<W: Int, Op: Shift, D: Place, C: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let count = masked::<W>(C::read(cpu, insn)?);
    D::modify(cpu, insn, |flags, a: W| (if count == 0 { a } else { Op::apply(flags, a, count) }, ()))
}

/// Of 16 bits, counts above 16 are undefined; Intel processors take the missing bits from the destination again.
fn shld<W: Int, D: Place, C: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let count = masked::<W>(C::read(cpu, insn)?);
    let low: W = cpu.get(insn.r[1]);
    D::modify(cpu, insn, |flags, a: W| {
        if count == 0 {
            return (a, ());
        }
        let wide = if W::BITS == 16 {
            u128::from(a.zext()) << 32 | u128::from(low.zext()) << 16 | u128::from(a.zext())
        } else {
            u128::from(a.zext()) << W::BITS | u128::from(low.zext())
        };
        let size = if W::BITS == 16 { 48 } else { 2 * W::BITS };
        let before = (wide << (count - 1) >> (size - W::BITS)) as u64;
        let result = W::of((wide << count >> (size - W::BITS)) as u64);
        (flags.shifted(result, top::<W>(before), top::<W>(before ^ result.zext())), ())
    })
}

fn shrd<W: Int, D: Place, C: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let count = masked::<W>(C::read(cpu, insn)?);
    let high: W = cpu.get(insn.r[1]);
    D::modify(cpu, insn, |flags, a: W| {
        if count == 0 {
            return (a, ());
        }
        let wide = u128::from(high.zext()) << W::BITS | u128::from(a.zext());
        let wide = if W::BITS == 16 { wide | u128::from(a.zext()) << 32 } else { wide };
        let before = wide >> (count - 1);
        let result = W::of((before >> 1) as u64);
        (flags.shifted(result, before & 1 != 0, turns::<W>(result.zext())), ())
    })
}
