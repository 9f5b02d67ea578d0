//! A run at a glance: what happened in each part of the trace, and how much was in doubt.

use std::collections::HashMap;

use nvdimm_model::Medium;
use nvdimm_model::medium::{FenceKind, StoreKind};
use trace::{Event, Kind};

use crate::epoch::Epochs;

/// Columns of the drawing, at most.
pub const COLUMNS: u64 = 400;
/// Marks that are kept, and places in code.
const MARKS: usize = 200;
const PLACES: usize = 1 << 16;

/// What happened in one column.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Column {
    /// Events before it, and guest time at its first.
    pub first: u64,
    pub time: u64,
    pub events: u64,
    pub stores: u64,
    /// Bytes stored through the caches, past them, and by devices.
    pub cached: u64,
    pub posted: u64,
    pub device: u64,
    pub flushes: u64,
    pub fences: u64,
    pub hints: u64,
    /// The most lines in doubt at any event of it, and the number at its last.
    pub most: usize,
    pub last: usize,
}

/// Counts over the whole trace.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Totals {
    pub events: u64,
    pub stores: u64,
    pub bytes: u64,
    pub posted: u64,
    pub flushes: u64,
    pub fences: u64,
    pub hints: u64,
    pub loads: u64,
    /// The most lines in doubt, and after which event.
    pub most: usize,
    pub most_at: u64,
    /// Marks that are not kept.
    pub marks_left_out: u64,
}

/// A mark, or a reset.
#[derive(Debug, Clone, PartialEq)]
pub struct Milestone {
    pub event: u64,
    pub time: u64,
    pub name: String,
}

/// What one place in code did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Writes {
    pub stores: u64,
    pub bytes: u64,
    pub posted: u64,
}

/// Gathers while a trace is played.
#[derive(Debug)]
pub struct Timeline {
    /// Events a column.
    per_column: u64,
    pub columns: Vec<Column>,
    pub totals: Totals,
    pub milestones: Vec<Milestone>,
    /// By instruction pointer.
    pub writers: HashMap<u64, Writes>,
    pub epochs: Epochs,
}

impl Timeline {
    /// For a trace of about so many events.
    pub fn new(events: u64) -> Self {
        Self {
            per_column: events.div_ceil(COLUMNS).max(1),
            columns: Vec::new(),
            totals: Totals::default(),
            milestones: Vec::new(),
            writers: HashMap::new(),
            epochs: Epochs::default(),
        }
    }

    /// The event of this number, from 1 on, has happened.
    pub fn see(&mut self, number: u64, event: &Event<'_>, medium: &Medium) {
        let index = ((number - 1) / self.per_column) as usize;
        if self.columns.len() <= index {
            let in_doubt = self.columns.last().map_or(0, |column| column.last);
            self.columns.push(Column {
                first: number - 1,
                time: event.time,
                most: in_doubt,
                ..Column::default()
            });
        }
        let (Some(column), totals) = (self.columns.last_mut(), &mut self.totals) else { return };
        column.events += 1;
        totals.events += 1;
        match event.kind {
            Kind::Store { data, kind, .. } => {
                let bytes = data.len() as u64;
                let posted = matches!(kind, StoreKind::NonTemporal | StoreKind::Direct64);
                match kind {
                    StoreKind::Device => column.device += bytes,
                    _ if posted => column.posted += bytes,
                    _ => column.cached += bytes,
                }
                column.stores += 1;
                totals.stores += 1;
                totals.bytes += bytes;
                totals.posted += if posted { bytes } else { 0 };
                if self.writers.len() < PLACES || self.writers.contains_key(&event.rip) {
                    let writes = self.writers.entry(event.rip).or_default();
                    writes.stores += 1;
                    writes.bytes += bytes;
                    writes.posted += if posted { bytes } else { 0 };
                }
            }
            Kind::Flush { .. } => {
                column.flushes += 1;
                totals.flushes += 1;
            }
            Kind::Fence(FenceKind::Lfence) => {}
            Kind::Fence(_) | Kind::WriteBackAll => {
                column.fences += 1;
                totals.fences += 1;
            }
            Kind::Hint { .. } => {
                column.hints += 1;
                totals.hints += 1;
            }
            Kind::Load { .. } => totals.loads += 1,
            Kind::Mark(name) => self.milestone(number, event.time, name),
            Kind::Reset => self.milestone(number, event.time, "reset"),
            Kind::DropAll | Kind::Call { .. } | Kind::Meta { .. } => {}
        }
        let in_doubt = medium.lines_in_doubt();
        if let Some(column) = self.columns.last_mut() {
            column.most = column.most.max(in_doubt);
            column.last = in_doubt;
        }
        if in_doubt > self.totals.most {
            (self.totals.most, self.totals.most_at) = (in_doubt, number);
        }
        self.epochs.see(number, event, medium);
    }

    fn milestone(&mut self, event: u64, time: u64, name: &str) {
        if self.milestones.len() < MARKS {
            self.milestones.push(Milestone { event, time, name: name.to_owned() });
        } else {
            self.totals.marks_left_out += 1;
        }
    }
}
