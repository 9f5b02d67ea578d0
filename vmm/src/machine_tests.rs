//! The machine under an engine that follows a script instead of executing instructions.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::event::MemoryEvents;
use engine::{
    Built, CpuState, Entry, Exit, ExitKind, Msi, Partition, PartitionState, Processor, Seat, VcpuId,
};

use super::*;
use crate::boot::Kernel;
use crate::devices::Unconnected;
use crate::layout::{IOAPIC, MIB};
use crate::nvdimm::Entropy;
use crate::remote::{Keyboard, StopReason};

/// What happened, in order.
#[derive(Debug, Clone, PartialEq)]
enum Seen {
    Built,
    Restored(VcpuId, u64),
    Entered(Entry),
    Sent(Msi),
}

/// A script for each vCPU: its seat gives these exits, then is kicked or idles forever.
#[derive(Debug, Default)]
struct Scripted {
    boots: Mutex<VecDeque<Vec<Vec<ExitKind>>>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Vec<Seen>>,
    kicked: AtomicBool,
    now: AtomicU64,
}

impl Shared {
    fn see(&self, seen: Seen) {
        self.seen.lock().unwrap().push(seen);
    }
}

impl Engine for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn tsc_khz(&self, preferred: u32) -> u32 {
        preferred
    }

    fn build(&self, spec: &PartitionSpec, _memory: &GuestMemory) -> engine::Result<Built> {
        self.shared.see(Seen::Built);
        self.shared.kicked.store(false, Ordering::SeqCst);
        let scripts = self.boots.lock().unwrap().pop_front().expect("a script for this boot");
        assert_eq!(scripts.len(), usize::from(spec.vcpus));
        let seat = |(vcpu, script): (u8, Vec<ExitKind>)| -> Box<dyn Seat> {
            Box::new(Chair { vcpu, script: script.into(), shared: Arc::clone(&self.shared) })
        };
        let partition = Arc::new(Stage(Arc::clone(&self.shared)));
        Ok(Built { partition, seats: (0..).zip(scripts).map(seat).collect() })
    }
}

#[derive(Debug)]
struct Stage(Arc<Shared>);

impl Partition for Stage {
    fn send_msi(&self, msi: Msi) -> engine::Result<()> {
        self.0.see(Seen::Sent(msi));
        Ok(())
    }

    fn kick(&self) {
        self.0.kicked.store(true, Ordering::SeqCst);
    }

    fn now(&self) -> u64 {
        self.0.now.load(Ordering::SeqCst)
    }

    fn instructions(&self) -> Option<u64> {
        Some(1000)
    }

    fn memory_events(&self) -> Option<&dyn MemoryEvents> {
        None
    }

    fn stop_at(&self, _instructions: Option<u64>) -> bool {
        true
    }
}

#[derive(Debug)]
struct Chair {
    vcpu: VcpuId,
    script: VecDeque<ExitKind>,
    shared: Arc<Shared>,
}

impl Seat for Chair {
    fn vcpus(&self) -> Vec<VcpuId> {
        vec![self.vcpu]
    }

    fn bind(self: Box<Self>) -> engine::Result<Box<dyn Processor>> {
        Ok(self)
    }
}

impl Processor for Chair {
    fn run(&mut self, entry: Entry) -> engine::Result<Exit> {
        if self.vcpu == 0 {
            self.shared.see(Seen::Entered(entry));
        }
        let kind = self.script.pop_front().unwrap_or_else(|| {
            while !self.shared.kicked.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            ExitKind::Kicked
        });
        Ok(Exit { vcpu: self.vcpu, kind })
    }

    fn save(&mut self, vcpu: VcpuId) -> engine::Result<CpuState> {
        Ok(CpuState::reset(vcpu))
    }

    fn restore(&mut self, vcpu: VcpuId, state: &CpuState) -> engine::Result<()> {
        self.shared.see(Seen::Restored(vcpu, state.registers.rip));
        Ok(())
    }

    fn save_partition(&mut self) -> engine::Result<PartitionState> {
        Ok(PartitionState { guest_time: 0, instructions: Some(1000), turn: None })
    }

    fn restore_partition(&mut self, _state: &PartitionState) -> engine::Result<()> {
        Ok(())
    }
}

const fn out(port: u16, value: u32) -> ExitKind {
    ExitKind::IoWrite { port, size: 1, value }
}

const fn ring(code: u32) -> ExitKind {
    ExitKind::IoWrite { port: 0x700, size: 4, value: code }
}

fn say(text: &str) -> Vec<ExitKind> {
    text.bytes().map(|byte| out(0x3F8, byte.into())).collect()
}

/// A kernel that is nothing but an ELF header with an empty segment at 16 MiB.
fn kernel() -> tempfile::NamedTempFile {
    let mut elf = vec![0_u8; 120];
    elf[..8].copy_from_slice(b"\x7FELF\x02\x01\x01\x00");
    for (at, value) in [(18, 62), (27, 1), (32, 64), (54, 56), (56, 1), (64, 1), (91, 1), (104, 16)] {
        elf[at] = value;
    }
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&elf).unwrap();
    file
}

fn no_dimms() -> OpenDimms {
    OpenDimms::open(&[], &Entropy::from_seed(0)).unwrap()
}

struct Bench {
    machine: Machine,
    shared: Arc<Shared>,
    remote: Remote,
    keyboard: Keyboard,
}

/// Hears from a keyboard, and says nothing on.
struct Typed(Keyboard);

impl SerialBackend for Typed {
    fn input(&mut self) -> Option<u8> {
        self.0.next()
    }

    fn output(&mut self, _byte: u8) {}
}

fn bench(interactive: bool, boots: Vec<Vec<Vec<ExitKind>>>) -> Bench {
    let kernel = kernel();
    let vcpus = boots[0].len() as u8;
    let engine = Scripted { boots: Mutex::new(boots.into()), shared: Arc::default() };
    let (shared, remote) = (Arc::clone(&engine.shared), Remote::default());
    let keyboard = Keyboard::new(remote.clone());
    let boot = BootSpec {
        kernel: Kernel::detect(kernel.path()).unwrap(),
        initrd: None,
        command_line: String::new(),
    };
    let spec = MachineSpec {
        vcpus,
        cpu: CpuModel::V2,
        ram: 64 * MIB,
        boot,
        seed: 0,
        wall_clock: 0,
        interactive,
        stop_at: None,
    };
    let console = Box::new(Typed(keyboard.clone()));
    let wiring =
        Wiring { console, control: Box::new(Unconnected), dimms: no_dimms(), remote: remote.clone() };
    let machine = Machine::new(spec, wiring, Box::new(engine)).unwrap();
    // The kernel's file must outlive the boots.
    std::mem::forget(kernel);
    Bench { machine, shared, remote, keyboard }
}

fn outcome(boots: Vec<Vec<Vec<ExitKind>>>) -> Outcome {
    bench(false, boots).machine.run().unwrap().outcome
}

#[test]
fn every_way_to_end_has_its_outcome() {
    let stuck = ExitKind::Stuck { rip: 7, bytes: [1; 15] };
    for (exit, expected) in [
        (ring(42), Outcome::Exit(42)),
        (out(0x600, 0x34), Outcome::PowerOff),
        (ExitKind::Shutdown, Outcome::TripleFault),
        (ExitKind::Idle { deadline: None }, Outcome::Halted),
        (ExitKind::InstructionLimit, Outcome::InstructionLimit),
        (stuck, Outcome::Stuck { rip: 7, bytes: [1; 15] }),
    ] {
        assert_eq!(outcome(vec![vec![vec![exit]]]), expected);
    }
}

#[test]
fn reads_are_answered_in_the_next_entry() {
    let read = ExitKind::IoRead { port: 0x61, size: 1 };
    let hole = ExitKind::MmioRead { addr: 0xD800_0000, size: 4 };
    let mut bench = bench(false, vec![vec![vec![read, hole, ring(0)]]]);
    bench.machine.run().unwrap();
    let expected = [
        Seen::Built,
        Seen::Restored(0, 0x0100_0000),
        Seen::Entered(Entry::Resume),
        Seen::Entered(Entry::Data(0x20)),
        Seen::Entered(Entry::Data(0xFFFF_FFFF)),
    ];
    assert_eq!(*bench.shared.seen.lock().unwrap(), expected);
}

#[test]
fn a_reset_is_a_new_boot_with_clear_memory() {
    let mut bench = bench(false, vec![vec![vec![out(0x602, 1)]], vec![vec![ring(0)]]]);
    let dirty = GuestAddress(32 * MIB);
    bench.machine.memory().write_obj(0xAA_u8, dirty).unwrap();
    let report = bench.machine.run().unwrap();
    assert_eq!((report.outcome, report.statistics.resets), (Outcome::Exit(0), 1));
    assert_eq!(report.statistics.instructions, Some(2000));
    assert_eq!(bench.machine.memory().read_obj::<u8>(dirty).unwrap(), 0);
    assert_eq!(
        bench.machine.memory().read_obj::<u64>(GuestAddress(0xE_0000)).unwrap().to_le_bytes(),
        *b"RSD PTR "
    );
}

#[test]
fn a_panic_is_told_from_an_ordinary_reset() {
    let mut words = say("[ 1.0] Kernel panic - not syncing: no init\r\n");
    words.push(out(0x602, 1));
    let report = bench(false, vec![vec![words.clone()]]).machine.run().unwrap();
    assert_eq!(report.outcome, Outcome::Panic);
    assert_eq!(report.console, ["[ 1.0] Kernel panic - not syncing: no init"]);
    words.pop();
    words.extend(say("---[ end Kernel panic - not syncing: no init ]---\r\n"));
    assert_eq!(outcome(vec![vec![words]]), Outcome::Panic);
}

#[test]
fn one_seat_ends_all() {
    let report = bench(false, vec![vec![vec![], vec![out(0x80, 0), ring(3)], vec![]]]).machine.run().unwrap();
    assert_eq!(report.outcome, Outcome::Exit(3));
    assert_eq!(report.statistics.exits["io_write"], 2);
}

#[test]
fn a_stop_from_another_thread_ends_the_run() {
    let mut bench = bench(false, vec![vec![vec![], vec![]]]);
    let remote = bench.remote.clone();
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(5));
            remote.stop(StopReason::Timeout);
        });
        bench.machine.run().unwrap().outcome
    });
    assert_eq!(outcome, Outcome::Timeout);
}

#[test]
fn seats_meet_at_a_pause_and_go_on_from_there() {
    let read = ExitKind::IoRead { port: 0x61, size: 1 };
    let mut bench = bench(false, vec![vec![vec![], vec![read], vec![]], vec![vec![ring(1)], vec![], vec![]]]);
    bench.remote.pause();
    assert_eq!(bench.machine.run().unwrap().outcome, Outcome::Paused);
    bench.shared.seen.lock().unwrap().clear();
    assert_eq!(bench.machine.run().unwrap().outcome, Outcome::Exit(1));
    let seen = bench.shared.seen.lock().unwrap();
    for vcpu in 0..3 {
        assert!(seen.contains(&Seen::Restored(vcpu, CpuState::reset(vcpu).registers.rip)), "{seen:?}");
    }
}

#[test]
fn marks_keep_their_place_and_cannot_fill_the_host() {
    let mark = |value| ExitKind::IoWrite { port: 0x704, size: 4, value };
    let mut script: Vec<_> = (0..5000).map(mark).collect();
    script.push(ring(0));
    let report = bench(false, vec![vec![script]]).machine.run().unwrap();
    assert_eq!(report.statistics.marks.len(), Statistics::MARKS);
    let first = &report.statistics.marks[0];
    assert_eq!((&*first.name, first.guest_time, first.instructions), ("0", 0, Some(1000)));
}

/// Opens the console for reading, with its interrupt as vector 0x31.
fn listen() -> Vec<ExitKind> {
    let ioapic = |offset, value| ExitKind::MmioWrite { addr: IOAPIC + offset, size: 4, value };
    vec![ioapic(0, 0x18), ioapic(0x10, 0x31), out(0x3F9, 1)]
}

#[test]
fn an_idle_guest_is_woken_by_the_keyboard() {
    let mut script = listen();
    script.extend([ExitKind::Idle { deadline: None }, ExitKind::IoRead { port: 0x3F8, size: 1 }, ring(0)]);
    let mut bench = bench(true, vec![vec![script]]);
    let keyboard = bench.keyboard.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(5));
            keyboard.press(b"k");
        });
        bench.machine.run().unwrap();
    });
    let seen = bench.shared.seen.lock().unwrap();
    assert!(seen.contains(&Seen::Sent(Msi { address: 0xFEE0_0000, data: 0x31 })), "{seen:?}");
    assert!(seen.contains(&Seen::Entered(Entry::Data(b'k'.into()))), "{seen:?}");
}

#[test]
fn idle_time_is_skipped_unless_somebody_watches() {
    let second = 1_000_000_000;
    let idle = |deadline| ExitKind::Idle { deadline: Some(deadline) };
    let last = |interactive, deadline| {
        let mut bench = bench(interactive, vec![vec![vec![idle(deadline), ring(0)]]]);
        bench.machine.run().unwrap();
        bench.shared.seen.lock().unwrap().pop()
    };
    assert_eq!(last(false, 3600 * second), Some(Seen::Entered(Entry::Resume)));
    assert_eq!(last(true, second / 100), Some(Seen::Entered(Entry::Resume)));
}

#[test]
fn numbers_of_processors_out_of_bounds_are_refused() {
    let Bench { machine, remote, .. } = bench(false, vec![vec![vec![]]]);
    for vcpus in [0, 9, 255] {
        let spec = MachineSpec { vcpus, ..machine.spec.clone() };
        let (console, control) = (Box::new(Unconnected), Box::new(Unconnected));
        let wiring = Wiring { console, control, dimms: no_dimms(), remote: remote.clone() };
        assert!(matches!(Machine::new(spec, wiring, Box::<Scripted>::default()), Err(Error::Vcpus(_))));
    }
}
