//! A trace in a file, played up to a moment.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use nvdimm_model::Medium;
use nvdimm_model::medium::Rules;
use trace::{Event, Reached, Reader, Replay, When};

use crate::{Error, Images, Result};

/// A trace in a file: it is read more than once.
#[derive(Debug, Clone)]
pub struct Source {
    path: PathBuf,
    rules: Rules,
}

/// A trace that was played up to a moment.
#[derive(Debug)]
pub struct Replayed {
    /// At the moment.
    pub replay: Replay<BufReader<File>>,
    /// What is sure, but for what the medium has not forgotten yet.
    pub images: Images,
    pub reached: Reached,
}

impl Source {
    /// A trace's file.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), rules: Rules::default() }
    }

    /// Judged by other rules.
    #[must_use]
    pub fn by(self, rules: Rules) -> Self {
        Self { rules, ..self }
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
        match source {
            trace::Error::Floor(source) => Error::Scratch { folder: std::env::temp_dir(), source },
            source => Error::Trace { path: self.path.clone(), source },
        }
    }

    /// Plays the trace up to a moment, or to its end; shows each event, with its number and the medium after it.
    pub(crate) fn replay(
        &self,
        when: Option<&When>,
        visit: impl FnMut(u64, &Event<'_>, &Medium),
    ) -> Result<Replayed> {
        let when = when.map(|when| self.drawn(when)).transpose()?;
        let trace = self.open()?;
        let (images, files) = Images::new(trace.header().dimms.len())?;
        let mut replay = Replay::new(trace, self.rules, files).map_err(|e| self.wrong(e))?;
        let reached = replay.play(when.as_ref(), visit).map_err(|e| self.wrong(e))?;
        let Some(reached) = reached else {
            let end = replay.trace().end().cloned().unwrap_or_default();
            return Err(Error::NeverCame {
                path: self.path.clone(),
                when: when.map_or_else(String::new, |when| when.to_string()),
                events: end.events,
                instructions: end.instruction,
                seconds: end.time as f64 / 1e9,
            });
        };
        Ok(Replayed { replay, images, reached })
    }

    /// The moment, settled if it is to be drawn from all of the trace's events.
    fn drawn(&self, when: &When) -> Result<When> {
        if !when.is_open() {
            return Ok(when.clone());
        }
        when.drawn_from(&mut self.open()?).map_err(|e| self.wrong(e))
    }
}
