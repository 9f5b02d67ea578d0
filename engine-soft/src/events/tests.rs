//! Each way to touch watched memory is reported once, and nothing else is.

use engine::event::EventKind::{self, Fence, Flush, Load, Store};
use engine::event::{Event, FenceKind, FlushKind, StoreKind};

use crate::cpu::Cpu;
use crate::rig::{CODE, DATA};
use crate::run::Stop;
use crate::shared::Watch;

const VALUE: u64 = 0x1122_3344_5566_7788;
const RAX: usize = 0;
const RCX: usize = 1;
const RBX: usize = 3;
const RSP: usize = 4;
const RSI: usize = 6;
const RDI: usize = 7;
/// A NOP before each program shows that instruction numbers are counted.
const NOP: u8 = 0x90;

/// Has the page at an address watched.
fn watch(cpu: &mut Cpu, page: u64, loads: bool) {
    let ranges = std::iter::once(page..page + 0x1000).collect();
    cpu.shared.begin_watching(Watch { ranges, loads, places: false });
}

/// A vCPU that watches the page at [`DATA`].
fn watching(loads: bool) -> Cpu {
    let mut cpu = Cpu::for_test();
    cpu.gpr[RAX] = VALUE;
    cpu.gpr[RBX] = DATA;
    cpu.gpr[RCX] = 3;
    cpu.gpr[RSI] = DATA - 0x2000;
    cpu.gpr[RDI] = DATA + 0x100;
    cpu.gpr[RSP] = DATA + 0x800;
    for r in 0..8 {
        *cpu.fx.xmm_mut(r) = 0x0F0E_0D0C_0B0A_0908_0706_0504_0302_0100;
    }
    cpu.poke(DATA - 0x2000, &[0xA1, 0xA2, 0xA3, 0xA4, 0xA5, 0xA6, 0xA7, 0xA8, 0xB1]);
    watch(&mut cpu, DATA, loads);
    cpu.flush_tlb();
    cpu
}

/// Runs a NOP and then `count` instructions.
fn execute(cpu: &mut Cpu, code: &[u8], count: u64) -> Vec<Event> {
    let program = [&[NOP], code].concat();
    assert_eq!(cpu.run_code(&program, count + 1), Stop::Budget, "{code:x?}: {:?}", cpu.cause);
    std::mem::take(&mut cpu.shared.log).events().collect::<Vec<_>>()
}

/// The events of one instruction, each checked to be its own.
fn events(code: &[u8]) -> Vec<EventKind> {
    let mut cpu = watching(false);
    let log = execute(&mut cpu, code, 1);
    for event in &log {
        assert_eq!((event.vcpu, event.rip, event.instruction), (0, CODE + 1, 1), "{code:x?}");
    }
    log.into_iter().map(|event| event.kind).collect()
}

fn store(addr: u64, bytes: &[u8], kind: StoreKind) -> EventKind {
    let mut data = [0; 64];
    data[..bytes.len()].copy_from_slice(bytes);
    Store { addr, data, len: bytes.len() as u8, kind }
}

#[test]
fn stores_of_every_width() {
    let bytes = VALUE.to_le_bytes();
    let cached = |addr, bytes| vec![store(addr, bytes, StoreKind::Cached)];
    assert_eq!(events(&[0x88, 0x03]), cached(DATA, &bytes[..1]));
    assert_eq!(events(&[0x66, 0x89, 0x03]), cached(DATA, &bytes[..2]));
    assert_eq!(events(&[0x89, 0x03]), cached(DATA, &bytes[..4]));
    assert_eq!(events(&[0x48, 0x89, 0x03]), cached(DATA, &bytes));
    let vector = 0x0F0E_0D0C_0B0A_0908_0706_0504_0302_0100_u128.to_le_bytes();
    assert_eq!(events(&[0x0F, 0x11, 0x03]), cached(DATA, &vector), "movups");
    assert_eq!(events(&[0x66, 0x0F, 0x7F, 0x03]), cached(DATA, &vector), "movdqa");
    let sum = VALUE.to_le_bytes();
    assert_eq!(events(&[0x48, 0x01, 0x03]), cached(DATA, &sum), "add to zero");
}

#[test]
fn only_the_part_within_the_range() {
    let bytes = VALUE.to_le_bytes();
    // mov [rbx+0xffc], rax and mov [rbx-4], rax
    let last = events(&[0x48, 0x89, 0x83, 0xFC, 0x0F, 0, 0]);
    assert_eq!(last, [store(DATA + 0xFFC, &bytes[..4], StoreKind::Cached)]);
    assert_eq!(events(&[0x48, 0x89, 0x43, 0xFC]), [store(DATA, &bytes[4..], StoreKind::Cached)]);
    assert_eq!(events(&[0x48, 0x89, 0x43, 0xF8]), [], "before it");
    assert_eq!(events(&[0x48, 0x89, 0x83, 0, 0x10, 0, 0]), [], "behind it");
    assert_eq!(events(&[0x48, 0x8B, 0x03]), [], "a load");
}

#[test]
fn non_temporal_stores() {
    let vector = 0x0F0E_0D0C_0B0A_0908_0706_0504_0302_0100_u128.to_le_bytes();
    let stored = |bytes: &[u8]| [store(DATA, bytes, StoreKind::NonTemporal)];
    assert_eq!(events(&[0x0F, 0xC3, 0x03]), stored(&VALUE.to_le_bytes()[..4]), "movnti");
    assert_eq!(events(&[0x48, 0x0F, 0xC3, 0x03]), stored(&VALUE.to_le_bytes()), "movnti");
    assert_eq!(events(&[0x66, 0x0F, 0xE7, 0x03]), stored(&vector), "movntdq");
    assert_eq!(events(&[0x0F, 0x2B, 0x03]), stored(&vector), "movntps");
}

#[test]
fn locked_instructions_store_then_fence() {
    let bytes = VALUE.to_le_bytes();
    let both = [store(DATA, &bytes, StoreKind::Locked), Fence { kind: FenceKind::Locked }];
    assert_eq!(events(&[0xF0, 0x48, 0x01, 0x03]), both, "lock add");
    assert_eq!(events(&[0x48, 0x87, 0x03]), both, "xchg");
    assert_eq!(events(&[0xF0, 0x48, 0x0F, 0xC1, 0x03]), both, "lock xadd");
    // lock cmpxchg [rbx], rcx: rax is not what is there.
    let failed = events(&[0xF0, 0x48, 0x0F, 0xB1, 0x0B]);
    assert_eq!(failed, [Fence { kind: FenceKind::LockedFailed }]);
    // lock inc dword [rbx-8] is outside, but a fence wherever it is.
    assert_eq!(events(&[0xF0, 0xFF, 0x43, 0xF8]), [Fence { kind: FenceKind::Locked }]);
}

#[test]
fn the_stack_is_memory() {
    let top = DATA + 0x800 - 8;
    let cached = |value: u64| [store(top, &value.to_le_bytes(), StoreKind::Cached)];
    assert_eq!(events(&[0x50]), cached(VALUE), "push rax");
    assert_eq!(events(&[0xE8, 0, 0, 0, 0]), cached(CODE + 6), "call");
    assert_eq!(events(&[0xC8, 0x10, 0, 0]), cached(0), "enter");
    assert_eq!(events(&[0x58]), [], "pop");
}

#[test]
fn string_stores_by_element() {
    let at = DATA + 0x100;
    let bytes = |n: u64| store(at + n, &[0x88], StoreKind::Cached);
    assert_eq!(events(&[0xF3, 0xAA]), [bytes(0), bytes(1), bytes(2)], "rep stosb");
    let quads = events(&[0xF3, 0x48, 0xA5]);
    assert_eq!(quads.len(), 3, "rep movsq");
    assert_eq!(quads[0], store(at, &[0xA1, 0xA2, 0xA3, 0xA4, 0xA5, 0xA6, 0xA7, 0xA8], StoreKind::Cached));
    assert_eq!(quads[1], store(at + 8, &[0xB1, 0, 0, 0, 0, 0, 0, 0], StoreKind::Cached));
    assert_eq!(events(&[0xA4]), [store(at, &[0xA1], StoreKind::Cached)], "movsb");
}

#[test]
fn fxsave_reports_all_it_stores() {
    let log = events(&[0x48, 0x0F, 0xAE, 0x03]);
    let mut image = [0_u8; 512];
    let mut end = DATA;
    for event in log {
        let Store { addr, data, len, kind } = event else { panic!("{event:?}") };
        assert_eq!((addr, kind), (end, StoreKind::Cached));
        let at = (addr - DATA) as usize;
        image[at..at + usize::from(len)].copy_from_slice(&data[..usize::from(len)]);
        end = addr + u64::from(len);
    }
    assert_eq!(end, DATA + 416, "up to the last XMM register");
    assert_eq!(image[160..176], 0x0F0E_0D0C_0B0A_0908_0706_0504_0302_0100_u128.to_le_bytes());
}

#[test]
fn flushes_name_their_line() {
    let line = |kind| [Flush { line: DATA, kind }];
    assert_eq!(events(&[0x0F, 0xAE, 0x7B, 0x05]), line(FlushKind::Clflush));
    assert_eq!(events(&[0x66, 0x0F, 0xAE, 0x7B, 0x3F]), line(FlushKind::Clflushopt));
    assert_eq!(events(&[0x66, 0x0F, 0xAE, 0x73, 0x05]), line(FlushKind::Clwb));
    assert_eq!(events(&[0x66, 0x0F, 0xAE, 0x73, 0xC0]), [], "the line before");
}

#[test]
fn fences_while_something_is_watched() {
    let fence = |kind| [Fence { kind }];
    assert_eq!(events(&[0x0F, 0xAE, 0xF8]), fence(FenceKind::Sfence));
    assert_eq!(events(&[0x0F, 0xAE, 0xF0]), fence(FenceKind::Mfence));
    assert_eq!(events(&[0x0F, 0xAE, 0xE8]), [], "lfence");
    assert_eq!(events(&[0x0F, 0x09]), fence(FenceKind::Wbinvd));
    assert_eq!(events(&[0x0F, 0x08]), fence(FenceKind::Invd));
    assert_eq!(events(&[0x0F, 0xA2]), fence(FenceKind::Serialising), "cpuid");
    assert_eq!(events(&[0x0F, 0x22, 0xD3]), fence(FenceKind::Serialising), "mov cr3");
    let mut cpu = watching(false);
    cpu.shared.watch = Watch::default();
    assert_eq!(execute(&mut cpu, &[0x0F, 0xAE, 0xF8, 0x48, 0x89, 0x03], 2), []);
}

#[test]
fn fences_by_the_way_are_logged_when_they_order_something() {
    let lock = [0xF0, 0xFF, 0x43, 0xF8];
    let fence = |kind| Fence { kind };
    let kinds = |code: &[&[u8]]| -> Vec<EventKind> {
        let log = execute(&mut watching(false), &code.concat(), code.len() as u64);
        log.into_iter().map(|event| event.kind).filter(|kind| matches!(kind, Fence { .. })).collect()
    };
    let (clwb, movnti) = ([0x66, 0x0F, 0xAE, 0x73, 0x05], [0x0F, 0xC3, 0x03]);
    let (store, mov_cr, sfence) = ([0x48, 0x89, 0x03], [0x0F, 0x22, 0xD3], [0x0F, 0xAE, 0xF8]);
    // Before the watch began, something may have been flushed.
    assert_eq!(kinds(&[&lock, &lock, &store, &lock]), vec![fence(FenceKind::Locked)]);
    assert_eq!(kinds(&[&lock, &clwb, &lock, &movnti, &lock]), vec![fence(FenceKind::Locked); 3]);
    assert_eq!(kinds(&[&sfence, &lock, &sfence]), vec![fence(FenceKind::Sfence); 2]);
    // What may be no fence closes nothing.
    let serialising = fence(FenceKind::Serialising);
    assert_eq!(kinds(&[&lock, &clwb, &mov_cr, &lock, &mov_cr])[1..], [serialising, fence(FenceKind::Locked)]);
}

#[test]
fn loads_on_demand() {
    let mut cpu = watching(true);
    let log = execute(&mut cpu, &[0x48, 0x8B, 0x43, 0x10, 0x48, 0x8B, 0x43, 0xF0], 2);
    assert_eq!(
        log.into_iter().map(|event| event.kind).collect::<Vec<_>>(),
        [Load { addr: DATA + 0x10, len: 8 }]
    );
}

#[test]
fn page_walks_are_cached_stores() {
    let mut cpu = Cpu::for_test();
    // The page directory of the bench; the entry of DATA maps 2 MiB there. Neither accessed nor dirty.
    let entry = 0x3000 + (DATA >> 21) * 8;
    let clean = DATA & !0x1F_FFFF | 0x87;
    cpu.poke(entry, &clean.to_le_bytes());
    cpu.gpr[RBX] = DATA;
    watch(&mut cpu, 0x3000, false);
    cpu.flush_tlb();
    // mov eax, [rbx]; mov [rbx], eax; mov [rbx+8], eax
    let log = execute(&mut cpu, &[0x8B, 0x03, 0x89, 0x03, 0x89, 0x43, 0x08], 3);
    let update = |n: u64, rip, bits: u64| Event {
        vcpu: 0,
        rip,
        instruction: n,
        time: n,
        place: 0,
        kind: store(entry, &(clean | bits).to_le_bytes(), StoreKind::Cached),
    };
    assert_eq!(log, [update(1, CODE + 1, 0x20), update(2, CODE + 3, 0x60)]);
}

#[test]
fn instruction_numbers_hold_when_a_budget_ends_within_a_block() {
    for split in 1..4 {
        let mut cpu = watching(false);
        // Four stores in one block, run in two pieces.
        let code = [0x88, 0x03, 0x88, 0x43, 1, 0x88, 0x43, 2, 0x88, 0x43, 3];
        assert_eq!(cpu.run_code(&code, split), Stop::Budget);
        assert_eq!(cpu.run(4 - split), Stop::Budget);
        let numbers: Vec<_> =
            cpu.shared.log.events().map(|event| (event.instruction, event.rip - CODE)).collect();
        assert_eq!(numbers, [(0, 0), (1, 2), (2, 5), (3, 8)], "split at {split}");
    }
}

/// As [`watching`], of x86-64-v3; nothing where the host lacks it.
fn watching_wide(loads: bool) -> Option<Cpu> {
    if !crate::exec::fpu::avx::missing().is_empty() {
        println!("skipped: the host has no AVX2");
        return None;
    }
    let mut cpu = watching(loads);
    cpu.show(engine::cpuid::CpuidTable::x86_64_v3(1, 1_000_000));
    cpu.cr4 |= crate::cpu::control::CR4_OSXSAVE;
    cpu.xcr0 = engine::cpuid::xsave::ALL;
    cpu.upper = [0x1F1E_1D1C_1B1A_1918_1716_1514_1312_1110; 16];
    Some(cpu)
}

fn kinds(cpu: &mut Cpu, code: &[u8]) -> Vec<EventKind> {
    execute(cpu, code, 1).into_iter().map(|event| event.kind).collect()
}

#[test]
fn wide_stores_are_one_event_a_stretch() {
    let bytes: [u8; 32] = std::array::from_fn(|n| n as u8);
    let ymm1 = [0xC5, 0xFE, 0x7F, 0x0B];
    for (code, kind) in [
        // vmovdqu [rbx], ymm1; vmovntdq [rbx], ymm1
        (ymm1, StoreKind::Cached),
        ([0xC5, 0xFD, 0xE7, 0x0B], StoreKind::NonTemporal),
    ] {
        let Some(mut cpu) = watching_wide(false) else { return };
        assert_eq!(kinds(&mut cpu, &code), [store(DATA, &bytes, kind)]);
    }
    // vpmaskmovd [rbx], ymm0, ymm1: elements 0, 1 and 7
    let Some(mut cpu) = watching_wide(false) else { return };
    cpu.set_ymm(0, [1 << 31 | 1 << 63, 1 << 127]);
    let stretches =
        [store(DATA, &bytes[..8], StoreKind::Cached), store(DATA + 28, &bytes[28..], StoreKind::Cached)];
    assert_eq!(kinds(&mut cpu, &[0xC4, 0xE2, 0x7D, 0x8E, 0x0B]), stretches);
}

#[test]
fn xsave_stores_what_it_writes() {
    let Some(mut cpu) = watching_wide(false) else { return };
    (cpu.gpr[RAX], cpu.gpr[2]) = (4, 0);
    // xsave64 [rbx]: the upper halves only
    let spans: Vec<(u64, u8)> = kinds(&mut cpu, &[0x48, 0x0F, 0xAE, 0x23])
        .into_iter()
        .map(|kind| match kind {
            Store { addr, len, kind: StoreKind::Cached, .. } => (addr - DATA, len),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(spans, [(24, 8), (512, 8), (576, 64), (640, 64), (704, 64), (768, 64)]);
}
