//! Port input and output (SDM vol. 1, ch. 19).

use iced_x86::code_asm::*;

use super::bench::{Bench, Case, Outcome, cases, same};
use super::scene::{self, DATA, TSS};
use crate::ExitKind::{IoRead, IoWrite};
use crate::state::gpr::{RAX, RBX, RCX, RDI, RDX, RSI};

pub(super) const CASES: &[Case] = cases!["ports":
    out_writes_every_width,
    in_reads_every_width,
    rep_outs_walks_memory,
    rep_outs_walks_down,
    rep_ins_fills_memory,
    rep_of_nothing_makes_no_access,
    string_io_in_real_mode,
    user_may_not_without_permission,
    a_permission_map_says_which,
];

fn out_writes_every_width(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.mov(eax, 0x1122_3344)?;
        a.mov(edx, 0x1234)?;
        a.out(0x10, al)?;
        a.out(0x10, ax)?;
        a.out(0x10, eax)?;
        a.out(dx, al)?;
        a.out(dx, ax)?;
        a.out(dx, eax)
    })?;
    for port in [0x10, 0x1234] {
        m.expect(IoWrite { port, size: 1, value: 0x44 })?;
        m.expect(IoWrite { port, size: 2, value: 0x3344 })?;
        m.expect(IoWrite { port, size: 4, value: 0x1122_3344 })?;
    }
    m.end().map(drop)
}

fn in_reads_every_width(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.in_(al, dx)?;
        a.mov(rbx, rax)?;
        a.in_(ax, dx)?;
        a.mov(rcx, rax)?;
        a.in_(eax, dx)
    })?;
    m = m.given(RAX, 0xAAAA_AAAA_AAAA_AAAA).given(RDX, 0xFEDC);
    m.expect_read(IoRead { port: 0xFEDC, size: 1 }, 0x12)?;
    m.expect_read(IoRead { port: 0xFEDC, size: 2 }, 0x3456)?;
    m.expect_read(IoRead { port: 0xFEDC, size: 4 }, 0x789A_BCDE)?;
    let end = m.end()?;
    same("rax after in al", end.registers.gpr[RBX], 0xAAAA_AAAA_AAAA_AA12)?;
    same("rax after in ax", end.registers.gpr[RCX], 0xAAAA_AAAA_AAAA_3456)?;
    same("rax after in eax", end.registers.gpr[RAX], 0x789A_BCDE)
}

fn rep_outs_walks_memory(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.rep().outsb()?;
        a.mov(ecx, 2)?;
        a.rep().outsw()?;
        a.mov(ecx, 2)?;
        a.rep().outsd()
    })?;
    let mut m = m.given(RCX, 3).given(RDX, 0x10).given(RSI, DATA).staying();
    let bytes: Vec<u8> = (1..=15).collect();
    scene::put(&m.memory, DATA, &bytes)?;
    for value in [1, 2, 3] {
        m.expect(IoWrite { port: 0x10, size: 1, value })?;
    }
    for value in [0x0504, 0x0706] {
        m.expect(IoWrite { port: 0x10, size: 2, value })?;
    }
    for value in [0x0B0A_0908, 0x0F0E_0D0C] {
        m.expect(IoWrite { port: 0x10, size: 4, value })?;
    }
    let end = m.end()?;
    same("rsi", end.registers.gpr[RSI], DATA + 15)?;
    same("rcx", end.registers.gpr[RCX], 0)
}

fn rep_outs_walks_down(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.std()?;
        a.rep().outsw()?;
        a.cld()
    })?;
    let mut m = m.given(RCX, 2).given(RDX, 0x10).given(RSI, DATA + 2).staying();
    m.write(DATA, 0x4444_3333_u32)?;
    m.expect(IoWrite { port: 0x10, size: 2, value: 0x4444 })?;
    m.expect(IoWrite { port: 0x10, size: 2, value: 0x3333 })?;
    same("rsi", m.end()?.registers.gpr[RSI], DATA - 2)
}

fn rep_ins_fills_memory(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.rep().insb()?;
        a.mov(ecx, 2)?;
        a.rep().insw()?;
        a.mov(ecx, 2)?;
        a.rep().insd()
    })?;
    let mut m = m.given(RCX, 3).given(RDX, 0x10).given(RDI, DATA).staying();
    for answer in [0x11, 0x22, 0x33] {
        m.expect_read(IoRead { port: 0x10, size: 1 }, answer)?;
    }
    for answer in [0x5544, 0x7766] {
        m.expect_read(IoRead { port: 0x10, size: 2 }, answer)?;
    }
    for answer in [0xBBAA_9988, 0xFFEE_DDCC] {
        m.expect_read(IoRead { port: 0x10, size: 4 }, answer)?;
    }
    let end = m.end()?;
    same("rdi", end.registers.gpr[RDI], DATA + 15)?;
    same("rcx", end.registers.gpr[RCX], 0)?;
    same("first bytes", m.read::<u64>(DATA)?, 0x8877_6655_4433_2211)?;
    same("last bytes", m.read::<u64>(DATA + 7)?, 0xFFEE_DDCC_BBAA_9988)
}

fn rep_of_nothing_makes_no_access(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.rep().outsb()?;
        a.rep().insb()?;
        a.rep().movsb()?;
        a.rep().stosq()
    })?;
    let mut m = m.given(RDX, 0x10).given(RSI, DATA).given(RDI, DATA);
    let end = m.end()?;
    same("rsi", end.registers.gpr[RSI], DATA)?;
    same("rdi", end.registers.gpr[RDI], DATA)
}

fn string_io_in_real_mode(bench: &Bench<'_>) -> Outcome {
    let m = bench.real(|a| {
        a.mov(cx, 2)?;
        a.rep().outsb()?;
        a.mov(cx, 2)?;
        a.rep().insw()
    })?;
    // The upper half of RSI is no part of a 16-bit address.
    let mut m = m.given(RDX, 0x10).given(RSI, 0x7_0000).given(RDI, 0x100).staying();
    m.write(DATA, 0x2211_u16)?;
    m.expect(IoWrite { port: 0x10, size: 1, value: 0x11 })?;
    m.expect(IoWrite { port: 0x10, size: 1, value: 0x22 })?;
    m.expect_read(IoRead { port: 0x10, size: 2 }, 0x4433)?;
    m.expect_read(IoRead { port: 0x10, size: 2 }, 0x6655)?;
    let end = m.end()?;
    same("rsi", end.registers.gpr[RSI], 0x7_0002)?;
    same("rdi", end.registers.gpr[RDI], 0x104)?;
    same("memory", m.read::<u32>(DATA + 0x100)?, 0x6655_4433)
}

/// IOPL is 0 and the task state segment has no permission map.
fn user_may_not_without_permission(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| a.out(0x10, al))?.with(scene::user);
    m.expect_trap(13, Some(0)).map(drop)?;
    let mut m =
        bench.long(|a| a.out(0x10, al))?.with(scene::user).with(|state| state.registers.rflags |= 0x3000);
    m.expect(IoWrite { port: 0x10, size: 1, value: 0 })
}

/// The map begins behind the task state segment's fixed part; a set bit denies its port.
fn a_permission_map_says_which(bench: &Bench<'_>) -> Outcome {
    let program = bench.long(|a| {
        a.out(0x10, al)?;
        a.out(0x18, al)
    })?;
    let mut m = program.with(scene::user).with(|state| state.system.tr.limit = 0x88);
    m.write(TSS + 0x68 + 3, 1_u8)?;
    m.write(TSS + 0x88, 0xFF_u8)?;
    m.expect(IoWrite { port: 0x10, size: 1, value: 0 })?;
    m.expect_trap(13, Some(0)).map(drop)
}
