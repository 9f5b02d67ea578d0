//! What a power cut may leave now: the lines in doubt, what lacks to their stores, and how many images there are.

use std::collections::{HashMap, HashSet};

use num_bigint::BigUint;
use serde::{Deserialize, Serialize};

use super::log::{NONE, Step, StepId};
use super::{LINE_BYTES, Marks, Medium, Raise, Sure};
use crate::geometry::LINE;

/// A line's content.
pub type Content = [u8; LINE_BYTES];

/// What was durable at the start.
pub trait Base {
    /// The line at an address, which is a multiple of 64.
    fn line(&self, address: u64) -> Content;
}

impl<F: Fn(u64) -> Content> Base for F {
    fn line(&self, address: u64) -> Content {
        self(address)
    }
}

/// What a store lacks to be sure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Missing {
    /// Its line was not flushed since.
    Flush,
    /// This vCPU made no fence since its flush, or since its posted store.
    Fence(u8),
    /// This DIMM got no flush hint since the fence.
    Hint(usize),
}

/// A store in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// The event that made it, as [`Medium::apply`] numbered it.
    pub event: u64,
    /// Who made it.
    pub vcpu: u8,
    /// Offset of its bytes in the line.
    pub offset: u8,
    /// Number of its bytes in the line.
    pub len: u8,
    /// Whether it went past the caches.
    pub posted: bool,
    /// What it lacks.
    pub missing: Missing,
}

/// A line in doubt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undecided {
    /// Its guest-physical address.
    pub address: u64,
    /// The DIMM that holds it.
    pub dimm: usize,
    /// Whether its chunks choose each for itself; else its stores survive in order.
    pub by_chunks: bool,
    /// The stores in doubt, oldest first.
    pub writers: Vec<Writer>,
    /// For each chunk, how many of these stores touch it and are in doubt there.
    pub chunks: [u32; 8],
}

/// The newest step that counts, for each chunk.
pub(super) type Limits = [StepId; 8];

impl Medium {
    /// The lines in doubt, by address.
    pub fn undecided(&self) -> Vec<Undecided> {
        let mut lines: Vec<_> =
            self.lines.iter().filter(|(_, m)| m.floor != m.top).map(|(&l, &m)| (l, m)).collect();
        lines.sort_unstable_by_key(|&(line, _)| line);
        let promises = self.promises();
        lines.into_iter().map(|(line, marks)| self.describe(line, marks, &promises)).collect()
    }

    fn describe(&self, line: u64, marks: Marks, promises: &HashMap<u64, Vec<(Raise, Missing)>>) -> Undecided {
        let floors = self.floors(line, marks);
        let mut chunks = [0; 8];
        let steps = self.steps_in_doubt(marks, &floors);
        for (id, step) in &steps {
            for (chunk, count) in chunks.iter_mut().enumerate() {
                *count += u32::from(step.chunks() >> chunk & 1 == 1 && *id > floors[chunk]);
            }
        }
        let own = promises.get(&line).map(Vec::as_slice).unwrap_or_default();
        let writers = steps
            .iter()
            .map(|(id, step)| Writer {
                event: step.event.into(),
                vcpu: step.vcpu,
                offset: step.at,
                len: step.len,
                posted: step.is_posted(),
                missing: own
                    .iter()
                    .find(|(raise, _)| covers(raise, *id, step))
                    .map_or(Missing::Flush, |p| p.1),
            })
            .collect();
        Undecided {
            address: line * LINE,
            dimm: self.dimm_of(line * LINE).unwrap_or_default(),
            by_chunks: self.chunked.contains_key(&line),
            writers,
            chunks,
        }
    }

    /// What the next hints and fences make sure, by line, the nearest to sure first.
    fn promises(&self) -> HashMap<u64, Vec<(Raise, Missing)>> {
        let mut promises: HashMap<u64, Vec<(Raise, Missing)>> = HashMap::new();
        let fenced = self
            .fenced
            .iter()
            .enumerate()
            .flat_map(|(d, own)| own.iter().map(move |r| (*r, Missing::Hint(d))));
        let remembered = self
            .remembered
            .iter()
            .zip(0..)
            .flat_map(|(own, v)| own.iter().map(move |r| (*r, Missing::Fence(v))));
        for (raise, missing) in fenced.chain(remembered) {
            promises.entry(raise.line).or_default().push((raise, missing));
        }
        promises
    }

    /// How many images a cut can leave now, each counted once.
    pub fn states(&self, base: &impl Base) -> BigUint {
        let mut states = BigUint::from(1u32);
        for (&line, &marks) in self.lines.iter().filter(|(_, m)| m.floor != m.top) {
            if self.chunked.contains_key(&line) {
                for contents in self.chunk_contents(line, marks, base) {
                    states *= contents.len();
                }
            } else {
                states *= self.line_contents(line, marks, base).len();
            }
        }
        states
    }

    /// What is sure of each chunk.
    pub(super) fn floors(&self, line: u64, marks: Marks) -> Limits {
        self.chunked.get(&line).copied().unwrap_or([marks.floor; 8])
    }

    /// The steps that are not sure in at least one chunk, oldest first.
    pub(super) fn steps_in_doubt(&self, marks: Marks, floors: &Limits) -> Vec<(StepId, Step)> {
        let in_doubt =
            |id: StepId, step: &Step| (0..8).any(|c| step.chunks() >> c & 1 == 1 && id > floors[c]);
        let mut steps: Vec<_> = self
            .log
            .back(marks.top, marks.floor)
            .filter(|(id, step)| in_doubt(*id, step))
            .map(|(id, step)| (id, *step))
            .collect();
        steps.reverse();
        steps
    }

    /// Whether a cut can leave a part of a step.
    pub(super) fn tears(&self, step: &Step) -> bool {
        self.rules.tear && !step.is_posted() && step.chunks().count_ones() > 1
    }

    /// A line's content when, in each chunk, the steps up to a limit survive.
    pub(super) fn content(&self, top: StepId, limits: &Limits, start: Content) -> Content {
        let mut content = start;
        let mut known = 0u64;
        for (id, step) in self.log.back(top, NONE) {
            let data = self.log.data(step);
            for (n, &byte) in data.iter().enumerate() {
                let at = usize::from(step.at) + n;
                if known >> at & 1 == 0 && id <= limits[at / 8] {
                    content[at] = byte;
                    known |= 1 << at;
                }
            }
            if known == u64::MAX {
                break;
            }
        }
        content
    }

    /// Each content that a line whose stores survive in order can have.
    pub(super) fn line_contents(&self, line: u64, marks: Marks, base: &impl Base) -> HashSet<Content> {
        let mut content = self.content(marks.top, &[marks.floor; 8], base.line(line * LINE));
        let mut contents = HashSet::from([content]);
        for (_, step) in self.steps_in_doubt(marks, &[marks.floor; 8]) {
            let data = self.log.data(&step);
            if self.tears(&step) {
                let chunks = step.chunks();
                // Each proper subset of the chunks, the empty one being there already.
                let mut subset = (chunks - 1) & chunks;
                while subset != 0 {
                    let mut torn = content;
                    overlay(&mut torn, &step, data, subset);
                    contents.insert(torn);
                    subset = (subset - 1) & chunks;
                }
            }
            overlay(&mut content, &step, data, 0xff);
            contents.insert(content);
        }
        contents
    }

    /// Each content that each chunk of a line can have.
    pub(super) fn chunk_contents(&self, line: u64, marks: Marks, base: &impl Base) -> [HashSet<[u8; 8]>; 8] {
        let floors = self.floors(line, marks);
        let mut content = self.content(marks.top, &floors, base.line(line * LINE));
        let chunk_of = |content: &Content, chunk: usize| crate::le::u64_at(content, 8 * chunk).to_le_bytes();
        let mut contents: [HashSet<[u8; 8]>; 8] =
            std::array::from_fn(|chunk| HashSet::from([chunk_of(&content, chunk)]));
        for (id, step) in self.steps_in_doubt(marks, &floors) {
            let chunks =
                (0..8).filter(|&c| step.chunks() >> c & 1 == 1 && id > floors[c]).collect::<Vec<_>>();
            let mask = chunks.iter().fold(0, |mask, chunk| mask | 1 << chunk);
            overlay(&mut content, &step, self.log.data(&step), mask);
            for chunk in chunks {
                contents[chunk].insert(chunk_of(&content, chunk));
            }
        }
        contents
    }
}

/// Whether something makes a step sure when it happens.
fn covers(raise: &Raise, id: StepId, step: &Step) -> bool {
    match raise.what {
        Sure::Cached => id <= raise.step && !step.is_posted(),
        Sure::Posted => id == raise.step,
        Sure::All => id <= raise.step,
    }
}

/// Puts a step's bytes, as far as they lie in the chunks of a mask, over a content.
pub(super) fn overlay(content: &mut Content, step: &Step, data: &[u8], chunks: u8) {
    if step.chunks() & !chunks == 0 {
        return content[usize::from(step.at)..][..data.len()].copy_from_slice(data);
    }
    for (n, &byte) in data.iter().enumerate() {
        let at = usize::from(step.at) + n;
        if chunks >> (at / 8) & 1 == 1 {
            content[at] = byte;
        }
    }
}
