//! Far transfers and the way from real mode to long mode and back (SDM vol. 3, 10.8 and 10.9).

use iced_x86::code_asm::*;

use super::bench::{Bench, Case, Outcome, cases, same};
use super::scene::{self, CODE, DATA, PML4, STACK, selector};
use crate::state::gpr::{RAX, RBX, RCX, RSP};
use crate::state::{Segment, SystemRegisters};

pub(super) const CASES: &[Case] = cases!["modes":
    real_mode_addresses_wrap_in_their_segment,
    real_to_protected,
    protected_to_long,
    long_to_compatibility_and_back,
    protected_to_real,
    far_call_and_return,
    far_jump_through_memory,
    sixteen_bit_operands_in_protected_mode,
    stack_width_is_the_segments,
    segment_loads_mark_descriptors_accessed,
];

fn real_mode_addresses_wrap_in_their_segment(bench: &Bench<'_>) -> Outcome {
    let m = bench.real(|a| {
        a.mov(bx, 0xFFFF_u32 as i32)?;
        a.mov(al, byte_ptr(bx + 1))?;
        a.push(ax)?;
        a.pop(cx)?;
        // 0x2000:0x0010 is DATA + 0x10.
        a.mov(byte_ptr(0x10), al)
    })?;
    let mut m = m;
    m.write(DATA, 0x5A_u8)?;
    let end = m.end()?;
    same("al", end.registers.gpr[RAX] & 0xFF, 0x5A)?;
    same("cx", end.registers.gpr[RCX] & 0xFF, 0x5A)?;
    same("stored", m.read::<u8>(DATA + 0x10)?, 0x5A)?;
    same("sp", end.registers.gpr[RSP], STACK)
}

/// Sets CR0.PE and jumps far, with the descriptor table at `DATA`.
fn real_to_protected(bench: &Bench<'_>) -> Outcome {
    let m = bench.real(|a| {
        a.db(&[0x66])?;
        a.lgdt(ptr(bx))?;
        a.mov(eax, cr0)?;
        a.or(eax, 1)?;
        a.mov(cr0, eax)?;
        // jmp far 0x40:DATA + 0x100
        a.db(&[0x66, 0xEA])?;
        a.db(&((DATA + 0x100) as u32).to_le_bytes())?;
        a.db(&selector::CODE32.to_le_bytes())
    })?;
    let mut m = m;
    m.write(DATA, 0x6F_u16)?;
    m.write(DATA + 2, scene::GDT as u32)?;
    m.program(DATA + 0x100, 32, |a| {
        a.mov(eax, u32::from(selector::DATA))?;
        a.mov(ds, ax)?;
        a.mov(ss, ax)?;
        a.mov(esp, STACK as u32)?;
        a.push(0x1234_5678)?;
        a.pop(dword_ptr(DATA + 0x200))?;
        a.out(u32::from(scene::END), al)
    })?;
    let end = m.end()?;
    same("stored", m.read::<u32>(DATA + 0x200)?, 0x1234_5678)?;
    same("cs", end.system.segments[SystemRegisters::CS].selector, selector::CODE32)?;
    same("ds limit", end.system.segments[SystemRegisters::DS].limit, u32::MAX)?;
    same("cr0", end.system.cr0, 0x11)
}

/// PAE, CR3, EFER.LME, PG, and a far jump to 64-bit code.
fn protected_to_long(bench: &Bench<'_>) -> Outcome {
    let m = bench.protected(|a| {
        a.mov(eax, cr4)?;
        a.or(eax, 0x20)?;
        a.mov(cr4, eax)?;
        a.mov(eax, PML4 as u32)?;
        a.mov(cr3, eax)?;
        a.mov(ecx, crate::msr::EFER)?;
        a.rdmsr()?;
        a.or(eax, 0x100)?;
        a.wrmsr()?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0000_u32)?;
        a.mov(cr0, eax)?;
        a.rdmsr()?;
        a.mov(ebx, eax)?;
        a.db(&[0xEA])?;
        a.db(&(DATA as u32).to_le_bytes())?;
        a.db(&selector::CODE64.to_le_bytes())
    })?;
    let mut m = m;
    m.program(DATA, 64, |a| {
        a.mov(rax, 0x1122_3344_5566_7788_u64)?;
        a.out(u32::from(scene::END), al)
    })?;
    let end = m.end()?;
    same("rax", end.registers.gpr[RAX], 0x1122_3344_5566_7788)?;
    same("efer after paging", end.registers.gpr[RBX], 0x500)?;
    same("saved efer", end.system.efer, 0x500)?;
    same("L of cs", end.system.segments[SystemRegisters::CS].attributes & Segment::LONG, Segment::LONG)
}

fn long_to_compatibility_and_back(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.push(i32::from(selector::CODE32))?;
        a.push(DATA as i32)?;
        a.db(&[0x48, 0xCB])
    })?;
    let mut m = m.given(RAX, 0xFFFF_FFFF_0000_0005);
    m.program(DATA, 32, |a| {
        // In 64-bit mode this byte is a REX prefix.
        a.dec(eax)?;
        a.db(&[0xEA])?;
        a.db(&((DATA + 0x100) as u32).to_le_bytes())?;
        a.db(&selector::CODE64.to_le_bytes())
    })?;
    m.program(DATA + 0x100, 64, |a| a.out(u32::from(scene::END), al))?;
    let end = m.end()?;
    same("rax", end.registers.gpr[RAX], 4)?;
    same("rsp", end.registers.gpr[RSP], STACK)
}

fn protected_to_real(bench: &Bench<'_>) -> Outcome {
    let m = bench.protected(|a| {
        a.db(&[0xEA])?;
        a.db(&0x100_u32.to_le_bytes())?;
        a.db(&selector::CODE16.to_le_bytes())
    })?;
    let mut m = m;
    m.program(CODE + 0x100, 16, |a| {
        a.mov(ax, u32::from(selector::DATA16) as i32)?;
        a.mov(ds, ax)?;
        a.mov(ss, ax)?;
        a.mov(eax, cr0)?;
        a.and(al, 0xFE_u32 as i32)?;
        a.mov(cr0, eax)?;
        a.db(&[0xEA])?;
        a.db(&0x180_u16.to_le_bytes())?;
        a.db(&((CODE >> 4) as u16).to_le_bytes())
    })?;
    m.program(CODE + 0x180, 16, |a| {
        a.mov(ax, (DATA >> 4) as i32)?;
        a.mov(ds, ax)?;
        a.mov(word_ptr(0x20), 0x77)?;
        a.out(u32::from(scene::END), al)
    })?;
    let end = m.end()?;
    same("stored", m.read::<u16>(DATA + 0x20)?, 0x77)?;
    same("cs base", end.system.segments[SystemRegisters::CS].base, CODE)?;
    same("cr0", end.system.cr0 & 1, 0)
}

fn far_call_and_return(bench: &Bench<'_>) -> Outcome {
    let m = bench.protected(|a| {
        a.db(&[0x9A])?;
        a.db(&(DATA as u32).to_le_bytes())?;
        a.db(&selector::CODE32.to_le_bytes())?;
        a.mov(ebx, 1)
    })?;
    let mut m = m;
    m.program(DATA, 32, |a| {
        a.mov(eax, dword_ptr(esp))?;
        a.mov(ecx, dword_ptr(esp + 4))?;
        a.retf()
    })?;
    let end = m.end()?;
    same("return address", end.registers.gpr[RAX], CODE + 7)?;
    same("return selector", end.registers.gpr[RCX] & 0xFFFF, selector::CODE32.into())?;
    same("after it", end.registers.gpr[RBX], 1)?;
    same("esp", end.registers.gpr[RSP], STACK)
}

fn far_jump_through_memory(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| a.db(&[0xFF, 0x2C, 0x25, 0x00, 0x00, 0x02, 0x00]))?;
    let mut m = m;
    m.write(DATA, DATA as u32 + 0x100)?;
    m.write(DATA + 4, selector::CODE64)?;
    m.program(DATA + 0x100, 64, |a| {
        a.mov(eax, 3)?;
        a.out(u32::from(scene::END), al)
    })?;
    same("rax", m.end()?.registers.gpr[RAX], 3)
}

fn sixteen_bit_operands_in_protected_mode(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.protected(|a| {
        a.mov(eax, 0x1111_1111)?;
        a.mov(ax, 0x2222)?;
        a.push(ax)?;
        a.pop(bx)?;
        a.mov(cx, word_ptr(DATA))
    })?;
    m.write(DATA, 0x7777_3333_u32)?;
    let end = m.end()?;
    same("eax", end.registers.gpr[RAX], 0x1111_2222)?;
    same("ebx", end.registers.gpr[RBX], 0x2222)?;
    same("ecx", end.registers.gpr[RCX], 0x3333)
}

/// A 16-bit stack segment moves SP and leaves the upper half of ESP alone.
fn stack_width_is_the_segments(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.protected(|a| {
        a.mov(eax, u32::from(selector::DATA16))?;
        a.mov(ss, ax)?;
        a.mov(esp, 0xABCD_E000_u32)?;
        a.push(0x55)?;
        a.mov(ebx, esp)
    })?;
    let end = m.end()?;
    same("esp", end.registers.gpr[RBX], 0xABCD_DFFC)?;
    same("pushed", m.read::<u32>(0xDFFC)?, 0x55)
}

fn segment_loads_mark_descriptors_accessed(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.protected(|a| {
        a.mov(eax, u32::from(selector::SHORT))?;
        a.mov(fs, ax)?;
        a.mov(ebx, dword_ptr(4).fs())
    })?;
    // Data, writable, not accessed; base DATA, limit 0xFFF.
    m.write(scene::GDT + u64::from(selector::SHORT), 0x0040_9202_0000_0FFF_u64)?;
    m.write(DATA + 4, 0x99_u32)?;
    let end = m.end()?;
    same("by fs", end.registers.gpr[RBX], 0x99)?;
    same("descriptor", m.read::<u64>(scene::GDT + u64::from(selector::SHORT))?, 0x0040_9302_0000_0FFF)?;
    let loaded = &end.system.segments[SystemRegisters::FS];
    same("base", loaded.base, DATA)?;
    same("limit", loaded.limit, 0xFFF)
}
