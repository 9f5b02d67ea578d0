//! How an image is made in place, so that whoever is killed on the way leaves an image that is permitted, too.

use super::cut::{Cut, Survivors};
use super::reach::{Base, Content, overlay};
use super::{LINE_BYTES, Medium, NONE, StepId};
use crate::Error;
use crate::geometry::LINE;

/// A chunk's address and what is written there.
pub type ChunkWrite = (u64, [u8; 8]);

impl Medium {
    /// What the line at an address holds if all stores survive: what the guest reads.
    pub fn newest(&self, address: u64, base: &impl Base) -> Content {
        let line = address / LINE;
        let top = self.lines.get(&line).map_or(NONE, |marks| marks.top);
        self.content(top, &[StepId::MAX; 8], base.line(line * LINE))
    }
}

impl Cut<'_> {
    /// The way down from the image that has all stores to that of a choice, as writes of a chunk each. Stores are taken back
    /// one by one, the newest of a line first, so wherever the way is broken off, this cut may leave what is there: the
    /// store that was just being taken back is torn. (One that [must not tear](super::Rules::tear), as MOVDIR64B, may be
    /// there in part.)
    ///
    /// # Errors
    /// As [`Cut::outcome`].
    pub fn descent(&self, survivors: &Survivors) -> Result<Vec<ChunkWrite>, Error> {
        self.check(survivors)?;
        let mut writes = Vec::new();
        for doubt in &self.doubt {
            let limits = self.limits(doubt, survivors)?;
            let mut put = |now: &mut Content, chunk: usize, to: &Content| {
                let bytes = 8 * chunk..8 * chunk + 8;
                if now[bytes.clone()] != to[bytes.clone()] {
                    now[bytes.clone()].copy_from_slice(&to[bytes.clone()]);
                    writes.push((
                        doubt.line * LINE + 8 * chunk as u64,
                        crate::le::u64_at(now, bytes.start).to_le_bytes(),
                    ));
                }
            };
            if doubt.by_chunks {
                // Each chunk may hold what it is to hold, whatever the others do.
                let mut now = self.content(doubt, &[StepId::MAX; 8]);
                let to = self.content(doubt, &limits);
                (0..LINE_BYTES / 8).for_each(|chunk| put(&mut now, chunk, &to));
                continue;
            }
            let steps = self.steps(doubt);
            let mut now = doubt.sure;
            let mut before = Vec::with_capacity(steps.len());
            for (_, step) in steps {
                before.push(now);
                overlay(&mut now, step, self.medium.log.data(step), 0xff);
            }
            for ((id, step), before) in steps.iter().zip(&before).rev() {
                let lost = |&chunk: &usize| step.chunks() >> chunk & 1 == 1 && limits[chunk] < *id;
                (0..LINE_BYTES / 8).filter(lost).for_each(|chunk| put(&mut now, chunk, before));
            }
        }
        Ok(writes)
    }
}
