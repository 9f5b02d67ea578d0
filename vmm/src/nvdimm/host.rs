//! The host's file calls that the standard library does not have.
#![expect(unsafe_code, reason = "flock, fstatvfs and fallocate have no safe form in the standard library")]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

fn check(returned: i32) -> io::Result<()> {
    if returned == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// flock(2).
pub fn flock(file: &File, operation: i32) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `file` lives; the call touches no memory of ours.
    check(unsafe { libc::flock(file.as_raw_fd(), operation) })
}

/// Bytes that a user may still allocate in the file's file system.
pub fn free_space(file: &File) -> io::Result<u64> {
    let mut answer = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `answer` has room for the structure that the call fills.
    check(unsafe { libc::fstatvfs(file.as_raw_fd(), answer.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so it filled all of it; and all of its fields are integers.
    let answer = unsafe { answer.assume_init() };
    Ok(answer.f_bavail.saturating_mul(answer.f_frsize))
}

/// Allocates the disk space of the file's first `len` bytes, so that writing there cannot fail for want of it.
pub fn allocate(file: &File, len: u64) -> io::Result<()> {
    fallocate(file, libc::FALLOC_FL_KEEP_SIZE, 0, len)
}

/// Makes a run of the file read as zeroes and gives its space back.
pub fn punch(file: &File, offset: u64, len: u64) -> io::Result<()> {
    fallocate(file, libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE, offset, len)
}

/// The first run of the file at or after an offset that may hold something; a file system that does not know says that
/// all does.
pub fn next_data(file: &File, from: u64) -> io::Result<Option<std::ops::Range<u64>>> {
    let seek = |from: u64, whence| {
        let from = i64::try_from(from).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: the descriptor is open for as long as `file` lives; the call touches no memory of ours. Nobody uses
        // the position in the file that it changes.
        let found = unsafe { libc::lseek(file.as_raw_fd(), from, whence) };
        u64::try_from(found).map_err(|_| io::Error::last_os_error())
    };
    match seek(from, libc::SEEK_DATA) {
        Ok(start) => Ok(Some(start..seek(start, libc::SEEK_HOLE)?)),
        Err(end) if end.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

fn fallocate(file: &File, mode: i32, offset: u64, len: u64) -> io::Result<()> {
    let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let (offset, len) = (i64::try_from(offset).map_err(too_large)?, i64::try_from(len).map_err(too_large)?);
    // SAFETY: the descriptor is open for as long as `file` lives; the call touches no memory of ours.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) })
}
