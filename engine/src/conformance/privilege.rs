//! Changing privilege: SYSCALL and SYSRET, SWAPGS, IRET, gates (SDM vol. 3, ch. 6; vol. 2).

use iced_x86::code_asm::*;

use super::bench::{Bench, Case, Outcome, cases, same};
use super::scene::{self, CODE, DATA, KERNEL_STACK, STACK, selector};
use crate::state::gpr::{R11, RAX, RBX, RCX, RSP};
use crate::state::{CpuState, SystemRegisters};

pub(super) const CASES: &[Case] = cases!["privilege":
    syscall_enters_the_kernel,
    syscall_keeps_unmasked_flags,
    sysret_returns_to_64_bit_code,
    sysret_returns_to_compatibility_mode,
    syscall_must_be_enabled,
    swapgs_exchanges_bases,
    iret_to_ring_3_and_back_by_int,
    user_may_not_call_a_kernel_gate,
    iret_checks_its_selectors,
    iret_to_compatibility_mode,
    a_null_stack_in_ring_0,
];

const STAR: u64 = 0x0018_0008_0000_0000;

fn system_calls(state: &mut CpuState) {
    state.msrs.star = STAR;
    state.msrs.lstar = DATA;
    state.msrs.fmask = 0x4_0600;
}

fn syscall_enters_the_kernel(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| a.syscall())?.with(scene::user).with(system_calls);
    let mut m = m.with(|state| state.registers.rflags = 0x0E97);
    m.program(DATA, 64, |a| a.out(u32::from(scene::END), al))?;
    let end = m.end()?;
    same("rcx", end.registers.gpr[RCX], CODE + 2)?;
    same("r11", end.registers.gpr[R11], 0x0E97)?;
    same("masked flags", end.registers.rflags & 0x600, 0)?;
    same("rsp", end.registers.gpr[RSP], STACK)?;
    let segments = &end.system.segments;
    same("cs", segments[SystemRegisters::CS].selector, 8)?;
    same("ss", segments[SystemRegisters::SS].selector, 16)?;
    same("dpl of ss", segments[SystemRegisters::SS].dpl(), 0)
}

fn syscall_keeps_unmasked_flags(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| a.syscall())?.with(scene::user).with(system_calls);
    let mut m = m.with(|state| state.registers.rflags = 0x0E97);
    m.program(DATA, 64, |a| a.out(u32::from(scene::END), al))?;
    same("rflags", m.end()?.registers.rflags, 0x0897)
}

fn sysret_returns_to_64_bit_code(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| a.sysretq())?.with(system_calls).given(RCX, DATA).given(R11, 0x0A97);
    let mut m = m;
    m.program(DATA, 64, |a| a.int3())?;
    let trap = m.expect_trap(3, None)?;
    same("rip", trap.rip, DATA + 1)?;
    same("rflags", trap.rflags, 0x0A97)?;
    same("cs", trap.cs, selector::USER_CODE64)?;
    same("ss", trap.ss, selector::USER_DATA)?;
    same("the frame's place", trap.frame, KERNEL_STACK - 40)
}

fn sysret_returns_to_compatibility_mode(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| a.sysret())?.with(system_calls).given(RCX, DATA).given(R11, 2);
    let mut m = m;
    // A 64-bit processor would see DEC EAX as a REX prefix.
    m.program(DATA, 32, |a| {
        a.mov(eax, 5)?;
        a.dec(eax)?;
        a.int3()
    })?;
    let trap = m.expect_trap(3, None)?;
    same("eax", trap.state.registers.gpr[RAX], 4)?;
    same("cs", trap.cs, selector::USER_CODE32)
}

fn syscall_must_be_enabled(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| a.syscall())?.with(|state| state.system.efer &= !1);
    m.expect_trap(6, None)?;
    bench.long(|a| a.sysretq())?.with(scene::user).expect_trap(13, Some(0)).map(drop)
}

fn swapgs_exchanges_bases(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.xor(ecx, ecx)?;
        a.swapgs()?;
        a.mov(rax, qword_ptr(rcx).gs())?;
        a.swapgs()?;
        a.mov(rbx, qword_ptr(rcx).gs())?;
        a.swapgs()
    })?;
    let mut m = m.with(|state| {
        state.system.segments[SystemRegisters::GS].base = DATA;
        state.msrs.kernel_gs_base = DATA + 8;
    });
    m.write(DATA, 1_u64)?;
    m.write(DATA + 8, 2_u64)?;
    let end = m.end()?;
    same("inside", end.registers.gpr[RAX], 2)?;
    same("outside", end.registers.gpr[RBX], 1)?;
    same("gs base", end.system.segments[SystemRegisters::GS].base, DATA + 8)?;
    same("kernel gs base", end.msrs.kernel_gs_base, DATA)
}

/// A return frame and IRETQ.
fn iret<'e>(bench: &Bench<'e>, frame: [u64; 5]) -> super::bench::Started<'e> {
    let m = bench.long(|a| a.iretq())?.given(RSP, STACK - 40);
    for (n, value) in (0..).zip(frame) {
        m.write(STACK - 40 + n * 8, value)?;
    }
    Ok(m)
}

const USER_FRAME: [u64; 5] =
    [DATA, selector::USER_CODE64 as u64, 0x202, DATA + 0x800, selector::USER_DATA as u64];

fn iret_to_ring_3_and_back_by_int(bench: &Bench<'_>) -> Outcome {
    let mut m = iret(bench, USER_FRAME)?;
    m.program(DATA, 64, |a| {
        a.mov(eax, 7)?;
        a.int(0x80)?;
        a.inc(eax)?;
        a.int(0x80)
    })?;
    let trap = m.expect_trap(0x80, None)?;
    same("cs", trap.cs, selector::USER_CODE64)?;
    same("rsp", trap.rsp, DATA + 0x800)?;
    same("rflags", trap.rflags, 0x202)?;
    same("rflags in the handler", trap.state.registers.rflags & 0x200, 0)?;
    same("the frame's place", trap.frame, KERNEL_STACK - 40)?;
    let trap = m.expect_trap(0x80, None)?;
    same("rax", trap.state.registers.gpr[RAX], 8)
}

fn user_may_not_call_a_kernel_gate(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| a.int(0x42))?.with(scene::user);
    let trap = m.expect_trap(13, Some(0x42 << 3 | 2))?;
    same("rip", trap.rip, CODE)
}

fn iret_checks_its_selectors(bench: &Bench<'_>) -> Outcome {
    let mut frame = USER_FRAME;
    frame[1] = selector::DATA.into();
    iret(bench, frame)?.expect_trap(13, Some(selector::DATA.into()))?;
    let mut frame = USER_FRAME;
    frame[1] = 0;
    iret(bench, frame)?.expect_trap(13, Some(0))?;
    let mut frame = USER_FRAME;
    frame[4] = selector::DATA.into();
    iret(bench, frame)?.expect_trap(13, Some(selector::DATA.into())).map(drop)
}

fn iret_to_compatibility_mode(bench: &Bench<'_>) -> Outcome {
    let mut frame = USER_FRAME;
    frame[1] = selector::USER_CODE32.into();
    let mut m = iret(bench, frame)?;
    m.program(DATA, 32, |a| {
        a.mov(eax, 5)?;
        a.dec(eax)?;
        a.push(eax)?;
        a.int(0x80)
    })?;
    let trap = m.expect_trap(0x80, None)?;
    same("eax", trap.state.registers.gpr[RAX], 4)?;
    same("esp", trap.rsp, DATA + 0x7FC)?;
    same("cs", trap.cs, selector::USER_CODE32)
}

/// 64-bit mode allows a null SS in ring 0.
fn a_null_stack_in_ring_0(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.xor(eax, eax)?;
        a.mov(ss, ax)?;
        a.push(0x66)?;
        a.pop(rbx)
    })?;
    let end = m.end()?;
    same("rbx", end.registers.gpr[RBX], 0x66)?;
    same("ss", end.system.segments[SystemRegisters::SS].selector, 0)
}
