//! `nvsim explain` and `nvsim report`: what a trace shows.

mod explain;
mod ext4;
mod files;
mod report;
mod tools;
mod xfs;

use std::path::PathBuf;

use clap::Args;

pub use explain::explain;
pub use report::report;

/// Says what a power cut at a moment of a recorded run would leave in doubt, and why: line by line, the stores that may be
/// lost, the code that made them, and what is missing.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nvsim explain run.nvt --at mark:done                  what was still in doubt when the guest said `nvsim-mark done`
  nvsim explain run.nvt --at after:begin,fence:7 --lines all
  nvsim explain run.nvt --at mark:done --rules locked=off     what would be without the fences that locks are by the way
  nvsim explain run.nvt --at mark:done --json | jq '.causes[] | [.missing, .at, .files]'

A line is 64 bytes of an NV-DIMM. What is missing to a store is a flush of its line (CLWB and the like), then a fence of the
vCPU that flushed, then, in domain hint, a flush hint of the DIMM. Where a file system can be read, a line is shown as part of
a file; the DIMM files themselves are not needed and not touched.

Exit status: 119 if the moment is not in the trace, 125 for other failures.")]
pub struct ExplainArgs {
    /// The trace.
    pub trace: PathBuf,
    /// The moment, as for `nvsim run --cut`. [default: the end]
    #[arg(long, value_name = "WHEN")]
    pub at: Option<trace::When>,
    /// Judge by other rules than those of Intel's manual: tear, locked, cmpxchg, serialising, line-order, =on or =off
    /// (docs/persistence-model.md).
    #[arg(long, value_name = "RULE=on|off,...")]
    pub rules: Option<trace::medium::Rules>,
    /// Show so many lines of those in doubt, or all.
    #[arg(long, value_name = "N|all", default_value = "20", value_parser = limit)]
    pub lines: usize,
    /// Leave the file systems alone: lines are shown by DIMM and offset only.
    #[arg(long)]
    pub no_files: bool,
    /// As JSON, with all lines.
    #[arg(long)]
    pub json: bool,
}

/// Draws a recorded run as one page: what was in doubt in its course, stores, flushes and fences, and each epoch.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nvsim report run.nvt -o report.html
  nvsim report run.nvt -o - | gzip > report.html.gz

The page needs nothing but itself: no network, no script.")]
pub struct ReportArgs {
    /// The trace.
    pub trace: PathBuf,
    /// Where the page goes; replaced when it exists. `-` for standard output.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

fn limit(text: &str) -> Result<usize, String> {
    match text {
        "all" => Ok(usize::MAX),
        _ => {
            text.parse().map_err(|_| format!("'{text}' is no number of lines; write for example 20, or all"))
        }
    }
}
