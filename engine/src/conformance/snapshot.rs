//! Saving and restoring, kicks, reads without an answer: the neck's own law.

use std::thread;
use std::time::Duration;

use iced_x86::code_asm::*;

use super::bench::{Bench, Case, Outcome, cases, holds, same};
use super::scene::{CODE, DEVICE, STACK};
use crate::ExitKind::{IoRead, IoWrite, MmioRead};
use crate::state::gpr::{RAX, RBX, RDI, RSP};
use crate::state::{Activity, CpuState, Lapic};

pub(super) const CASES: &[Case] = cases!["snapshot":
    power_up_state_returns,
    restoring_what_was_saved_changes_nothing,
    undelivered_events_return,
    a_state_goes_back_in_time,
    a_fresh_partition_goes_on,
    a_read_without_answer_is_asked_again,
    restoring_forgets_an_unanswered_read,
    a_halted_state_sleeps_on,
    an_event_in_delivery_arrives,
    a_shadow_lasts_one_instruction,
    a_pending_nmi_arrives,
    a_kick_before_a_run_is_kept,
    a_kick_ends_a_busy_guest,
    a_kick_ends_a_sleeping_guest,
    a_kick_waits_for_the_end_of_an_access,
];

/// Two states, but for what time alone changes.
fn alike(got: &CpuState, want: &CpuState) -> Outcome {
    let timeless = |state: &CpuState| {
        let mut state = state.clone();
        state.msrs.tsc = 0;
        state
    };
    let (got, want) = (timeless(got), timeless(want));
    holds(|| format!("the state became\n{got:x?}\nfrom\n{want:x?}"), got == want)
}

fn power_up_state_returns(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.machine(2, super::scene::Mode::Long, |a| a.nop())?;
    for vcpu in 0..2 {
        let state = CpuState::reset(vcpu);
        m.restore(vcpu, &state)?;
        alike(&m.save(vcpu)?, &state)?;
    }
    Ok(())
}

fn restoring_what_was_saved_changes_nothing(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.mov(eax, 5)?;
        a.push(rax)?;
        a.out(0x10, al)?;
        a.pop(rbx)?;
        a.add(rbx, rax)
    })?;
    m.expect(IoWrite { port: 0x10, size: 1, value: 5 })?;
    for _ in 0..3 {
        let state = m.save(0)?;
        m.restore(0, &state)?;
        alike(&m.save(0)?, &state)?;
    }
    same("rbx", m.end()?.registers.gpr[RBX], 10)
}

/// Nothing runs between.
fn undelivered_events_return(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| a.nop())?.with(|state| state.registers.rflags = 0x202);
    m.partition().kick();
    m.kicked()?;
    let start = m.save(0)?;
    for injected in [None, Some((0x45, None)), Some((14, Some(2))), Some((2, None))] {
        for bits in 0..8 {
            let mut state = start.clone();
            state.events.injected = injected;
            state.events.interrupt_shadow = bits & 1 != 0;
            state.events.nmi_pending = bits & 2 != 0;
            state.events.nmi_blocked = bits & 4 != 0;
            m.restore(0, &state)?;
            alike(&m.save(0)?, &state)?;
        }
    }
    Ok(())
}

fn a_state_goes_back_in_time(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.out(0x10, al)?;
        a.inc(eax)?;
        a.out(0x11, al)
    })?;
    let mut m = m.staying();
    m.expect(IoWrite { port: 0x10, size: 1, value: 0 })?;
    let state = m.save(0)?;
    for _ in 0..3 {
        m.expect(IoWrite { port: 0x11, size: 1, value: 1 })?;
        m.restore(0, &state)?;
    }
    m.expect(IoWrite { port: 0x11, size: 1, value: 1 })?;
    m.end().map(drop)
}

fn a_fresh_partition_goes_on(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.mov(ebx, 3)?;
        a.in_(al, 0x10)?;
        a.add(ebx, eax)?;
        a.out(0x11, al)?;
        a.add(ebx, eax)
    })?;
    m.expect(IoRead { port: 0x10, size: 1 })?;
    m.transplant()?;
    m.expect(IoRead { port: 0x10, size: 1 })?;
    m.answer(7);
    m.expect(IoWrite { port: 0x11, size: 1, value: 7 })?;
    m.transplant()?;
    same("rbx", m.end()?.registers.gpr[RBX], 17)
}

fn a_read_without_answer_is_asked_again(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| a.in_(eax, 0x10))?;
    for _ in 0..3 {
        m.expect(IoRead { port: 0x10, size: 4 })?;
    }
    m.answer(9);
    same("rax", m.end()?.registers.gpr[RAX], 9)
}

fn restoring_forgets_an_unanswered_read(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.out(0x11, al)?;
        a.in_(al, 0x10)
    })?;
    let mut m = m.staying();
    m.expect(IoWrite { port: 0x11, size: 1, value: 0 })?;
    let mut state = m.save(0)?;
    m.expect(IoRead { port: 0x10, size: 1 })?;
    state.registers.rip = CODE;
    state.registers.gpr[RAX] = 5;
    m.restore(0, &state)?;
    m.expect(IoWrite { port: 0x11, size: 1, value: 5 })?;
    m.expect_read(IoRead { port: 0x10, size: 1 }, 8)?;
    same("rax", m.end()?.registers.gpr[RAX], 8)
}

fn a_halted_state_sleeps_on(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| a.mov(eax, 1))?;
    let mut m = m.with(|state| {
        state.activity = Activity::Halted;
        state.registers.rflags = 0x202;
    });
    m.sleep()?;
    m.send(super::apic::APIC, 0x44)?;
    same("rip", m.expect_trap(0x44, None)?.rip, CODE)?;
    let end = m.end()?;
    same("runs", u8::from(end.activity == Activity::Running), 1)?;
    same("rax", end.registers.gpr[RAX], 1)
}

fn an_event_in_delivery_arrives(bench: &Bench<'_>) -> Outcome {
    for (vector, error) in [(0x45, None), (14, Some(2)), (6, None), (2, None)] {
        let m = bench.long(|a| a.mov(eax, 1))?;
        let mut m = m.with(|state| state.events.injected = Some((vector, error)));
        let trap = m.expect_trap(vector, error)?;
        same(&format!("rip at vector {vector}"), trap.rip, CODE)?;
        same("rsp", trap.rsp, STACK)?;
        same("rax", m.end()?.registers.gpr[RAX], 1)?;
    }
    Ok(())
}

fn a_shadow_lasts_one_instruction(bench: &Bench<'_>) -> Outcome {
    for (shadow, rip) in [(false, CODE), (true, CODE + 5)] {
        let m = bench.long(|a| {
            a.mov(eax, 1)?;
            a.mov(eax, 2)
        })?;
        let mut m = m.with(|state| {
            state.registers.rflags = 0x202;
            state.events.interrupt_shadow = shadow;
            // Vector 0x41 is requested.
            state.lapic.set(0x220, 2);
        });
        same("rip", m.expect_trap(0x41, None)?.rip, rip)?;
        same("spurious vector", m.end()?.lapic.get(Lapic::SPURIOUS), 0x1FF)?;
    }
    Ok(())
}

fn a_pending_nmi_arrives(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| a.nop())?.with(|state| state.events.nmi_pending = true);
    same("rip", m.expect_trap(2, None)?.rip, CODE)?;
    m.end()?;
    // While another one is handled it waits.
    let m = bench.long(|a| a.mov(eax, 1))?;
    let mut m = m.with(|state| {
        state.events.nmi_pending = true;
        state.events.nmi_blocked = true;
    });
    let end = m.end()?;
    same("still pending", u8::from(end.events.nmi_pending), 1)?;
    same("rsp", end.registers.gpr[RSP], STACK)
}

fn a_kick_before_a_run_is_kept(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| a.mov(eax, 1))?;
    m.partition().kick();
    m.kicked()?;
    same("rax", m.end()?.registers.gpr[RAX], 1)
}

fn a_kick_ends_a_busy_guest(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        let mut here = a.create_label();
        a.set_label(&mut here)?;
        a.jmp(here)
    })?;
    for _ in 0..20 {
        m.go()?;
        thread::sleep(Duration::from_millis(1));
        m.partition().kick();
        m.kicked()?;
        same("rip", m.save(0)?.registers.rip, CODE)?;
    }
    Ok(())
}

fn a_kick_ends_a_sleeping_guest(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| a.hlt())?;
    m.sleep()?;
    m.partition().kick();
    m.kicked()?;
    same("sleeps", u8::from(m.save(0)?.activity == Activity::Halted), 1)
}

/// What was read once, and might not be there a second time, must not get lost.
fn a_kick_waits_for_the_end_of_an_access(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.movups(xmm0, xmmword_ptr(rdi))?;
        a.mov(eax, 1)
    })?;
    let mut m = m.staying().given(RDI, DEVICE);
    m.expect_read(MmioRead { addr: DEVICE, size: 8 }, 0x11)?;
    m.partition().kick();
    m.expect_read(MmioRead { addr: DEVICE + 8, size: 8 }, 0x22)?;
    m.kicked()?;
    let state = m.save(0)?;
    same("rip", state.registers.rip, CODE + 3)?;
    same("xmm0", state.fpu.bytes()[160].into(), 0x11)?;
    same("xmm0, upper half", state.fpu.bytes()[168].into(), 0x22)?;
    same("rax", m.end()?.registers.gpr[RAX], 1)
}
