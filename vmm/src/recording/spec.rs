//! What of a run is to be recorded, and where its power is to be cut; and what came of it.

use std::fmt::Debug;
use std::io::Write;
use std::str::FromStr;

use nvdimm_model::medium::{Rules, Survivors};
use serde::{Deserialize, Serialize};
use trace::{Header, Moment, When};

use crate::sight::Sight;

/// What to record, and where to cut.
#[derive(Default)]
pub struct RecordSpec {
    /// Where the trace goes, and what it is to say of who made it: the machine fills in the rest.
    pub trace: Option<(Box<dyn Write + Send>, Header)>,
    /// Record only this part of the run. What the DIMMs hold at its begin is taken for durable.
    pub window: Option<Window>,
    /// Loads, too.
    pub loads: bool,
    /// Where the power goes.
    pub cut: Option<CutSpec>,
    /// Takes call chains and knows names, for the trace.
    pub sight: Option<Sight>,
}

impl Debug for RecordSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordSpec")
            .field("trace", &self.trace.is_some())
            .field("window", &self.window)
            .field("loads", &self.loads)
            .field("cut", &self.cut)
            .finish_non_exhaustive()
    }
}

/// A power cut that is asked for.
#[derive(Debug, Clone)]
pub struct CutSpec {
    /// When.
    pub when: When,
    /// What becomes of the stores in doubt.
    pub survivors: Survivors,
    /// By which rules.
    pub rules: Rules,
}

/// A part of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// It begins here.
    pub from: When,
    /// It ends here.
    pub to: When,
}

impl FromStr for Window {
    type Err = String;

    /// `begin..end`: marks, or moments that do not depend on events: `insn:N`, `time:1.5s`.
    fn from_str(text: &str) -> Result<Self, String> {
        let example = "write two marks, as begin..end, or insn:1000..insn:2000, or time:1s..time:1.5s";
        let (from, to) = text.split_once("..").ok_or(example)?;
        let side = |text: &str| {
            let mark = || When { after: None, moment: Moment::Mark(text.to_owned()) };
            let when = if text.contains(':') { text.parse().map_err(|e| format!("{e}"))? } else { mark() };
            match when.moment {
                Moment::Mark(ref name) if name.is_empty() => Err(example.to_owned()),
                Moment::Mark(_) | Moment::Instruction(_) | Moment::Time(_) => Ok(when),
                _ => Err(example.to_owned()),
            }
        };
        Ok(Self { from: side(from)?, to: side(to)? })
    }
}

/// A power cut that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutReport {
    /// What was asked for.
    pub at: String,
    /// What became of the stores in doubt.
    pub survivors: String,
    /// Events before, from the begin of the recording.
    pub events: u64,
    /// Instructions retired before.
    pub instruction: u64,
    /// Guest time, nanoseconds.
    pub time: u64,
    /// Lines that were in doubt.
    pub lines_in_doubt: u64,
    /// How many images the cut could have left; exact up to 40 digits.
    pub images: String,
    /// The name of the one that it left.
    pub outcome: String,
}

/// What was recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordReport {
    /// Events.
    pub events: u64,
    /// Bytes of the trace.
    pub bytes: u64,
    /// Bytes that the events took before compression, their data included.
    pub event_bytes: u64,
    /// Bytes of their data.
    pub data_bytes: u64,
    /// The window never opened, or never closed.
    pub open_end: Option<String>,
    /// The moment of the power cut, if it was asked for and never came.
    pub never_came: Option<String>,
    /// The power cut, if its moment came.
    pub cut: Option<CutReport>,
}

/// A policy, as a user writes it.
#[must_use]
pub fn survivors_name(survivors: &Survivors) -> String {
    match survivors {
        Survivors::None => "none".to_owned(),
        Survivors::All => "all".to_owned(),
        Survivors::Random(seed) => format!("random:{seed}"),
        Survivors::Picks(picks) => format!("{} lines picked", picks.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_marks_or_counts() {
        let window: Window = "begin..end".parse().unwrap();
        assert_eq!(window.from.moment, Moment::Mark("begin".to_owned()));
        let window: Window = "insn:5..after:x,time:1us".parse().unwrap();
        assert_eq!(
            (window.from.to_string(), window.to.to_string()),
            ("insn:5".into(), "after:x,time:1000ns".into())
        );
        for bad in ["", "begin", "..end", "store:1..store:2", "insn:x..end"] {
            assert!(bad.parse::<Window>().is_err(), "{bad}");
        }
    }
}
