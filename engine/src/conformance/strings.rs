//! String instructions: counts, directions, and restarting after a fault in the middle (SDM vol. 1, 7.3.9).

use iced_x86::code_asm::*;

use super::bench::{Bench, Case, Outcome, cases, same};
use super::scene::{self, DATA, PD, TABLES};
use crate::state::gpr::{RAX, RCX, RDI, RSI};

pub(super) const CASES: &[Case] = cases!["strings":
    moves_overlap_byte_by_byte,
    moves_downwards,
    compare_stops_at_a_difference,
    scan_stops_at_a_match,
    counts_wrap_at_the_address_size,
    a_store_that_faults_in_the_middle,
    a_move_that_faults_at_its_source,
];

fn moves_overlap_byte_by_byte(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| a.rep().movsb())?.given(RSI, DATA).given(RDI, DATA + 1).given(RCX, 7);
    m.write(DATA, 0x5A_u8)?;
    m.end()?;
    same("filled", m.read::<u64>(DATA)?, 0x5A5A_5A5A_5A5A_5A5A)
}

fn moves_downwards(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.std()?;
        a.rep().movsq()?;
        a.cld()
    })?;
    let mut m = m.given(RSI, DATA + 8).given(RDI, DATA + 0x108).given(RCX, 2);
    m.write(DATA, 1_u64)?;
    m.write(DATA + 8, 2_u64)?;
    let end = m.end()?;
    same("first", m.read::<u64>(DATA + 0x100)?, 1)?;
    same("second", m.read::<u64>(DATA + 0x108)?, 2)?;
    same("rsi", end.registers.gpr[RSI], DATA - 8)?;
    same("rdi", end.registers.gpr[RDI], DATA + 0xF8)
}

fn compare_stops_at_a_difference(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.repe().cmpsb()?;
        a.setb(al)
    })?;
    let mut m = m.given(RSI, DATA).given(RDI, DATA + 8).given(RCX, 8);
    m.write(DATA, 0x0403_0201_u64)?;
    m.write(DATA + 8, 0x0503_0201_u64)?;
    let end = m.end()?;
    same("below", end.registers.gpr[RAX], 1)?;
    same("rcx", end.registers.gpr[RCX], 4)?;
    same("rsi", end.registers.gpr[RSI], DATA + 4)
}

fn scan_stops_at_a_match(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| a.repne().scasw())?.given(RAX, 0x33).given(RDI, DATA).given(RCX, 10);
    m.write(DATA, 0x44_0033_0022_0011_u64)?;
    let end = m.end()?;
    same("rcx", end.registers.gpr[RCX], 7)?;
    same("rdi", end.registers.gpr[RDI], DATA + 6)
}

/// With 32-bit addresses ECX counts, and the upper halves are cleared as by any 32-bit write.
fn counts_wrap_at_the_address_size(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| a.db(&[0x67, 0xF3, 0xAA]))?;
    let mut m = m.given(RDI, 0xFFFF_FFFF_0000_0000 | DATA).given(RCX, 0xFFFF_FFFF_0000_0002).given(RAX, 0x11);
    let end = m.end()?;
    same("stored", m.read::<u32>(DATA)?, 0x1111)?;
    same("rcx", end.registers.gpr[RCX], 0)?;
    same("rdi", end.registers.gpr[RDI], DATA + 2)
}

/// Page of linear 0xC000_0000; the next is absent.
const SMALL: u64 = 0xC000_0000;

fn a_store_that_faults_in_the_middle(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| a.rep().stosd())?.given(RAX, 0x77).given(RDI, SMALL + 0xFF8).given(RCX, 4);
    m.write(PD + 3 * 0x1000, TABLES | 7)?;
    m.write(TABLES, DATA | 7)?;
    let mut m = m;
    let trap = m.expect_trap(14, Some(2))?;
    same("cr2", trap.state.system.cr2, SMALL + 0x1000)?;
    same("rip", trap.rip, scene::CODE)?;
    same("rcx at the fault", trap.state.registers.gpr[RCX], 2)?;
    same("rdi at the fault", trap.state.registers.gpr[RDI], SMALL + 0x1000)?;
    same("stored before", m.read::<u64>(DATA + 0xFF8)?, 0x77_0000_0077)?;
    m.write(TABLES + 8, (DATA + 0x4000) | 7)?;
    let end = m.end()?;
    same("stored behind", m.read::<u64>(DATA + 0x4000)?, 0x77_0000_0077)?;
    same("rcx", end.registers.gpr[RCX], 0)
}

fn a_move_that_faults_at_its_source(bench: &Bench<'_>) -> Outcome {
    let m =
        bench.long(|a| a.rep().movsb())?.given(RSI, SMALL + 0xFFD).given(RDI, DATA + 0x2000).given(RCX, 5);
    m.write(PD + 3 * 0x1000, TABLES | 7)?;
    m.write(TABLES, DATA | 7)?;
    m.write(DATA + 0xFFD, [1_u8, 2, 3])?;
    m.write(DATA + 0x1000, [4_u8, 5])?;
    let mut m = m;
    let trap = m.expect_trap(14, Some(0))?;
    same("rcx at the fault", trap.state.registers.gpr[RCX], 2)?;
    same("rsi at the fault", trap.state.registers.gpr[RSI], SMALL + 0x1000)?;
    same("rdi at the fault", trap.state.registers.gpr[RDI], DATA + 0x2003)?;
    m.write(TABLES + 8, (DATA + 0x1000) | 7)?;
    m.end()?;
    same("moved", m.read::<u64>(DATA + 0x2000)?, 0x05_0403_0201)
}
