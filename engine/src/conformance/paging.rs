//! Paging: permissions, accessed and dirty bits, page sizes, invalidation (SDM vol. 3, ch. 5).

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::bench::{Bench, Case, Outcome, Started, cases, same};
use super::machine::Machine;
use super::scene::{self, DATA, PD, PDPT, PML4, STACK, TABLES};
use crate::state::gpr::{RAX, RBX, RDI};

pub(super) const CASES: &[Case] = cases!["paging":
    absent_page,
    write_protection,
    supervisor_page,
    no_execute,
    reserved_bit,
    write_protect_bit_frees_the_kernel,
    accessed_and_dirty,
    accessed_at_every_level,
    a_faulting_store_dirties_nothing,
    huge_pages,
    a_change_is_seen_after_invlpg,
    a_change_is_seen_after_loading_cr3,
    page_crossing_access,
    page_crossing_fault_stores_nothing,
    faulting_fetch_over_a_page_end,
];

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;
const NX: u64 = 1 << 63;

/// Linear 0xC000_0000 is the start of small pages; the first is [`DATA`], with these flags.
const SMALL: u64 = 0xC000_0000;
/// The PTE of `SMALL`.
const PTE: u64 = TABLES + 0x1000;

/// A machine whose `SMALL` page (in RDI) maps [`DATA`] with these flags, and the next one the page after it.
fn small<'e>(
    bench: &Bench<'e>,
    flags: u64,
    program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Started<'e> {
    let m = bench.long(program)?.given(RDI, SMALL);
    m.write(PD + 3 * 0x1000, PTE | P | W | U)?;
    m.write(PTE, DATA | flags)?;
    m.write(PTE + 8, (DATA + 0x1000) | P | W | U)?;
    Ok(m)
}

fn faults(mut m: Machine<'_>, error: u32, address: u64) -> Outcome {
    let trap = m.expect_trap(14, Some(error))?;
    same("cr2", trap.state.system.cr2, address)
}

fn absent_page(bench: &Bench<'_>) -> Outcome {
    faults(small(bench, 0, |a| a.mov(eax, dword_ptr(rdi + 4)))?, 0, SMALL + 4)?;
    faults(small(bench, 0, |a| a.mov(dword_ptr(rdi + 4), eax))?, 2, SMALL + 4)?;
    faults(small(bench, 0, |a| a.mov(eax, dword_ptr(rdi)))?.with(scene::user), 4, SMALL)?;
    faults(small(bench, 0, |a| a.mov(dword_ptr(rdi), eax))?.with(scene::user), 6, SMALL)?;
    faults(small(bench, 0, |a| a.jmp(rdi))?, 0x10, SMALL)?;
    // A hole at the highest level.
    faults(bench.long(|a| a.mov(al, byte_ptr(rdi)))?.given(RDI, 1 << 40), 0, 1 << 40)
}

fn write_protection(bench: &Bench<'_>) -> Outcome {
    faults(small(bench, P | U, |a| a.mov(dword_ptr(rdi), eax))?, 3, SMALL)?;
    faults(small(bench, P | U, |a| a.mov(dword_ptr(rdi), eax))?.with(scene::user), 7, SMALL)?;
    // Every level must allow the write.
    let m = small(bench, P | W | U, |a| a.mov(dword_ptr(rdi), eax))?;
    m.write(PD + 3 * 0x1000, PTE | P | U)?;
    faults(m, 3, SMALL)
}

fn supervisor_page(bench: &Bench<'_>) -> Outcome {
    faults(small(bench, P | W, |a| a.mov(eax, dword_ptr(rdi)))?.with(scene::user), 5, SMALL)?;
    faults(small(bench, P | W, |a| a.mov(dword_ptr(rdi), eax))?.with(scene::user), 7, SMALL)?;
    faults(small(bench, P | W, |a| a.jmp(rdi))?.with(scene::user), 0x15, SMALL)
}

fn no_execute(bench: &Bench<'_>) -> Outcome {
    faults(small(bench, P | W | U | NX, |a| a.jmp(rdi))?, 0x11, SMALL)?;
    let mut m = small(bench, P | W | U | NX, |a| a.mov(eax, dword_ptr(rdi)))?;
    m.write(DATA, 0x99_u32)?;
    same("data of a page without code", m.end()?.registers.gpr[RAX], 0x99)
}

fn reserved_bit(bench: &Bench<'_>) -> Outcome {
    // Bit 51 is beyond the model's physical addresses.
    faults(small(bench, P | W | U | 1 << 51, |a| a.mov(eax, dword_ptr(rdi)))?, 9, SMALL)?;
    // Without EFER.NXE, bit 63 is reserved.
    let m = small(bench, P | W | U | NX, |a| a.mov(eax, dword_ptr(rdi)))?;
    faults(m.with(|state| state.system.efer &= !0x800), 9, SMALL)
}

fn write_protect_bit_frees_the_kernel(bench: &Bench<'_>) -> Outcome {
    let m = small(bench, P | U, |a| a.mov(dword_ptr(rdi), 0x55))?;
    let mut m = m.with(|state| state.system.cr0 &= !0x1_0000);
    m.end()?;
    same("stored", m.read::<u32>(DATA)?, 0x55)
}

fn accessed_and_dirty(bench: &Bench<'_>) -> Outcome {
    let mut m = small(bench, P | W | U, |a| {
        a.mov(eax, dword_ptr(rdi))?;
        a.out(0x10, al)?;
        a.mov(dword_ptr(rdi), eax)
    })?;
    m.expect(crate::ExitKind::IoWrite { port: 0x10, size: 1, value: 0 })?;
    same("after a load", m.read::<u64>(PTE)? & 0xFFF, P | W | U | A)?;
    m.end()?;
    same("after a store", m.read::<u64>(PTE)? & 0xFFF, P | W | U | A | D)?;
    same("the page beside it", m.read::<u64>(PTE + 8)? & 0xFFF, P | W | U)
}

fn accessed_at_every_level(bench: &Bench<'_>) -> Outcome {
    let mut m = small(bench, P | W | U, |a| a.mov(dword_ptr(rdi), eax))?;
    m.end()?;
    for (level, entry) in [("PML4", PML4), ("PDPT", PDPT + 24), ("PD", PD + 3 * 0x1000)] {
        same(level, m.read::<u64>(entry)? & (A | PS), A)?;
    }
    // The code's large page was read, the stack was not used.
    same("the code's PDE", m.read::<u64>(PD)? & A, A)?;
    same("an unused PDE", m.read::<u64>(PD + 8)? & (A | D), 0)
}

fn a_faulting_store_dirties_nothing(bench: &Bench<'_>) -> Outcome {
    let mut m = small(bench, P | U, |a| a.mov(dword_ptr(rdi), eax))?;
    m.expect_trap(14, Some(3))?;
    same("dirty", m.read::<u64>(PTE)? & D, 0)
}

fn huge_pages(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.mov(rax, qword_ptr(rdi))?;
        a.mov(qword_ptr(rdi + 8), rax)
    })?;
    // 1 GiB from 512 GiB on, mapped to 0.
    let mut m = m.given(RDI, (1 << 39) + DATA);
    m.write(PML4 + 8, TABLES | P | W | U)?;
    m.write(TABLES, P | W | U | PS)?;
    m.write(DATA, 0x0123_4567_89AB_CDEF_u64)?;
    same("rax", m.end()?.registers.gpr[RAX], 0x0123_4567_89AB_CDEF)?;
    same("stored", m.read::<u64>(DATA + 8)?, 0x0123_4567_89AB_CDEF)?;
    same("dirty", m.read::<u64>(TABLES)? & (A | D), A | D)
}

fn remap(bench: &Bench<'_>, flush: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Outcome {
    let mut m = small(bench, P | W | U, |a| {
        a.mov(eax, dword_ptr(rdi))?;
        a.mov(rcx, PTE)?;
        a.mov(rdx, (DATA + 0x1000) | P | W | U)?;
        a.mov(qword_ptr(rcx), rdx)?;
        flush(a)?;
        a.mov(ebx, dword_ptr(rdi))
    })?;
    m.write(DATA, 1_u32)?;
    m.write(DATA + 0x1000, 2_u32)?;
    let end = m.end()?;
    same("before", end.registers.gpr[RAX], 1)?;
    same("after", end.registers.gpr[RBX], 2)
}

fn a_change_is_seen_after_invlpg(bench: &Bench<'_>) -> Outcome {
    remap(bench, |a| a.invlpg(ptr(rdi)))
}

fn a_change_is_seen_after_loading_cr3(bench: &Bench<'_>) -> Outcome {
    remap(bench, |a| {
        a.mov(rdx, cr3)?;
        a.mov(cr3, rdx)
    })
}

/// Neighbours in linear memory are apart in physical memory.
fn page_crossing_access(bench: &Bench<'_>) -> Outcome {
    let mut m = small(bench, P | W | U, |a| {
        a.mov(qword_ptr(rdi + 0xFFD), rax)?;
        a.mov(rbx, qword_ptr(rdi + 0xFFD))
    })?
    .given(RAX, 0x1122_3344_5566_7788);
    m.write(PTE + 8, (DATA + 0x3000) | P | W | U)?;
    same("loaded", m.end()?.registers.gpr[RBX], 0x1122_3344_5566_7788)?;
    same("low bytes", m.read::<u32>(DATA + 0xFFC)?, 0x6677_8800)?;
    same("high bytes", m.read::<u64>(DATA + 0x3000)?, 0x11_2233_4455)
}

fn page_crossing_fault_stores_nothing(bench: &Bench<'_>) -> Outcome {
    let mut m = small(bench, P | W | U, |a| a.mov(qword_ptr(rdi + 0xFFC), rax))?.given(RAX, u64::MAX);
    m.write(PTE + 8, 0_u64)?;
    let trap = m.expect_trap(14, Some(2))?;
    same("cr2", trap.state.system.cr2, SMALL + 0x1000)?;
    same("low bytes", m.read::<u32>(DATA + 0xFFC)?, 0)
}

/// The instruction begins in a page and ends in one that is not there.
fn faulting_fetch_over_a_page_end(bench: &Bench<'_>) -> Outcome {
    let mut m = small(bench, P | W | U, |a| a.jmp(rdi))?.given(RDI, SMALL + 0xFFE);
    m.write(DATA + 0xFFE, [0xB8_u8, 0x11])?;
    m.write(PTE + 8, 0_u64)?;
    let trap = m.expect_trap(14, Some(0x10))?;
    same("cr2", trap.state.system.cr2, SMALL + 0x1000)?;
    same("rip", trap.rip, SMALL + 0xFFE)?;
    same("rsp", trap.rsp, STACK)
}
