//! Memory events of an engine that has an exact source of them, and a guest that does not notice (SDM vol. 2; Intel's
//! persistent-memory rules). An engine without one passes.

use iced_x86::code_asm::*;

use super::apic::APIC;
use super::bench::{Bench, Case, Failure, Outcome, cases, holds, same};
use super::machine::Machine;
use super::scene::{DATA, PD, TABLES};
use crate::event::EventKind::{self, Fence, Flush, Store};
use crate::event::{FenceKind, FlushKind, StoreKind};
use crate::log::Log;
use crate::state::gpr::{RAX, RBX, RCX, RDI, RDX, RSI};

pub(super) const CASES: &[Case] = cases!["watch":
    every_kind_of_store,
    flushes_and_fences,
    exchanges_that_fail_store_nothing,
    strings_element_by_element,
    only_what_is_watched,
    saved_flags_are_the_guests,
    a_fault_comes_and_goes,
    an_interrupt_comes_and_goes,
    a_halt_ends,
    xsave_stores_what_is_asked_for,
    long_strings_beside_what_is_watched,
];

/// What a handler's IRET is: it may order what the vCPU did before it was watched.
const RETURN: EventKind = Fence { kind: FenceKind::Serialising };
const VALUE: u64 = 0x1122_3344_5566_7788;

/// Has the page at [`DATA`] watched; `false` where the engine cannot.
fn watch(m: &Machine<'_>) -> bool {
    let range = DATA..DATA + 0x1000;
    m.partition().memory_events().map(|events| events.watch(std::slice::from_ref(&range), false)).is_some()
}

/// The events so far.
fn drained(m: &Machine<'_>) -> Vec<EventKind> {
    let mut got = Log::default();
    if let Some(events) = m.partition().memory_events() {
        events.drain(&mut got);
    }
    got.events().map(|event| event.kind).collect()
}

/// The events so far must be these.
fn seen(m: &Machine<'_>, want: &[EventKind]) -> Outcome {
    let got = drained(m);
    holds(|| format!("events are {got:x?}, not {want:x?}"), got == want)
}

fn store(addr: u64, bytes: &[u8], kind: StoreKind) -> EventKind {
    let mut data = [0; 64];
    data[..bytes.len()].copy_from_slice(bytes);
    Store { addr, data, len: bytes.len() as u8, kind }
}

fn cached(addr: u64, bytes: &[u8]) -> EventKind {
    store(addr, bytes, StoreKind::Cached)
}

/// A machine with [`VALUE`] in RAX, [`DATA`] in RBX and RDI.
fn given(m: Result<Machine<'_>, Failure>) -> Result<Machine<'_>, Failure> {
    Ok(m?.given(RAX, VALUE).given(RBX, DATA).given(RDI, DATA).staying())
}

fn every_kind_of_store(bench: &Bench<'_>) -> Outcome {
    let mut m = given(bench.long(|a| {
        a.mov(byte_ptr(rbx), al)?;
        a.mov(dword_ptr(rbx + 4), eax)?;
        a.add(qword_ptr(rbx + 8), 1)?;
        a.movnti(qword_ptr(rbx + 64), rax)?;
        a.lock().xadd(qword_ptr(rbx + 8), rcx)?;
        a.mov(rsp, rbx)?;
        a.add(rsp, 0x100)?;
        a.push(rax)
    }))?
    .given(RCX, 2);
    if !watch(&m) {
        return Ok(());
    }
    m.end()?;
    let bytes = VALUE.to_le_bytes();
    seen(
        &m,
        &[
            cached(DATA, &bytes[..1]),
            cached(DATA + 4, &bytes[..4]),
            cached(DATA + 8, &1_u64.to_le_bytes()),
            store(DATA + 64, &bytes, StoreKind::NonTemporal),
            store(DATA + 8, &3_u64.to_le_bytes(), StoreKind::Locked),
            Fence { kind: FenceKind::Locked },
            cached(DATA + 0xF8, &bytes),
        ],
    )
}

fn flushes_and_fences(bench: &Bench<'_>) -> Outcome {
    let mut m = given(bench.long(|a| {
        a.clflush(byte_ptr(rbx + 5))?;
        a.clflushopt(byte_ptr(rbx + 0x7F))?;
        a.clwb(byte_ptr(rbx + 0xC0))?;
        a.clwb(byte_ptr(rbx - 1))?;
        a.lfence()?;
        a.sfence()?;
        a.mfence()?;
        a.mov(rcx, cr3)?;
        a.mov(cr3, rcx)?;
        a.clwb(byte_ptr(rbx))?;
        a.mov(cr3, rcx)
    }))?;
    if !watch(&m) {
        return Ok(());
    }
    m.end()?;
    seen(
        &m,
        &[
            Flush { line: DATA, kind: FlushKind::Clflush },
            Flush { line: DATA + 0x40, kind: FlushKind::Clflushopt },
            Flush { line: DATA + 0xC0, kind: FlushKind::Clwb },
            Fence { kind: FenceKind::Sfence },
            Fence { kind: FenceKind::Mfence },
            // The first MOV to CR3 has nothing to order.
            Flush { line: DATA, kind: FlushKind::Clwb },
            Fence { kind: FenceKind::Serialising },
        ],
    )
}

fn exchanges_that_fail_store_nothing(bench: &Bench<'_>) -> Outcome {
    let mut m = given(bench.long(|a| {
        a.clwb(byte_ptr(rbx))?;
        a.lock().cmpxchg(qword_ptr(rbx), rcx)?;
        a.lock().cmpxchg(qword_ptr(rbx), rcx)
    }))?
    .given(RCX, 7);
    if !watch(&m) {
        return Ok(());
    }
    // The first finds something else, and takes it into RAX.
    m.write(DATA, 5_u64)?;
    m.end()?;
    seen(
        &m,
        &[
            Flush { line: DATA, kind: FlushKind::Clwb },
            Fence { kind: FenceKind::LockedFailed },
            store(DATA, &7_u64.to_le_bytes(), StoreKind::Locked),
            Fence { kind: FenceKind::Locked },
        ],
    )
}

fn strings_element_by_element(bench: &Bench<'_>) -> Outcome {
    let m = given(bench.long(|a| {
        a.rep().stosb()?;
        a.mov(ecx, 2)?;
        a.rep().movsq()?;
        a.rep().movsq()
    }))?;
    let mut m = m.given(RCX, 3).given(RSI, DATA + 0x2000);
    if !watch(&m) {
        return Ok(());
    }
    m.write(DATA + 0x2000, VALUE)?;
    m.end()?;
    seen(
        &m,
        &[
            cached(DATA, &[0x88]),
            cached(DATA + 1, &[0x88]),
            cached(DATA + 2, &[0x88]),
            cached(DATA + 3, &VALUE.to_le_bytes()),
            cached(DATA + 11, &[0; 8]),
        ],
    )
}

fn only_what_is_watched(bench: &Bench<'_>) -> Outcome {
    let mut m = given(bench.long(|a| {
        a.mov(qword_ptr(rbx - 8), rax)?;
        a.mov(qword_ptr(rbx - 4), rax)?;
        a.mov(qword_ptr(rbx + 0xFFC), rax)?;
        a.mov(qword_ptr(rbx + 0x1000), rax)?;
        a.mov(rax, qword_ptr(rbx))
    }))?;
    if !watch(&m) {
        return Ok(());
    }
    m.end()?;
    let bytes = VALUE.to_le_bytes();
    seen(&m, &[cached(DATA, &bytes[4..]), cached(DATA + 0xFFC, &bytes[..4])])
}

fn saved_flags_are_the_guests(bench: &Bench<'_>) -> Outcome {
    let mut m = given(bench.long(|a| {
        a.pushfq()?;
        a.pop(rcx)?;
        a.push(0x2)?;
        a.popfq()?;
        a.pushfq()?;
        a.pop(rdx)?;
        a.mov(byte_ptr(rbx), al)
    }))?;
    if !watch(&m) {
        return Ok(());
    }
    let end = m.end()?;
    same("flags before POPF", end.registers.gpr[RCX], 2)?;
    same("flags after POPF", end.registers.gpr[RDX], 2)?;
    seen(&m, &[cached(DATA, &[0x88])])
}

/// The program's second store finds its page missing; the page comes while the handler reports.
fn a_fault_comes_and_goes(bench: &Bench<'_>) -> Outcome {
    let mut m = given(bench.long(|a| {
        a.mov(byte_ptr(rbx), al)?;
        a.mov(byte_ptr(rsi), al)?;
        a.mov(byte_ptr(rbx + 1), al)
    }))?
    .given(RSI, TABLES + 0x20_0000);
    let entry = PD + 8;
    let present: u64 = m.read(entry)?;
    m.write(entry, 0_u64)?;
    if !watch(&m) {
        return Ok(());
    }
    let trap = m.expect_trap(14, Some(2))?;
    same("address", trap.state.system.cr2, TABLES + 0x20_0000)?;
    same("saved TF", trap.rflags & 0x100, 0)?;
    m.write(entry, present)?;
    m.end()?;
    seen(&m, &[cached(DATA, &[0x88]), RETURN, cached(DATA + 1, &[0x88])])
}

fn an_interrupt_comes_and_goes(bench: &Bench<'_>) -> Outcome {
    let mut m = given(bench.long(|a| {
        a.out(0x10, al)?;
        a.sti()?;
        a.mov(byte_ptr(rbx), al)?;
        a.mov(byte_ptr(rbx + 1), al)
    }))?;
    if !watch(&m) {
        return Ok(());
    }
    m.next()?;
    m.send(APIC, 0x41)?;
    let trap = m.expect_trap(0x41, None)?;
    same("saved TF", trap.rflags & 0x100, 0)?;
    same("IF in the handler", trap.state.registers.rflags & 0x200, 0)?;
    let end = m.end()?;
    same("IF at the end", end.registers.rflags & 0x200, 0x200)?;
    seen(&m, &[cached(DATA, &[0x88]), RETURN, cached(DATA + 1, &[0x88])])
}

fn a_halt_ends(bench: &Bench<'_>) -> Outcome {
    let mut m = given(bench.long(|a| {
        a.mov(byte_ptr(rbx), al)?;
        a.sti()?;
        a.hlt()?;
        a.mov(byte_ptr(rbx + 1), al)
    }))?;
    if !watch(&m) {
        return Ok(());
    }
    m.sleep()?;
    m.send(APIC, 0x41)?;
    m.expect_trap(0x41, None)?;
    m.end()?;
    seen(&m, &[cached(DATA, &[0x88]), RETURN, cached(DATA + 1, &[0x88])])
}

/// In what pieces is left open, not which bytes.
fn xsave_stores_what_is_asked_for(bench: &Bench<'_>) -> Outcome {
    let parts = [(1, 0..24), (1, 32..160), (6, 24..32), (2, 160..416), (8, 512..520), (4, 576..832)];
    for asked in 0..8_u64 {
        let Some(m) = bench.wide(|a| a.xsave64(ptr(DATA)))? else { return Ok(()) };
        let mut m = m.given(RAX, asked).staying().with(|state| {
            state.fpu = state.fpu.clone().with_upper([0x5A; 16]);
        });
        if !watch(&m) {
            return Ok(());
        }
        m.end()?;
        let mut stored = Vec::new();
        for event in drained(&m) {
            let Store { addr, data, len, kind: StoreKind::Cached } = event else {
                return holds(|| format!("{event:x?} is no store of XSAVE"), false);
            };
            for (at, byte) in (addr..).zip(&data[..len.into()]) {
                same("byte", *byte, m.read(at)?)?;
                stored.push(at - DATA);
            }
        }
        stored.sort_unstable();
        // The header is stored whatever is asked for.
        let chosen = parts.iter().filter(|(components, _)| components & (asked | 8) != 0);
        let mut want: Vec<u64> = chosen.flat_map(|(_, part)| part.clone()).collect();
        want.sort_unstable();
        holds(|| format!("components {asked}: stored is {stored:?}, not {want:?}"), stored == want)?;
    }
    Ok(())
}

/// Three pages are filled and copied around the watched one, a byte into it on either side.
fn long_strings_beside_what_is_watched(bench: &Bench<'_>) -> Outcome {
    let mut m = given(bench.long(|a| {
        a.mov(rdi, DATA - 0x1000)?;
        a.mov(ecx, 0x1001)?;
        a.rep().stosb()?;
        a.mov(rsi, DATA - 0x1000)?;
        a.mov(rdi, DATA + 0xFFF)?;
        a.mov(ecx, 0x1001)?;
        a.rep().movsb()
    }))?;
    if !watch(&m) {
        return Ok(());
    }
    let end = m.end()?;
    same("rcx", end.registers.gpr[RCX], 0)?;
    same("rsi", end.registers.gpr[RSI], DATA + 1)?;
    same("rdi", end.registers.gpr[RDI], DATA + 0x2000)?;
    same("last byte of the copy", m.read::<u16>(DATA + 0x1FFF)?, 0x88)?;
    seen(&m, &[cached(DATA, &[0x88]), cached(DATA + 0xFFF, &[0x88])])
}
