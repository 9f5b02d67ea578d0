use std::sync::Arc;
use std::time::Duration;

use engine::cpuid::CpuidTable;
use engine::event::EventKind;
use engine::log::Log;
use engine::place::{Place, Trail, Word};
use engine::state::{Activity, Segment};
use engine::{Engine, Msi, Partition, PartitionSpec};

use super::*;
use crate::lapic::Lapic;
use crate::rig::{CODE, DATA};
use crate::{Soft, flags};

const RAX: usize = 0;
const RBX: usize = 3;
const KHZ: u32 = 1_000_000;
/// Interrupt table, and where its handlers are.
const TABLE: u64 = 0x5000;
const HANDLER: u64 = CODE + 0x1000;
/// Code of the other vCPUs.
const OTHER: u64 = CODE + 0x2000;
const VECTOR: u8 = 0x40;

struct Guest {
    partition: Arc<dyn Partition>,
    processor: Box<dyn Processor>,
    state: CpuState,
    memory: engine::GuestMemory,
}

fn spec(vcpus: u8) -> PartitionSpec {
    PartitionSpec { vcpus, cpuid: CpuidTable::x86_64_v2(vcpus, KHZ), tsc_khz: KHZ, seed: 1 }
}

impl Guest {
    /// In 64-bit mode at `code`, interrupts on; vector 0x40 goes to `handler`.
    fn new(vcpus: u8, code: &[u8], handler: &[u8]) -> Self {
        let mut cpu = Cpu::for_test();
        cpu.poke(CODE, code);
        cpu.poke(HANDLER, handler);
        let gate = HANDLER & 0xFFFF | 0x10 << 16 | 0x8E00 << 32 | (HANDLER >> 16) << 48;
        cpu.poke(TABLE + 16 * u64::from(VECTOR), &gate.to_le_bytes());
        cpu.poke(0x10, &0x00AF_9B00_0000_FFFF_u64.to_le_bytes());
        cpu.poke(0x18, &0x00CF_9300_0000_FFFF_u64.to_le_bytes());
        let memory = cpu.shared.ram.memory().unwrap().clone();
        let built = Soft::new().build(&spec(vcpus), &memory).unwrap();
        let mut state = cpu.save();
        state.registers.rflags |= flags::bit::IF;
        state.registers.gpr[RBX] = DATA;
        state.system.idt.base = TABLE;
        state.system.idt.limit = 0xFFF;
        state.system.tr = Segment { selector: 0x20, base: 0, limit: 0x67, attributes: 0x8B };
        let mut lapic = Lapic::new(0);
        lapic.write_page(0xF0, 4, 0x1FF, 0);
        state.lapic = lapic.save(0);
        let processor = built.seats.into_iter().next().unwrap().bind().unwrap();
        let mut guest = Self { partition: built.partition, processor, state, memory };
        guest.restore(0);
        guest
    }

    fn restore(&mut self, vcpu: VcpuId) {
        let state = self.state.clone();
        self.processor.restore(vcpu, &state).unwrap();
    }

    /// Has the timer interrupt when the TSC is that.
    fn deadline(mut self, tsc: u64) -> Self {
        let mut lapic = Lapic::new(0);
        lapic.write_page(0xF0, 4, 0x1FF, 0);
        lapic.write_page(0x320, 4, 0x4_0000 | u64::from(VECTOR), 0);
        lapic.set_deadline(tsc, 0);
        self.state.lapic = lapic.save(0);
        self.state.msrs.tsc_deadline = tsc;
        self.restore(0);
        self
    }

    fn run(&mut self, entry: Entry) -> ExitKind {
        self.processor.run(entry).unwrap().kind
    }
}

/// out 0x10, al; jmp $
const TELL: &[u8] = &[0xE6, 0x10, 0xEB, 0xFE];
const TOLD: ExitKind = ExitKind::IoWrite { port: 0x10, size: 1, value: 0 };
/// jmp $
const SPIN: &[u8] = &[0xEB, 0xFE];
/// hlt; jmp $-1
const SLEEP: &[u8] = &[0xF4, 0xEB, 0xFD];

#[test]
fn what_cannot_be_is_not_built() {
    let memory = engine::GuestMemory::from_ranges(&[(vm_memory::GuestAddress(0), 1 << 20)]).unwrap();
    for vcpus in [0, 9] {
        assert!(Soft::new().build(&spec(vcpus), &memory).is_err());
    }
    let mut avx = spec(1);
    avx.cpuid.entries.iter_mut().find(|entry| entry.leaf == 1).unwrap().registers[2] |= 1 << 28;
    let error = Soft::interpreter().build(&avx, &memory).unwrap_err();
    assert_eq!(error.to_string(), "The interp engine does not support CPUID leaf 0x1 ECX bits 0x10000000");
    assert_eq!(Soft::new().tsc_khz(100), KHZ);
    assert_eq!(Soft::new().tsc_khz(2_500_000), 2_500_000);
}

#[test]
fn a_timer_interrupts_at_its_instruction() {
    for deadline in [1, 2, 3, 1000, 77_777, 123_456] {
        let mut guest = Guest::new(1, SPIN, TELL).deadline(deadline);
        assert_eq!(guest.run(Entry::Resume), TOLD);
        assert_eq!(guest.partition.instructions(), Some(deadline + 1), "the OUT is one more");
        assert_eq!(guest.partition.now(), deadline + 1);
    }
}

#[test]
fn a_halted_guest_jumps_to_the_deadline() {
    let mut guest = Guest::new(1, SLEEP, TELL).deadline(5_000_000_000);
    assert_eq!(guest.run(Entry::Resume), ExitKind::Idle { deadline: Some(5_000_000_000) });
    assert_eq!(guest.run(Entry::Elapsed(1000)), ExitKind::Idle { deadline: Some(5_000_000_000) });
    assert_eq!(guest.partition.now(), 1001);
    assert_eq!(guest.run(Entry::Resume), TOLD);
    assert_eq!(guest.partition.now(), 5_000_000_001);
    assert_eq!(guest.partition.instructions(), Some(2));
}

#[test]
fn nothing_wakes_a_guest_that_halts_with_interrupts_off() {
    let mut guest = Guest::new(1, &[0xFA, 0xF4], TELL).deadline(5000);
    assert_eq!(guest.run(Entry::Resume), ExitKind::Idle { deadline: None });
}

#[test]
fn a_message_wakes() {
    let mut guest = Guest::new(1, SLEEP, TELL);
    assert_eq!(guest.run(Entry::Resume), ExitKind::Idle { deadline: None });
    guest.partition.send_msi(Msi { address: 0xFEE0_0000, data: VECTOR.into() }).unwrap();
    assert_eq!(guest.run(Entry::Elapsed(0)), TOLD);
}

#[test]
fn the_limit_is_exact_and_stays() {
    let mut guest = Guest::new(1, SPIN, TELL);
    assert!(guest.partition.stop_at(Some(123_457)));
    for _ in 0..2 {
        assert_eq!(guest.run(Entry::Resume), ExitKind::InstructionLimit);
        assert_eq!(guest.partition.instructions(), Some(123_457));
    }
}

#[test]
fn a_kick_is_seen_while_running_and_once() {
    let mut guest = Guest::new(1, SPIN, TELL);
    guest.partition.kick();
    assert_eq!(guest.run(Entry::Resume), ExitKind::Kicked);
    let partition = Arc::clone(&guest.partition);
    let kicker = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        partition.kick();
    });
    assert_eq!(guest.run(Entry::Resume), ExitKind::Kicked);
    kicker.join().unwrap();
    guest.partition.stop_at(Some(0));
    assert_eq!(guest.run(Entry::Resume), ExitKind::InstructionLimit);
}

#[test]
fn reads_are_answered_and_asked_again() {
    // in eax, 0x20; out 0x10, al
    let mut guest = Guest::new(1, &[0xE5, 0x20, 0xE6, 0x10], TELL);
    let read = ExitKind::IoRead { port: 0x20, size: 4 };
    assert_eq!(guest.run(Entry::Resume), read);
    assert_eq!(guest.run(Entry::Resume), read);
    let told = ExitKind::IoWrite { port: 0x10, size: 1, value: 0x78 };
    assert_eq!(guest.run(Entry::Data(0xFFFF_FFFF_1234_5678)), told);
    assert_eq!(guest.processor.save(0).unwrap().registers.gpr[RAX], 0x1234_5678);
}

#[test]
fn the_log_fills_and_is_drained_without_loss() {
    const COUNT: u64 = 200_000;
    // inc rax; mov [rbx], rax; cmp rax, COUNT; jne back; out 0x10, al
    let mut code = vec![0x48, 0xFF, 0xC0, 0x48, 0x89, 0x03, 0x48, 0x3D];
    code.extend((COUNT as u32).to_le_bytes());
    code.extend([0x75, 0xF2, 0xE6, 0x10]);
    let mut guest = Guest::new(1, &code, TELL);
    let partition = Arc::clone(&guest.partition);
    let events = partition.memory_events().unwrap();
    events.watch(std::slice::from_ref(&(DATA..DATA + 0x1000)), false);
    let (mut next, mut full, mut log) = (1, 0, Log::default());
    loop {
        let exit = guest.run(Entry::Resume);
        if exit == ExitKind::EventsFull && full == 0 {
            assert_eq!(guest.run(Entry::Resume), ExitKind::EventsFull, "not drained");
        }
        events.drain(&mut log);
        for event in log.events() {
            let EventKind::Store { data, len: 8, .. } = event.kind else { panic!("{event:?}") };
            assert_eq!(data[..8], u64::to_le_bytes(next));
            assert_eq!(event.instruction, 4 * next - 3);
            next += 1;
        }
        match exit {
            ExitKind::EventsFull => full += 1,
            other => {
                assert_eq!(other, ExitKind::IoWrite { port: 0x10, size: 1, value: COUNT as u32 & 0xFF });
                break;
            }
        }
    }
    assert_eq!((next, full), (COUNT + 1, COUNT / LOG_CAPACITY as u64));
    events.watch(&[], false);
}

/// Instruction pointers of events and their places, and instruction pointers and callers that were asked about.
type Asked = (Vec<(u64, u32)>, Vec<(u64, u64)>);

/// Runs until the guest tells 0, and answers whatever place is asked for with its instruction pointer, its stack and frame
/// pointers and the word on top of the stack. Gives each event's instruction pointer and place, and what was asked.
fn places(code: &[u8], lasting: bool) -> Asked {
    use vm_memory::{Bytes, GuestAddress};
    let mut guest = Guest::new(1, code, TELL);
    let partition = Arc::clone(&guest.partition);
    let events = partition.memory_events().unwrap();
    assert!(events.ask_places(true));
    events.watch(std::slice::from_ref(&(DATA..DATA + 0x1000)), false);
    let (mut seen, mut asked, mut log) = (Vec::new(), Vec::new(), Log::default());
    loop {
        let exit = guest.run(Entry::Resume);
        events.drain(&mut log);
        seen.extend(log.events().map(|event| (event.rip - CODE, event.place)));
        if exit != ExitKind::UnknownPlace {
            assert_eq!(exit, ExitKind::IoWrite { port: 0x10, size: 1, value: 0 });
            return (seen, asked);
        }
        let registers = guest.processor.save(0).unwrap().registers;
        let (rip, stack, frame) = (registers.rip, registers.gpr[4], registers.gpr[5]);
        let top: u64 = guest.memory.read_obj(GuestAddress(stack)).unwrap();
        asked.push((rip - CODE, top.wrapping_sub(CODE)));
        let words = vec![Word { address: stack, len: 8, value: Some(top) }];
        let trail = lasting.then(|| Trail { rip, registers: vec![(4, stack), (5, frame)], words });
        events.learn(0, Place { number: asked.len() as u32, trail });
    }
}

#[test]
fn a_place_is_asked_for_before_its_instruction_and_then_known() {
    // A loop that stores at two places, the second five times in a row; both stacks are the same.
    // mov ecx, 5; mov [rbx], rcx; sfence; 1: mov [rbx+8], rcx; dec ecx; jnz 1b; mov [rbx], ecx; out 0x10, al
    let code = [
        &[0xB9, 5, 0, 0, 0][..],
        &[0x48, 0x89, 0x0B],
        &[0x0F, 0xAE, 0xF8],
        &[0x48, 0x89, 0x4B, 8, 0xFF, 0xC9, 0x75, 0xF8],
        &[0x89, 0x0B, 0xE6, 0x10],
    ]
    .concat();
    let (seen, asked) = places(&code, true);
    assert_eq!(asked.iter().map(|at| at.0).collect::<Vec<_>>(), [5, 8, 11, 19]);
    assert_eq!(seen, [(5, 1), (8, 2), (11, 3), (11, 3), (11, 3), (11, 3), (11, 3), (19, 4)]);
    let (seen, asked) = places(&code, false);
    assert_eq!(asked.len(), 8, "each time");
    assert_eq!(seen.last(), Some(&(19, 8)));
}

/// `mov ecx, 40; 1: call f; call f; dec ecx; jnz 1b; out 0x10, al; f:` and the function.
fn called_twice(function: &[u8]) -> Vec<u8> {
    let calls = [0xE8, 11, 0, 0, 0, 0xE8, 6, 0, 0, 0];
    [&[0xB9, 40, 0, 0, 0], &calls[..], &[0xFF, 0xC9, 0x75, 0xF2, 0xE6, 0x10], function].concat()
}

#[test]
fn a_function_called_from_two_places_in_a_row_is_at_two_places() {
    // The same function, called twice within a few instructions, with the same stack pointer; then both again, interpreted
    // and translated.
    // mov [rbx], ecx; ret
    let code = called_twice(&[0x89, 0x0B, 0xC3]);
    let (seen, asked) = places(&code, true);
    assert_eq!(asked, [(21, 10), (21, 15)]);
    assert_eq!(seen, [(21, 1), (21, 2)].repeat(40));
}

#[test]
fn so_it_is_where_its_stores_are_a_run() {
    // movnti [rbx], rcx; movnti [rbx+8], rcx; ret
    let code = called_twice(&[0x48, 0x0F, 0xC3, 0x0B, 0x48, 0x0F, 0xC3, 0x4B, 8, 0xC3]);
    let (seen, asked) = places(&code, true);
    assert_eq!(asked, [(21, 10), (25, 10), (21, 15), (25, 15)]);
    assert_eq!(seen, [(21, 1), (25, 2), (21, 3), (25, 4)].repeat(40));
    let (seen, asked) = places(&code, false);
    assert_eq!((seen.len(), asked.len()), (160, 160), "each time");
}

#[test]
fn an_instruction_with_another_stack_is_at_another_place() {
    // mov [rbx], ecx; and movnti [rbx], rcx; movnti [rbx+8], rcx
    let (one, run) = ([0x89, 0x0B], [0x48, 0x0F, 0xC3, 0x0B, 0x48, 0x0F, 0xC3, 0x4B, 8]);
    // xor rsp, 8; and xor rbp, 8
    for other in [[0x48, 0x83, 0xF4, 8], [0x48, 0x83, 0xF5, 8]] {
        // mov ecx, 40; 1: the stores; the other stack; dec ecx; jnz 1b; out 0x10, al
        let there = |stores: &[u8]| {
            let back = (-8 - stores.len() as i8).to_le_bytes();
            let end = [&[0xFF, 0xC9, 0x75][..], &back, &[0xE6, 0x10]].concat();
            places(&[&[0xB9, 40, 0, 0, 0], stores, &other, &end].concat(), true).0
        };
        assert_eq!(there(&one), [(5, 1), (5, 2)].repeat(20));
        assert_eq!(there(&run), [(5, 1), (9, 2), (5, 3), (9, 4)].repeat(20));
    }
}

#[test]
fn stores_beside_watched_memory_may_change_what_places_are_known_by() {
    // mov ecx, 40; 1: mov [rbx], ecx; mov [rsp], rcx; mov [rsp+8], rcx; dec ecx; jnz 1b; out 0x10, al
    let near = [
        &[0xB9, 40, 0, 0, 0, 0x89, 0x0B][..],
        &[0x48, 0x89, 0x0C, 0x24, 0x48, 0x89, 0x4C, 0x24, 8],
        &[0xFF, 0xC9, 0x75, 0xF1, 0xE6, 0x10],
    ]
    .concat();
    // mov edx, 40; 1: mov [rbx], edx; lea rdi, [rsp]; mov eax, edx; mov ecx, 1; rep stosq; dec edx; jnz 1b; xor eax, eax;
    // out 0x10, al
    let string = [
        &[0xBA, 40, 0, 0, 0, 0x89, 0x13][..],
        &[0x48, 0x8D, 0x3C, 0x24, 0x89, 0xD0, 0xB9, 1, 0, 0, 0, 0xF3, 0x48, 0xAB],
        &[0xFF, 0xCA, 0x75, 0xEC, 0x31, 0xC0, 0xE6, 0x10],
    ]
    .concat();
    let expected: Vec<_> = (1..=40).map(|n| (5, n)).collect();
    assert_eq!(places(&near, true).0, expected);
    assert_eq!(places(&string, true).0, expected);
}

#[test]
fn a_run_that_changes_what_its_places_are_known_by_is_at_many() {
    // lea rsp, [rbx+256]; mov ecx, 40; 1: movnti [rsp], rcx; movnti [rsp+8], rcx; dec ecx; jnz 1b; out 0x10, al
    let code = [
        &[0x48, 0x8D, 0xA3, 0, 1, 0, 0, 0xB9, 40, 0, 0, 0][..],
        &[0x48, 0x0F, 0xC3, 0x0C, 0x24, 0x48, 0x0F, 0xC3, 0x4C, 0x24, 8],
        &[0xFF, 0xC9, 0x75, 0xF1, 0xE6, 0x10],
    ]
    .concat();
    let (seen, _) = places(&code, true);
    let expected: Vec<_> = (1..=80).map(|n| (if n % 2 == 1 { 12 } else { 17 }, n)).collect();
    assert_eq!(seen, expected);
}

#[test]
fn nobody_is_asked_twice() {
    // mov [rbx], rax; out 0x10, al
    let mut guest = Guest::new(1, &[0x48, 0x89, 0x03, 0xE6, 0x10], TELL);
    let partition = Arc::clone(&guest.partition);
    let events = partition.memory_events().unwrap();
    events.ask_places(true);
    events.watch(std::slice::from_ref(&(DATA..DATA + 0x1000)), false);
    assert_eq!(guest.run(Entry::Resume), ExitKind::UnknownPlace);
    assert_eq!(guest.run(Entry::Resume), TOLD);
    let mut log = Log::default();
    events.drain(&mut log);
    let seen: Vec<_> = log.events().map(|event| (event.rip, event.place)).collect();
    assert_eq!(seen, [(CODE, 0)]);
}

#[test]
fn code_that_a_device_writes_is_seen() {
    use vm_memory::{Bytes, GuestAddress};
    let mut guest = Guest::new(1, &[0xE6, 0x10, 0xEB, 0xFC], TELL);
    assert_eq!(guest.run(Entry::Resume), TOLD);
    assert_eq!(guest.run(Entry::Resume), TOLD);
    guest.memory.write_slice(&[0xE6, 0x11], GuestAddress(CODE)).unwrap();
    guest.partition.memory_written(CODE..CODE + 2);
    assert_eq!(guest.run(Entry::Resume), ExitKind::IoWrite { port: 0x11, size: 1, value: 0 });
}

/// Two vCPUs add to one counter without a lock, one of them pausing now and then, until the limit. On the way they move
/// to another partition at some instructions.
fn race(limit: u64, moves: &[u64]) -> (u64, u64, [u64; 2]) {
    use vm_memory::{Bytes, GuestAddress};
    // mov rax, [rbx]; inc rax; mov [rbx], rax; pause; jmp back
    let pausing = [0x48, 0x8B, 0x03, 0x48, 0xFF, 0xC0, 0x48, 0x89, 0x03, 0xF3, 0x90, 0xEB, 0xF3];
    // mov rax, [rbx]; inc rax; mov [rbx], rax; jmp back
    let busy = [0x48, 0x8B, 0x03, 0x48, 0xFF, 0xC0, 0x48, 0x89, 0x03, 0xEB, 0xF5];
    let mut guest = Guest::new(2, &pausing, TELL);
    guest.memory.write_slice(&busy, GuestAddress(OTHER)).unwrap();
    let reset = CpuState::reset(1);
    guest.state.registers.rip = OTHER;
    guest.state.lapic = reset.lapic;
    guest.state.system.apic_base = reset.system.apic_base;
    guest.state.activity = Activity::Running;
    guest.restore(1);
    for at in moves {
        guest.partition.stop_at(Some(*at));
        assert_eq!(guest.run(Entry::Resume), ExitKind::InstructionLimit);
        let (partition, [first, second]) =
            (guest.processor.save_partition().unwrap(), [0, 1].map(|n| guest.processor.save(n).unwrap()));
        let built = Soft::new().build(&spec(2), &guest.memory).unwrap();
        guest.partition = built.partition;
        guest.processor = built.seats.into_iter().next().unwrap().bind().unwrap();
        guest.processor.restore_partition(&partition).unwrap();
        guest.processor.restore(0, &first).unwrap();
        guest.processor.restore(1, &second).unwrap();
        assert_eq!(guest.processor.save_partition().unwrap(), partition);
    }
    guest.partition.stop_at(Some(limit));
    assert_eq!(guest.run(Entry::Resume), ExitKind::InstructionLimit);
    let registers = [0, 1].map(|n| guest.processor.save(n).unwrap().registers.gpr[RAX]);
    (guest.memory.read_obj(GuestAddress(DATA)).unwrap(), guest.partition.now(), registers)
}

#[test]
fn interleaving_is_the_same_every_time() {
    let first = race(1_000_000, &[]);
    assert_eq!(first, race(1_000_000, &[]));
    assert!(first.0 > 1000 && first.2[0] > 1, "both have run: {first:?}");
    assert_ne!(first, race(999_999, &[]));
}

#[test]
fn interleaving_goes_on_in_another_partition() {
    use vm_memory::{Bytes, GuestAddress};
    let whole = race(1_000_000, &[]);
    assert_eq!(race(1_000_000, &[10_001, 123_456, 777_777]), whole);
    let mut guest = Guest::new(1, SPIN, TELL);
    let state = guest.processor.save_partition().unwrap();
    for nonsense in [
        PartitionState { instructions: Some(5), guest_time: 4, ..state },
        PartitionState { turn: Some(engine::state::Turn { vcpu: 1, left: 1 }), ..state },
        PartitionState { turn: Some(engine::state::Turn { vcpu: 0, left: u64::MAX }), ..state },
    ] {
        assert!(matches!(guest.processor.restore_partition(&nonsense), Err(Error::BadState(_))));
        assert_eq!(guest.processor.save_partition().unwrap(), state);
    }
    assert_eq!(guest.memory.read_obj::<u8>(GuestAddress(CODE)).unwrap(), SPIN[0]);
}

#[test]
fn a_saved_guest_goes_on_as_it_would_have() {
    use vm_memory::Bytes;
    let finish = |pause_at: Option<u64>| {
        let mut guest = Guest::new(1, SPIN, TELL).deadline(100_000);
        if let Some(pause_at) = pause_at {
            guest.partition.stop_at(Some(pause_at));
            assert_eq!(guest.run(Entry::Resume), ExitKind::InstructionLimit);
            let state = guest.processor.save(0).unwrap();
            let mut other = Guest::new(1, SPIN, TELL);
            let mut bytes = vec![0; crate::rig::SIZE];
            guest.memory.read_slice(&mut bytes, vm_memory::GuestAddress(0)).unwrap();
            other.memory.write_slice(&bytes, vm_memory::GuestAddress(0)).unwrap();
            other.processor.restore(0, &state).unwrap();
            assert_eq!(other.processor.save(0).unwrap(), state);
            guest = other;
        }
        assert_eq!(guest.run(Entry::Resume), TOLD);
        guest.processor.save(0).unwrap()
    };
    assert_eq!(finish(None), finish(Some(60_000)));
}

#[test]
fn nonsense_has_no_vcpu() {
    let mut guest = Guest::new(1, SPIN, TELL);
    assert!(matches!(guest.processor.save(1), Err(Error::NoSuchVcpu(1))));
    let mut state = guest.state.clone();
    state.system.cr8 = 99;
    assert!(matches!(guest.processor.restore(0, &state), Err(Error::BadState(_))));
}
