//! A trace played again, up to a moment.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use nvdimm_model::Medium;
use nvdimm_model::medium::Rules;
use trace::{Cutter, Event, Kind, Reader, Verdict, When};

use crate::{Error, Images, Result};

/// What is decided is forgotten when the medium has grown to this many bytes; looked at each so many events.
const SETTLE: usize = 512 << 20;
const LOOK: u64 = 1 << 16;

/// A trace in a file: it is read more than once.
#[derive(Debug, Clone)]
pub struct Source {
    path: PathBuf,
}

/// A moment in a trace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Reached {
    /// Events before.
    pub events: u64,
    /// Instructions before.
    pub instruction: u64,
    /// Guest time in nanoseconds.
    pub time: u64,
}

/// A trace that was played up to a moment.
pub struct Replayed {
    /// At the moment; it knows the chains and names of what came before.
    pub reader: Reader<BufReader<File>>,
    pub medium: Medium,
    /// As when the medium was last settled.
    pub images: Images,
    pub reached: Reached,
}

impl Source {
    /// A trace's file.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The file's name.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn open(&self) -> Result<Reader<BufReader<File>>> {
        let open = File::open(&self.path);
        let file = open.map_err(|source| Error::Open { path: self.path.clone(), source })?;
        Reader::new(BufReader::new(file)).map_err(|source| self.wrong(source))
    }

    pub(crate) fn wrong(&self, source: trace::Error) -> Error {
        Error::Trace { path: self.path.clone(), source }
    }

    /// Plays the trace up to a moment, or to its end; shows each event, with its number and the medium after it.
    pub(crate) fn replay(
        &self,
        when: Option<&When>,
        mut visit: impl FnMut(u64, &Event<'_>, &Medium),
    ) -> Result<Replayed> {
        let when = when.map(|when| self.drawn(when)).transpose()?;
        let mut reader = self.open()?;
        let images = Images::new(reader.header())?;
        while let Some((slot, number, block)) = reader.next_block().map_err(|e| self.wrong(e))? {
            images.block(slot, number, block)?;
        }
        let mut medium = reader.header().medium(Rules::default());
        let mut cutter = when.as_ref().map(Cutter::new);
        let mut reached =
            Reached { events: 0, instruction: reader.header().instruction, time: reader.header().time };
        let mut came = false;
        while let Some(event) = reader.next_event().map_err(|e| self.wrong(e))? {
            let verdict = cutter.as_mut().map_or(Verdict::GoOn, |cutter| cutter.see(&event));
            if verdict == Verdict::Before {
                came = true;
                break;
            }
            reached =
                Reached { events: reached.events + 1, instruction: event.instruction, time: event.time };
            if let Some(operation) = event.kind.operation() {
                medium.apply(event.vcpu, operation).map_err(|e| self.wrong(e.into()))?;
            }
            if let Kind::Meta { dimm, offset, data, .. } = event.kind {
                images.write(dimm.into(), offset, data)?;
            }
            visit(reached.events, &event, &medium);
            if verdict == Verdict::After {
                came = true;
                break;
            }
            if reached.events.is_multiple_of(LOOK) && medium.memory() > SETTLE {
                let sure = medium.settle(&images).map_err(|e| self.wrong(e.into()))?;
                images.apply(&sure)?;
            }
        }
        if let (Some(when), Some(cutter), false) = (&when, &cutter, came) {
            let end = reader.end().cloned().unwrap_or_default();
            if !cutter.due().is_some_and(|due| due.is_reached(end.instruction, end.time)) {
                return Err(Error::NeverCame {
                    path: self.path.clone(),
                    when: when.to_string(),
                    events: reached.events,
                    instructions: end.instruction,
                    seconds: end.time as f64 / 1e9,
                });
            }
        }
        Ok(Replayed { reader, medium, images, reached })
    }

    /// The moment, settled if it is to be drawn from all of the trace's events.
    fn drawn(&self, when: &When) -> Result<When> {
        if !when.is_open() {
            return Ok(when.clone());
        }
        when.drawn_from(&mut self.open()?).map_err(|e| self.wrong(e))
    }
}
