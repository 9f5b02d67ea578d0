//! What runs cases and judges them.

use std::fmt;
use std::path::PathBuf;

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;

use super::journal::Journal;
use super::machine::Machine;
use super::scene::{Mode, Scene};
use crate::cpuid::{CpuModel, CpuidTable, xsave};
use crate::{Engine, Error, GuestMemory, PartitionSpec};
use vm_memory::GuestAddress;

/// Why a case failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure(pub String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let source = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        Self(format!("engine: {error}{}", source.unwrap_or_default()))
    }
}

impl From<IcedError> for Failure {
    fn from(error: IcedError) -> Self {
        Self(format!("assembler: {error}"))
    }
}

/// A case's end.
pub type Outcome = Result<(), Failure>;

/// A named case.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// `topic::what_must_hold`.
    pub name: &'static str,
    /// The case.
    pub run: fn(&Bench<'_>) -> Outcome,
}

/// Names the cases of a topic.
macro_rules! cases {
    ($topic:literal: $($case:ident),* $(,)?) => {
        &[$($crate::conformance::Case { name: concat!($topic, "::", stringify!($case)), run: $case }),*]
    };
}
pub(super) use cases;

/// Compares and tells.
pub(super) fn same<T: PartialEq + fmt::LowerHex>(what: &str, got: T, want: T) -> Outcome {
    if got == want { Ok(()) } else { Err(Failure(format!("{what} is {got:#x}, not {want:#x}"))) }
}

/// Tells when it does not hold.
pub(super) fn holds(what: impl FnOnce() -> String, truth: bool) -> Outcome {
    if truth { Ok(()) } else { Err(Failure(what())) }
}

/// Where cases run: an engine, or several that hand a vCPU on.
#[derive(Debug)]
pub struct Bench<'e> {
    engines: Vec<&'e dyn Engine>,
    moving: bool,
}

impl<'e> Bench<'e> {
    /// On one engine.
    #[must_use]
    pub fn new(engine: &'e dyn Engine) -> Self {
        Self { engines: vec![engine], moving: false }
    }

    /// From partition to partition at every exit, taking the engines in turn.
    #[must_use]
    pub fn moving(engines: &[&'e dyn Engine]) -> Self {
        Self { engines: engines.to_vec(), moving: true }
    }

    /// A machine of one vCPU in 64-bit mode, at the start of a program.
    pub(super) fn long(
        &self,
        program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Started<'e> {
        self.machine(1, Mode::Long, program)
    }

    /// In flat 32-bit protected mode without paging.
    pub(super) fn protected(
        &self,
        program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Started<'e> {
        self.machine(1, Mode::Protected, program)
    }

    /// In real mode.
    pub(super) fn real(
        &self,
        program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Started<'e> {
        self.machine(1, Mode::Real, program)
    }

    /// The general form: the program is vCPU 0's, the others wait for their SIPI.
    pub(super) fn machine(
        &self,
        vcpus: u8,
        mode: Mode,
        program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Started<'e> {
        let scene = Scene::new(mode, program)?;
        Machine::new(self.engines.clone(), self.moving && vcpus == 1, vcpus, CpuModel::V2, scene)
    }

    /// A CPU of x86-64-v3 in 64-bit mode, its YMM registers switched on; nothing where an engine has none on this host.
    pub(super) fn wide(
        &self,
        program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<Option<Machine<'e>>, Failure> {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]);
        let memory = memory.map_err(|error| Failure(format!("no guest memory: {error}")))?;
        for engine in &self.engines {
            let tsc_khz = super::crew::tsc_khz(*engine);
            let cpuid = CpuidTable::x86_64_v3(1, tsc_khz);
            match engine.build(&PartitionSpec { vcpus: 1, cpuid, tsc_khz, seed: 1 }, &memory) {
                Err(Error::Unfit { .. }) => return Ok(None),
                built => drop(built?),
            }
        }
        let scene = Scene::new(Mode::Long, program)?;
        let machine = Machine::new(self.engines.clone(), self.moving, 1, CpuModel::V3, scene)?;
        Ok(Some(machine.with(|state| {
            state.system.cr4 |= 1 << 18;
            state.system.xcr0 = xsave::ALL;
        })))
    }
}

/// A machine that is ready to run.
pub(super) type Started<'e> = Result<Machine<'e>, Failure>;

/// Which cases.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Those whose name contains this.
    pub only: String,
    /// Not these: what the processor below an engine is known to get wrong.
    pub except: Vec<String>,
    /// What the suite is called in its journal.
    pub suite: String,
    /// Files in which it is taken down how cases end; the first has how they ended before, which they need not again.
    pub journal: Vec<PathBuf>,
}

impl Selection {
    /// From NVSIM_CASES, NVSIM_EXCEPT, separated by blanks, and NVSIM_JOURNAL, separated by colons.
    #[must_use]
    pub fn from_environment() -> Self {
        let variable = |name| std::env::var(name).unwrap_or_default();
        let except = variable("NVSIM_EXCEPT").split_whitespace().map(str::to_owned).collect();
        let journal = std::env::var_os("NVSIM_JOURNAL").iter().flat_map(std::env::split_paths).collect();
        Self { only: variable("NVSIM_CASES"), except, suite: "all".to_owned(), journal }
    }

    /// As a suite of this name, one word, in the journal.
    #[must_use]
    pub fn named(self, suite: &str) -> Self {
        Self { suite: suite.to_owned(), ..self }
    }

    /// Nor these.
    #[must_use]
    pub fn and_not(mut self, names: &[&str]) -> Self {
        self.except.extend(names.iter().map(|name| (*name).to_owned()));
        self
    }
}

/// How the cases ended.
#[derive(Debug, Default)]
pub struct Report {
    /// In order.
    pub outcomes: Vec<(&'static str, Outcome)>,
    /// Excepted by the selection.
    pub skipped: Vec<&'static str>,
}

impl Report {
    pub(super) fn of(bench: &Bench<'_>, selection: &Selection) -> Self {
        let mut report = Self::default();
        let mut journal = match Journal::open(&selection.suite, &selection.journal) {
            Ok(journal) => journal,
            Err(error) => {
                report.outcomes.push(("journal", Err(Failure(format!("{:?}: {error}", selection.journal)))));
                return report;
            }
        };
        for case in super::cases().into_iter().filter(|case| case.name.contains(&selection.only)) {
            if selection.except.iter().any(|name| name == case.name) {
                report.skipped.push(case.name);
            } else {
                report.outcomes.push((case.name, journal.outcome(case.name, || (case.run)(bench))));
            }
        }
        report
    }

    /// The cases that failed.
    pub fn failures(&self) -> impl Iterator<Item = (&'static str, &Failure)> {
        self.outcomes.iter().filter_map(|(name, outcome)| Some((*name, outcome.as_ref().err()?)))
    }
}

impl fmt::Display for Report {
    /// A line for each case that failed or was skipped, then the counts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, failure) in self.failures() {
            writeln!(f, "{name}: {failure}")?;
        }
        for name in &self.skipped {
            writeln!(f, "{name}: skipped")?;
        }
        let failed = self.failures().count();
        let passed = self.outcomes.len() - failed;
        write!(f, "{passed} passed, {failed} failed, {} skipped", self.skipped.len())
    }
}
