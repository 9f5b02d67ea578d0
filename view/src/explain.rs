//! What a cut at a moment would leave undecided, and why.

use std::collections::{BTreeMap, HashMap};

use nvdimm_model::medium::{Missing, Undecided};
use serde::Serialize;
use trace::{Kind, Reached, When};

use crate::names::{callers, function, place};
use crate::replay::{Replayed, Source};
use crate::{Images, Result};

/// Bytes of a store that are shown.
const SHOWN: usize = 16;

/// What a cut would leave undecided.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// The moment.
    #[serde(flatten)]
    pub reached: Reached,
    /// The DIMMs' files, by slot.
    pub dimms: Vec<String>,
    /// The number of images that the cut can leave, exactly, in decimal.
    pub states: String,
    /// What is missing, and where in the code: the one with the most lines first.
    pub causes: Vec<Cause>,
    /// The lines in doubt, by address.
    pub lines: Vec<Line>,
}

/// Stores in doubt that came from one place and lack the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// What is missing: `flush`, `fence of vCPU 0`, `hint of d0.nvd`.
    pub missing: String,
    /// The code that stored: the place of the first such store in its function.
    pub at: String,
    /// The calls that led there, the innermost first.
    pub callers: Vec<String>,
    /// Stores in doubt, counted once for each line that they touch.
    pub stores: u64,
    /// Lines that they put in doubt.
    pub lines: u64,
    /// The files among them, once each.
    pub files: Vec<String>,
}

/// A line in doubt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Guest-physical address.
    pub address: u64,
    /// Slot of its DIMM.
    pub dimm: usize,
    /// Offset in the DIMM's data.
    pub offset: u64,
    /// What it is part of, where the file system can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// Whether its stores survive chunk by chunk; else in order.
    pub by_chunks: bool,
    /// The stores in doubt, oldest first.
    pub stores: Vec<Store>,
}

/// A place in a file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// A file's path, or what else there is: `journal`, `inode 12 (/file)`.
    pub name: String,
    /// Offset in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
}

/// A store in doubt, or its part in one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Store {
    /// Its number in the trace, from 1 on.
    pub event: u64,
    /// How: `store`, `ntstore`, `locked`, ...
    pub kind: &'static str,
    /// Who made it.
    pub vcpu: u8,
    /// Instructions before it.
    pub instruction: u64,
    /// Guest time in nanoseconds.
    pub time: u64,
    /// Instruction pointer.
    pub rip: u64,
    /// The same by name.
    pub at: String,
    /// The calls that led there, the innermost first.
    pub callers: Vec<String>,
    /// Offset of its bytes in the line.
    pub offset: u8,
    /// Number of its bytes in the line.
    pub len: u8,
    /// The first of these bytes.
    pub data: String,
    /// What it lacks.
    pub missing: String,
}

/// An explanation, and the DIMMs as the cut would leave them if nothing undecided survived.
#[derive(Debug)]
pub struct Explained {
    /// What is undecided.
    pub explanation: Explanation,
    /// The DIMMs' files.
    pub images: Images,
    /// Name of the guest image that ran.
    pub image: String,
}

/// Says what a cut at a moment, or at the end, would leave undecided.
///
/// # Errors
/// The trace cannot be read so far, or the moment never comes.
pub fn explain(source: &Source, when: Option<&When>) -> Result<Explained> {
    let replayed = source.replay(when, |_, _, _| {})?;
    let explanation = of_replayed(source, &replayed)?;
    let Replayed { replay, images, .. } = replayed;
    let contents = replay.contents();
    let cut = contents.cut().map_err(|e| source.wrong(e))?;
    contents.floor().lines(&cut.sure().lines).map_err(|e| source.wrong(e))?;
    Ok(Explained { explanation, images, image: replay.trace().header().image.clone() })
}

/// The same for a trace that was played already.
pub(crate) fn of_replayed(source: &Source, replayed: &Replayed) -> Result<Explanation> {
    let Replayed { replay, reached, .. } = replayed;
    let (reader, contents) = (replay.trace(), replay.contents());
    let undecided = contents.medium().undecided();
    let details = Details::find(source, &undecided)?;
    let header = reader.header();
    let name =
        |slot: usize| header.dimms.get(slot).map_or_else(|| format!("DIMM {slot}"), |d| d.name.clone());
    let lack = |missing: Missing| match missing {
        Missing::Flush => "flush".to_owned(),
        Missing::Fence(vcpu) => format!("fence of vCPU {vcpu}"),
        Missing::Hint(slot) => format!("hint of {}", name(slot)),
    };
    let mut lines = Vec::new();
    for line in &undecided {
        let Some((dimm, at)) = header.place(line.address) else { continue };
        let data = header.dimms.get(dimm).map_or(0, |dimm| dimm.data);
        let stores = line.writers.iter().filter_map(|writer| {
            let detail = details.0.get(&writer.event)?;
            // The part of the store's bytes that lies in this line.
            let start = (line.address + u64::from(writer.offset)).saturating_sub(detail.address) as usize;
            let own = detail.data.get(start..).unwrap_or_default();
            Some(Store {
                event: detail.event,
                kind: detail.kind,
                vcpu: writer.vcpu,
                instruction: detail.instruction,
                time: detail.time,
                rip: detail.rip,
                at: place(reader, detail.rip),
                callers: callers(reader, detail.chain),
                offset: writer.offset,
                len: writer.len,
                data: own
                    .iter()
                    .take(usize::from(writer.len).min(SHOWN))
                    .map(|b| format!("{b:02x}"))
                    .collect(),
                missing: lack(writer.missing),
            })
        });
        let stores = stores.collect();
        let (address, by_chunks) = (line.address, line.by_chunks);
        lines.push(Line { address, dimm, offset: at.saturating_sub(data), place: None, by_chunks, stores });
    }
    let states = contents.states().map_err(|e| source.wrong(e))?;
    let dimms = header.dimms.iter().map(|dimm| dimm.name.clone()).collect();
    let causes = causes(&lines);
    Ok(Explanation { reached: *reached, dimms, states, causes, lines })
}

impl Explanation {
    /// Tells of each line what it is part of; `find` is asked with the slot of a DIMM and offsets in its data.
    pub fn locate(&mut self, mut find: impl FnMut(usize, u64) -> Option<Place>) {
        for line in &mut self.lines {
            line.place = find(line.dimm, line.offset);
        }
        self.causes = causes(&self.lines);
    }

    /// The number of images for people: exactly, or, where it is long, as a power of ten.
    #[must_use]
    pub fn states_in_short(&self) -> String {
        trace::in_short(&self.states)
    }
}

fn causes(lines: &[Line]) -> Vec<Cause> {
    let mut causes: BTreeMap<(&str, &str, &[String]), Cause> = BTreeMap::new();
    for line in lines {
        let mut seen: Vec<(&str, &str, &[String])> = Vec::new();
        for store in &line.stores {
            // A copy's loop has many stores; they are one cause.
            let key = (store.missing.as_str(), function(&store.at), store.callers.as_slice());
            let cause = causes.entry(key).or_insert_with(|| Cause {
                missing: store.missing.clone(),
                at: store.at.clone(),
                callers: store.callers.clone(),
                stores: 0,
                lines: 0,
                files: Vec::new(),
            });
            cause.stores += 1;
            if !seen.contains(&key) {
                seen.push(key);
                cause.lines += 1;
                if let Some(place) = &line.place
                    && !cause.files.contains(&place.name)
                {
                    cause.files.push(place.name.clone());
                }
            }
        }
    }
    let mut causes: Vec<Cause> = causes.into_values().collect();
    causes.sort_by_key(|cause| std::cmp::Reverse((cause.lines, cause.stores)));
    causes
}

/// What the trace says of the stores in doubt: found by reading it again, so that not all need be remembered.
struct Details(HashMap<u64, Detail>);

struct Detail {
    event: u64,
    kind: &'static str,
    instruction: u64,
    time: u64,
    rip: u64,
    chain: u32,
    address: u64,
    data: Vec<u8>,
}

impl Details {
    fn find(source: &Source, undecided: &[Undecided]) -> Result<Self> {
        let mut wanted: Vec<u64> = undecided.iter().flat_map(|l| l.writers.iter().map(|w| w.event)).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let mut wanted = wanted.into_iter().peekable();
        let mut found = HashMap::new();
        let mut reader = source.open()?;
        // The medium counts only what it was told.
        let (mut event_number, mut operations) = (0, 0);
        while let Some(&next) = wanted.peek() {
            let Some(event) = reader.next_event().map_err(|e| source.wrong(e))? else { break };
            event_number += 1;
            if event.kind.operation().is_none() {
                continue;
            }
            if operations == next {
                wanted.next();
                if let Kind::Store { address, data, .. } = event.kind {
                    let detail = Detail {
                        event: event_number,
                        kind: event.kind.name(),
                        instruction: event.instruction,
                        time: event.time,
                        rip: event.rip,
                        chain: event.chain,
                        address,
                        data: data.to_vec(),
                    };
                    found.insert(next, detail);
                }
            }
            operations += 1;
        }
        Ok(Self(found))
    }
}
