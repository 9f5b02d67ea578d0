//! When interrupts are taken: flags, shadows, NMIs (SDM vol. 3, 7.8).

use iced_x86::code_asm::*;

use super::apic::APIC;
use super::bench::{Bench, Case, Outcome, cases, same};
use super::scene::{CODE, STACK, selector};
use crate::ExitKind::{self, IoWrite};
use crate::state::gpr::RSP;

pub(super) const CASES: &[Case] = cases!["events":
    sti_holds_off_one_instruction,
    sti_then_cli_lets_nothing_in,
    popf_lets_in_at_once,
    iret_lets_in_at_once,
    mov_ss_holds_off_a_single_step,
    nmi_comes_with_interrupts_off,
    nmi_waits_for_iret,
    nmi_wakes_from_halt,
    interrupt_gate_clears_if,
];

/// Delivery mode NMI.
const NMI: u32 = 0x400;
const NOW: ExitKind = IoWrite { port: 0x10, size: 1, value: 0 };

fn sti_holds_off_one_instruction(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.out(0x10, al)?;
        a.sti()?;
        a.nop()?;
        a.nop()
    })?;
    m.expect(NOW)?;
    m.send(APIC, 0x41)?;
    same("rip", m.expect_trap(0x41, None)?.rip, CODE + 4)?;
    m.end().map(drop)
}

fn sti_then_cli_lets_nothing_in(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.out(0x10, al)?;
        a.sti()?;
        a.cli()?;
        a.nop()
    })?;
    m.expect(NOW)?;
    m.send(APIC, 0x41)?;
    m.end().map(drop)
}

fn popf_lets_in_at_once(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.out(0x10, al)?;
        a.push(0x202)?;
        a.popfq()?;
        a.nop()
    })?;
    m.expect(NOW)?;
    m.send(APIC, 0x41)?;
    let trap = m.expect_trap(0x41, None)?;
    same("rip", trap.rip, CODE + 2 + 5 + 1)?;
    same("rflags", trap.rflags, 0x202)?;
    m.end().map(drop)
}

fn iret_lets_in_at_once(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.out(0x10, al)?;
        a.iretq()
    })?;
    let mut m = m.given(RSP, STACK - 40);
    let frame = [CODE + 0x40, selector::CODE64.into(), 0x202, STACK, selector::DATA.into()];
    for (n, value) in (0..).zip(frame) {
        m.write(STACK - 40 + n * 8, value)?;
    }
    m.expect(NOW)?;
    m.send(APIC, 0x41)?;
    let trap = m.expect_trap(0x41, None)?;
    same("rip", trap.rip, CODE + 0x40)?;
    same("rsp", trap.rsp, STACK)
}

/// The trap of the instruction that loads SS comes after the next one.
fn mov_ss_holds_off_a_single_step(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.mov(eax, u32::from(selector::DATA))?;
        a.push(0x102)?;
        a.popfq()?;
        a.mov(ss, eax)?;
        a.nop()?;
        a.nop()
    })?;
    let trap = m.expect_trap(1, None)?;
    same("rip", trap.rip, CODE + 5 + 5 + 1 + 2 + 1)
}

fn nmi_comes_with_interrupts_off(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.out(0x10, al)?;
        a.nop()?;
        a.nop()
    })?;
    m.expect(NOW)?;
    m.send(APIC, NMI)?;
    let trap = m.expect_trap(2, None)?;
    same("blocked", u8::from(trap.state.events.nmi_blocked), 1)?;
    same("rip", trap.rip, CODE + 2)?;
    let end = m.end()?;
    same("blocked at the end", u8::from(end.events.nmi_blocked), 0)
}

fn nmi_waits_for_iret(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.out(0x10, al)?;
        a.nop()
    })?;
    m.expect(NOW)?;
    m.send(APIC, NMI)?;
    let first = m.expect_trap(2, None)?;
    m.send(APIC, NMI)?;
    let second = m.expect_trap(2, None)?;
    same("rip", second.rip, first.rip)?;
    same("not nested", second.frame, first.frame)?;
    m.end().map(drop)
}

fn nmi_wakes_from_halt(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| a.hlt())?;
    m.sleep()?;
    m.send(APIC, NMI)?;
    same("rip", m.expect_trap(2, None)?.rip, CODE + 1)?;
    m.end().map(drop)
}

fn interrupt_gate_clears_if(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.out(0x10, al)?;
        a.sti()?;
        a.nop()?;
        a.nop()
    })?;
    m.expect(NOW)?;
    m.send(APIC, 0x41)?;
    let trap = m.expect_trap(0x41, None)?;
    same("IF in the handler", trap.state.registers.rflags & 0x200, 0)?;
    same("IF in the frame", trap.rflags & 0x200, 0x200)?;
    same("IF at the end", m.end()?.registers.rflags & 0x200, 0x200)
}
