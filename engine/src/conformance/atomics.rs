//! Locked and multi-word instructions (SDM vol. 3, 9.1).

use iced_x86::code_asm::*;

use super::bench::{Bench, Case, Outcome, cases, same};
use super::scene::DATA;
use crate::state::gpr::{RAX, RBX, RCX, RDX, RSI};

pub(super) const CASES: &[Case] = cases!["atomics":
    cmpxchg,
    cmpxchg8b,
    cmpxchg16b,
    cmpxchg16b_must_be_aligned,
    xadd_and_xchg,
    bit_string_beyond_its_operand,
    locked_across_a_line,
];

/// The zero flag as SETE left it in SIL.
const ZF: &str = "zero flag";

fn cmpxchg(bench: &Bench<'_>) -> Outcome {
    for (expected, zf, memory, left) in [(5, 1, 9_u64, 5), (6, 0, 5, 5)] {
        let m = bench.long(|a| {
            a.lock().cmpxchg(qword_ptr(DATA), rbx)?;
            a.sete(sil)
        })?;
        let mut m = m.given(RAX, expected).given(RBX, 9);
        m.write(DATA, 5_u64)?;
        let end = m.end()?;
        same(ZF, end.registers.gpr[RSI], zf)?;
        same("memory", m.read::<u64>(DATA)?, memory)?;
        same("rax", end.registers.gpr[RAX], left)?;
    }
    Ok(())
}

fn cmpxchg8b(bench: &Bench<'_>) -> Outcome {
    for (low, zf, memory) in [(0x1111_u64, 1, 0x4444_0000_3333_u64), (0x1112, 0, 0x2222_0000_1111)] {
        let m = bench.long(|a| {
            a.lock().cmpxchg8b(qword_ptr(DATA))?;
            a.sete(sil)
        })?;
        let mut m = m.given(RAX, low).given(RDX, 0x2222).given(RBX, 0x3333).given(RCX, 0x4444);
        m.write(DATA, 0x2222_0000_1111_u64)?;
        let end = m.end()?;
        same(ZF, end.registers.gpr[RSI], zf)?;
        same("memory", m.read::<u64>(DATA)?, memory)?;
        same("edx:eax", end.registers.gpr[RDX] << 32 | end.registers.gpr[RAX], 0x2222_0000_1111)?;
    }
    Ok(())
}

fn cmpxchg16b(bench: &Bench<'_>) -> Outcome {
    for (low, zf, memory) in [(1, 1, (3_u64, 4_u64)), (9, 0, (1, 2))] {
        let m = bench.long(|a| {
            a.lock().cmpxchg16b(xmmword_ptr(DATA))?;
            a.sete(sil)
        })?;
        let mut m = m.given(RAX, low).given(RDX, 2).given(RBX, 3).given(RCX, 4);
        m.write(DATA, 1_u64)?;
        m.write(DATA + 8, 2_u64)?;
        let end = m.end()?;
        same(ZF, end.registers.gpr[RSI], zf)?;
        same("low", m.read::<u64>(DATA)?, memory.0)?;
        same("high", m.read::<u64>(DATA + 8)?, memory.1)?;
        same("rax", end.registers.gpr[RAX], 1)?;
        same("rdx", end.registers.gpr[RDX], 2)?;
    }
    Ok(())
}

fn cmpxchg16b_must_be_aligned(bench: &Bench<'_>) -> Outcome {
    bench.long(|a| a.cmpxchg16b(xmmword_ptr(DATA + 8)))?.expect_trap(13, Some(0)).map(drop)
}

fn xadd_and_xchg(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.lock().xadd(dword_ptr(DATA), eax)?;
        a.xchg(word_ptr(DATA + 8), bx)?;
        a.xadd(rcx, rdx)
    })?;
    let mut m = m.given(RAX, 5).given(RBX, 0x7777).given(RCX, 10).given(RDX, 20);
    m.write(DATA, u64::from(u32::MAX))?;
    m.write(DATA + 8, 0x1234_u64)?;
    let end = m.end()?;
    same("sum", m.read::<u64>(DATA)?, 4)?;
    same("eax", end.registers.gpr[RAX], u64::from(u32::MAX))?;
    same("exchanged", m.read::<u16>(DATA + 8)?, 0x7777)?;
    same("bx", end.registers.gpr[RBX], 0x1234)?;
    same("rcx", end.registers.gpr[RCX], 30)?;
    same("rdx", end.registers.gpr[RDX], 10)
}

/// A register bit offset reaches before and behind its operand.
fn bit_string_beyond_its_operand(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.lock().bts(qword_ptr(DATA + 64), rax)?;
        a.lock().btc(dword_ptr(DATA + 64), ebx)
    })?;
    let mut m = m.given(RAX, 130).given(RBX, (-1_i64).cast_unsigned());
    m.end()?;
    same("bit 130", m.read::<u64>(DATA + 64 + 16)?, 4)?;
    same("bit -1", m.read::<u64>(DATA + 56)?, 1 << 63)
}

fn locked_across_a_line(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| a.lock().add(qword_ptr(DATA + 61), rax))?.given(RAX, 0x1_0000_0001);
    m.write(DATA + 61, u64::from(u32::MAX))?;
    m.end()?;
    same("sum", m.read::<u64>(DATA + 61)?, 0x2_0000_0000)
}
