//! The machine: put together from what was asked for or from a snapshot, switched on, rebooted as often as its guest
//! likes, until the run is over or it rests.

mod kept;

use std::fmt::Debug;
use std::net::TcpListener;

use engine::cpuid::{CpuModel, CpuidTable};
use engine::{CodeStock, Engine, GuestMemory, PartitionSpec};
use vm_memory::{Bytes, GuestAddress};

use crate::acpi::{self, AcpiSpec};
use crate::board::{Board, BoardSpec};
use crate::boot::{self, BootSpec, Kernel};
use crate::devices::SerialBackend;
use crate::devices::virtio::DiskSpec;
use crate::gdb::Gdb;
use crate::layout::{ACPI_TABLES, MemoryPlan};
use crate::nvdimm::{Nvdimms, OpenDimms};
use crate::outcome::{Outcome, Report, Statistics};
use crate::recording::{RecordReport, RecordSpec, Recorder};
use crate::remote::Remote;
use crate::rest::Processors;
use crate::session::{End, Session};
use crate::snapshot::{Image, Snapshot, Witness, misfit};
use crate::transcript::Transcript;
use crate::{Error, Result, memory};

/// The TSC frequency that is asked of an engine that may choose: a cycle a nanosecond.
const PREFERRED_TSC_KHZ: u32 = 1_000_000;

/// What a machine is asked to be.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    /// Processors, 1 to 8.
    pub vcpus: u8,
    /// What they can do.
    pub cpu: CpuModel,
    /// RAM in bytes.
    pub ram: u64,
    /// What to boot.
    pub boot: BootSpec,
    /// Decides every random number that the guest can get from the machine.
    pub seed: u64,
    /// Seconds since 1970 that the clock shows at power-on.
    pub wall_clock: u64,
    /// Let idle time pass as it does for the host, so that a person can type; else it is skipped.
    pub interactive: bool,
    /// End the run after this many instructions, where the engine counts them.
    pub stop_at: Option<u64>,
}

impl MachineSpec {
    /// 1 January 2026: what the clock shows if nobody says otherwise.
    pub const WALL_CLOCK: u64 = 1_767_225_600;

    /// One processor of the smaller model and 1 GiB of RAM, seed 0, for as long as the guest wants.
    #[must_use]
    pub fn new(boot: BootSpec) -> Self {
        Self {
            vcpus: 1,
            cpu: CpuModel::V2,
            ram: 1 << 30,
            boot,
            seed: 0,
            wall_clock: Self::WALL_CLOCK,
            interactive: false,
            stop_at: None,
        }
    }
}

/// What connects a machine with its host.
pub struct Wiring {
    /// The host's end of the console, COM1.
    pub console: Box<dyn SerialBackend>,
    /// The host's end of the control channel, COM2.
    pub control: Box<dyn SerialBackend>,
    /// The NV-DIMMs.
    pub dimms: OpenDimms,
    /// The remote control that shall work for this machine.
    pub remote: Remote,
}

impl Debug for Wiring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wiring")
            .field("dimms", &self.dimms)
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}

/// A machine.
#[derive(Debug)]
pub struct Machine {
    spec: MachineSpec,
    plan: MemoryPlan,
    memory: GuestMemory,
    board: Board,
    engine: Box<dyn Engine>,
    remote: Remote,
    transcript: Transcript,
    statistics: Statistics,
    /// The NV-DIMMs are under power.
    on: bool,
    /// Where it goes on; none when it is to be powered up.
    rested: Option<(PartitionSpec, Processors)>,
    /// What RAM was mapped from, and the sum of the snapshot that this is of.
    base: Option<(Image, Option<[u8; 32]>)>,
    /// Sees what the guest learns of its DIMMs.
    witness: Option<Witness>,
    /// Code that it shares with the other machines of its snapshot.
    code: Option<CodeStock>,
    /// What is recorded of the next run.
    recorder: Option<Recorder>,
    gdb: Option<Gdb>,
}

impl Machine {
    /// Puts a machine together, switched off.
    ///
    /// # Errors
    /// What was asked for is not possible, or the host refuses.
    pub fn new(spec: MachineSpec, wiring: Wiring, engine: Box<dyn Engine>) -> Result<Self> {
        if !(1..=8).contains(&spec.vcpus) {
            return Err(Error::Vcpus(spec.vcpus));
        }
        let plan = MemoryPlan::new(spec.ram, &wiring.dimms.region_sizes())?;
        let nvdimms = wiring.dimms.place(plan.persistent())?;
        let memory = memory::map(&plan, nvdimms.memory())?;
        let transcript = Transcript::default();
        let board = Board::new(BoardSpec {
            console: transcript.before(wiring.console, wiring.remote.clone()),
            control: wiring.control,
            wall_clock: spec.wall_clock,
            seed: spec.seed,
            nvdimms,
            memory: memory.clone(),
        });
        Ok(Self {
            spec,
            plan,
            memory,
            board,
            engine,
            remote: wiring.remote,
            transcript,
            statistics: Statistics::default(),
            on: false,
            rested: None,
            base: None,
            witness: None,
            code: None,
            recorder: None,
            gdb: None,
        })
    }

    /// A machine that goes on where another one rested; see [`Machine::go_on_from`]. If the snapshot keeps its DIMMs, the
    /// machine gets copies of them, and the wiring must have none.
    ///
    /// # Errors
    /// [`Error::Misfit`] if the wiring's DIMMs are others, or the host refuses.
    pub fn from_snapshot(snapshot: &Snapshot, mut wiring: Wiring, engine: Box<dyn Engine>) -> Result<Self> {
        if let Some(images) = &snapshot.dimms {
            if !wiring.dimms.is_empty() {
                return Err(misfit("it has NV-DIMMs of its own; give none"));
            }
            wiring.dimms = OpenDimms::of_images(images)?;
        }
        let state = &snapshot.state;
        let spec = MachineSpec {
            vcpus: state.partition.vcpus,
            cpu: state.partition.cpuid.model(),
            ram: state.ram,
            boot: state.boot.clone(),
            seed: state.partition.seed,
            wall_clock: state.wall_clock,
            interactive: false,
            stop_at: None,
        };
        let mut machine = Self::new(spec, wiring, engine)?;
        machine.adopt(snapshot)?;
        machine.on = snapshot.keeps_dimms();
        machine.code = Some(snapshot.code.clone());
        Ok(machine)
    }

    /// BLAKE3 of all that decides what the guest does until it looks at what its DIMMs and disks hold, but for the engine
    /// and the contents of the kernel's and the initial RAM disk's file.
    ///
    /// # Errors
    /// More is asked for than the ACPI tables can tell.
    pub fn identity(&self) -> Result<[u8; 32]> {
        let MachineSpec { vcpus, cpu, ram, seed, wall_clock, boot, .. } = &self.spec;
        let tsc_khz = self.engine.tsc_khz(PREFERRED_TSC_KHZ);
        let mut hasher = blake3::Hasher::new_derive_key("nvsim 2026 identity of a machine");
        for number in [u64::from(*vcpus), *ram, *seed, *wall_clock, u64::from(tsc_khz)] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(blake3::hash(cpu.to_string().as_bytes()).as_bytes());
        hasher.update(blake3::hash(boot.command_line.as_bytes()).as_bytes());
        hasher.update(blake3::hash(&self.tables()?).as_bytes());
        Ok(*hasher.finalize().as_bytes())
    }

    /// Waits until gdb connects; the next run stands still until gdb lets it go on.
    ///
    /// # Errors
    /// The host's refusal.
    pub fn debug(&mut self, listener: &TcpListener) -> Result<()> {
        self.gdb = Some(Gdb::accept(listener, self.memory.clone(), &self.remote)?);
        Ok(())
    }

    /// The kernel that it boots.
    #[must_use]
    pub fn kernel(&self) -> &Kernel {
        &self.spec.boot.kernel
    }

    /// Lets idle time pass as it does for the host, or be skipped.
    pub fn set_interactive(&mut self, interactive: bool) {
        self.spec.interactive = interactive;
    }

    /// Ends the next run when so many instructions have retired since the first power-up, where the engine counts them.
    pub fn stop_at(&mut self, instructions: Option<u64>) {
        self.spec.stop_at = instructions;
    }

    /// Puts a disk into the switched-off machine: the first is `/dev/vda`, and there may be 7.
    ///
    /// # Errors
    /// The file cannot be used, or there are too many.
    pub fn plug(&mut self, disk: &DiskSpec) -> Result<()> {
        self.board.plug(disk)
    }

    /// Records the next run, and cuts its power if that is asked for.
    pub fn record(&mut self, spec: RecordSpec) {
        let plan = self.board.nvdimms().plan();
        let header = trace::Header {
            engine: self.engine.name().to_owned(),
            command_line: self.spec.boot.command_line.clone(),
            vcpus: self.spec.vcpus,
            seed: self.spec.seed,
            dimms: plan.trace_dimms(),
            zones: plan.trace_zones(),
            ..trace::Header::default()
        };
        self.recorder = Some(Recorder::new(spec, header, self.memory.clone()));
    }

    /// The memory as the guest sees it.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// BLAKE3 of the guest's memory, DIMMs included.
    #[must_use]
    pub fn memory_hash(&self) -> String {
        memory::hash(&self.memory)
    }

    /// The NV-DIMMs.
    #[must_use]
    pub fn nvdimms(&self) -> &Nvdimms {
        self.board.nvdimms()
    }

    /// The engine that runs it.
    #[must_use]
    pub fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    /// Switches on, or goes on where it rests, and runs until the run is over. A reset by the guest is a new boot: memory
    /// is cleared, the kernel is loaded again; what is outside the machine stays.
    ///
    /// After an outcome that [can go on](Outcome::can_go_on) the machine stays under power: run it again, keep it, or drop
    /// it, which switches it off in order.
    ///
    /// # Errors
    /// The host or the engine failed; a guest's failure is an [`Outcome`].
    pub fn run(&mut self) -> Result<Report> {
        if !self.on {
            self.board.nvdimms_mut().power_on()?;
            self.on = true;
        }
        let mut report = self.run_to_the_end();
        if self.rested.is_none() {
            let recorded = self.finish_recording(&mut report);
            self.power_off()?;
            recorded?;
        }
        report
    }

    /// However a run ends, the host closes the DIMMs' files in order: that is no power cut.
    fn power_off(&mut self) -> Result<()> {
        if std::mem::take(&mut self.on) {
            self.board.nvdimms_mut().power_off()?;
        }
        Ok(())
    }

    /// Ends the recording. If it cut the power, the DIMMs are switched off by now.
    fn finish_recording(&mut self, report: &mut Result<Report>) -> Result<()> {
        let Some(mut recorder) = self.recorder.take() else { return Ok(()) };
        let (outcome, end) = match &*report {
            Ok(Report { outcome, statistics, .. }) => {
                (format!("{outcome:?}"), (statistics.instructions.unwrap_or(0), statistics.guest_time))
            }
            Err(error) => (error.to_string(), (0, 0)),
        };
        // A trace that cannot be ended changes nothing about the power.
        let left = recorder.leave(self.board.nvdimms_mut());
        self.on &= !matches!(left, Ok(Some(_)));
        let finished = recorder.finish(&outcome, end);
        let (cut, finished) = (left?, finished?);
        if let Ok(report) = report {
            report.recording = Some(RecordReport { cut, ..finished });
        }
        Ok(())
    }

    fn run_to_the_end(&mut self) -> Result<Report> {
        let outcome = loop {
            let (partition, start) = match self.rested.take() {
                Some(rested) => rested,
                None => self.power_up()?,
            };
            let end = self.session(&partition, &start)?;
            if let (End::Over(outcome), true) = (&end, self.rested.is_some()) {
                break outcome.clone();
            }
            let panicked = self.transcript.panicked();
            self.transcript.reboot();
            match end {
                End::Over(Outcome::TripleFault | Outcome::Halted) | End::Reset if panicked => {
                    break Outcome::Panic;
                }
                End::Over(outcome) => break outcome,
                End::Reset => {
                    self.statistics.resets += 1;
                    self.statistics.marks.clear();
                    tracing::info!(resets = self.statistics.resets, "the guest reset the machine");
                    if let Some(recorder) = &mut self.recorder {
                        let Statistics { instructions, guest_time, .. } = self.statistics;
                        recorder.reset((instructions.unwrap_or(0), guest_time))?;
                    }
                    memory::fill_ram(&self.plan, &self.memory, None)?;
                    self.base = None;
                    self.witness = None;
                    self.board.nvdimms_mut().listen(false);
                }
            }
        };
        let (statistics, console) = (self.statistics.clone(), self.transcript.lines());
        Ok(Report { outcome, statistics, console, recording: None })
    }

    /// Loads all that the guest finds when power comes on.
    fn power_up(&mut self) -> Result<(PartitionSpec, Processors)> {
        self.board.reset();
        let boot = boot::load(&self.spec.boot, &self.plan, &self.memory, self.spec.seed)?;
        self.memory.write_slice(&self.tables()?, GuestAddress(ACPI_TABLES.start))?;
        let tsc_khz = self.engine.tsc_khz(PREFERRED_TSC_KHZ);
        let partition = PartitionSpec {
            vcpus: self.spec.vcpus,
            cpuid: CpuidTable::new(self.spec.cpu, self.spec.vcpus, tsc_khz),
            tsc_khz,
            seed: self.spec.seed,
        };
        Ok((partition, Processors::power_up(boot, self.spec.vcpus)))
    }

    /// The ACPI tables.
    fn tables(&self) -> Result<Vec<u8>> {
        acpi::build(&AcpiSpec {
            vcpus: self.spec.vcpus,
            root: &self.board.root_aml(),
            system_bus: &self.board.system_bus_aml(),
            tables: self.board.tables(),
        })
    }

    /// From a start to the next end.
    fn session(&mut self, spec: &PartitionSpec, start: &Processors) -> Result<End> {
        let built = self.engine.build_with(spec, &self.memory, self.code.as_ref())?;
        // The limit is for the run, the engine counts from power-up.
        let so_far = self.statistics.instructions.unwrap_or(0);
        let earlier = so_far.saturating_sub(start.so_far().instructions.unwrap_or(0));
        let limit = self.spec.stop_at.map(|limit| limit.saturating_sub(earlier));
        built.partition.stop_at(limit);
        if self.gdb.is_some() && built.seats.len() != 1 {
            return Err(Error::NoDebugger);
        }
        let mut recorder = self.recorder.as_mut();
        if let Some(recorder) = &mut recorder {
            let time = self.statistics.guest_time.saturating_sub(start.so_far().guest_time);
            recorder.attach(&*built.partition, self.board.nvdimms_mut(), (earlier, time), limit)?;
        }
        if let Some(witness) = &mut self.witness {
            witness.attach(&*built.partition);
        }
        let interactive = self.spec.interactive;
        let session = Session::new(&mut self.board, built.partition, &self.remote, interactive, recorder)
            .debugged(self.gdb.as_mut())
            .witnessed(self.witness.as_mut());
        let (end, processors) = session.run(built.seats, start, &mut self.statistics)?;
        self.rested = processors.map(|processors| (spec.clone(), processors));
        Ok(end)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.power_off() {
            tracing::error!(%error, "an NV-DIMM could not be switched off in order");
        }
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
