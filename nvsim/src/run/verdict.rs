//! What a run's end means to the shell that started it.

use vmm::{Outcome, Report};

use super::control::Told;

/// Exit codes other than the job's own; those that timeout(1) and env(1) have use theirs.
pub mod code {
    pub const POWER_CUT: u8 = 118;
    pub const NEVER_CAME: u8 = 119;
    pub const PANIC: u8 = 120;
    pub const TRIPLE_FAULT: u8 = 121;
    pub const STUCK: u8 = 122;
    pub const STOPPED: u8 = 123;
    pub const TIMEOUT: u8 = 124;
    pub const NO_STATUS: u8 = 125;
}

/// How many of the last console lines are shown with a failure, unless a panic's report begins earlier.
const LAST_WORDS: usize = 20;

/// The end of the console from where the kernel began to complain, or its last lines.
fn last_words(console: &[String]) -> &[String] {
    const BEGINNINGS: [&str; 4] = ["Kernel panic", "BUG:", "Oops", "sysrq:"];
    let complaint = console.iter().position(|line| BEGINNINGS.iter().any(|word| line.contains(word)));
    &console[complaint.unwrap_or(console.len()).min(console.len().saturating_sub(LAST_WORDS))..]
}

/// An exit code, and what to say about it.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    /// For the shell.
    pub code: u8,
    /// For the user; nothing when all is well.
    pub message: Option<String>,
}

impl Verdict {
    /// Judges. `job` says that a command was to be run.
    pub fn of(report: &Report, told: &Told, job: bool) -> Self {
        let bad = |code, what: String| {
            let lines = last_words(&report.console);
            let words = if lines.is_empty() {
                String::new()
            } else {
                format!("; its last words:\n  {}", lines.join("\n  "))
            };
            Self { code, message: Some(format!("{what}{words}")) }
        };
        if let Some(version) = told.foreign_agent {
            let what = format!(
                "The image's agent speaks protocol version {version}, not ours: rebuild it with `nvsim image build`"
            );
            return Self { code: code::NO_STATUS, message: Some(what) };
        }
        let recording = report.recording.as_ref();
        if let Some(cut) = recording.and_then(|recording| recording.cut.as_ref()) {
            return Self { code: code::POWER_CUT, message: Some(crate::cut::sentence(cut)) };
        }
        if let Some(when) = recording.and_then(|recording| recording.never_came.as_ref()) {
            let what = format!(
                "The power was not cut: {when} never came. The run ended otherwise ({:?}), and its NV-DIMMs hold what it left",
                report.outcome
            );
            return Self { code: code::NEVER_CAME, message: Some(what) };
        }
        match &report.outcome {
            Outcome::PowerOff if told.broken_output => Self {
                code: code::NO_STATUS,
                message: Some("The command's output could not be written".to_owned()),
            },
            Outcome::PowerOff | Outcome::Exit(_) if told.status.is_some() => {
                Self { code: told.status.unwrap_or(0), message: None }
            }
            // Nothing but a command of the guest's root powers it off: an end in order, whose status nobody can tell.
            Outcome::PowerOff => Self {
                code: 0,
                message: job.then(|| {
                    "The guest powered off before the command ended; its status is not known".to_owned()
                }),
            },
            Outcome::Exit(status) => Self { code: u8::try_from(*status).unwrap_or(u8::MAX), message: None },
            Outcome::Panic => bad(code::PANIC, "The guest's kernel panicked".to_owned()),
            Outcome::TripleFault => {
                bad(code::TRIPLE_FAULT, "The guest's CPU shut down (triple fault)".to_owned())
            }
            Outcome::Halted => bad(code::TRIPLE_FAULT, "The guest halted for ever".to_owned()),
            Outcome::Stuck { rip, bytes } => {
                let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                bad(
                    code::STUCK,
                    format!("The engine cannot execute the instruction {} at {rip:#x}", hex.join(" ")),
                )
            }
            Outcome::Timeout => bad(code::TIMEOUT, "The time given by --timeout is over".to_owned()),
            // The machine says so only together with what was left.
            Outcome::PowerCut => {
                Self { code: code::POWER_CUT, message: Some("The power was cut".to_owned()) }
            }
            Outcome::Stopped => Self { code: code::STOPPED, message: Some("Stopped".to_owned()) },
            Outcome::InstructionLimit => {
                Self { code: code::STOPPED, message: Some("The instruction limit is reached".to_owned()) }
            }
            Outcome::Paused => Self { code: code::STOPPED, message: Some("Paused".to_owned()) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcome: Outcome) -> Report {
        Report {
            outcome,
            statistics: vmm::Statistics::default(),
            console: vec!["last".to_owned()],
            recording: None,
        }
    }

    fn told(status: Option<u8>) -> Told {
        Told { status, ..Told::default() }
    }

    #[test]
    fn a_job_decides_the_exit_code() {
        assert_eq!(
            Verdict::of(&report(Outcome::PowerOff), &told(Some(3)), true),
            Verdict { code: 3, message: None }
        );
        assert_eq!(
            Verdict::of(&report(Outcome::PowerOff), &told(None), false),
            Verdict { code: 0, message: None }
        );
    }

    #[test]
    fn a_guest_that_powers_itself_off_ends_in_order_and_the_jobs_lost_status_is_told() {
        let verdict = Verdict::of(&report(Outcome::PowerOff), &told(None), true);
        assert_eq!(verdict.code, 0);
        assert!(verdict.message.is_some_and(|text| text.contains("before the command ended")));
    }

    #[test]
    fn failures_are_told_apart_and_end_with_the_last_words() {
        for (outcome, code) in [
            (Outcome::Panic, 120),
            (Outcome::TripleFault, 121),
            (Outcome::Stuck { rip: 1, bytes: [0; 15] }, 122),
            (Outcome::Timeout, 124),
        ] {
            let verdict = Verdict::of(&report(outcome), &told(Some(0)), true);
            assert_eq!(verdict.code, code);
            assert!(verdict.message.is_some_and(|text| text.ends_with("last")));
        }
        assert_eq!(Verdict::of(&report(Outcome::Stopped), &told(None), false).code, 123);
    }
}
