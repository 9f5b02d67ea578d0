//! The machine: put together from what was asked for, switched on, rebooted as often as its guest likes, until the run
//! is over.

use std::fmt::Debug;

use engine::cpuid::CpuidTable;
use engine::{Engine, GuestMemory, PartitionSpec};
use vm_memory::{Bytes, GuestAddress};

use crate::acpi::{self, AcpiSpec};
use crate::board::{Board, BoardSpec};
use crate::boot::{self, BootSpec};
use crate::devices::SerialBackend;
use crate::devices::virtio::DiskSpec;
use crate::layout::{ACPI_TABLES, MemoryPlan};
use crate::nvdimm::{Nvdimms, OpenDimms};
use crate::outcome::{Outcome, Report, Statistics};
use crate::remote::Remote;
use crate::session::{End, Session};
use crate::transcript::Transcript;
use crate::{Error, Result, memory};

/// The TSC frequency that is asked of an engine that may choose: a cycle a nanosecond.
const PREFERRED_TSC_KHZ: u32 = 1_000_000;

/// What a machine is asked to be.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    /// Processors, 1 to 8.
    pub vcpus: u8,
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
        Ok(Self { spec, plan, memory, board, engine, remote: wiring.remote, transcript })
    }

    /// Puts a disk into the switched-off machine: the first is `/dev/vda`, and there may be 7.
    ///
    /// # Errors
    /// The file cannot be used, or there are too many.
    pub fn plug(&mut self, disk: &DiskSpec) -> Result<()> {
        self.board.plug(disk)
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

    /// Switches on and runs until the run is over. A reset by the guest is a new boot: memory is cleared, the kernel is
    /// loaded again; what is outside the machine stays.
    ///
    /// # Errors
    /// The host or the engine failed; a guest's failure is an [`Outcome`].
    pub fn run(&mut self) -> Result<Report> {
        self.board.nvdimms_mut().power_on()?;
        let report = self.run_to_the_end();
        // However the run ends, the host closes the DIMMs' files in order: that is no power cut.
        self.board.nvdimms_mut().power_off()?;
        report
    }

    fn run_to_the_end(&mut self) -> Result<Report> {
        let mut statistics = Statistics::default();
        let outcome = loop {
            let end = self.boot(&mut statistics)?;
            let panicked = self.transcript.panicked();
            self.transcript.reboot();
            match end {
                End::Over(Outcome::TripleFault | Outcome::Halted) | End::Reset if panicked => {
                    break Outcome::Panic;
                }
                End::Over(outcome) => break outcome,
                End::Reset => {
                    statistics.resets += 1;
                    tracing::info!(resets = statistics.resets, "the guest reset the machine");
                    memory::clear_ram(&self.plan, &self.memory)?;
                }
            }
        };
        Ok(Report { outcome, statistics, console: self.transcript.lines() })
    }

    /// One boot, from power-up to its end.
    fn boot(&mut self, statistics: &mut Statistics) -> Result<End> {
        self.board.reset();
        let boot = boot::load(&self.spec.boot, &self.plan, &self.memory, self.spec.seed)?;
        let tables = acpi::build(&AcpiSpec {
            vcpus: self.spec.vcpus,
            root: &self.board.root_aml(),
            system_bus: &self.board.system_bus_aml(),
            tables: self.board.tables(),
        })?;
        self.memory.write_slice(&tables, GuestAddress(ACPI_TABLES.start))?;
        let tsc_khz = self.engine.tsc_khz(PREFERRED_TSC_KHZ);
        let spec = PartitionSpec {
            vcpus: self.spec.vcpus,
            cpuid: CpuidTable::x86_64_v2(self.spec.vcpus, tsc_khz),
            tsc_khz,
            seed: self.spec.seed,
        };
        let built = self.engine.build(&spec, &self.memory)?;
        // The limit is for the run, the engine counts from power-up.
        let so_far = statistics.instructions.unwrap_or(0);
        built.partition.stop_at(self.spec.stop_at.map(|limit| limit.saturating_sub(so_far)));
        Session::new(&mut self.board, built.partition, &self.remote, self.spec.interactive).run(
            built.seats,
            &boot,
            statistics,
        )
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
