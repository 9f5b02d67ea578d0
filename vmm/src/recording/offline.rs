//! A power cut made from a trace alone: the DIMM files that the run would have left, had its power gone then.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};

use trace::{Area, Cutter, Due, Event, Kind, Reader, Verdict};

use super::floor::Floor;
use super::live::Live;
use super::spec::{CutReport, CutSpec, survivors_name};
use crate::nvdimm::backing::Backing;
use crate::nvdimm::{Hold, superblock};
use crate::{Error, Result};

/// A DIMM file that is being made; it gets its name when it is complete.
struct Draft {
    path: PathBuf,
    name: PathBuf,
    file: File,
}

impl Draft {
    fn new(name: &Path, len: u64) -> Result<Self> {
        if name.symlink_metadata().is_ok() {
            return Err(crate::nvdimm::Error::Exists { path: name.to_owned() }.into());
        }
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name.file_name().unwrap_or_default());
        hidden.push(format!(".{}.new", std::process::id()));
        let path = name.with_file_name(hidden);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(crate::nvdimm::Error::io("create", name))?;
        let draft = Self { path, name: name.to_owned(), file };
        draft.file.set_len(len).map_err(crate::nvdimm::Error::io("size", name))?;
        Ok(draft)
    }

    /// Power goes, as the DIMM itself sees it.
    fn cut_power(&self) -> Result<()> {
        let mut backing = Backing::open(&self.path, Hold::Exclusive)?;
        let mut record = backing.record().clone();
        record.health.power_cut();
        backing.store(record)?;
        Ok(self.file.sync_all().map_err(crate::nvdimm::Error::io("write", &self.name))?)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Cuts the power at a moment of a recorded run; `names` are for the files of all its DIMMs, in the order in which the trace
/// has them. No file is there under its name before all are complete.
///
/// # Errors
/// [`Error::NeverCame`]; what is wrong with the trace; the survivors cannot be had; or the host refuses.
pub fn cut<R: Read>(trace: &mut Reader<R>, spec: &CutSpec, names: &[PathBuf]) -> Result<CutReport> {
    let header = trace.header().clone();
    if names.len() != header.dimms.len() {
        let dimms: Vec<_> = header.dimms.iter().map(|dimm| dimm.name.as_str()).collect();
        return Err(Error::Record(format!(
            "the trace has {} NV-DIMMs ({}), but {} output files are named; name one for each",
            dimms.len(),
            dimms.join(", "),
            names.len()
        )));
    }
    let draft = |(name, dimm): (&PathBuf, &trace::DimmHeader)| Draft::new(name, dimm.data + dimm.size);
    let drafts = names.iter().zip(&header.dimms).map(draft).collect::<Result<Vec<_>>>()?;
    let files = drafts.iter().map(|draft| draft.file.try_clone()).collect::<std::io::Result<_>>();
    let floor = Floor::new(&header, files.map_err(Error::Floor)?);
    while let Some((dimm, number, block)) = trace.next_block()? {
        floor.block(dimm, number, block).map_err(Error::Floor)?;
    }
    let mut live = Live::new(&header, spec.rules, floor);
    let Stop { events, instruction, time } = play(trace, &mut live, &mut Cutter::new(&spec.when))?
        .ok_or_else(|| Error::NeverCame { when: spec.when.to_string() })?;
    let remains = live.remains(&spec.survivors)?;
    live.floor().lines(&remains.lines).map_err(Error::Floor)?;
    drafts.iter().try_for_each(Draft::cut_power)?;
    publish(&drafts)?;
    Ok(CutReport {
        at: spec.when.to_string(),
        survivors: survivors_name(&spec.survivors),
        events,
        instruction,
        time,
        lines_in_doubt: remains.in_doubt.len() as u64,
        images: remains.images,
        outcome: remains.name.to_string(),
    })
}

/// Where a trace was left.
struct Stop {
    events: u64,
    instruction: u64,
    time: u64,
}

/// Plays a trace up to a moment; nothing if that never comes.
fn play<R: Read>(trace: &mut Reader<R>, live: &mut Live, cutter: &mut Cutter) -> Result<Option<Stop>> {
    let mut events = 0;
    while let Some(event) = trace.next_event()? {
        let Event { instruction, time, .. } = event;
        let verdict = cutter.see(&event);
        if verdict == Verdict::Before {
            let (instruction, time) = due(cutter, instruction, time);
            return Ok(Some(Stop { events, instruction, time }));
        }
        if let Kind::Meta { dimm, area, offset, data } = event.kind {
            meta(live.floor(), dimm, area, offset, data).map_err(Error::Floor)?;
        }
        live.apply(&event)?;
        events += 1;
        if verdict == Verdict::After {
            return Ok(Some(Stop { events, instruction: instruction + 1, time }));
        }
    }
    // Nothing more happened, but the run went on.
    let Some(end) = trace.end() else { return Ok(None) };
    Ok(match cutter.due() {
        Some(Due::Instruction(n)) if n <= end.instruction => {
            Some(Stop { events, instruction: n, time: end.time })
        }
        Some(Due::Time(t)) if t <= end.time => Some(Stop { events, instruction: end.instruction, time: t }),
        _ => None,
    })
}

/// The moment itself, where it lies before the event that shows it is over.
fn due(cutter: &Cutter, instruction: u64, time: u64) -> (u64, u64) {
    match cutter.due() {
        Some(Due::Instruction(n)) => (n, time),
        Some(Due::Time(t)) => (instruction, t),
        None => (instruction, time),
    }
}

fn meta(floor: &Floor, dimm: u8, area: Area, offset: u64, data: &[u8]) -> std::io::Result<()> {
    if area == Area::State {
        // A superblock is recorded without the zeroes at its end.
        let mut whole = data.to_vec();
        whole.resize(superblock::SIZE.max(data.len()), 0);
        return floor.bytes(dimm.into(), offset, &whole);
    }
    floor.bytes(dimm.into(), offset, data)
}

/// Names all drafts, or none.
fn publish(drafts: &[Draft]) -> Result<()> {
    for (n, draft) in drafts.iter().enumerate() {
        if let Err(source) = std::fs::hard_link(&draft.path, &draft.name) {
            drafts[..n].iter().for_each(|named| drop(std::fs::remove_file(&named.name)));
            return Err(crate::nvdimm::Error::io("create", &draft.name)(source).into());
        }
    }
    Ok(())
}
