//! Where something large is not zero: a file with holes, memory.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::layout::PAGE;

/// Where something large is not zero.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extents {
    /// Bytes of the whole.
    pub len: u64,
    /// Where something is, in order, page-aligned.
    pub runs: Vec<Range<u64>>,
}

impl Extents {
    /// Where the first `len` bytes of a file are no hole, in whole pages.
    pub fn of_file(file: &File, len: u64) -> io::Result<Self> {
        let seek = |to| match rustix::fs::seek(file, to) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(io::Error::from(error)),
        };
        let mut found = Self { len, runs: Vec::new() };
        let mut at = 0;
        while at < len
            && let Some(start) = seek(SeekFrom::Data(at))?.filter(|&start| start < len)
        {
            let end = seek(SeekFrom::Hole(start))?.unwrap_or(len);
            at = end.next_multiple_of(PAGE).min(len);
            found.runs.push(start / PAGE * PAGE..at);
        }
        Ok(found)
    }

    /// What is stored, in pieces of so many bytes and less.
    pub fn pieces(&self, len: usize) -> impl Iterator<Item = Range<u64>> {
        let cut = move |run: &Range<u64>| {
            let end = run.end;
            run.clone().step_by(len).map(move |at| at..end.min(at + len as u64))
        };
        self.runs.iter().flat_map(cut)
    }

    /// Adds a run at the end, joined with the last one where they touch.
    pub fn push(&mut self, run: Range<u64>) {
        match self.runs.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => self.runs.push(run),
        }
    }

    /// Bytes that are stored.
    pub fn stored(&self) -> u64 {
        self.runs.iter().map(|run| run.end - run.start).sum()
    }

    /// Whether the runs are in order, page-aligned and within the whole.
    pub fn are_sound(&self) -> bool {
        let mut end = 0;
        self.runs.iter().all(|run| {
            let sound =
                run.start >= end && run.start < run.end && run.start % PAGE == 0 && run.end <= self.len;
            end = run.end;
            sound
        })
    }

    /// Whether a page is within a run.
    pub fn covers(&self, page: u64) -> bool {
        let after = self.runs.partition_point(|run| run.end <= page);
        self.runs.get(after).is_some_and(|run| run.start <= page)
    }
}
