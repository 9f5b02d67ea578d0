//! A power cut made from a trace alone: the DIMM files that the run would have left, had its power gone then.

use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use trace::{Reader, Replay};

use super::cutting::report;
use super::spec::{CutReport, CutSpec};
use crate::draft::Draft;
use crate::nvdimm::Hold;
use crate::nvdimm::backing::Backing;
use crate::{Error, Result};

fn draft(name: &Path) -> Result<Draft> {
    Ok(Draft::of(name, OFlags::empty()).map_err(crate::nvdimm::Error::create(name))?)
}

/// Power goes, as the DIMM itself sees it.
fn cut_power(draft: &Draft) -> Result<()> {
    let mut backing = Backing::open(&draft.path(), Hold::Exclusive)?;
    let mut record = backing.record().clone();
    record.health.power_cut();
    backing.store(record)?;
    Ok(draft.file.sync_all().map_err(crate::nvdimm::Error::io("write", draft.name()))?)
}

/// Cuts the power at a moment of a recorded run; `names` are for the files of all its DIMMs, in the order in which the trace
/// has them. No file is there under its name before all are complete.
///
/// # Errors
/// [`Error::NeverCame`]; what is wrong with the trace; the survivors cannot be had; or the host refuses.
pub fn cut<R: Read>(trace: Reader<R>, spec: &CutSpec, names: &[PathBuf]) -> Result<CutReport> {
    let header = trace.header();
    if names.len() != header.dimms.len() {
        let dimms: Vec<_> = header.dimms.iter().map(|dimm| dimm.name.as_str()).collect();
        return Err(Error::Record(format!(
            "the trace has {} NV-DIMMs ({}), but {} output files are named; name one for each",
            dimms.len(),
            dimms.join(", "),
            names.len()
        )));
    }
    let drafts = names.iter().map(|name| draft(name)).collect::<Result<Vec<_>>>()?;
    let files = drafts.iter().map(|draft| draft.file.try_clone()).collect::<std::io::Result<_>>();
    let mut replay = Replay::new(trace, spec.rules, files.map_err(Error::Floor)?)?;
    let never = || Error::NeverCame { when: spec.when.to_string() };
    let reached = replay.play(Some(&spec.when), |_, _, _| {})?.ok_or_else(never)?;
    let contents = replay.contents();
    let remains = contents.remains(&contents.cut()?, &spec.survivors)?;
    contents.floor().lines(&remains.lines)?;
    drafts.iter().try_for_each(cut_power)?;
    publish(&drafts)?;
    Ok(report(spec, reached, &remains))
}

/// Names all drafts, or none.
fn publish(drafts: &[Draft]) -> Result<()> {
    for (n, draft) in drafts.iter().enumerate() {
        if let Err(source) = draft.publish() {
            drafts[..n].iter().for_each(|named| drop(std::fs::remove_file(named.name())));
            return Err(crate::nvdimm::Error::io("create", draft.name())(source).into());
        }
    }
    Ok(())
}
