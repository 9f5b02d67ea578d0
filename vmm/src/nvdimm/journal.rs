//! What happened to the DIMMs by way of the machine, for those who record; and the DIMMs' files as a whole.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

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

    /// All blocks of the DIMMs' files that are not known to be zero, DIMM by DIMM in rising order. Of a DIMM whose stores
    /// stay with the machine, what the machine sees.
    ///
    /// # Errors
    /// A file could not be read, or what `take` says.
    pub fn each_block(&self, take: &mut TakeBlock<'_>) -> crate::Result<()> {
        for (n, backing) in self.backings.iter().enumerate() {
            let mut take = |number, block: &[u8; trace::BLOCK]| take(n, number, block);
            let failed = Error::io("read", backing.path());
            if backing.is_private() {
                // Nobody changes the copy, and it begins with the file.
                let copy = self.image(n)?;
                blocks(copy.place().0, copy.extents.len, failed, &mut take)?;
            } else {
                blocks(backing.file(), backing::DATA + backing.record().geometry.size, failed, &mut take)?;
            }
        }
        Ok(())
    }

    /// An empty file without a name for each DIMM, where the DIMM's own is; it goes with the last who has it open.
    ///
    /// # Errors
    /// The host refuses.
    pub fn nameless_files(&self) -> crate::Result<Vec<File>> {
        let make = |backing: &Backing| {
            // What stays with the machine has no place of its own.
            let beside = if backing.is_private() {
                std::env::temp_dir().join("dimm")
            } else {
                backing.path().to_owned()
            };
            nameless(&beside).map_err(|e| Error::io("create a file beside", beside)(e).into())
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
}

/// A file without a name beside another.
fn nameless(beside: &Path) -> io::Result<File> {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let mut name = std::ffi::OsString::from(".");
    name.push(beside.file_name().unwrap_or_default());
    name.push(format!(".{}.{}.floor", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed)));
    let path = beside.with_file_name(name);
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// The blocks of a file's first bytes that are not zero.
fn blocks(
    file: &File,
    len: u64,
    failed: impl Fn(io::Error) -> Error,
    take: &mut dyn FnMut(u64, &[u8; trace::BLOCK]) -> crate::Result<()>,
) -> crate::Result<()> {
    const BLOCK: u64 = trace::BLOCK as u64;
    let mut buffer = vec![0; 64 * trace::BLOCK];
    let mut at = 0;
    while let Some(data) = host::next_data(file, at).map_err(&failed)? {
        at = data.start / BLOCK * BLOCK;
        let end = data.end.next_multiple_of(BLOCK).min(len);
        while at < end {
            let part = &mut buffer[..(end - at).min(64 * BLOCK) as usize];
            file.read_exact_at(part, at).map_err(&failed)?;
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
