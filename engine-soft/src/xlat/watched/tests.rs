use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::super::Haste;
use super::super::tests::{assembled, cpu, the_same};
use super::*;
use crate::rig::{CODE, DATA};
use crate::run::Stop;

const PAGE: std::ops::Range<u64> = DATA..DATA + 0x1000;

/// Every kind of store that translated code logs by itself, to the watched page, across both of its borders and beside it.
fn stores() -> Vec<u8> {
    assembled(|a| {
        let (mut top, mut function) = (a.create_label(), a.create_label());
        a.mov(r13, rsp)?;
        a.set_label(&mut top)?;
        a.inc(rax)?;
        a.imul_3(rcx, rax, 0x1234_5671)?;
        for at in [0x10, 0xFFC, -4, 0x1800] {
            a.mov(byte_ptr(rbx + at), cl)?;
            a.mov(word_ptr(rbx + at), cx)?;
            a.mov(qword_ptr(rbx + at), rcx)?;
            a.mov(dword_ptr(rbx + at), 0x1234_5678)?;
            a.movnti(dword_ptr(rbx + at), ecx)?;
            a.movnti(qword_ptr(rbx + at), rcx)?;
            a.add(qword_ptr(rbx + at), rcx)?;
            a.adc(qword_ptr(rbx + at), 3)?;
            a.inc(dword_ptr(rbx + at))?;
            a.neg(dword_ptr(rbx + at))?;
            a.not(word_ptr(rbx + at))?;
            a.cmp(qword_ptr(rbx + at), rcx)?;
            a.movd(xmm1, ecx)?;
            a.paddd(xmm2, xmm1)?;
            a.movups(xmmword_ptr(rbx + at), xmm2)?;
            a.movdqu(xmmword_ptr(rbx + at), xmm1)?;
        }
        a.movntdq(xmmword_ptr(rbx + 0x40), xmm2)?;
        a.movntps(xmmword_ptr(rbx + 0x50), xmm1)?;
        a.movntpd(xmmword_ptr(rbx + 0x60), xmm2)?;
        a.movaps(xmmword_ptr(rbx + 0x70), xmm1)?;
        a.movdqa(xmmword_ptr(rbx + 0x80), xmm2)?;
        a.sfence()?;
        a.mov(byte_ptr(rbx + 0x90), ah)?;
        a.lock().add(qword_ptr(rbx + 0x98), rcx)?;
        a.mov(r9, rcx)?;
        a.mov(qword_ptr(rbx + 0xA0), r9)?;
        // The stack may be there, too.
        a.lea(rsp, rbx + 0x800)?;
        a.push(rcx)?;
        a.push(0x77)?;
        a.push(qword_ptr(rbx + 0x10))?;
        a.call(function)?;
        a.lea(r8, qword_ptr(function))?;
        a.call(r8)?;
        a.mov(rsp, r13)?;
        a.mov(ecx, 5)?;
        a.lea(rdi, rbx + 0xFF8)?;
        a.rep().stosd()?;
        a.and(eax, 0x7F)?;
        a.jmp(top)?;
        a.set_label(&mut function)?;
        a.mov(qword_ptr(rbx + 0xA8), rsp)?;
        a.ret()
    })
}

#[test]
fn logged_stores_are_the_interpreters() {
    the_same(&stores(), 150, Some(PAGE));
}

/// A copy past the cache and one that flushes, both from the page before into the watched one and beyond it, with an odd store
/// to memory that is not watched, and the stack and frame pointers here and there.
fn copies() -> Vec<u8> {
    assembled(|a| {
        let (mut top, mut past, mut flushed) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(r13, rsp)?;
        a.set_label(&mut top)?;
        a.inc(rax)?;
        a.lea(rdi, rbx + 0xF40)?;
        a.mov(ecx, 8)?;
        a.set_label(&mut past)?;
        a.imul_3(r9, rdi, 0x1234_5671)?;
        a.add(r9, rax)?;
        a.movnti(qword_ptr(rdi), r9)?;
        a.movnti(qword_ptr(rdi + 8), rdi)?;
        a.movnti(dword_ptr(rdi + 16), ecx)?;
        a.mov(qword_ptr(rdi + 24), -7)?;
        a.lea(rdi, rdi + 32)?;
        a.xor(rbp, rcx)?;
        a.dec(ecx)?;
        a.jne(past)?;
        a.lea(rdi, rbx + 0xEC0)?;
        a.mov(ecx, 6)?;
        a.set_label(&mut flushed)?;
        a.mov(word_ptr(rdi + 5), cx)?;
        a.mov(byte_ptr(rdi + 3), r9b)?;
        a.clwb(byte_ptr(rdi + 9))?;
        a.clflushopt(byte_ptr(rbx + 0x40))?;
        a.clflush(byte_ptr(rbx + 0x1040))?;
        a.movdqu(xmmword_ptr(rdi + 32), xmm1)?;
        a.mov(qword_ptr(rdi + 32), rcx)?;
        a.add(qword_ptr(rdi + 40), rcx)?;
        a.mov(qword_ptr(rdi + 40), rbp)?;
        a.lea(rsp, rsp + rcx * 8)?;
        a.lea(rdi, rdi + 64)?;
        a.dec(ecx)?;
        a.jne(flushed)?;
        a.sfence()?;
        a.mov(rsp, r13)?;
        a.and(eax, 0x7F)?;
        a.jmp(top)
    })
}

#[test]
fn loops_of_them_are_too() {
    the_same(&copies(), 300, Some(PAGE));
}

#[test]
fn so_are_they_in_a_page_that_is_executed() {
    the_same(&stores(), 100, Some(CODE..CODE + 0x1000));
}

/// A store across the end of the watched page, behind which nothing is mapped.
#[test]
fn half_a_store_is_none() {
    let code = assembled(|a| {
        a.mov(dword_ptr(rbx + 8), 1)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.movups(xmmword_ptr(rcx), xmm1)?;
        a.mov(qword_ptr(rbx), rax)
    });
    for haste in [None, Some(Haste::AtOnce)] {
        let mut cpu = cpu(&code, haste);
        // The entry of the second 2 MiB behind, in the rig's page directory.
        cpu.poke(0x3000 + 8 * ((DATA >> 21) + 1), &[0; 8]);
        cpu.flush_tlb();
        let last = (DATA | 0x1F_FFFF) - 7;
        (cpu.gpr[0], cpu.gpr[1], cpu.gpr[3]) = (5, last, last & !0xFFF);
        cpu.shared.watch.ranges = std::iter::once(last & !0xFFF..last + 8).collect();
        cpu.shared.blocks.set_watching(true);
        assert!(matches!(cpu.run(10), Stop::Exit(_)), "{haste:?}");
        let told: Vec<_> =
            cpu.shared.log.events().map(|event| (event.instruction, event.rip - CODE)).collect();
        assert_eq!(told, [(0, 0), (1, 7)], "{haste:?}");
        let mut after = [0xFF; 8];
        cpu.peek_at(last, &mut after);
        assert_eq!(after, [0; 8]);
    }
}

/// What a store finds in memory is what was there when it was made, not later.
#[test]
fn each_event_has_its_own_bytes() {
    let code = assembled(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(rax)?;
        a.movnti(qword_ptr(rbx), rax)?;
        a.jmp(top)
    });
    let mut cpu = cpu(&code, Some(Haste::AtOnce));
    cpu.gpr[0] = 0;
    cpu.shared.watch.ranges.push(PAGE);
    cpu.shared.blocks.set_watching(true);
    assert_eq!(cpu.run(3000), Stop::Budget);
    for (n, event) in cpu.shared.log.events().enumerate() {
        let EventKind::Store { addr: DATA, data, len: 8, kind: StoreKind::NonTemporal } = event.kind else {
            panic!("{event:?}")
        };
        assert_eq!(data[..8], (n as u64 + 1).to_le_bytes());
        assert_eq!(event.instruction, 3 * n as u64 + 1);
    }
    assert_eq!(cpu.shared.log.len(), 1000);
    assert!(cpu.shared.log.rips().count() < 10, "translated code logs by itself");
}

#[test]
fn only_what_stores_all_of_its_operand_whatever_it_finds() {
    let of = |emit: fn(&mut CodeAssembler) -> Result<(), IcedError>| {
        let code = assembled(emit);
        noted_of(&iced_x86::Decoder::new(64, &code, 0).decode())
    };
    let store = |size, posted, told| Some(Noted::Store(Stored { size, posted, told, run: 1 }));
    assert_eq!(of(|a| a.mov(dword_ptr(rbx), ecx)), store(4, false, true));
    assert_eq!(of(|a| a.mov(qword_ptr(rbx), -5)), store(8, false, true));
    assert_eq!(of(|a| a.mov(byte_ptr(rbx), ah)), store(1, false, false));
    assert_eq!(of(|a| a.movnti(qword_ptr(rbx), rcx)), store(8, true, true));
    assert_eq!(of(|a| a.add(dword_ptr(rbx), ecx)), store(4, false, false));
    assert_eq!(of(|a| a.clwb(byte_ptr(rbx))), Some(Noted::Flush(FlushKind::Clwb)));
    assert_eq!(of(|a| a.push(rcx)), store(8, false, false));
    assert_eq!(of(|a| a.vmovntdq(ymmword_ptr(rbx), ymm1)), store(32, true, false));
    assert_eq!(of(|a| a.mov(ecx, dword_ptr(rbx))), None);
    assert_eq!(of(|a| a.cmp(dword_ptr(rbx), ecx)), None);
    assert_eq!(of(|a| a.lock().add(dword_ptr(rbx), ecx)), None);
    assert_eq!(of(|a| a.cmpxchg(dword_ptr(rbx), ecx)), None);
    assert_eq!(of(|a| a.shl(dword_ptr(rbx), cl)), None);
}
