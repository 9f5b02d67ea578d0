//! `nvsim cut`: the DIMM files that a power cut would have left, from a trace.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result};
use trace::{Reader, When};
use vmm::recording::{CutReport, CutSpec};

use crate::cli::CutArgs;
use crate::survivors;

/// Opens a trace.
pub fn open(path: &Path) -> Result<Reader<BufReader<File>>> {
    let file = File::open(path).with_context(|| format!("Cannot open the trace {}", path.display()))?;
    Reader::new(BufReader::with_capacity(1 << 20, file)).with_context(|| path.display().to_string())
}

/// Makes the files.
pub fn cut(args: &CutArgs) -> Result<()> {
    let when = settled(&args.trace, &args.at)?;
    let survivors = survivors::parse(&args.survivors)?;
    let spec = CutSpec { when, survivors, rules: args.rules.unwrap_or_default() };
    let report = vmm::recording::cut(open(&args.trace)?, &spec, &args.output)
        .with_context(|| args.trace.display().to_string())?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", sentence(&report));
    }
    Ok(())
}

/// The moment, settled if it is to be drawn from all events of the trace.
fn settled(path: &Path, when: &When) -> Result<When> {
    if !when.is_open() {
        return Ok(when.clone());
    }
    when.drawn_from(&mut open(path)?).with_context(|| path.display().to_string())
}

/// What a cut was, in a sentence.
pub fn sentence(report: &CutReport) -> String {
    let CutReport { at, survivors, events, instruction, time, lines_in_doubt, images, outcome } = report;
    format!(
        "Power cut at {at}: after {events} events, instruction {instruction}, {:.9} s; {lines_in_doubt} lines in doubt, \
         {images} possible images; survivors {survivors}; outcome {outcome}",
        *time as f64 / 1e9
    )
}
