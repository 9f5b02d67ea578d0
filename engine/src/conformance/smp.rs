//! Several vCPUs: INIT and SIPI, inter-processor interrupts, shared memory (SDM vol. 3, 9.4 and 11.6).

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::apic::APIC;
use super::bench::{Bench, Case, Outcome, cases, same};
use super::scene::{AP_CODE, DATA, Mode};
use crate::ExitKind::IoWrite;
use crate::state::Activity;

pub(super) const CASES: &[Case] = cases!["smp":
    init_and_sipi_start_a_processor,
    a_processor_waits_for_its_sipi,
    fixed_interrupt_wakes_another,
    nmi_to_another,
    broadcast_reaches_all_others,
    message_reaches_its_destination,
    locked_increments_are_not_lost,
];

const ICR: i32 = 0x300;
const DESTINATION: i32 = 0x310;

/// Sends through the interrupt command register.
fn send(a: &mut CodeAssembler, apic_id: u32, command: u32) -> Result<(), IcedError> {
    a.mov(edi, APIC as u32)?;
    a.mov(dword_ptr(rdi + DESTINATION), apic_id << 24)?;
    a.mov(dword_ptr(rdi + ICR), command)
}

/// Waits until the doubleword at `DATA` has this value.
fn wait_for(a: &mut CodeAssembler, value: i32) -> Result<(), IcedError> {
    let mut wait = a.create_label();
    a.set_label(&mut wait)?;
    a.pause()?;
    a.cmp(dword_ptr(DATA), value)?;
    a.jne(wait)
}

fn init_and_sipi_start_a_processor(bench: &Bench<'_>) -> Outcome {
    let m = bench.machine(2, Mode::Long, |a| {
        send(a, 1, 0x4500)?;
        send(a, 1, 0x4600 | (AP_CODE >> 12) as u32)?;
        wait_for(a, 0x77)
    })?;
    let mut m = m;
    m.program(AP_CODE, 16, |a| {
        a.mov(ax, (DATA >> 4) as i32)?;
        a.mov(ds, ax)?;
        a.mov(ax, cs)?;
        a.mov(word_ptr(4), ax)?;
        a.mov(dword_ptr(0), 0x77)?;
        a.cli()?;
        a.hlt()
    })?;
    // Its code begins at offset 0 of the segment.
    m.end()?;
    same("cs", m.read::<u16>(DATA + 4)?, (AP_CODE >> 4) as u16)
}

fn a_processor_waits_for_its_sipi(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.machine(2, Mode::Long, |a| a.out(0x10, al))?;
    m.expect(IoWrite { port: 0x10, size: 1, value: 0 })?;
    m.stop()?;
    let state = m.save(1)?;
    same("waits", u8::from(state.activity == Activity::WaitForSipi), 1)
}

/// Others sleep in 64-bit mode at `AP_CODE` with interrupts on.
fn sleepers<'e>(
    bench: &Bench<'e>,
    vcpus: u8,
    program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> super::bench::Started<'e> {
    let m = bench.machine(vcpus, Mode::Long, program)?;
    m.program(AP_CODE, 64, |a| {
        a.sti()?;
        a.hlt()?;
        a.lock().inc(dword_ptr(DATA))?;
        a.cli()?;
        a.hlt()
    })?;
    Ok(m.all_at(AP_CODE))
}

fn fixed_interrupt_wakes_another(bench: &Bench<'_>) -> Outcome {
    let mut m = sleepers(bench, 2, |a| {
        send(a, 1, 0x4055)?;
        wait_for(a, 1)
    })?;
    let trap = m.expect_trap(0x55, None)?;
    same("rip", trap.rip, AP_CODE + 2)?;
    same("apic id", trap.state.lapic.get(0x20), 1 << 24)?;
    m.end().map(drop)
}

/// It comes wherever the other one is.
fn nmi_to_another(bench: &Bench<'_>) -> Outcome {
    let mut m = sleepers(bench, 2, |a| {
        send(a, 1, 0x4400)?;
        wait_for(a, 1)
    })?;
    same("apic id", m.expect_trap(2, None)?.state.lapic.get(0x20), 1 << 24)
}

fn broadcast_reaches_all_others(bench: &Bench<'_>) -> Outcome {
    let mut m = sleepers(bench, 3, |a| {
        send(a, 0, 0xC_4056)?;
        wait_for(a, 2)
    })?;
    let mut ids = [m.expect_trap(0x56, None)?, m.expect_trap(0x56, None)?].map(|t| t.state.lapic.get(0x20));
    ids.sort_unstable();
    same("first", ids[0], 1 << 24)?;
    same("second", ids[1], 2 << 24)?;
    m.end().map(drop)
}

fn message_reaches_its_destination(bench: &Bench<'_>) -> Outcome {
    let mut m = sleepers(bench, 2, |a| {
        a.out(0x10, al)?;
        wait_for(a, 1)
    })?;
    m.expect(IoWrite { port: 0x10, size: 1, value: 0 })?;
    m.send(APIC | 1 << 12, 0x57)?;
    let trap = m.expect_trap(0x57, None)?;
    same("apic id", trap.state.lapic.get(0x20), 1 << 24)?;
    m.end().map(drop)
}

fn locked_increments_are_not_lost(bench: &Bench<'_>) -> Outcome {
    const ROUNDS: u32 = 20_000;
    let count = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(ecx, ROUNDS)?;
        a.set_label(&mut again)?;
        a.lock().inc(dword_ptr(DATA))?;
        a.dec(ecx)?;
        a.jnz(again)
    };
    let m = bench.machine(2, Mode::Long, |a| {
        count(a)?;
        wait_for(a, 2 * ROUNDS as i32)
    })?;
    m.program(AP_CODE, 64, |a| {
        count(a)?;
        a.cli()?;
        a.hlt()
    })?;
    let mut m = m.all_at(AP_CODE);
    m.end()?;
    same("count", m.read::<u32>(DATA)?, 2 * ROUNDS)
}
