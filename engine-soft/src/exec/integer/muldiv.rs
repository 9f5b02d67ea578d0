//! MUL, IMUL, DIV, IDIV.
//!
//! SF, ZF, AF and PF after a multiplication are undefined: they are those of the product's low half, AF clear. A division
//! keeps all flags.

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::operand::{Imm, Int, Mem, Reg, Source, by_width, by_word};
use crate::cpu::Cpu;
use crate::flags::Flags;
use crate::insn::{Exec, Insn};
use crate::trap::{Step, vector};
use crate::width::Width;

/// Register numbers of the accumulator and its upper half; of 8 bits they are AL and AH.
const RAX: u8 = 0;
const RDX: u8 = 2;
const AL: u8 = 0;
const AH: u8 = 1;

pub(super) fn lookup(i: &Instruction) -> Option<Exec> {
    macro_rules! by_source {
        ($f:ident) => {
            match i.op0_kind() {
                OpKind::Register => by_width!(super::width(i), $f, Reg<0>),
                _ => by_width!(super::width(i), $f, Mem),
            }
        };
    }
    match (i.mnemonic(), i.op_count()) {
        (M::Mul, 1) => by_source!(mul),
        (M::Imul, 1) => by_source!(imul),
        (M::Div, 1) => by_source!(div),
        (M::Idiv, 1) => by_source!(idiv),
        (M::Imul, 2) => match i.op1_kind() {
            OpKind::Register => by_word!(super::width(i), imul_to, Reg<0>, Reg<1>),
            _ => by_word!(super::width(i), imul_to, Reg<0>, Mem),
        },
        (M::Imul, _) => match i.op1_kind() {
            OpKind::Register => by_word!(super::width(i), imul_to, Imm, Reg<1>),
            _ => by_word!(super::width(i), imul_to, Imm, Mem),
        },
        _ => None,
    }
}

/// The double-wide accumulator: AX, DX:AX, EDX:EAX, RDX:RAX.
#[inline(always)]
fn wide<W: Width>(cpu: &Cpu) -> u128 {
    let (low, high): (W, W) =
        if W::BITS == 8 { (cpu.get(AL), cpu.get(AH)) } else { (cpu.get(RAX), cpu.get(RDX)) };
    u128::from(high.zext()) << W::BITS | u128::from(low.zext())
}

#[inline(always)]
fn put_wide<W: Width>(cpu: &mut Cpu, low: W, high: W) {
    if W::BITS == 8 {
        cpu.put(AL, low);
        cpu.put(AH, high);
    } else {
        cpu.put(RAX, low);
        cpu.put(RDX, high);
    }
}

#[inline(always)]
fn put_product<W: Width>(cpu: &mut Cpu, product: u128, fits: bool) {
    let low = W::of(product as u64);
    put_wide(cpu, low, W::of((product >> W::BITS) as u64));
    multiplied(&mut cpu.flags, low, fits);
}

/// CF and OF say that the upper half matters.
#[inline(always)]
fn multiplied<W: Width>(flags: &mut Flags, low: W, fits: bool) {
    flags.shifted(low, !fits, !fits);
}

fn mul<W: Int, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let b: W = S::read(cpu, insn)?;
    let a: W = cpu.get(RAX);
    let product = u128::from(a.zext()) * u128::from(b.zext());
    put_product::<W>(cpu, product, product >> W::BITS == 0);
    Ok(())
}

/// Full signed product.
#[inline(always)]
fn signed<W: Width>(a: W, b: W) -> i128 {
    i128::from(a.sext() as i64) * i128::from(b.sext() as i64)
}

#[inline(always)]
fn fits<W: Width>(product: i128) -> bool {
    i128::from(W::of(product as u64).sext() as i64) == product
}

fn imul<W: Int, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let b: W = S::read(cpu, insn)?;
    let product = signed(cpu.get::<W>(RAX), b);
    put_product::<W>(cpu, product as u128, fits::<W>(product));
    Ok(())
}

/// Two and three operands: the product's low half only.
fn imul_to<W: Int, A: Source, B: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let b: W = B::read(cpu, insn)?;
    let a: W = A::read(cpu, insn)?;
    let product = signed(a, b);
    let low = W::of(product as u64);
    cpu.put(insn.r[0], low);
    multiplied(&mut cpu.flags, low, fits::<W>(product));
    Ok(())
}

fn div<W: Int, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let divisor: W = S::read(cpu, insn)?;
    let (divisor, dividend) = (divisor.zext(), wide::<W>(cpu));
    if dividend >> W::BITS >= u128::from(divisor) {
        return cpu.raise(vector::DE, None);
    }
    // Dividing 64 bits is much cheaper, and the usual case of every width.
    let (quotient, remainder) = match u64::try_from(dividend) {
        Ok(dividend) => (dividend / divisor, dividend % divisor),
        Err(_) => {
            let divisor = u128::from(divisor);
            ((dividend / divisor) as u64, (dividend % divisor) as u64)
        }
    };
    put_wide(cpu, W::of(quotient), W::of(remainder));
    Ok(())
}

fn idiv<W: Int, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let divisor: W = S::read(cpu, insn)?;
    let divisor = i128::from(divisor.sext() as i64);
    let unused = 128 - 2 * W::BITS;
    let dividend = (wide::<W>(cpu) << unused) as i128 >> unused;
    let result = dividend.checked_div(divisor).filter(|quotient| fits::<W>(*quotient));
    let Some(quotient) = result else {
        return cpu.raise(vector::DE, None);
    };
    let remainder = dividend - quotient * divisor;
    put_wide(cpu, W::of(quotient as u64), W::of(remainder as u64));
    Ok(())
}
