//! The host's file calls that the standard library does not have.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fstatvfs, seek};
use rustix::io::Errno;

/// Bytes that a user may still allocate in the file's file system.
pub fn free_space(file: &File) -> io::Result<u64> {
    let answer = fstatvfs(file)?;
    Ok(answer.f_bavail.saturating_mul(answer.f_frsize))
}

/// Allocates the disk space of the file's first `len` bytes, so that writing there cannot fail for want of it.
pub fn allocate(file: &File, len: u64) -> io::Result<()> {
    Ok(fallocate(file, FallocateFlags::KEEP_SIZE, 0, len)?)
}

/// Makes a run of the file read as zeroes and gives its space back.
pub fn punch(file: &File, offset: u64, len: u64) -> io::Result<()> {
    Ok(fallocate(file, FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE, offset, len)?)
}

/// The first run of the file at or after an offset that may hold something; a file system that does not know says that
/// all does. Moves the position in the file, which nobody uses.
pub fn next_data(file: &File, from: u64) -> io::Result<Option<Range<u64>>> {
    match seek(file, SeekFrom::Data(from)) {
        Ok(start) => Ok(Some(start..seek(file, SeekFrom::Hole(start))?)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
