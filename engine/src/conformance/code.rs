//! Code that changes, and how it is fetched (SDM vol. 3, 9.1.3).

use iced_x86::code_asm::*;

use super::bench::{Bench, Case, Outcome, cases, same};
use super::scene::{DATA, END, PD, TABLES};
use crate::ExitKind::IoWrite;
use crate::state::gpr::{RAX, RBX, RCX, RDI, RSI};

pub(super) const CASES: &[Case] = cases!["code":
    a_store_to_the_next_instruction,
    a_loop_that_changes_itself,
    a_change_through_another_address,
    copied_code_runs,
    a_change_by_the_machine_is_seen,
    an_instruction_over_a_page_end,
    an_instruction_has_fifteen_bytes,
    call_and_return,
    loops_and_conditions,
];

fn a_store_to_the_next_instruction(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        let mut next = a.create_label();
        a.lea(rdx, qword_ptr(next))?;
        a.mov(byte_ptr(rdx + 1), 0x42)?;
        a.set_label(&mut next)?;
        a.mov(al, 0x11)
    })?;
    same("al", m.end()?.registers.gpr[RAX], 0x42)
}

fn a_loop_that_changes_itself(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 1000)?;
        a.lea(rdx, qword_ptr(again))?;
        a.set_label(&mut again)?;
        a.mov(eax, 0)?;
        a.add(rbx, rax)?;
        a.inc(dword_ptr(rdx + 1))?;
        a.dec(ecx)?;
        a.jnz(again)
    })?;
    same("sum of 0..1000", m.end()?.registers.gpr[RBX], 499_500)
}

fn a_change_through_another_address(bench: &Bench<'_>) -> Outcome {
    let alias = 0xC000_0000_u64;
    let m = bench.long(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 2)?;
        a.set_label(&mut again)?;
        a.call(DATA)?;
        a.mov(byte_ptr(rdi + 1), 0x22)?;
        a.dec(ecx)?;
        a.jnz(again)
    })?;
    let mut m = m.given(RDI, alias);
    m.write(PD + 3 * 0x1000, TABLES | 7)?;
    m.write(TABLES, DATA | 7)?;
    m.program(DATA, 64, |a| {
        a.mov(al, 0x11)?;
        a.shl(rbx, 8)?;
        a.mov(bl, al)?;
        a.ret()
    })?;
    same("what ran", m.end()?.registers.gpr[RBX], 0x1122)
}

fn copied_code_runs(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.rep().movsb()?;
        a.call(DATA + 0x800)
    })?;
    let mut m = m.given(RSI, DATA).given(RDI, DATA + 0x800).given(RCX, 16);
    m.program(DATA, 64, |a| {
        a.mov(eax, 0x1234)?;
        a.ret()
    })?;
    same("rax", m.end()?.registers.gpr[RAX], 0x1234)
}

/// As by a device's DMA.
fn a_change_by_the_machine_is_seen(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.call(DATA)?;
        a.out(0x10, al)?;
        a.call(DATA)
    })?;
    m.program(DATA, 64, |a| {
        a.mov(al, 0x11)?;
        a.ret()
    })?;
    m.expect(IoWrite { port: 0x10, size: 1, value: 0x11 })?;
    m.write(DATA + 1, 0x22_u8)?;
    same("al", m.end()?.registers.gpr[RAX], 0x22)
}

fn an_instruction_over_a_page_end(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| a.jmp(DATA + 0xFFB))?;
    m.program(DATA + 0xFFB, 64, |a| {
        a.mov(rax, 0x1122_3344_5566_7788_u64)?;
        a.out(u32::from(END), al)
    })?;
    same("rax", m.end()?.registers.gpr[RAX], 0x1122_3344_5566_7788)
}

fn an_instruction_has_fifteen_bytes(bench: &Bench<'_>) -> Outcome {
    let long = |prefixes: usize| {
        let mut bytes = vec![0x66; prefixes];
        bytes.push(0x90);
        bytes
    };
    bench.long(|a| a.db(&long(14)))?.end()?;
    bench.long(|a| a.db(&long(15)))?.expect_trap(13, Some(0)).map(drop)
}

fn call_and_return(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.mov(eax, DATA as u32)?;
        a.push(1)?;
        a.push(2)?;
        a.call(rax)?;
        a.mov(ebx, 5)
    })?;
    m.program(DATA, 64, |a| {
        a.mov(rcx, qword_ptr(rsp + 8))?;
        a.ret_1(16)
    })?;
    let end = m.end()?.registers.gpr;
    same("argument", end[RCX], 2)?;
    same("after it", end[RBX], 5)?;
    same("rsp", end[crate::state::gpr::RSP], super::scene::STACK)
}

/// JECXZ looks at ECX, JRCXZ at RCX, and LOOP counts without touching flags.
fn loops_and_conditions(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        let (mut not, mut again) = (a.create_label(), a.create_label());
        // JECXZ over UD2.
        a.db(&[0x67, 0xE3, 2])?;
        a.ud2()?;
        a.jrcxz(not)?;
        a.mov(ecx, 5)?;
        a.stc()?;
        a.set_label(&mut again)?;
        a.inc(rbx)?;
        a.loop_(again)?;
        a.adc(rbx, 0)?;
        a.set_label(&mut not)?;
        a.nop()
    })?;
    same("rbx", m.given(RCX, 1 << 32).end()?.registers.gpr[RBX], 6)
}
