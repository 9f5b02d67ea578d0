//! Guest-physical regions made of pieces of files.
#![expect(unsafe_code, reason = "pieces of files are mapped over a reservation")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use nvdimm_model::dsm::Region;
use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion};

use super::fault;
use super::plan::{MappedPiece, Plan};
use crate::memory::PersistentRegion;

/// A DIMM's file as it is mapped.
#[derive(Debug, Clone, Copy)]
pub struct MappedFile<'a> {
    /// The file.
    pub file: &'a File,
    /// Where the DIMM begins in it.
    pub base: u64,
    /// Stores stay with the mapping; else they go to the file, whatever then happens to this process.
    pub private: bool,
}

/// Maps a region; `files` are the DIMMs' files by index.
pub fn map(region: &Region, files: &[MappedFile<'_>]) -> io::Result<PersistentRegion> {
    let size = usize::try_from(region.set.size()).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let reservation: MmapRegion<()> = MmapRegion::new(size).map_err(io::Error::other)?;
    for piece in Plan::mapping(region) {
        overlay(&reservation, &piece, files[piece.dimm])?;
    }
    fault::explain(reservation.as_ptr() as usize, size);
    let placed = GuestRegionMmap::new(reservation, GuestAddress(region.base));
    Ok(Arc::new(placed.ok_or(io::ErrorKind::OutOfMemory)?))
}

/// Maps a piece of a file over its place in the reservation, which unmaps all of its range when it goes.
fn overlay(reservation: &MmapRegion<()>, piece: &MappedPiece, file: MappedFile<'_>) -> io::Result<()> {
    let (offset, len) = (piece.offset as usize, piece.len as usize);
    let fits = offset.checked_add(len).is_some_and(|end| end <= reservation.size());
    let file_offset =
        i64::try_from(file.base + piece.file_offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    if !fits {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sharing = if file.private { libc::MAP_PRIVATE } else { libc::MAP_SHARED };
    // SAFETY: the target lies within the reservation, which is ours alone and to which no reference exists yet; so
    // nothing else is replaced.
    let mapped = unsafe {
        libc::mmap(
            reservation.as_ptr().add(offset).cast(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            sharing | libc::MAP_NORESERVE | libc::MAP_FIXED,
            file.file.as_raw_fd(),
            file_offset,
        )
    };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}
