//! The local APIC of one vCPU: messages, priorities, timers, x2APIC (SDM vol. 3, ch. 11).

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::bench::{Bench, Case, Outcome, cases, holds, same};
use super::machine::Machine;
use super::scene::DATA;
use super::trap::Trap;
use crate::ExitKind::{self, IoWrite};
use crate::msr;
use crate::state::Lapic;
use crate::state::gpr::{RAX, RBX, RCX, RDX};

pub(super) const CASES: &[Case] = cases!["apic":
    identity,
    message_is_delivered,
    message_wakes_from_halt,
    message_to_nobody_is_dropped,
    disabled_apic_drops_messages,
    priorities_and_end_of_interrupt,
    task_priority_holds_back,
    self_interrupt,
    one_shot_timer,
    periodic_timer,
    masked_timer_is_silent,
    deadline_timer,
    deadline_in_the_past_fires_at_once,
    x2apic,
    state_keeps_what_is_pending,
];

/// The registers' page.
pub(super) const APIC: u64 = 0xFEE0_0000;
const EOI: i32 = 0xB0;
const ICR: i32 = 0x300;
const TIMER: i32 = 0x320;
const INITIAL: i32 = 0x380;
const CURRENT: i32 = 0x390;
const DIVIDE: i32 = 0x3E0;

/// The port at which cases send messages.
const NOW: ExitKind = IoWrite { port: 0x10, size: 1, value: 0 };

fn identity(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.mov(edi, APIC as u32)?;
        a.mov(eax, dword_ptr(rdi + 0x20))?;
        a.mov(ebx, dword_ptr(rdi + 0x30))?;
        a.mov(ecx, dword_ptr(rdi + 0xF0))?;
        a.mov(edx, dword_ptr(rdi + 0x350))
    });
    let end = m?.end()?.registers.gpr;
    same("id", end[RAX], 0)?;
    same("version", end[RBX] & 0xFF, 0x14)?;
    same("spurious vector", end[RCX], 0x1FF)?;
    same("LINT0 is masked", end[RDX], 0x1_0000)
}

fn message_is_delivered(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.out(0x10, al)?;
        a.sti()?;
        a.nop()?;
        a.nop()
    })?;
    m.expect(NOW)?;
    m.send(APIC, 0x41)?;
    let trap = m.expect_trap(0x41, None)?;
    same("in service", trap.state.lapic.get(0x120), 2)?;
    same("request", trap.state.lapic.get(0x220), 0)?;
    m.end().map(drop)
}

fn message_wakes_from_halt(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.sti()?;
        a.hlt()?;
        a.mov(eax, 1)
    })?;
    m.sleep()?;
    m.send(APIC, 0x42)?;
    let trap = m.expect_trap(0x42, None)?;
    same("rip", trap.rip, super::scene::CODE + 2)?;
    same("rax", m.end()?.registers.gpr[RAX], 1)
}

fn message_to_nobody_is_dropped(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.out(0x10, al)?;
        a.sti()?;
        a.nop()?;
        a.nop()
    })?;
    m.expect(NOW)?;
    m.send(APIC | 5 << 12, 0x41)?;
    m.end().map(drop)
}

fn disabled_apic_drops_messages(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.out(0x10, al)?;
        a.sti()?;
        a.nop()?;
        a.nop()
    })?;
    let mut m = m.with(|state| state.lapic.set(Lapic::SPURIOUS, 0xFF));
    m.expect(NOW)?;
    m.send(APIC, 0x41)?;
    m.end().map(drop)
}

/// The higher vector first; the lower one waits for its end, and comes right after that.
fn priorities_and_end_of_interrupt(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.mov(edi, APIC as u32)?;
        a.out(0x10, al)?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.mov(dword_ptr(rdi + EOI), 0)?;
        a.nop()
    })?;
    m.expect(NOW)?;
    m.send(APIC, 0x41)?;
    m.send(APIC, 0x51)?;
    let first = m.expect_trap(0x51, None)?;
    same("still requested", first.state.lapic.get(0x220), 2)?;
    let second = m.expect_trap(0x41, None)?;
    // The second NOP and a 10-byte store.
    same("right after the end of interrupt", second.rip, first.rip + 1 + 10)?;
    same("in service", second.state.lapic.get(0x120), 2)?;
    m.end().map(drop)
}

fn task_priority_holds_back(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.out(0x10, al)?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.mov(ebx, 1)?;
        a.mov(ecx, 3)?;
        a.mov(cr8, rcx)?;
        a.nop()
    })?;
    let mut m = m.with(|state| {
        state.system.cr8 = 4;
        state.lapic.set(0x80, 0x40);
    });
    m.expect(NOW)?;
    m.send(APIC, 0x41)?;
    let trap = m.expect_trap(0x41, None)?;
    same("only after the priority fell", trap.state.registers.gpr[RBX], 1)?;
    m.end().map(drop)
}

fn self_interrupt(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.mov(edi, APIC as u32)?;
        a.mov(dword_ptr(rdi + ICR), 0x4_0061)?;
        a.sti()?;
        a.nop()?;
        a.nop()
    })?;
    m.expect_trap(0x61, None)?;
    m.end().map(drop)
}

/// Divider 1, the timer's vector entry, and its initial count.
fn arm(a: &mut CodeAssembler, entry: u32, count: u32) -> Result<(), IcedError> {
    a.mov(edi, APIC as u32)?;
    a.mov(dword_ptr(rdi + DIVIDE), 0xB)?;
    a.mov(dword_ptr(rdi + TIMER), entry)?;
    a.mov(dword_ptr(rdi + INITIAL), count)
}

/// On a busy host a timer may be over before the HLT that waits for it is reached, and where the processor below loses the
/// shadow of the STI its interrupt comes there. Nothing else would wake the vCPU, so it does not go to sleep.
fn past_halt(m: &Machine<'_>, trap: &Trap) -> Outcome {
    const HLT: u8 = 0xF4;
    if m.read::<u8>(trap.rip)? == HLT { m.write(trap.frame, trap.rip + 1) } else { Ok(()) }
}

fn one_shot_timer(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        arm(a, 0x71, 100_000)?;
        a.sti()?;
        a.hlt()?;
        a.mov(eax, dword_ptr(rdi + CURRENT))?;
        a.mov(ebx, dword_ptr(rdi + INITIAL))
    })?;
    let trap = m.expect_trap(0x71, None)?;
    past_halt(&m, &trap)?;
    let end = m.end()?.registers.gpr;
    same("current count", end[RAX], 0)?;
    same("initial count", end[RBX], 100_000)
}

fn periodic_timer(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        arm(a, 0x2_0072, 1_000_000)?;
        for _ in 0..3 {
            a.sti()?;
            a.hlt()?;
            a.cli()?;
            a.mov(dword_ptr(rdi + EOI), 0)?;
        }
        a.mov(dword_ptr(rdi + INITIAL), 0)
    })?;
    for _ in 0..3 {
        let trap = m.expect_trap(0x72, None)?;
        same("in service, vectors 0x60 to 0x7F", trap.state.lapic.get(0x130), 1 << 18)?;
        past_halt(&m, &trap)?;
    }
    m.end().map(drop)
}

fn masked_timer_is_silent(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        let mut wait = a.create_label();
        arm(a, 0x1_0073, 1000)?;
        a.sti()?;
        a.set_label(&mut wait)?;
        a.mov(eax, dword_ptr(rdi + CURRENT))?;
        a.test(eax, eax)?;
        a.jnz(wait)
    })?;
    let end = m.end()?;
    same("requests", end.lapic.get(0x230), 0)
}

fn deadline(a: &mut CodeAssembler, ahead: u32) -> Result<(), IcedError> {
    a.mov(edi, APIC as u32)?;
    a.mov(dword_ptr(rdi + TIMER), 0x4_0074)?;
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)?;
    a.add(rax, ahead as i32)?;
    a.mov(rbx, rax)?;
    a.mov(rdx, rax)?;
    a.shr(rdx, 32)?;
    a.mov(ecx, msr::TSC_DEADLINE)?;
    a.wrmsr()
}

fn deadline_timer(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        deadline(a, 1_000_000)?;
        a.sti()?;
        a.hlt()?;
        a.rdmsr()
    })?;
    let trap = m.expect_trap(0x74, None)?;
    let (tsc, due) = (trap.state.msrs.tsc, trap.state.registers.gpr[RBX]);
    holds(|| format!("the counter is {tsc:#x}, before the deadline {due:#x}"), tsc >= due)?;
    past_halt(&m, &trap)?;
    let end = m.end()?.registers.gpr;
    same("the deadline register", end[RDX] << 32 | end[RAX], 0)
}

fn deadline_in_the_past_fires_at_once(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        deadline(a, 0)?;
        a.sti()?;
        a.hlt()
    })?;
    let trap = m.expect_trap(0x74, None)?;
    past_halt(&m, &trap)?;
    m.end().map(drop)
}

fn x2apic(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.mov(ecx, msr::APIC_BASE)?;
        a.rdmsr()?;
        a.or(eax, 0x400)?;
        a.wrmsr()?;
        a.mov(ecx, 0x802)?;
        a.rdmsr()?;
        a.mov(ebx, eax)?;
        // Self-interrupt register.
        a.mov(ecx, 0x83F)?;
        a.mov(eax, 0x62)?;
        a.wrmsr()?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.mov(ecx, 0x80B)?;
        a.xor(eax, eax)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.mov(ecx, 0x813)?;
        a.rdmsr()
    })?;
    let trap = m.expect_trap(0x62, None)?;
    same("apic base", trap.state.system.apic_base, 0xFEE0_0D00)?;
    let end = m.end()?.registers.gpr;
    same("id", end[RBX], 0)?;
    same("in service after its end", end[RAX], 0)?;
    same("ecx", end[RCX], 0x813)
}

/// A requested vector is state.
fn state_keeps_what_is_pending(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.out(0x10, al)?;
        a.mov(dword_ptr(DATA), 1)?;
        a.sti()?;
        a.nop()?;
        a.nop()
    })?;
    m.expect(NOW)?;
    m.send(APIC, 0x43)?;
    m.transplant()?;
    let trap = m.expect_trap(0x43, None)?;
    same("stored before", m.read::<u32>(DATA)?, 1)?;
    same("requests", trap.state.lapic.get(0x220), 0)?;
    m.end().map(drop)
}
