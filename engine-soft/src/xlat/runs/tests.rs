use std::collections::HashSet;

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::super::Haste;
use super::super::tests::{all, assembled, cpu, the_same};
use super::super::watched::noted;
use super::*;
use crate::rig::DATA;
use crate::run::Stop;

const PAGE: std::ops::Range<u64> = DATA..DATA + 0x1000;

/// Runs of all kinds, from the page before into the watched one and beyond it, flags alive across them, the stack here and there.
fn runs() -> Vec<u8> {
    assembled(|a| {
        let (mut top, mut out, mut into) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(r13, rsp)?;
        a.set_label(&mut top)?;
        a.inc(rax)?;
        a.lea(rdi, rbx + rax + 0xE80)?;
        a.mov(ecx, 12)?;
        a.set_label(&mut out)?;
        a.imul_3(r9, rdi, 0x1234_5671)?;
        a.add(r9, rax)?;
        a.cmp(r9b, cl)?;
        // As copies have it; a fifth is another run's first.
        a.movnti(qword_ptr(rdi), r9)?;
        a.movnti(qword_ptr(rdi + 8), rdi)?;
        a.movnti(qword_ptr(rdi + 16), r15)?;
        a.movnti(qword_ptr(rdi + 24), r9)?;
        a.movnti(qword_ptr(rdi + 4), rax)?;
        a.movnti(dword_ptr(rdi + 8), r9d)?;
        a.adc(r11, 3)?;
        a.setp(dl)?;
        // Not of one run: another base, an index, another instruction between.
        a.movnti(qword_ptr(rbx + 0x200), rcx)?;
        a.movnti(qword_ptr(rdi), rcx)?;
        a.movnti(qword_ptr(rbx + rcx * 8 + 0x300), r9)?;
        a.mov(qword_ptr(rbx + 0x208), r9)?;
        a.movnti(qword_ptr(rbx + 0x210), r11)?;
        a.lea(rdi, rdi + 32)?;
        a.dec(ecx)?;
        a.jne(out)?;
        a.lea(r10, rbx + rax - 0x80)?;
        a.mov(ecx, 16)?;
        a.set_label(&mut into)?;
        a.imul_3(r11, r10, 0x1234_5671)?;
        // A base in the frame; out of order, over one another.
        a.movnti(qword_ptr(r10 + 8), r10)?;
        a.movnti(dword_ptr(r10 - 16), edx)?;
        a.movnti(qword_ptr(r10 + 4), r11)?;
        a.rcl(r11, 1)?;
        a.movnti(dword_ptr(r10), ecx)?;
        a.movnti(dword_ptr(r10), r11d)?;
        a.lea(r10, r10 + 13)?;
        a.lea(rsp, rsp + rcx * 8)?;
        a.xor(rbp, rcx)?;
        a.dec(ecx)?;
        a.jne(into)?;
        a.mov(rsp, r13)?;
        a.sfence()?;
        a.and(eax, 0x7F)?;
        a.jmp(top)
    })
}

#[test]
fn runs_are_logged_as_the_interpreter_does() {
    the_same(&runs(), 400, Some(PAGE));
}

#[test]
fn so_they_are_where_nothing_is_watched_but_something_else() {
    the_same(&runs(), 100, Some(DATA + 0x8000..DATA + 0x9000));
}

/// A loop of a run, with another store before it or without, that changes nothing but watched memory.
fn copy(with: bool) -> Vec<u8> {
    assembled(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.lea(rcx, rax + rax * 4)?;
        if with {
            a.movnti(qword_ptr(rbx + rax * 1_i32), rcx)?;
        }
        a.lea(rdi, rbx + rax * 8)?;
        a.movnti(qword_ptr(rdi + 0x800), rax)?;
        a.movnti(qword_ptr(rdi + 0x808), rcx)?;
        a.movnti(qword_ptr(rdi + 0x810), rbx)?;
        a.inc(rax)?;
        a.and(eax, 0x7F)?;
        a.jmp(top)
    })
}

/// A translating vCPU and an interpreting one that run it.
fn pair(with: bool) -> [Cpu; 2] {
    [Some(Haste::AtOnce), None].map(|haste| {
        let mut cpu = cpu(&copy(with), haste);
        cpu.shared.watch.ranges.push(PAGE);
        cpu.shared.blocks.set_watching(true);
        cpu
    })
}

#[test]
fn a_run_is_logged_by_translated_code_itself() {
    let [mut a, mut b] = pair(true);
    assert_eq!((a.run(900), b.run(900)), (Stop::Budget, Stop::Budget));
    let frame = &a.tlb.frame;
    assert_eq!(frame.runs.iter().filter(|run| run.key != 0).count(), 1);
    assert_eq!(frame.sites.iter().filter(|site| site.key != 0).count(), 1, "the store before it");
    assert!(a.shared.log.rips().count() < 10);
    assert_eq!(a.shared.log.len(), 400);
    assert_eq!(all(&mut a), all(&mut b));
}

/// The log has room for some of a run's stores.
#[test]
fn a_run_may_find_the_log_nearly_full() {
    let mut ends = HashSet::new();
    for first in 0..4 {
        let [mut a, mut b] = pair(true);
        for cpu in [&mut a, &mut b] {
            cpu.run(2 + 9 * first);
            // So that all remainders occur.
            cpu.shared.log.truncate(first as usize);
        }
        let stops = [a.run(100_000), b.run(100_000)];
        assert_eq!(stops[0], stops[1]);
        assert_eq!(a.shared.log.len(), LOG_CAPACITY);
        ends.extend(a.shared.log.events().last().map(|event| event.rip));
        assert_eq!(all(&mut a), all(&mut b));
    }
    assert_eq!(ends.len(), 4, "behind each of the four stores");
}

/// Each turn's events are of other origins, of which a log can have only so many.
#[test]
fn runs_beyond_the_last_origin_are_no_loss() {
    let [mut a, mut b] = pair(false);
    for _ in 0..1700 {
        assert_eq!((a.run(8), b.run(8)), (Stop::Budget, Stop::Budget));
    }
    assert_eq!(a.shared.log.len(), 3 * 1700);
    assert!(a.shared.log.rips().count() > 4095);
    assert_eq!((a.run(800), b.run(800)), (Stop::Budget, Stop::Budget));
    assert_eq!(all(&mut a), all(&mut b));
}

#[test]
fn what_is_a_run() {
    let of = |emit: fn(&mut CodeAssembler) -> Result<(), IcedError>, sync: bool| {
        let code = assembled(emit);
        let mut decoder = iced_x86::Decoder::new(64, &code, 0);
        let forms: Vec<_> = decoder.iter().collect();
        let run = |noted: Option<Noted>| match noted {
            Some(Noted::Store(stored)) => stored.run,
            _ => 0,
        };
        noted(&forms, sync).into_iter().map(run).collect::<Vec<_>>()
    };
    let six = |a: &mut CodeAssembler| (0..6).try_for_each(|n| a.movnti(qword_ptr(rdi + 8 * n), rax));
    assert_eq!(of(six, false), [4, 1, 1, 1, 2, 1]);
    assert_eq!(of(six, true), [4, 1, 1, 1, 1, 1], "code does not go on behind the last");
    let far = |a: &mut CodeAssembler| {
        a.movnti(qword_ptr(rdi), rax)?;
        a.movnti(qword_ptr(rdi + 0x200), rax)?;
        a.movnti(qword_ptr(rsi + 0x200), rax)?;
        a.movnti(qword_ptr(rsi + rax + 0x208), rax)?;
        a.movnti(qword_ptr(rsi).gs(), rax)?;
        a.movnti(qword_ptr(rsi + 8).gs(), rax)?;
        a.movnti(dword_ptr(esi), eax)?;
        a.movnti(dword_ptr(esi + 4), eax)?;
        a.mov(qword_ptr(rsi), rax)?;
        a.mov(qword_ptr(rsi + 8), rax)?;
        a.clwb(byte_ptr(rsi))
    };
    assert_eq!(of(far, false), [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
}
