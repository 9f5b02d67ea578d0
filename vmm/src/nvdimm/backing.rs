//! The file behind a DIMM: one sparse file that describes itself.
//!
//! | offset | |
//! |---|---|
//! | 0 | superblock |
//! | 32 KiB | superblock |
//! | 64 KiB | label area, at most 1 MiB |
//! | 2 MiB | data, to be mapped |
//!
//! All before the data is allocated when the file is made, so that a full disk cannot stop a superblock or a label from
//! being written. Superblocks are written in turn; labels have two index blocks of their own, which the guest writes in
//! turn. So whenever a process dies, one of each is whole.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nvdimm_model::{Dimm, Geometry};
use rustix::fs::OFlags;

use super::lock::{self, Hold};
use super::map::MappedFile;
use super::superblock::{self, Record, Refusal};
use super::{Error, Result, host};
use crate::draft::Draft;
use crate::layout::PAGE;
use crate::memory::PersistentRegion;
use crate::snapshot::{Image, image};

/// Offset of the label area.
pub const LABELS: u64 = 2 * superblock::SIZE as u64;
/// Offset of the data: aligned for large pages.
pub const DATA: u64 = 2 << 20;
const _: () = assert!(LABELS + Geometry::MAX_LABEL_SIZE as u64 <= DATA);

/// An open DIMM file, locked for as long as this lives.
#[derive(Debug)]
pub struct Backing {
    path: PathBuf,
    file: File,
    /// The image of which the file is a part, of a private one.
    image: Option<Image>,
    hold: Hold,
    sequence: u64,
    record: Record,
    labels: Vec<u8>,
}

impl Backing {
    /// Makes a file of zeroes with a record and labels, and holds it. It appears under its name when it is complete;
    /// `fill` may write data before.
    pub fn create(
        path: &Path,
        record: Record,
        labels: Vec<u8>,
        fill: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<Self> {
        let draft = Draft::of(path, OFlags::DSYNC).map_err(Error::create(path))?;
        let file = draft.file.try_clone().map_err(Error::create(path))?;
        let backing = Self {
            path: path.to_owned(),
            file,
            image: None,
            hold: Hold::Exclusive,
            sequence: 1,
            record,
            labels,
        };
        backing.lay_down(fill)?;
        draft.publish().map_err(Error::create(path))?;
        Ok(backing)
    }

    fn lay_down(&self, fill: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        lock::take(&self.file, &self.path, Hold::Exclusive)?;
        let size = self.record.geometry.size;
        let have = host::free_space(&self.file).map_err(self.io("examine the disk of"))?;
        if have < DATA + size {
            return Err(Error::DiskFull { path: self.path.clone(), need: DATA + size, have });
        }
        self.file.set_len(DATA + size).map_err(self.io("size"))?;
        let header = LABELS + u64::from(self.record.geometry.label_size);
        match host::allocate(&self.file, header) {
            // Some file systems cannot; they merely lose the promise about full disks.
            Err(e) if e.kind() != ErrorKind::Unsupported => return Err(self.io("allocate")(e)),
            _ => {}
        }
        self.file.write_all_at(&self.labels, LABELS).map_err(self.io("write the labels of"))?;
        fill(self)?;
        for (slot, sequence) in [(1, self.sequence - 1), (0, self.sequence)] {
            self.write_superblock(slot, sequence, &self.record)?;
        }
        self.file.sync_all().map_err(self.io("write"))
    }

    /// Opens a file: shared, for reading only, which changes nothing at all; or exclusively, for a run.
    pub fn open(path: &Path, hold: Hold) -> Result<Self> {
        let meta = path.metadata().map_err(|source| match source.kind() {
            ErrorKind::NotFound => Error::Missing { path: path.to_owned() },
            _ => Error::Io { doing: "open", path: path.to_owned(), source },
        })?;
        if !meta.is_file() {
            let looks = if meta.is_dir() { "a directory" } else { "not a plain file" };
            return Err(Error::Foreign { path: path.to_owned(), looks });
        }
        let file = options(hold == Hold::Exclusive).open(path).map_err(Error::io("open", path))?;
        // Whose file it is comes first: nobody's lock matters on a file that is none of ours.
        let head = read_up_to(&file, 0, 2 * superblock::SIZE).map_err(Error::io("read", path))?;
        if !head.chunks(superblock::SIZE).any(|block| block.starts_with(superblock::MAGIC)) {
            return Err(Error::Foreign { path: path.to_owned(), looks: looks_like(&head) });
        }
        lock::take(&file, path, hold)?;
        // What was read before the lock may have been in the middle of a write.
        let head = read_up_to(&file, 0, 2 * superblock::SIZE).map_err(Error::io("read", path))?;
        let (sequence, record) = newest(path, &head)?;
        Self::check(path, &record, meta.len())?;
        let labels = read_up_to(&file, LABELS, record.geometry.label_size as usize)
            .map_err(Error::io("read the labels of", path))?;
        Ok(Self { path: path.to_owned(), file, image: None, hold, sequence, record, labels })
    }

    /// A DIMM whose whole file is an image that is kept elsewhere. It begins as that is, and the image never changes.
    pub fn of_image(path: &Path, image: &Image) -> Result<Self> {
        let (file, base) = image.place();
        let file = file.try_clone().map_err(Error::io("open", path))?;
        let head = read_up_to(&file, base, 2 * superblock::SIZE).map_err(Error::io("read", path))?;
        let (sequence, record) = newest(path, &head)?;
        Self::check(path, &record, image.extents.len)?;
        let labels = read_up_to(&file, base + LABELS, record.geometry.label_size as usize)
            .map_err(Error::io("read the labels of", path))?;
        let image = Some(image.clone());
        Ok(Self { path: path.to_owned(), file, image, hold: Hold::Private, sequence, record, labels })
    }

    /// Checks what a whole superblock says against what can be.
    fn check(path: &Path, record: &Record, len: u64) -> Result<()> {
        let Geometry { size, label_size } = record.geometry;
        Geometry::new(size, label_size.into()).map_err(Error::model(path))?;
        if len != DATA + size {
            return Err(Error::Damaged {
                path: path.to_owned(),
                offset: len.min(DATA + size),
                what: format!("the file has {len} bytes and should have {}", DATA + size),
                remedy: if len < DATA + size {
                    "its end is lost; restore a copy, or use `truncate -s` to go on with zeroes there"
                } else {
                    "something was appended; use `truncate -s` to cut that off"
                },
            });
        }
        Ok(())
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file tells of its DIMM.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The label area.
    pub fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// The open file, to be mapped from [`DATA`] on.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether its stores stay with the machine.
    pub fn is_private(&self) -> bool {
        self.image.is_some()
    }

    /// The file to be mapped.
    pub fn mapped(&self) -> MappedFile<'_> {
        MappedFile { file: &self.file, base: self.base(), private: self.image.is_some() }
    }

    /// The DIMM as the guest will find it.
    pub fn dimm(&self) -> Dimm {
        let record = &self.record;
        let mut dimm = Dimm::new(record.identity, record.geometry, record.persistence);
        dimm.health = record.health.clone();
        dimm.poison = record.poison.clone();
        dimm.set_label_area(self.labels.clone());
        dimm
    }

    /// Where it begins in the file.
    fn base(&self) -> u64 {
        self.image.as_ref().map_or(0, |image| image.place().1)
    }

    /// A copy of the whole file as it would be. `pieces` are where its data are mapped, by offset in the file: a region
    /// and a part of it.
    pub fn copy<'m>(
        &self,
        pieces: impl Iterator<Item = (u64, &'m PersistentRegion, Range<u64>)>,
    ) -> Result<Image> {
        let Some(image) = &self.image else { return Image::of_file(&self.file).map_err(self.io("copy")) };
        let copy = || {
            let mut copy = image::Copy::new(c"nvsim NV-DIMM", image.extents.len)?;
            let superblock = superblock::write(self.sequence, &self.record).map_err(io::Error::other)?;
            copy.bytes(0, &[&superblock[..], &superblock].concat())?;
            let mut labels = self.labels.clone();
            labels.resize(labels.len().next_multiple_of(PAGE as usize), 0);
            copy.bytes(LABELS, &labels)?;
            for (at, region, part) in pieces {
                copy.pages(at, region, part, Some(image))?;
            }
            Ok(copy.finish())
        };
        copy().map_err(self.io("copy"))
    }

    /// Replaces the record.
    pub fn store(&mut self, record: Record) -> Result<()> {
        let sequence = self.sequence + 1;
        if self.hold == Hold::Private {
            self.record = record;
            return Ok(());
        }
        self.write_superblock(sequence % 2 + 1, sequence, &record)?;
        (self.sequence, self.record) = (sequence, record);
        Ok(())
    }

    /// Writes into the label area; the range must lie within.
    pub fn write_labels(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        let Some(place) = offset.checked_add(bytes.len()).and_then(|end| self.labels.get_mut(offset..end))
        else {
            return Err(self.io("write the labels of")(ErrorKind::InvalidInput.into()));
        };
        place.copy_from_slice(bytes);
        if self.hold == Hold::Private {
            return Ok(());
        }
        self.file.write_all_at(bytes, LABELS + offset as u64).map_err(self.io("write the labels of"))
    }

    /// Reads data at a device address.
    pub fn read_data(&self, dpa: u64, bytes: &mut [u8]) -> Result<()> {
        let at = self.data_offset(dpa, bytes.len())?;
        self.file.read_exact_at(bytes, at).map_err(self.io("read"))
    }

    /// Writes data at a device address.
    pub fn write_data(&self, dpa: u64, bytes: &[u8]) -> Result<()> {
        self.check_writable()?;
        let at = self.data_offset(dpa, bytes.len())?;
        self.file.write_all_at(bytes, at).map_err(self.io("write"))
    }

    /// Makes a run of data read as zeroes.
    pub fn clear_data(&self, dpa: u64, len: u64) -> Result<()> {
        self.check_writable()?;
        let at = self.data_offset(dpa, len as usize)?;
        if len == 0 { Ok(()) } else { host::punch(&self.file, at, len).map_err(self.io("clear")) }
    }

    fn data_offset(&self, dpa: u64, len: usize) -> Result<u64> {
        let end = dpa.checked_add(len as u64).filter(|&end| end <= self.record.geometry.size);
        end.map(|_| self.base() + DATA + dpa)
            .ok_or_else(|| self.io("reach the data of")(ErrorKind::InvalidInput.into()))
    }

    /// The superblock in force, and its place.
    pub(super) fn newest_superblock(&self) -> (u64, Vec<u8>) {
        let at = (self.sequence + 1) % 2 * superblock::SIZE as u64;
        // It was coded when it was written.
        (at, superblock::write(self.sequence, &self.record).unwrap_or_default())
    }

    fn write_superblock(&self, slot: u64, sequence: u64, record: &Record) -> Result<()> {
        self.check_writable()?;
        let at = slot % 2 * superblock::SIZE as u64;
        let bytes =
            superblock::write(sequence, record).map_err(|what| self.io("write")(io::Error::other(what)))?;
        self.file.write_all_at(&bytes, at).map_err(self.io("write"))
    }

    fn check_writable(&self) -> Result<()> {
        match self.hold {
            Hold::Exclusive => Ok(()),
            Hold::Shared | Hold::Private => Err(self.io("write")(ErrorKind::ReadOnlyFilesystem.into())),
        }
    }

    fn io(&self, doing: &'static str) -> impl FnOnce(io::Error) -> Error + use<> {
        Error::io(doing, self.path.clone())
    }
}

/// Says whether the disks could take all that a guest may write into these files together.
pub fn check_space<'a>(backings: impl Iterator<Item = &'a Backing>) -> Result<()> {
    let mut wanted: HashMap<u64, u64> = HashMap::new();
    for backing in backings {
        let meta = backing.file.metadata().map_err(backing.io("examine"))?;
        let have = host::free_space(&backing.file).map_err(backing.io("examine the disk of"))?;
        let need = wanted.entry(meta.dev()).or_default();
        *need += meta.len().saturating_sub(meta.blocks() * 512);
        if *need > have {
            return Err(Error::DiskFull { path: backing.path.clone(), need: *need, have });
        }
    }
    Ok(())
}

/// What is written by call, which is little, is on the disk when the call returns.
fn options(write: bool) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(write).custom_flags(if write { libc::O_DSYNC } else { 0 });
    options
}

fn read_up_to(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// The newer of two superblocks.
fn newest(path: &Path, head: &[u8]) -> Result<(u64, Record)> {
    let blocks = [0, 1].map(|n| superblock::read(head.get(n * superblock::SIZE..).unwrap_or_default()));
    let refusals: Vec<Refusal> = blocks.iter().filter_map(|b| b.as_ref().err().copied()).collect();
    if let Some(found) = blocks.into_iter().flatten().max_by_key(|b| b.0) {
        return Ok(found);
    }
    Err(
        match refusals.iter().find_map(|r| if let Refusal::Format(found) = r { Some(*found) } else { None }) {
            Some(found) => Error::Version { path: path.to_owned(), found, known: superblock::FORMAT },
            None => Error::Damaged {
                path: path.to_owned(),
                offset: 0,
                what: format!("neither superblock is whole ({refusals:?})"),
                remedy: "restore a copy; the data begin at 2 MiB, should you want to save them",
            },
        },
    )
}

/// A guess at what a file is that is none of ours.
fn looks_like(head: &[u8]) -> &'static str {
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|tail| tail.starts_with(magic));
    match () {
        () if head.is_empty() => "an empty file",
        () if at(0, b"QFI\xfb") => "a QCOW2 image",
        () if at(0, b"\x7fELF") => "an ELF file",
        () if at(0, b"XFSB") => "an XFS image",
        () if at(0x438, &[0x53, 0xef]) => "an ext2, ext3 or ext4 image",
        () if at(0x1000, b"NVDIMM_PFN_INFO") => "a raw image of a DIMM's data",
        () if at(0x1fe, &[0x55, 0xaa]) => "a disk image or a kernel",
        () if head.iter().all(|&b| b == 0) => "a file of zeroes",
        () => "a file of another kind",
    }
}

#[cfg(test)]
#[path = "backing_tests.rs"]
mod tests;
