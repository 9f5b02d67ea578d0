//! BT, BTS, BTR, BTC, BSF, BSR, POPCNT, CRC32.

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::operand::{Imm, Int, Mem, Place, Reg, Source, by_width, by_word};
use crate::cpu::Cpu;
use crate::insn::{Exec, Insn};
use crate::trap::Step;

pub(super) fn lookup(i: &Instruction) -> Option<Exec> {
    macro_rules! by_source {
        ($f:ident) => {
            match i.op1_kind() {
                OpKind::Register => by_word!(super::width(i), $f, Reg<1>),
                _ => by_word!(super::width(i), $f, Mem),
            }
        };
    }
    match i.mnemonic() {
        M::Bt => bit_lookup::<Test>(i),
        M::Bts => bit_lookup::<Set>(i),
        M::Btr => bit_lookup::<Reset>(i),
        M::Btc => bit_lookup::<Complement>(i),
        // The CPU shown has neither BMI1 nor ABM: their prefix means nothing to it.
        M::Bsf | M::Tzcnt => by_source!(scan_forward),
        M::Bsr | M::Lzcnt => by_source!(scan_reverse),
        M::Popcnt => by_source!(count),
        M::Crc32 => {
            let width = match i.op1_kind() {
                OpKind::Register => i.op1_register().size(),
                _ => i.memory_size().size(),
            };
            match i.op1_kind() {
                OpKind::Register => by_width!(width, crc32, Reg<1>),
                _ => by_width!(width, crc32, Mem),
            }
        }
        _ => None,
    }
}

/// What becomes of the bit.
trait Change {
    /// The word with `mask`'s bit changed; `None` if it never is.
    fn apply(word: u64, mask: u64) -> Option<u64>;
}

struct Test;
struct Set;
struct Reset;
struct Complement;

macro_rules! change {
    ($($name:ident($word:ident, $mask:ident) $body:expr;)*) => {$(
        impl Change for $name {
            #[inline(always)]
            fn apply($word: u64, $mask: u64) -> Option<u64> {
                $body
            }
        }
    )*};
}

change! {
    Test(_word, _mask) None;
    Set(word, mask) Some(word | mask);
    Reset(word, mask) Some(word & !mask);
    Complement(word, mask) Some(word ^ mask);
}

fn bit_lookup<C: Change>(i: &Instruction) -> Option<Exec> {
    match (i.op0_kind(), i.op1_kind()) {
        (OpKind::Register, OpKind::Register) => by_word!(super::width(i), bit_of_register, C, Reg<1>),
        (OpKind::Register, _) => by_word!(super::width(i), bit_of_register, C, Imm),
        (_, OpKind::Register) => by_word!(super::width(i), bit_of_string, C),
        _ => by_word!(super::width(i), bit_of_memory, C),
    }
}

/// Only CF changes: Intel leaves the flags that are undefined here.
#[inline(always)]
fn change<W: Int, C: Change, D: Place>(cpu: &mut Cpu, insn: &Insn, number: u64) -> Step {
    let mask = 1 << (number & u64::from(W::BITS - 1));
    if C::apply(0, 0).is_none() {
        let word: W = D::read(cpu, insn)?;
        cpu.flags.set_cf(word.zext() & mask != 0);
        return Ok(());
    }
    D::modify_if(cpu, insn, |flags, word: W| {
        flags.set_cf(word.zext() & mask != 0);
        (C::apply(word.zext(), mask).map(W::of), ())
    })
}

fn bit_of_register<W: Int, C: Change, N: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let number: W = N::read(cpu, insn)?;
    change::<W, C, Reg<0>>(cpu, insn, number.zext())
}

fn bit_of_memory<W: Int, C: Change>(cpu: &mut Cpu, insn: &Insn) -> Step {
    change::<W, C, Mem>(cpu, insn, insn.imm)
}

/// With a register for number, the operand is a bit string: the number is signed and reaches beyond the word addressed.
fn bit_of_string<W: Int, C: Change>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let number = cpu.get::<W>(insn.r[1]).sext();
    let words = number as i64 >> W::BITS.trailing_zeros();
    let ahead = words.wrapping_mul(W::BYTES as i64) as u64;
    let word = Insn { disp: insn.disp.wrapping_add(ahead), ..*insn };
    change::<W, C, Mem>(cpu, &word, number)
}

/// Of 0 it leaves the destination.
fn scan_forward<W: Int, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value: W = S::read(cpu, insn)?;
    scanned(cpu, insn, value, value.zext().trailing_zeros())
}

fn scan_reverse<W: Int, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value: W = S::read(cpu, insn)?;
    scanned(cpu, insn, value, 63_u32.wrapping_sub(value.zext().leading_zeros()))
}

#[inline(always)]
fn scanned<W: Int>(cpu: &mut Cpu, insn: &Insn, value: W, index: u32) -> Step {
    cpu.flags.logic(value);
    if value.zext() != 0 {
        cpu.put(insn.r[0], W::of(index.into()));
    }
    Ok(())
}

fn count<W: Int, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value: W = S::read(cpu, insn)?;
    let ones = value.zext().count_ones();
    cpu.put(insn.r[0], W::of(ones.into()));
    cpu.flags.set_status(if ones == 0 { crate::flags::bit::ZF } else { 0 });
    Ok(())
}

/// The Castagnoli polynomial, bits reversed; no flags. A 64-bit destination's upper half is cleared.
fn crc32<W: Int, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value: W = S::read(cpu, insn)?;
    let mut crc: u32 = cpu.get(insn.r[0]);
    for byte in &value.zext().to_le_bytes()[..W::BYTES] {
        crc = crc >> 8 ^ CASTAGNOLI[usize::from(crc as u8 ^ byte)];
    }
    cpu.put(insn.r[0], crc);
    Ok(())
}

const CASTAGNOLI: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut crc = n as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0x82F6_3B78 } else { 0 };
            bit += 1;
        }
        table[n] = crc;
        n += 1;
    }
    table
};
