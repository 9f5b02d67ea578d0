//! Epochs: what happened from one fence to the next, and what it left in doubt.

use std::collections::{HashMap, HashSet};

use nvdimm_model::Medium;
use nvdimm_model::medium::{FenceKind, StoreKind};
use trace::{Event, Kind};

/// Epochs that are drawn, and of each the events that are.
pub const KEPT: usize = 60;
const STROKES: usize = 1 << 14;
/// Epochs in the strip, at most; more are put together.
const BARS: usize = 600;
const LINE: u64 = 64;

/// What was done to a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    Cached,
    Posted,
    Device,
    Flush,
}

/// Something that was done to a line, as the n-th event of its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stroke {
    pub at: u32,
    pub line: u64,
    pub act: Act,
}

/// One epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Epoch {
    /// Its number, from 1 on.
    pub number: u64,
    /// Number of its first event.
    pub first: u64,
    pub events: u64,
    pub time: u64,
    pub stores: u64,
    pub bytes: u64,
    pub flushes: u64,
    /// What ended it; nothing for the last.
    pub end: Option<&'static str>,
    pub vcpu: u8,
    /// Lines that it touched and that are in doubt at its end, and all that it touched.
    pub left: usize,
    pub touched: usize,
    /// Lines in doubt at its end, whoever touched them.
    pub in_doubt: usize,
    pub strokes: Vec<Stroke>,
    /// Of each line touched, whether it is in doubt at the end.
    pub lines: Vec<(u64, bool)>,
    /// The place that stored most of its bytes.
    pub writer: u64,
    /// Marks in it.
    pub marks: Vec<String>,
}

/// Some epochs of the strip put together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bar {
    pub first: u64,
    pub epochs: u64,
    pub bytes: u64,
    pub left: usize,
}

/// All epochs: each in the strip, the most telling ones whole.
#[derive(Debug, Default)]
pub struct Epochs {
    pub count: u64,
    pub bars: Vec<Bar>,
    /// Epochs a bar.
    per_bar: u64,
    kept: Vec<Epoch>,
    current: Epoch,
    touched: HashSet<u64>,
    writers: HashMap<u64, u64>,
}

impl Epochs {
    pub fn see(&mut self, number: u64, event: &Event<'_>, medium: &Medium) {
        let own = &mut self.current;
        if own.events == 0 {
            (own.first, own.time) = (number, event.time);
        }
        own.events += 1;
        let at = u32::try_from(own.events - 1).unwrap_or(u32::MAX);
        match event.kind {
            Kind::Store { address, data, kind } => {
                own.stores += 1;
                own.bytes += data.len() as u64;
                *self.writers.entry(event.rip).or_default() += data.len() as u64;
                let act = match kind {
                    StoreKind::NonTemporal | StoreKind::Direct64 => Act::Posted,
                    StoreKind::Device => Act::Device,
                    _ => Act::Cached,
                };
                let lines = address / LINE..=address.saturating_add(data.len().max(1) as u64 - 1) / LINE;
                lines.for_each(|line| self.touch(at, line, act));
            }
            Kind::Flush { address, .. } => {
                own.flushes += 1;
                self.touch(at, address / LINE, Act::Flush);
            }
            Kind::Mark(name) if own.marks.len() < 8 => own.marks.push(name.to_owned()),
            Kind::Fence(FenceKind::Lfence | FenceKind::Serialising) => {}
            Kind::Fence(_) | Kind::Hint { .. } | Kind::WriteBackAll | Kind::Reset => {
                self.current.vcpu = event.vcpu;
                self.close(Some(event.kind.name()), medium);
            }
            _ => {}
        }
    }

    fn touch(&mut self, at: u32, line: u64, act: Act) {
        // Further lines of an epoch beyond all drawing are not counted.
        if self.touched.len() < 1 << 20 {
            self.touched.insert(line);
        }
        if self.current.strokes.len() < STROKES {
            self.current.strokes.push(Stroke { at, line, act });
        }
    }

    /// The trace is over.
    pub fn finish(&mut self, medium: &Medium) {
        if self.current.events > 0 {
            self.close(None, medium);
        }
        self.kept.sort_by_key(|epoch| epoch.number);
    }

    /// The epochs that are drawn, in order.
    pub fn kept(&self) -> &[Epoch] {
        &self.kept
    }

    fn close(&mut self, end: Option<&'static str>, medium: &Medium) {
        let mut epoch = std::mem::take(&mut self.current);
        let touched = std::mem::take(&mut self.touched);
        let writers = std::mem::take(&mut self.writers);
        if epoch.stores + epoch.flushes == 0 {
            // A fence with nothing before it ends nothing; its marks belong to what follows.
            self.current.marks = epoch.marks;
            return;
        }
        self.count += 1;
        epoch.number = self.count;
        epoch.end = end;
        epoch.touched = touched.len();
        epoch.in_doubt = medium.lines_in_doubt();
        epoch.left = touched.iter().filter(|&&line| medium.is_in_doubt(line * LINE)).count();
        epoch.writer = writers.into_iter().max_by_key(|&(rip, bytes)| (bytes, rip)).map_or(0, |(rip, _)| rip);
        self.bar(&epoch);
        let least = self.kept.iter().enumerate().min_by_key(|(_, kept)| telling(kept)).map(|(n, _)| n);
        if let Some(least) = least.filter(|_| self.kept.len() >= KEPT) {
            if telling(&self.kept[least]) >= telling(&epoch) {
                return;
            }
            self.kept.swap_remove(least);
        }
        let mut lines: Vec<u64> = touched.into_iter().collect();
        lines.sort_unstable();
        epoch.lines = lines.into_iter().map(|line| (line, medium.is_in_doubt(line * LINE))).collect();
        self.kept.push(epoch);
    }

    fn bar(&mut self, epoch: &Epoch) {
        if self.bars.len() >= BARS {
            let joined = self.bars.chunks(2).map(|pair| {
                pair[1..].iter().fold(pair[0], |sum, bar| Bar {
                    epochs: sum.epochs + bar.epochs,
                    bytes: sum.bytes + bar.bytes,
                    left: sum.left.max(bar.left),
                    ..sum
                })
            });
            self.bars = joined.collect();
            self.per_bar = self.per_bar.max(1) * 2;
        }
        match self.bars.last_mut() {
            Some(bar) if bar.epochs < self.per_bar => {
                bar.epochs += 1;
                bar.bytes += epoch.bytes;
                bar.left = bar.left.max(epoch.left);
            }
            _ => {
                let Epoch { number: first, bytes, left, .. } = *epoch;
                self.bars.push(Bar { first, epochs: 1, bytes, left });
            }
        }
    }
}

/// How much an epoch tells: what it left in doubt first, then how much it did; of equal ones, the earlier.
fn telling(epoch: &Epoch) -> (usize, u64, std::cmp::Reverse<u64>) {
    (epoch.left, epoch.stores + epoch.flushes, std::cmp::Reverse(epoch.number))
}
