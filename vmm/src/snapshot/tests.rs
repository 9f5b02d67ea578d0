//! Snapshots of a machine that runs a few instructions for ever, on the software engine.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use engine_soft::Soft;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::boot::Kernel;
use crate::devices::{SerialBackend, Unconnected};
use crate::layout::MIB;
use crate::nvdimm::{DimmSpec, Entropy, OpenDimms};
use crate::{Machine, MachineSpec, Outcome, Remote, Wiring};

/// Counts in every page of 16 MiB from 32 MiB on; prints, and reads a port in between.
const PROGRAM: &[u8] = &[
    0xBF, 0x00, 0x00, 0x00, 0x02, // mov edi, 0x2000000
    0x48, 0xFF, 0x07, // inc qword [rdi]
    0x81, 0xC7, 0x00, 0x10, 0x00, 0x00, // add edi, 0x1000
    0x81, 0xE7, 0xFF, 0xFF, 0xFF, 0x02, // and edi, 0x2FFFFFF
    0x66, 0xBA, 0xF8, 0x03, // mov dx, 0x3F8
    0x89, 0xF8, 0xC1, 0xE8, 0x0C, 0xEE, // mov eax, edi; shr eax, 12; out dx, al
    0x66, 0xBA, 0xFD, 0x03, 0xEC, // mov dx, 0x3FD; in al, dx
    0xEB, 0xE0, // jmp to the inc
];

const RAM: u64 = 64 * MIB;

#[derive(Debug, Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl SerialBackend for Paper {
    fn input(&mut self) -> Option<u8> {
        None
    }

    fn output(&mut self, byte: u8) {
        self.0.lock().unwrap().push(byte);
    }
}

pub(crate) struct Desk {
    dir: TempDir,
    paper: Paper,
    remote: Remote,
}

impl Desk {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut elf = vec![0_u8; 120];
        elf[..8].copy_from_slice(b"\x7FELF\x02\x01\x01\x00");
        let size = PROGRAM.len() as u8;
        // One segment at 16 MiB, entered at its start, from offset 120 of the file.
        for (at, value) in [
            (18, 62),
            (27, 1),
            (32, 64),
            (54, 56),
            (56, 1),
            (64, 1),
            (72, 120),
            (91, 1),
            (96, size),
            (104, size),
        ] {
            elf[at] = value;
        }
        elf.extend(PROGRAM);
        std::fs::File::create(dir.path().join("kernel")).unwrap().write_all(&elf).unwrap();
        Self { dir, paper: Paper::default(), remote: Remote::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn wiring(&self, dimms: &[&str]) -> Wiring {
        let specs: Vec<DimmSpec> = dimms
            .iter()
            .map(|dimm| format!("{}/{dimm}", self.dir.path().display()).parse().unwrap())
            .collect();
        Wiring {
            console: Box::new(self.paper.clone()),
            control: Box::new(Unconnected),
            dimms: OpenDimms::open(&specs, &Entropy::from_seed(1)).unwrap(),
            remote: self.remote.clone(),
        }
    }

    pub(crate) fn machine(&self, dimms: &[&str], stop_at: u64) -> Machine {
        self.machine_of(crate::CpuModel::V2, dimms, stop_at)
    }

    fn machine_of(&self, cpu: crate::CpuModel, dimms: &[&str], stop_at: u64) -> Machine {
        let boot = BootSpec {
            kernel: Kernel::detect(&self.path("kernel")).unwrap(),
            initrd: None,
            command_line: String::new(),
        };
        let (wall_clock, interactive, stop_at) = (0, false, Some(stop_at));
        let spec = MachineSpec { vcpus: 2, cpu, ram: RAM, boot, seed: 3, wall_clock, interactive, stop_at };
        Machine::new(spec, self.wiring(dimms), Box::new(Soft::new())).unwrap()
    }

    fn revive(&self, snapshot: &Snapshot, dimms: &[&str]) -> Result<Machine> {
        Machine::from_snapshot(snapshot, self.wiring(dimms), Box::new(Soft::new()))
    }
}

/// Runs to an instruction; gives all that can be told of the machine then.
fn run_to(machine: &mut Machine, at: u64) -> (String, crate::Report) {
    machine.stop_at(Some(at));
    let report = machine.run().unwrap();
    assert_eq!(report.outcome, Outcome::InstructionLimit);
    assert_eq!(report.statistics.instructions, Some(at));
    (machine.memory_hash(), report)
}

/// Without the exits of coming to rest.
fn calm(mut report: crate::Report) -> crate::Report {
    report.statistics.exits.retain(|name, _| !matches!(name.as_str(), "kicked" | "instruction_limit"));
    report
}

const PART: u64 = 100_003;
const WHOLE: u64 = 250_000;

#[test]
fn what_goes_on_from_a_snapshot_is_what_never_stopped() {
    let desk = Desk::new();
    let (hash, report) = run_to(&mut desk.machine(&[], 0), WHOLE);
    let said = std::mem::take(&mut *desk.paper.0.lock().unwrap());
    assert!(said.len() > 10_000);

    let mut first = desk.machine(&[], 0);
    run_to(&mut first, PART);
    let snapshot = first.snapshot().unwrap().noted("kept");
    let went_on = run_to(&mut first, WHOLE);
    assert_eq!((went_on.0.as_str(), calm(went_on.1)), (hash.as_str(), calm(report.clone())));
    assert_eq!(std::mem::take(&mut *desk.paper.0.lock().unwrap()), said);

    // Side by side, from memory and from a file, and from a snapshot of one that came from a snapshot.
    snapshot.save(&desk.path("s"), false).unwrap();
    let saved = Snapshot::open(&desk.path("s")).unwrap();
    assert_eq!(saved.state, snapshot.state);
    assert_eq!(saved.info().note, "kept");
    let mut machines = [&snapshot, &saved, &saved].map(|snapshot| desk.revive(snapshot, &[]).unwrap());
    desk.paper.0.lock().unwrap().clear();
    let between = PART + 50_000;
    let there = machines.each_mut().map(|machine| run_to(machine, between).0);
    assert!(there[0] == there[1] && there[1] == there[2]);
    // Each has left its code with its snapshot when its session ended, and goes on with it; the last has found some.
    assert!(format!("{:?} {:?}", snapshot.code, saved.clone().code).matches("filled").count() == 2);
    let second = machines[1].snapshot().unwrap();
    let mut later = desk.revive(&second, &[]).unwrap();
    for machine in machines.iter_mut().chain([&mut later]) {
        let (its, told) = run_to(machine, WHOLE);
        assert_eq!((its.as_str(), calm(told)), (hash.as_str(), calm(report.clone())));
    }
    drop(machines);
    desk.paper.0.lock().unwrap().clear();
    run_to(&mut desk.revive(&second, &[]).unwrap(), WHOLE);
    assert_eq!(*desk.paper.0.lock().unwrap(), said, "the console hears all of it");
}

#[test]
fn a_pause_comes_between_instructions_and_can_be_kept() {
    let desk = Desk::new();
    let mut machine = desk.machine(&[], WHOLE);
    desk.remote.pause();
    assert!(matches!(machine.snapshot(), Err(Error::NoSnapshot { .. })), "it does not run yet");
    assert_eq!(machine.run().unwrap().outcome, Outcome::Paused);
    machine.snapshot().unwrap();
    let (hash, _) = run_to(&mut machine, WHOLE);
    assert_eq!(hash, run_to(&mut desk.machine(&[], 0), WHOLE).0);
}

#[test]
fn models_of_cpus_do_not_mix() {
    if !crate::host_lacks_of_v3().is_empty() {
        println!("skipped: the host is not x86-64-v3");
        return;
    }
    let desk = Desk::new();
    let [mut v2, mut v3] = [crate::CpuModel::V2, crate::CpuModel::V3].map(|cpu| desk.machine_of(cpu, &[], 0));
    assert_ne!(v2.identity().unwrap(), v3.identity().unwrap());
    run_to(&mut v3, PART);
    let snapshot = v3.snapshot_without_dimms().unwrap();
    let error = v2.go_on_from(&snapshot).unwrap_err().to_string();
    assert!(error.contains("its processors are v3, not v2; give --cpu v3"), "{error}");
    let mut other = desk.machine_of(crate::CpuModel::V3, &[], 0);
    other.go_on_from(&snapshot).unwrap();
    assert_eq!(run_to(&mut other, WHOLE).0, run_to(&mut v3, WHOLE).0);
}

#[test]
fn a_reset_after_a_restore_finds_clear_memory() {
    let desk = Desk::new();
    let mut machine = desk.machine(&[], 0);
    run_to(&mut machine, PART);
    let mut revived = desk.revive(&machine.snapshot().unwrap(), &[]).unwrap();
    assert_ne!(revived.memory().read_obj::<u64>(GuestAddress(32 * MIB)).unwrap(), 0);
    let plan = crate::layout::MemoryPlan::new(RAM, &[]).unwrap();
    crate::memory::fill_ram(&plan, revived.memory(), None).unwrap();
    assert_eq!(revived.memory().read_obj::<u64>(GuestAddress(32 * MIB)).unwrap(), 0);
    assert_eq!(revived.memory().read_obj::<u64>(GuestAddress(16 * MIB)).unwrap(), 0);
    drop(revived.run());
}

#[test]
fn dimms_are_kept_as_copies_and_the_files_stay_as_they_are() {
    let desk = Desk::new();
    let at = GuestAddress(4 << 30);
    let mut machine = desk.machine(&["a.nvd,size=32M"], 0);
    run_to(&mut machine, PART);
    machine.memory().write_obj(0x1234_5678_u64, at).unwrap();
    let snapshot = machine.snapshot().unwrap();
    machine.memory().write_obj(0_u64, at).unwrap();
    drop(machine);
    let file = std::fs::read(desk.path("a.nvd")).unwrap();
    snapshot.save(&desk.path("s"), true).unwrap();
    let saved = Snapshot::open(&desk.path("s")).unwrap();
    assert_eq!(saved.info().dimms, [desk.path("a.nvd")]);
    // The file itself is not needed: another run may hold it.
    let _holder = desk.machine(&["a.nvd"], 0);
    let mut one = desk.revive(&saved, &[]).unwrap();
    let mut other = desk.revive(&snapshot, &[]).unwrap();
    for machine in [&one, &other] {
        assert_eq!(machine.memory().read_obj::<u64>(at).unwrap(), 0x1234_5678);
    }
    one.memory().write_obj(1_u64, at).unwrap();
    assert_eq!(other.memory().read_obj::<u64>(at).unwrap(), 0x1234_5678);
    run_to(&mut one, WHOLE);
    run_to(&mut other, WHOLE);
    // A copy of a copy.
    let mut third = desk.revive(&one.snapshot().unwrap(), &[]).unwrap();
    assert_eq!(third.memory().read_obj::<u64>(at).unwrap(), 1);
    assert_eq!(third.nvdimms().bus().dimms(), one.nvdimms().bus().dimms());
    assert_eq!(run_to(&mut third, WHOLE + 1).0, run_to(&mut one, WHOLE + 1).0);
    drop((one, other, third));
    assert_eq!(std::fs::read(desk.path("a.nvd")).unwrap(), file);
    let refused = desk.revive(&saved, &["b.nvd,size=32M"]).unwrap_err().to_string();
    assert!(refused.contains("NV-DIMMs of its own"), "{refused}");
}

#[test]
fn without_dimms_it_goes_on_with_any_that_look_alike() {
    let desk = Desk::new();
    let at = GuestAddress(4 << 30);
    let mut machine = desk.machine(&["a.nvd,size=32M"], 0);
    machine.stop_at(Some(PART));
    machine.run().unwrap();
    let snapshot = machine.snapshot_without_dimms().unwrap();
    let before = std::fs::read(desk.path("a.nvd")).unwrap();
    machine.memory().write_obj(7_u64, at).unwrap();
    let refused = machine.snapshot_without_dimms().unwrap_err().to_string();
    assert!(refused.contains("looked at"), "{refused}");
    drop(machine);
    let revived = desk.revive(&snapshot, &["a.nvd"]).unwrap();
    assert_eq!(revived.memory().read_obj::<u64>(at).unwrap(), 7, "what the file holds now");
    drop(revived);
    let there = std::fs::read(desk.path("a.nvd")).unwrap();
    assert_ne!(before, there);
    // Others are refused, and the file stays as it was.
    for others in [&["a.nvd,domain=eadr"][..], &[], &["a.nvd", "c.nvd,size=32M"]] {
        assert!(matches!(desk.revive(&snapshot, others), Err(Error::Misfit { .. })), "{others:?}");
    }
}

#[test]
fn what_is_no_whole_snapshot_is_refused() {
    let desk = Desk::new();
    let mut machine = desk.machine(&[], 0);
    run_to(&mut machine, PART);
    let (path, copy) = (desk.path("s"), desk.path("copy"));
    machine.snapshot().unwrap().save(&path, false).unwrap();
    let again = machine.snapshot().unwrap().save(&path, false).unwrap_err();
    assert!(matches!(again, Error::Write { .. }), "nothing is replaced");
    assert!(Snapshot::is_one(&path) && !Snapshot::is_one(&desk.path("kernel")));
    let whole = std::fs::read(&path).unwrap();
    let refusal = |bytes: &[u8]| {
        std::fs::write(&copy, bytes).unwrap();
        Snapshot::open(&copy).unwrap_err().to_string()
    };
    assert!(refusal(b"").contains("no snapshot of nvsim"));
    assert!(refusal(&[0; 100]).contains("no snapshot of nvsim"));
    assert!(refusal(&whole[..50]).contains("no snapshot of nvsim"));
    for end in [64, 1000, whole.len() - 1, whole.len() - 4096] {
        assert!(refusal(&whole[..end]).contains("cut off"), "{end}");
    }
    let mut foreign = whole.clone();
    foreign[16] = 99;
    assert!(refusal(&foreign).contains("format 99"));
    let used = whole.iter().rposition(|&byte| byte != 0).unwrap();
    for (at, what) in [(20, "state"), (40, "state"), (70, "state"), (used, "memory")] {
        let mut damaged = whole.clone();
        damaged[at] ^= 4;
        assert!(refusal(&damaged).contains(&format!("checksum of its {what}")), "{at}");
    }
    assert!(matches!(Snapshot::open(Path::new("/does/not/exist")), Err(Error::Read { .. })));
    let names: Vec<_> = std::fs::read_dir(desk.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().ends_with(".new")), "{names:?}");
}
