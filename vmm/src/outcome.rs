//! How a run ended, and what it took.

use std::collections::BTreeMap;

use engine::ExitKind;

use serde::{Deserialize, Serialize};

use crate::sight::Stand;

/// Why a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Outcome {
    /// The guest switched itself off.
    PowerOff,
    /// The guest rang the doorbell with this code.
    Exit(u32),
    /// The guest's kernel panicked.
    Panic,
    /// A processor met three faults in one.
    TripleFault,
    /// Every processor is halted and nothing inside the machine can wake one.
    Halted,
    /// The time that the user allowed was over.
    Timeout,
    /// The user stopped it.
    Stopped,
    /// The power was cut where the user had asked for it.
    PowerCut,
    /// The instruction that the user named was reached. The machine can go on.
    InstructionLimit,
    /// A pause was asked for. The machine can go on.
    Paused,
    /// The engine met something that it cannot execute.
    Stuck {
        /// Guest instruction pointer.
        rip: u64,
        /// The first bytes of the instruction, zero-padded.
        bytes: [u8; 15],
    },
}

impl Outcome {
    /// The machine rests between two instructions and can go on from there.
    #[must_use]
    pub fn can_go_on(&self) -> bool {
        matches!(self, Self::Paused | Self::InstructionLimit)
    }
}

/// A mark that the guest set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Its name; a number that the guest wrote to the mark register is named as it is written in decimal.
    pub name: String,
    /// Guest time since power-on, nanoseconds.
    pub guest_time: u64,
    /// Instructions retired since power-on, where the engine counts them.
    pub instructions: Option<u64>,
}

/// Counts of a run. Times and instructions are sums over its boots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// How often the guest was reset.
    pub resets: u32,
    /// Guest time, nanoseconds.
    pub guest_time: u64,
    /// Instructions retired, where the engine counts them.
    pub instructions: Option<u64>,
    /// Exits by kind.
    pub exits: BTreeMap<String, u64>,
    /// The first marks of the last boot, at most [`Statistics::MARKS`].
    pub marks: Vec<Mark>,
    /// Where each processor stood when the kernel panicked, or else when the last boot ended.
    #[serde(skip)]
    pub processors: Vec<Stand>,
}

impl Statistics {
    /// Marks kept of a boot: a guest may ring as often as it likes.
    pub const MARKS: usize = 4096;

    /// Counts an exit.
    pub(crate) fn count(&mut self, kind: &ExitKind) {
        let name = name(kind);
        match self.exits.get_mut(name) {
            Some(count) => *count += 1,
            None => drop(self.exits.insert(name.to_owned(), 1)),
        }
    }

    /// Adds the exits that another processor counted.
    pub(crate) fn absorb(&mut self, other: &Self) {
        for (name, count) in &other.exits {
            *self.exits.entry(name.clone()).or_default() += count;
        }
        self.processors.extend(other.processors.iter().cloned());
    }
}

const fn name(kind: &ExitKind) -> &'static str {
    match kind {
        ExitKind::IoRead { .. } => "io_read",
        ExitKind::IoWrite { .. } => "io_write",
        ExitKind::MmioRead { .. } => "mmio_read",
        ExitKind::MmioWrite { .. } => "mmio_write",
        ExitKind::Idle { .. } => "idle",
        ExitKind::Kicked => "kicked",
        ExitKind::InstructionLimit => "instruction_limit",
        ExitKind::EventsFull => "events_full",
        ExitKind::UnknownPlace => "unknown_place",
        ExitKind::Shutdown => "shutdown",
        ExitKind::Debug(_) => "debug",
        ExitKind::Stuck { .. } => "stuck",
    }
}

/// What a run gives back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Why it ended.
    pub outcome: Outcome,
    /// What it took.
    pub statistics: Statistics,
    /// The last lines on the console, oldest first.
    pub console: Vec<String>,
    /// What was recorded, if anything was to be.
    pub recording: Option<crate::recording::RecordReport>,
}
