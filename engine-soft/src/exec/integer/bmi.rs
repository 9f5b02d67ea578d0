//! What x86-64-v3 adds to the general-purpose instructions: BMI1, BMI2, LZCNT, MOVBE.
//!
//! Those with a VEX prefix do not ask for XCR0: they only are no instructions in real and virtual-8086 mode. Flags that the
//! SDM leaves undefined are cleared.

use iced_x86::{CpuidFeature, Instruction, Mnemonic as M, OpKind};

use super::operand::{Int, Mem, Reg, Source, by_word};
use crate::cpu::Cpu;
use crate::flags::bit::{CF, OF, SF, ZF};
use crate::insn::{Exec, Insn};
use crate::trap::Step;

/// The function that executes such an instruction.
#[must_use]
pub fn lookup(i: &Instruction) -> Option<Exec> {
    use CpuidFeature::{BMI1, BMI2, LZCNT, MOVBE};
    if !i.cpuid_features().iter().any(|feature| matches!(feature, BMI1 | BMI2 | LZCNT | MOVBE)) {
        return None;
    }
    let width = super::width(i);
    // The source that may be memory is the second operand, or the third where the second is VEX.vvvv.
    macro_rules! second {
        ($f:ident) => {
            if i.op1_kind() == OpKind::Memory {
                by_word!(width, $f, Mem)
            } else {
                by_word!(width, $f, Reg<1>)
            }
        };
    }
    macro_rules! third {
        ($f:ident) => {
            if i.op2_kind() == OpKind::Memory {
                by_word!(width, $f, Mem)
            } else {
                by_word!(width, $f, Reg<2>)
            }
        };
    }
    match i.mnemonic() {
        M::Tzcnt => second!(tzcnt),
        M::Lzcnt => second!(lzcnt),
        M::Movbe if i.op1_kind() == OpKind::Memory => by_word!(width, movbe_load),
        M::Movbe => by_word!(width, movbe_store),
        M::Andn => third!(andn),
        M::Bextr => second!(bextr),
        M::Blsi => second!(blsi),
        M::Blsmsk => second!(blsmsk),
        M::Blsr => second!(blsr),
        M::Bzhi => second!(bzhi),
        M::Mulx => third!(mulx),
        M::Pdep => third!(pdep),
        M::Pext => third!(pext),
        M::Rorx => second!(rorx),
        M::Sarx => second!(sarx),
        M::Shlx => second!(shlx),
        M::Shrx => second!(shrx),
        _ => None,
    }
}

/// #UD where a VEX prefix is none.
#[inline(always)]
fn vex_usable(cpu: &mut Cpu) -> Step {
    if cpu.real { cpu.ud() } else { Ok(()) }
}

/// Puts a result, ZF and SF by it and CF as told.
#[inline(always)]
fn put<W: Int>(cpu: &mut Cpu, insn: &Insn, value: u64, carry: bool) {
    let value = W::of(value);
    cpu.put(insn.r[0], value);
    let zero = if value.zext() == 0 { ZF } else { 0 };
    let sign = if value.zext() & W::SIGN != 0 { SF } else { 0 };
    cpu.flags.set_status(zero | sign | u64::from(carry));
}

/// Counts are defined for a source of 0; of the flags only CF and ZF.
#[inline(always)]
fn counted<W: Int>(cpu: &mut Cpu, insn: &Insn, source: W, count: u32) {
    cpu.put(insn.r[0], W::of(count.into()));
    let carry = if source.zext() == 0 { CF } else { 0 };
    cpu.flags.set_status(if count == 0 { ZF } else { carry });
}

fn tzcnt<W: Int, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value: W = S::read(cpu, insn)?;
    counted(cpu, insn, value, value.zext().trailing_zeros().min(W::BITS));
    Ok(())
}

fn lzcnt<W: Int, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value: W = S::read(cpu, insn)?;
    counted(cpu, insn, value, value.zext().leading_zeros() - (64 - W::BITS));
    Ok(())
}

/// The bytes of a word in the other order.
#[inline(always)]
fn swapped<W: Int>(value: W) -> W {
    W::of(value.zext().swap_bytes() >> (64 - W::BITS))
}

fn movbe_load<W: Int>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value: W = cpu.load(insn)?;
    cpu.put(insn.r[0], swapped(value));
    Ok(())
}

fn movbe_store<W: Int>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value: W = cpu.get(insn.r[1]);
    cpu.store(insn, swapped(value))
}

fn andn<W: Int, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    vex_usable(cpu)?;
    let value: W = S::read(cpu, insn)?;
    let mask: W = cpu.get(insn.r[1]);
    put::<W>(cpu, insn, !mask.zext() & value.zext(), false);
    Ok(())
}

/// Bits from a start, so many of them; SF stays clear.
fn bextr<W: Int, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    vex_usable(cpu)?;
    let value: W = S::read(cpu, insn)?;
    let control = cpu.get::<u64>(insn.r[2]) as u32;
    let (start, len) = (control & 0xFF, control >> 8 & 0xFF);
    let bits = value.zext().checked_shr(start).unwrap_or(0) & low_ones(len);
    put::<W>(cpu, insn, bits, false);
    cpu.flags.set_status(cpu.flags.status() & ZF);
    Ok(())
}

/// A mask of so many low bits.
#[inline(always)]
fn low_ones(count: u32) -> u64 {
    1_u64.checked_shl(count).map_or(!0, |bit| bit - 1)
}

fn blsi<W: Int, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    vex_usable(cpu)?;
    let value = S::read::<W>(cpu, insn)?.zext();
    put::<W>(cpu, insn, value & value.wrapping_neg(), value != 0);
    Ok(())
}

/// ZF is never set: of 0 the mask is all ones.
fn blsmsk<W: Int, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    vex_usable(cpu)?;
    let value = S::read::<W>(cpu, insn)?.zext();
    put::<W>(cpu, insn, value ^ value.wrapping_sub(1), value == 0);
    Ok(())
}

fn blsr<W: Int, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    vex_usable(cpu)?;
    let value = S::read::<W>(cpu, insn)?.zext();
    put::<W>(cpu, insn, value & value.wrapping_sub(1), value == 0);
    Ok(())
}

/// Clears bits from an index on; CF: there are none.
fn bzhi<W: Int, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    vex_usable(cpu)?;
    let value: W = S::read(cpu, insn)?;
    let index = u32::from(cpu.get::<u64>(insn.r[2]) as u8);
    put::<W>(cpu, insn, value.zext() & low_ones(index), index >= W::BITS);
    Ok(())
}

/// The product with RDX, without flags. With one register for both halves it gets the upper.
fn mulx<W: Int, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    const RDX: u8 = 2;
    vex_usable(cpu)?;
    let value: W = S::read(cpu, insn)?;
    let factor: W = cpu.get(RDX);
    let product = u128::from(value.zext()) * u128::from(factor.zext());
    cpu.put(insn.r[1], W::of(product as u64));
    cpu.put(insn.r[0], W::of((product >> W::BITS) as u64));
    Ok(())
}

/// Hands the low bits of a value out to the places of a mask.
fn pdep<W: Int, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    vex_usable(cpu)?;
    let mut mask = S::read::<W>(cpu, insn)?.zext();
    let (mut value, mut result) = (cpu.get::<W>(insn.r[1]).zext(), 0);
    while mask != 0 {
        if value & 1 != 0 {
            result |= mask & mask.wrapping_neg();
        }
        value >>= 1;
        mask &= mask - 1;
    }
    cpu.put(insn.r[0], W::of(result));
    Ok(())
}

/// Gathers the bits at the places of a mask.
fn pext<W: Int, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    vex_usable(cpu)?;
    let mut mask = S::read::<W>(cpu, insn)?.zext();
    let (value, mut result) = (cpu.get::<W>(insn.r[1]).zext(), 0);
    for n in 0..mask.count_ones() {
        if value & mask & mask.wrapping_neg() != 0 {
            result |= 1_u64 << n;
        }
        mask &= mask - 1;
    }
    cpu.put(insn.r[0], W::of(result));
    Ok(())
}

fn rorx<W: Int, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    vex_usable(cpu)?;
    let value = S::read::<W>(cpu, insn)?.zext();
    let count = insn.imm as u32 & (W::BITS - 1);
    let wrapped = value.checked_shl(W::BITS - count).unwrap_or(0);
    cpu.put(insn.r[0], W::of(value >> count | wrapped));
    Ok(())
}

/// The third operand, as a shift count.
#[inline(always)]
fn count<W: Int>(cpu: &Cpu, insn: &Insn) -> u32 {
    cpu.get::<u64>(insn.r[2]) as u32 & (W::BITS - 1)
}

fn sarx<W: Int, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    vex_usable(cpu)?;
    let value: W = S::read(cpu, insn)?;
    cpu.put(insn.r[0], W::of((value.sext() as i64 >> count::<W>(cpu, insn)) as u64));
    Ok(())
}

fn shlx<W: Int, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    vex_usable(cpu)?;
    let value: W = S::read(cpu, insn)?;
    cpu.put(insn.r[0], W::of(value.zext() << count::<W>(cpu, insn)));
    Ok(())
}

fn shrx<W: Int, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    vex_usable(cpu)?;
    let value: W = S::read(cpu, insn)?;
    cpu.put(insn.r[0], W::of(value.zext() >> count::<W>(cpu, insn)));
    Ok(())
}

/// All flags that these instructions can set, for who compares them.
pub const FLAGS: u64 = CF | ZF | SF | OF;
