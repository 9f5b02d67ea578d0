//! The stores that were made, each in 16 bytes and its data: the steps of a line are chained from the newest back.

use crate::Error;

/// A step's number; [`NONE`] stands for "before all steps".
pub type StepId = u32;
/// No step.
pub const NONE: StepId = 0;

/// The part of a store that lies in one line.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// The step before it in its line.
    pub previous: StepId,
    /// The event that it is part of.
    pub event: u32,
    data: u32,
    /// Offset in the line.
    pub at: u8,
    /// Bytes.
    pub len: u8,
    /// Who stored.
    pub vcpu: u8,
    /// How the step behaves.
    pub class: Class,
}
const _: () = assert!(size_of::<Step>() == 16);

/// How a step behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// In the cache: decided by flushes.
    Cached,
    /// Posted in chunks: decided by a fence of its vCPU.
    Posted,
    /// Posted as a whole line.
    PostedWhole,
}

impl Step {
    /// The chunks that it touches, a bit each.
    pub fn chunks(&self) -> u8 {
        let first = self.at / 8;
        let last = (self.at + self.len - 1) / 8;
        (0xff << first) & (0xff >> (7 - last))
    }

    /// Whether it was posted past the caches.
    pub fn is_posted(&self) -> bool {
        self.class != Class::Cached
    }
}

const STEP_BITS: u32 = 16;
const DATA_BITS: u32 = 20;

/// All steps. Storage grows by pieces, so that nothing is copied and little is wasted.
#[derive(Debug, Clone)]
pub struct Log {
    steps: Vec<Vec<Step>>,
    data: Vec<Vec<u8>>,
    count: u32,
}

impl Default for Log {
    fn default() -> Self {
        let mut log = Self { steps: Vec::new(), data: Vec::new(), count: 0 };
        // Number 0 is taken.
        log.add_step(Step {
            previous: NONE,
            event: 0,
            data: 0,
            at: 0,
            len: 1,
            vcpu: 0,
            class: Class::Cached,
        });
        log
    }
}

impl Log {
    /// Appends a step; `data` has 1 to 64 bytes and stays within the line.
    pub fn push(
        &mut self,
        previous: StepId,
        event: u32,
        vcpu: u8,
        class: Class,
        at: u8,
        data: &[u8],
    ) -> Result<StepId, Error> {
        if self.count == u32::MAX || self.data.len() >= 1 << (32 - DATA_BITS) {
            return Err(Error::MediumFull { stores: self.count.into() });
        }
        let place = self.add_data(data);
        let step = Step { previous, event, data: place, at, len: data.len() as u8, vcpu, class };
        Ok(self.add_step(step))
    }

    fn add_step(&mut self, step: Step) -> StepId {
        if self.count.trailing_zeros() >= STEP_BITS {
            self.steps.push(Vec::with_capacity(1 << STEP_BITS));
        }
        if let Some(last) = self.steps.last_mut() {
            last.push(step);
        }
        self.count += 1;
        self.count - 1
    }

    fn add_data(&mut self, data: &[u8]) -> u32 {
        let full = |piece: &Vec<u8>| piece.len() + data.len() > 1 << DATA_BITS;
        if self.data.last().is_none_or(full) {
            self.data.push(Vec::with_capacity(1 << DATA_BITS));
        }
        let number = self.data.len() - 1;
        let piece = &mut self.data[number];
        let at = piece.len();
        piece.extend_from_slice(data);
        (number << DATA_BITS | at) as u32
    }

    /// A step.
    pub fn step(&self, id: StepId) -> &Step {
        &self.steps[(id >> STEP_BITS) as usize][(id & ((1 << STEP_BITS) - 1)) as usize]
    }

    /// A step's bytes.
    pub fn data(&self, step: &Step) -> &[u8] {
        let at = (step.data & ((1 << DATA_BITS) - 1)) as usize;
        &self.data[(step.data >> DATA_BITS) as usize][at..at + usize::from(step.len)]
    }

    /// The steps of a line from `newest` back to the one after `end`.
    pub fn back(&self, newest: StepId, end: StepId) -> impl Iterator<Item = (StepId, &Step)> {
        let mut next = newest;
        std::iter::from_fn(move || {
            if next <= end {
                return None;
            }
            let id = next;
            let step = self.step(id);
            next = step.previous;
            Some((id, step))
        })
    }

    /// Steps recorded.
    pub fn count(&self) -> u64 {
        u64::from(self.count) - 1
    }

    /// Bytes of memory held.
    pub fn memory(&self) -> usize {
        self.steps.len() * (size_of::<Step>() << STEP_BITS) + self.data.len() * (1 << DATA_BITS)
    }
}
