//! What happened to the DIMMs by way of the machine, for those who record; and the DIMMs' files as a whole.

use std::fs::File;

use super::backing::{self, Backing};
use super::plan::{DimmPlan, Plan};
use super::{Error, Nvdimms, Result, host};

/// Something that the machine did to DIMMs for the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// A DIMM's flush hint was written.
    Hint(usize),
    /// A function was called through the mailbox.
    Call {
        /// Handle of the DIMM; 0 for the bus.
        handle: u32,
        /// Number of the function.
        function: u32,
    },
    /// Labels were written.
    Labels {
        /// Index of the DIMM.
        dimm: usize,
        /// Offset in its file.
        offset: u64,
        /// The bytes.
        data: Vec<u8>,
    },
    /// A superblock was written.
    State {
        /// Index of the DIMM.
        dimm: usize,
        /// Offset in its file.
        offset: u64,
        /// The superblock without the zeroes at its end.
        data: Vec<u8>,
    },
}

/// Takes a block of a DIMM's file: index of the DIMM, number of the block, the block.
pub type TakeBlock<'a> = dyn FnMut(usize, u64, &[u8; trace::BLOCK]) -> crate::Result<()> + 'a;

/// Deeds in order, while somebody wants to know.
#[derive(Debug, Default)]
pub struct Journal(Option<Vec<Deed>>);

impl Journal {
    /// Notes a deed.
    pub fn note(&mut self, deed: impl FnOnce() -> Deed) {
        if let Some(deeds) = &mut self.0 {
            deeds.push(deed());
        }
    }
}

impl Nvdimms {
    /// Keeps a journal from now on, or no longer.
    pub fn keep_journal(&mut self, keep: bool) {
        self.journal = Journal(keep.then(Vec::new));
    }

    /// What happened since the last call.
    pub fn take_journal(&mut self) -> Vec<Deed> {
        self.journal.0.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// All blocks of the DIMMs' files that are not known to be zero, DIMM by DIMM in rising order.
    ///
    /// # Errors
    /// A file could not be read, or what `take` says.
    pub fn each_block(&self, take: &mut TakeBlock<'_>) -> crate::Result<()> {
        self.backings
            .iter()
            .enumerate()
            .try_for_each(|(n, backing)| backing.each_block(&mut |number, block| take(n, number, block)))
    }

    /// A file without a name for each DIMM, beside its own and as long.
    ///
    /// # Errors
    /// The host refuses.
    pub fn nameless_files(&self) -> crate::Result<Vec<File>> {
        let make = |backing: &Backing| {
            let len = backing::DATA + backing.record().geometry.size;
            crate::recording::nameless(backing.path(), len)
                .map_err(|e| Error::io("create a file beside", backing.path())(e).into())
        };
        self.backings.iter().map(make).collect()
    }

    /// What was stored into the DIMMs is on the host's disk.
    ///
    /// # Errors
    /// The host refuses.
    pub fn sync(&self) -> Result<()> {
        self.backings
            .iter()
            .try_for_each(|backing| backing.file().sync_data().map_err(Error::io("write", backing.path())))
    }
}

impl Plan {
    /// The DIMMs, as a trace has them.
    #[must_use]
    pub fn trace_dimms(&self) -> Vec<trace::DimmHeader> {
        let size = |n: usize| {
            let region = self.regions.iter().find(|region| region.members.contains(&n));
            region.map_or(0, |region| region.set.member_size())
        };
        let header = |(n, dimm): (usize, &DimmPlan)| trace::DimmHeader {
            name: dimm.path.display().to_string(),
            identity: dimm.identity,
            persistence: dimm.persistence,
            size: size(n),
            data: backing::DATA,
        };
        self.dimms.iter().enumerate().map(header).collect()
    }

    /// Where the guest finds them.
    #[must_use]
    pub fn trace_zones(&self) -> Vec<trace::ZoneHeader> {
        let zone = |region: &nvdimm_model::dsm::Region| trace::ZoneHeader {
            start: region.base,
            end: region.base + region.set.size(),
            dimms: region.members.iter().map(|&member| member as u8).collect(),
        };
        self.regions.iter().map(zone).collect()
    }
}

impl Backing {
    /// The superblock written last: where, and its bytes without the zeroes at the end.
    pub(super) fn superblock(&self) -> (u64, Vec<u8>) {
        let (at, mut bytes) = self.newest_superblock();
        let len = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        bytes.truncate(len);
        (at, bytes)
    }

    fn each_block(
        &self,
        take: &mut dyn FnMut(u64, &[u8; trace::BLOCK]) -> crate::Result<()>,
    ) -> crate::Result<()> {
        use std::os::unix::fs::FileExt;
        let failed = |e| Error::io("read", self.path())(e);
        const BLOCK: u64 = trace::BLOCK as u64;
        let len = backing::DATA + self.record().geometry.size;
        let mut buffer = vec![0; 64 * trace::BLOCK];
        let mut at = 0;
        while let Some(data) = host::next_data(self.file(), at).map_err(failed)? {
            at = data.start / BLOCK * BLOCK;
            let end = data.end.next_multiple_of(BLOCK).min(len);
            while at < end {
                let part = &mut buffer[..(end - at).min(64 * BLOCK) as usize];
                self.file().read_exact_at(part, at).map_err(failed)?;
                for block in part.chunks_exact(trace::BLOCK) {
                    if let Some(block) = block.first_chunk().filter(|block| block.iter().any(|&b| b != 0)) {
                        take(at / BLOCK, block)?;
                    }
                    at += BLOCK;
                }
            }
        }
        Ok(())
    }
}
