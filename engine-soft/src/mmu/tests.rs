use engine::event::{EventKind, StoreKind};
use engine::state::Segment;

use super::Access;
use crate::cpu::{Cpu, control};
use crate::insn::FLAT;
use crate::rig::DATA;
use crate::trap::{Cause, vector};

/// The rig's page directory, and where tests put a page table for `DATA`.
const DIRECTORY: u64 = 0x3000;
const TABLE: u64 = 0x5000;
const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NX: u64 = 1 << 63;

/// `DATA` in pages of 4 KiB, accessed by nobody yet.
fn small_pages() -> Cpu {
    let mut cpu = Cpu::for_test();
    put(&mut cpu, DIRECTORY + 8, TABLE | P | W | U);
    for n in 0..512 {
        put(&mut cpu, TABLE + 8 * n, (DATA + 0x1000 * n) | P | W | U);
    }
    cpu.flush_tlb();
    cpu
}

fn put(cpu: &mut Cpu, at: u64, value: u64) {
    cpu.poke(at, &value.to_le_bytes());
}

fn get(cpu: &Cpu, at: u64) -> u64 {
    let mut bytes = [0; 8];
    cpu.peek_at(at, &mut bytes);
    u64::from_le_bytes(bytes)
}

fn load(cpu: &mut Cpu, at: u64) -> Result<u64, (u8, Option<u32>)> {
    cpu.load_at(FLAT, at).map_err(|_| fault(cpu))
}

fn store(cpu: &mut Cpu, at: u64, value: u64) -> Result<(), (u8, Option<u32>)> {
    cpu.store_at(FLAT, at, value, StoreKind::Cached).map_err(|_| fault(cpu))
}

fn fault(cpu: &Cpu) -> (u8, Option<u32>) {
    match cpu.cause {
        Cause::Exception { vector, code } => (vector, code),
        other => panic!("{other:?}"),
    }
}

fn page_fault(code: u32) -> (u8, Option<u32>) {
    (vector::PF, Some(code))
}

#[test]
fn accessed_and_dirty_bits_say_what_happened() {
    let mut cpu = small_pages();
    assert_eq!(load(&mut cpu, DATA), Ok(0));
    assert_eq!(get(&cpu, DIRECTORY + 8) & (A | D), A);
    assert_eq!(get(&cpu, TABLE) & (A | D), A);
    assert_eq!(get(&cpu, TABLE + 8) & (A | D), 0);
    assert_eq!(store(&mut cpu, DATA, 1), Ok(()));
    assert_eq!(get(&cpu, TABLE) & (A | D), A | D);
    assert_eq!(get(&cpu, DIRECTORY + 8) & D, 0, "only a leaf is dirty");
}

/// Linux clears accessed bits without an INVLPG: who executes, and when it looks code up, must not show in them.
#[test]
fn code_is_walked_for_once_until_it_is_flushed() {
    let mut cpu = small_pages();
    // What shares a slot of the cache with DATA.
    let rival = DATA + (1 << 28);
    put(&mut cpu, DIRECTORY + 8 * (rival >> 21), DATA | P | W | U | LARGE);
    assert_eq!(cpu.translate_code(DATA + 5).ok(), Some(DATA + 5));
    assert_eq!(get(&cpu, TABLE) & A, A);
    put(&mut cpu, TABLE, DATA | P | W | U);
    assert_eq!(load(&mut cpu, rival), Ok(0));
    assert_eq!(cpu.translate_code(DATA + 9).ok(), Some(DATA + 9));
    assert_eq!(get(&cpu, TABLE) & A, 0);
    cpu.flush_tlb_page(DATA);
    assert_eq!(cpu.translate_code(DATA + 5).ok(), Some(DATA + 5));
    assert_eq!(get(&cpu, TABLE) & A, A);
}

#[test]
fn faults_tell_why_and_leave_no_trace() {
    let mut cpu = small_pages();
    put(&mut cpu, TABLE, 0);
    put(&mut cpu, TABLE + 8, (DATA + 0x1000) | P);
    put(&mut cpu, TABLE + 16, (DATA + 0x2000) | P | W | U | 1 << 45);
    assert_eq!(load(&mut cpu, DATA), Err(page_fault(0)));
    assert_eq!(store(&mut cpu, DATA + 8, 0), Err(page_fault(2)));
    assert_eq!(cpu.cr2, DATA + 8);
    assert_eq!(store(&mut cpu, DATA + 0x1000, 0), Err(page_fault(3)));
    assert_eq!(get(&cpu, TABLE + 8), (DATA + 0x1000) | P);
    assert_eq!(load(&mut cpu, DATA + 0x2000), Err(page_fault(9)));
    assert_eq!(load(&mut cpu, 1 << 47), Err((vector::GP, Some(0))));
    cpu.cr0 &= !control::CR0_WP;
    assert_eq!(store(&mut cpu, DATA + 0x1000, 0), Ok(()));
}

#[test]
fn user_accesses_and_fetches_have_rights_of_their_own() {
    let mut cpu = small_pages();
    put(&mut cpu, TABLE, DATA | P | W);
    put(&mut cpu, TABLE + 8, (DATA + 0x1000) | P | W | U | NX);
    assert_eq!(load(&mut cpu, DATA), Ok(0));
    cpu.cpl = 3;
    cpu.mode_changed();
    assert_eq!(load(&mut cpu, DATA), Err(page_fault(5)));
    assert_eq!(store(&mut cpu, DATA, 0), Err(page_fault(7)));
    assert_eq!(load(&mut cpu, DATA + 0x1000), Ok(0));
    assert!(cpu.translate(DATA + 0x1000, Access::Execute).is_err());
    assert_eq!(fault(&cpu), page_fault(0x15));
    assert_eq!(cpu.load_system::<u64>(DATA).ok(), Some(0), "implicit accesses are the supervisor's");
    cpu.efer &= !control::EFER_NXE;
    cpu.flush_tlb();
    assert_eq!(load(&mut cpu, DATA + 0x1000), Err(page_fault(0xD)), "then the bit is reserved");
}

#[test]
fn a_store_across_pages_happens_whole_or_not() {
    let mut cpu = small_pages();
    put(&mut cpu, TABLE + 8, (DATA + 0x1000) | P);
    let at = DATA + 0x1000 - 4;
    assert_eq!(store(&mut cpu, at, !0), Err(page_fault(3)));
    assert_eq!(cpu.cr2, DATA + 0x1000);
    assert_eq!(load(&mut cpu, at), Ok(0));
    put(&mut cpu, TABLE + 8, (DATA + 0x5000) | P | W);
    cpu.flush_tlb_page(DATA + 0x1000);
    assert_eq!(store(&mut cpu, at, 0x1122_3344_5566_7788), Ok(()));
    assert_eq!(get(&cpu, DATA + 0x5000) as u32, 0x1122_3344);
    assert_eq!(load(&mut cpu, at), Ok(0x1122_3344_5566_7788));
}

#[test]
fn flushes_forget_what_they_name() {
    let mut cpu = small_pages();
    put(&mut cpu, TABLE, DATA | P | W | GLOBAL);
    put(&mut cpu, DATA + 0x8000, 8);
    for page in [DATA, DATA + 0x1000] {
        assert_eq!(load(&mut cpu, page), Ok(0));
    }
    put(&mut cpu, TABLE, (DATA + 0x8000) | P | W);
    put(&mut cpu, TABLE + 8, (DATA + 0x8000) | P | W);
    assert_eq!(load(&mut cpu, DATA + 0x1000), Ok(0), "cached");
    cpu.flush_tlb_local();
    assert_eq!(load(&mut cpu, DATA + 0x1000), Ok(8));
    assert_eq!(load(&mut cpu, DATA), Ok(0), "global");
    cpu.flush_tlb_page(DATA + 0x123);
    assert_eq!(load(&mut cpu, DATA), Ok(8));
}

#[test]
fn a_large_page_is_forgotten_as_a_whole() {
    let mut cpu = Cpu::for_test();
    assert_eq!(load(&mut cpu, DATA + 0x3000), Ok(0));
    put(&mut cpu, DIRECTORY + 8, 0x40_0000 | P | W | LARGE);
    put(&mut cpu, 0x40_3000, 9);
    assert_eq!(load(&mut cpu, DATA + 0x3000), Ok(0));
    cpu.flush_tlb_page(DATA + 0x1F_F000);
    assert_eq!(load(&mut cpu, DATA + 0x3000), Ok(9));
}

#[test]
fn a_gigabyte_page_maps() {
    let mut cpu = Cpu::for_test();
    put(&mut cpu, 0x2000 + 8, P | W | LARGE);
    put(&mut cpu, DATA, 3);
    assert_eq!(load(&mut cpu, 0x4000_0000 + DATA), Ok(3));
    put(&mut cpu, 0x2000 + 8, P | W | LARGE | 1 << 13);
    cpu.flush_tlb();
    assert_eq!(load(&mut cpu, 0x4000_0000 + DATA), Err(page_fault(9)));
}

/// In 32-bit protected mode.
fn legacy(cr4: u64) -> Cpu {
    let mut cpu = Cpu::for_test();
    cpu.efer = 0;
    cpu.cr4 = cr4;
    cpu.segments[1] = Segment { attributes: 0xC09B, ..cpu.segments[1] };
    cpu.cr3 = 0x6000;
    cpu.flush_tlb();
    cpu.mode_changed();
    cpu
}

#[test]
fn two_levels_of_32_bit_entries() {
    let mut cpu = legacy(control::CR4_PSE);
    cpu.poke(0x6000 + 4, &(0x7000_u32 | 7).to_le_bytes());
    cpu.poke(0x7000 + 8, &(DATA as u32 | 7).to_le_bytes());
    cpu.poke(0x6000 + 8, &(0x40_0000_u32 | 0x83).to_le_bytes());
    put(&mut cpu, DATA + 0x10, 5);
    put(&mut cpu, 0x40_0010, 6);
    assert_eq!(load(&mut cpu, 0x40_2010), Ok(5));
    assert_eq!(load(&mut cpu, 0x80_0010), Ok(6));
    assert_eq!(store(&mut cpu, 0x80_0010, 1), Ok(()));
    assert_eq!(get(&cpu, 0x6000 + 4) & 0x60, A);
    assert_eq!(get(&cpu, 0x6000 + 8) & 0x60, A | D);
    assert_eq!(load(&mut cpu, 0xC0_0000), Err(page_fault(0)));
}

#[test]
fn three_levels_of_pae_entries() {
    let mut cpu = legacy(control::CR4_PAE);
    put(&mut cpu, 0x6000 + 8, 0x7000 | P);
    put(&mut cpu, 0x7000, DATA | P | W | LARGE);
    put(&mut cpu, DATA + 0x20, 7);
    assert_eq!(load(&mut cpu, 0x4000_0020), Ok(7));
    assert_eq!(get(&cpu, 0x6000 + 8), 0x7000 | P, "a page-directory-pointer entry has no accessed bit");
    assert_eq!(get(&cpu, 0x7000) & (A | D), A);
    put(&mut cpu, 0x7000, DATA | P | W | LARGE | 1 << 52);
    cpu.flush_tlb();
    assert_eq!(load(&mut cpu, 0x4000_0020), Err(page_fault(9)));
}

#[test]
fn watched_memory_tells_of_stores_and_of_page_walks() {
    let mut cpu = small_pages();
    cpu.shared.watch.ranges = vec![DATA..DATA + 0x1000, TABLE..TABLE + 0x1000];
    assert_eq!(load(&mut cpu, DATA), Ok(0));
    assert_eq!(store(&mut cpu, DATA + 8, 0x55), Ok(()));
    assert_eq!(store(&mut cpu, DATA + 0x1000 - 2, 0x0807_0605_0403_0201), Ok(()));
    let stores: Vec<_> = cpu
        .shared
        .log
        .events()
        .map(|event| match event.kind {
            EventKind::Store { addr, len, kind, data } => (addr, len, kind, data[0]),
            ref other => panic!("{other:?}"),
        })
        .collect();
    let entry = |n: u64, bits: u64| (TABLE + 8 * n, 8, StoreKind::Cached, (P | W | U | bits) as u8);
    let expected = [
        entry(0, A),
        entry(0, A | D),
        (DATA + 8, 8, StoreKind::Cached, 0x55),
        entry(1, A | D),
        (DATA + 0xFFE, 2, StoreKind::Cached, 1),
    ];
    assert_eq!(stores, expected);
}
