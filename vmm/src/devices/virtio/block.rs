//! The block device (virtio 1.2, ch. 5.2) on a raw file, which one run holds at a time.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::str::FromStr;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use super::{Malformed, Request, VirtioDevice};
use crate::Error;
use crate::nvdimm::{Hold, lock};

/// Bytes of a sector, the unit of addresses.
const SECTOR: u64 = 512;
/// Largest segment and their largest number in a request, as told to the driver.
const SEGMENT_SIZE: u32 = 64 << 10;
const SEGMENTS: u32 = 126;
/// Data of a request at most.
const REQUEST_LIMIT: u64 = SEGMENT_SIZE as u64 * SEGMENTS as u64;
/// Bytes that move between the file and guest memory at a time.
const CHUNK: usize = 64 << 10;

/// A disk that is asked for: `FILE[,ro]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// The file.
    pub path: PathBuf,
    /// The guest may not write.
    pub read_only: bool,
}

impl FromStr for DiskSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, read_only) = match text.rsplit_once(',') {
            None => (text, false),
            Some((path, "ro")) => (path, true),
            Some((_, key)) => return Err(format!("unknown key {key:?} of a disk; the only one is \"ro\"")),
        };
        if path.is_empty() {
            return Err("a disk needs a file: FILE[,ro]".to_owned());
        }
        Ok(Self { path: path.into(), read_only })
    }
}

/// A disk.
#[derive(Debug)]
pub struct Block {
    file: File,
    bytes: u64,
    read_only: bool,
    serial: [u8; VIRTIO_BLK_ID_BYTES as usize],
    config: [u8; 24],
}

/// How a request ended, short of being malformed: the status byte.
type Status = u32;

impl Block {
    /// Opens the file and holds it; `n` makes its serial number, `diskN`.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Disk`], or the holder of the file.
    pub fn open(spec: &DiskSpec, n: u8) -> crate::Result<Self> {
        let failed = |source| Error::Read { what: "disk", path: spec.path.clone(), source };
        let file = OpenOptions::new().read(true).write(!spec.read_only).open(&spec.path).map_err(failed)?;
        lock::take(&file, &spec.path, if spec.read_only { Hold::Shared } else { Hold::Exclusive })?;
        let meta = file.metadata().map_err(failed)?;
        let bytes = meta.len();
        let refused = |reason: String| Error::Disk { path: spec.path.clone(), reason };
        if !meta.is_file() {
            return Err(refused("it is not a regular file; give a raw disk image".to_owned()));
        }
        if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
            return Err(refused(format!(
                "its size of {bytes} bytes is not a multiple of {SECTOR}; give a raw disk image"
            )));
        }
        let mut serial = [0; VIRTIO_BLK_ID_BYTES as usize];
        let name = format!("disk{n}");
        serial[..name.len()].copy_from_slice(name.as_bytes());
        let mut config = [0; 24];
        config[0..8].copy_from_slice(&(bytes / SECTOR).to_le_bytes());
        config[8..12].copy_from_slice(&SEGMENT_SIZE.to_le_bytes());
        config[12..16].copy_from_slice(&SEGMENTS.to_le_bytes());
        config[20..24].copy_from_slice(&(SECTOR as u32).to_le_bytes());
        Ok(Self { file, bytes, read_only: spec.read_only, serial, config })
    }

    /// The place of `len` bytes at a sector, if the disk has them.
    fn place(&self, sector: u64, len: u64) -> Option<u64> {
        let start = sector.checked_mul(SECTOR)?;
        let fits = start.checked_add(len)? <= self.bytes;
        (fits && len <= REQUEST_LIMIT && len.is_multiple_of(SECTOR)).then_some(start)
    }

    /// Fills `writable` from the disk; gives the status and the bytes written.
    fn read(&self, sector: u64, writable: &mut virtio_queue::Writer<'_>) -> Result<(Status, u32), Malformed> {
        let len = writable.available_bytes();
        let Some(mut place) = self.place(sector, len as u64) else { return Ok((VIRTIO_BLK_S_IOERR, 0)) };
        let mut chunk = vec![0; CHUNK.min(len)];
        let mut left = len;
        while left > 0 {
            let part = &mut chunk[..left.min(CHUNK)];
            if let Err(error) = self.file.read_exact_at(part, place) {
                tracing::warn!(%error, place, "a disk could not be read");
                return Ok((VIRTIO_BLK_S_IOERR, (len - left) as u32));
            }
            writable.write_all(part).map_err(|_| Malformed)?;
            place += part.len() as u64;
            left -= part.len();
        }
        Ok((VIRTIO_BLK_S_OK, len as u32))
    }

    /// Writes what is left of `readable` to the disk.
    fn write(&self, sector: u64, readable: &mut virtio_queue::Reader<'_>) -> Result<Status, Malformed> {
        let mut left = readable.available_bytes();
        let Some(mut place) = self.place(sector, left as u64).filter(|_| !self.read_only) else {
            return Ok(VIRTIO_BLK_S_IOERR);
        };
        let mut chunk = vec![0; CHUNK.min(left)];
        while left > 0 {
            let part = &mut chunk[..left.min(CHUNK)];
            readable.read_exact(part).map_err(|_| Malformed)?;
            if let Err(error) = self.file.write_all_at(part, place) {
                tracing::warn!(%error, place, "a disk could not be written");
                return Ok(VIRTIO_BLK_S_IOERR);
            }
            place += part.len() as u64;
            left -= part.len();
        }
        Ok(VIRTIO_BLK_S_OK)
    }

    fn flush(&self) -> Status {
        match self.file.sync_data() {
            Ok(()) => VIRTIO_BLK_S_OK,
            Err(error) => {
                tracing::warn!(%error, "a disk could not be flushed");
                VIRTIO_BLK_S_IOERR
            }
        }
    }
}

impl VirtioDevice for Block {
    fn id(&self) -> u32 {
        virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let always = [VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH];
        let read_only = u64::from(self.read_only) << VIRTIO_BLK_F_RO;
        always.iter().fold(read_only, |features, bit| features | 1 << bit)
    }

    fn queues(&self) -> &'static [u16] {
        &[128]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn process(&mut self, request: &mut Request<'_>) -> Result<u32, Malformed> {
        let Request { readable, writable } = request;
        let mut header = [0; 16];
        readable.read_exact(&mut header).map_err(|_| Malformed)?;
        let [kind, _, low, high] = std::array::from_fn(|n| {
            u32::from_le_bytes([header[n * 4], header[n * 4 + 1], header[n * 4 + 2], header[n * 4 + 3]])
        });
        let sector = u64::from(high) << 32 | u64::from(low);
        let room = writable.available_bytes().checked_sub(1).ok_or(Malformed)?;
        let mut status_byte = writable.split_at(room).map_err(|_| Malformed)?;
        let (status, written) = match kind {
            VIRTIO_BLK_T_IN => self.read(sector, writable)?,
            VIRTIO_BLK_T_OUT => (self.write(sector, readable)?, 0),
            VIRTIO_BLK_T_FLUSH => (self.flush(), 0),
            VIRTIO_BLK_T_GET_ID => {
                let serial = &self.serial[..room.min(self.serial.len())];
                writable.write_all(serial).map_err(|_| Malformed)?;
                (VIRTIO_BLK_S_OK, serial.len() as u32)
            }
            _ => (VIRTIO_BLK_S_UNSUPP, 0),
        };
        status_byte.write_all(&[status as u8]).map_err(|_| Malformed)?;
        Ok(written + 1)
    }
}
