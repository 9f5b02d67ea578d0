//! The machine-readable summary of a run.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use vmm::recording::RecordReport;
use vmm::{Machine, Mark, Outcome, Report};

use super::control::Told;
use super::stand::Stand;
use super::verdict::Verdict;
use super::warm::Start;

/// What `--json` prints. Times are in seconds.
#[derive(Debug, Serialize)]
pub struct Summary<'a> {
    /// The engine that ran the guest.
    engine: &'a str,
    /// How the run ended.
    outcome: &'a Outcome,
    /// nvsim's exit code.
    exit_code: u8,
    /// `uname -r` in the guest.
    kernel: Option<&'a str>,
    /// Guest time from the kernel's start to the agent's first word.
    boot_time: Option<f64>,
    /// Guest time from the kernel's start to the job's.
    ready_time: Option<f64>,
    /// Guest time of the whole run.
    guest_time: f64,
    /// Host time from nvsim's start to the first guest instruction.
    start_time: f64,
    /// Host time from there to the end.
    run_time: f64,
    /// Whether the run began with the snapshot of an equal boot.
    warm: bool,
    /// How far the guest was then.
    started: Start,
    /// Instructions retired; none where the engine does not count them.
    instructions: Option<u64>,
    /// How often the guest reset the machine.
    resets: u32,
    /// Exits by kind.
    exits: &'a BTreeMap<String, u64>,
    /// Marks of the last boot.
    marks: &'a [Mark],
    /// Where the processors stood, when the run did not end as it should.
    #[serde(skip_serializing_if = "<[Stand]>::is_empty")]
    processors: &'a [Stand],
    /// What was recorded, and the power cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    recording: Option<&'a RecordReport>,
    /// BLAKE3 of guest memory at the end, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_hash: Option<String>,
}

impl<'a> Summary<'a> {
    /// Gathers.
    pub fn new(
        machine: &'a Machine,
        report: &'a Report,
        told: &'a Told,
        verdict: &Verdict,
        (start, run): (Duration, Duration),
        started: Start,
        hash: bool,
    ) -> Self {
        let seconds = |micros: u64| micros as f64 / 1e6;
        Self {
            engine: machine.engine().name(),
            outcome: &report.outcome,
            exit_code: verdict.code,
            kernel: told.hello.as_ref().map(|(kernel, _)| kernel.as_str()),
            boot_time: told.hello.as_ref().map(|(_, uptime)| seconds(*uptime)),
            ready_time: told.ready.map(seconds),
            guest_time: report.statistics.guest_time as f64 / 1e9,
            start_time: start.as_secs_f64(),
            run_time: run.as_secs_f64(),
            warm: started != Start::Cold,
            started,
            instructions: report.statistics.instructions,
            resets: report.statistics.resets,
            exits: &report.statistics.exits,
            marks: &report.statistics.marks,
            processors: &[],
            recording: report.recording.as_ref(),
            memory_hash: hash.then(|| machine.memory_hash()),
        }
    }

    /// Adds where the processors stood.
    pub fn standing(self, processors: &'a [Stand]) -> Self {
        Self { processors, ..self }
    }

    /// Writes to the file, or to standard error.
    pub fn write(&self, to: Option<&Path>) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        match to {
            Some(path) => std::fs::write(path, text + "\n")
                .with_context(|| format!("Cannot write the summary to {}", path.display())),
            None => {
                eprintln!("{text}");
                Ok(())
            }
        }
    }
}
