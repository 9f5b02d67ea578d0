//! A machine at rest, kept: its state as values and its memory as an image that any number of machines map copy-on-write.
//!
//! A snapshot is taken by [`crate::Machine::snapshot`] when a run has ended with an outcome that
//! [can go on](crate::Outcome::can_go_on), and brought back by [`crate::Machine::from_snapshot`]. The machine that goes on
//! and those that are brought back do the same from there on: all of them start from the neutral state in a fresh
//! partition, with empty translation caches.
//!
//! What the NV-DIMMs hold is either part of it, and then every machine has copies of its own; or it is not, and then the
//! guest must not have looked at the DIMMs yet: the snapshot goes on with any that the guest would find alike. Or it has done
//! no more than to look, and what it has learnt is kept ([`ReadSet`]): then the snapshot stands on one from before, has only
//! the memory that has changed since, and goes on with DIMMs of which the guest would have learnt the same.

mod file;
pub(crate) mod image;
mod read_set;
mod witness;

use std::path::{Path, PathBuf};

use engine::{CodeStock, PartitionSpec};
use serde::{Deserialize, Serialize};

use crate::board::BoardState;
use crate::boot::BootSpec;
use crate::outcome::Statistics;
use crate::rest::Processors;
use crate::transcript::Said;
use crate::{Error, Result};

pub use file::FORMAT;
pub use image::Image;
pub(crate) use read_set::ReadSet;
pub(crate) use witness::Witness;

/// Everything about a machine at rest but what its memory and its DIMMs hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    pub partition: PartitionSpec,
    pub ram: u64,
    pub boot: BootSpec,
    pub wall_clock: u64,
    /// BLAKE3 of the ACPI tables: what the guest was told of the machine, its DIMMs' identities and places among it.
    pub tables: [u8; 32],
    pub processors: Processors,
    pub board: BoardState,
    pub statistics: Statistics,
    pub said: Said,
    pub note: String,
}

/// What a snapshot has that stands on another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Since {
    /// The [`Snapshot::sum`] of the other one.
    pub base: [u8; 32],
    /// What its guest has learnt of its DIMMs since then; it knew nothing of them before.
    pub read: ReadSet,
}

/// A machine at rest. Clones share the memory, and what engines keep of its code.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub(crate) state: State,
    pub(crate) memory: Image,
    /// The DIMMs' files as they were; none if the guest had not looked at them.
    pub(crate) dimms: Option<Vec<(PathBuf, Image)>>,
    /// What the engine of the first machine that came from it and ended has made of the guest's code.
    pub(crate) code: CodeStock,
    /// What is to be true of another snapshot and of a machine's DIMMs.
    pub(crate) since: Option<Since>,
    /// What its file's state hashes to, images included; none if it is of no file.
    pub(crate) sum: Option<[u8; 32]>,
}

/// What a snapshot is of, for listings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotInfo {
    /// Processors.
    pub vcpus: u8,
    /// What they are.
    pub cpu: crate::CpuModel,
    /// Bytes of RAM.
    pub ram: u64,
    /// Bytes of RAM that are stored.
    pub stored: u64,
    /// Instructions retired until then, where they were counted.
    pub instructions: Option<u64>,
    /// Guest time until then, in nanoseconds.
    pub guest_time: u64,
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The DIMMs whose contents it keeps.
    pub dimms: Vec<PathBuf>,
    /// What its taker noted.
    pub note: String,
}

impl Snapshot {
    /// Writes it to a file that does not exist yet, which appears under its name when it is complete. With `sync` it is on
    /// the disk when this returns.
    ///
    /// # Errors
    /// The file exists, or the host refuses.
    pub fn save(&self, path: &Path, sync: bool) -> Result<()> {
        file::save(self, path, sync)
    }

    /// Opens a file and checks all of it.
    ///
    /// # Errors
    /// [`Error::Snapshot`] if it is none, of another version, or not whole.
    pub fn open(path: &Path) -> Result<Self> {
        file::open(path, true)
    }

    /// Opens a file whose images somebody has checked since it was written; its state is checked all the same.
    ///
    /// # Errors
    /// As [`Snapshot::open`].
    pub fn open_checked(path: &Path) -> Result<Self> {
        file::open(path, false)
    }

    /// What it is of.
    #[must_use]
    pub fn info(&self) -> SnapshotInfo {
        let so_far = self.state.processors.so_far();
        SnapshotInfo {
            vcpus: self.state.partition.vcpus,
            cpu: self.state.partition.cpuid.model(),
            ram: self.state.ram,
            stored: self.memory.extents.stored(),
            instructions: so_far.instructions,
            guest_time: so_far.guest_time,
            kernel: self.state.boot.kernel.path().to_owned(),
            dimms: self.dimms.iter().flatten().map(|(path, _)| path.clone()).collect(),
            note: self.state.note.clone(),
        }
    }

    /// Notes something for those who will go on from it; the machine does not look at it.
    #[must_use]
    pub fn noted(mut self, note: &str) -> Self {
        note.clone_into(&mut self.state.note);
        self
    }

    /// Whether a file begins as a snapshot does, whole or not.
    #[must_use]
    pub fn is_one(path: &Path) -> bool {
        file::is_one(path)
    }

    /// Puts it on the one that it stands on, without which no machine goes on from it.
    ///
    /// # Errors
    /// [`Error::Misfit`] if that is another one.
    pub fn standing_on(self, base: &Self) -> Result<Self> {
        let fits = self.since.as_ref().is_some_and(|since| Some(since.base) == base.sum);
        if !fits || self.memory.extents.len != base.memory.extents.len {
            return Err(misfit("it stands on another snapshot; take it anew"));
        }
        Ok(Self { memory: self.memory.above(&base.memory), ..self })
    }

    /// Whether the DIMMs' contents are part of it.
    #[must_use]
    pub fn keeps_dimms(&self) -> bool {
        self.dimms.is_some()
    }
}

/// A snapshot and a machine that do not fit.
pub(crate) fn misfit(reason: impl Into<String>) -> Error {
    Error::Misfit { reason: reason.into() }
}

#[cfg(test)]
pub(crate) mod tests;
