//! Who holds a DIMM's file: an advisory lock on the open file, which the host drops with the last process that has it,
//! however that ends.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::{Error, Result};

/// How a file is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// By any number of readers.
    Shared,
    /// By one run.
    Exclusive,
    /// By nobody: what is written stays with the one who has it open, and the file is as it was.
    Private,
}

/// Takes the lock or says who has it; does not wait.
pub fn take(file: &File, path: &Path, hold: Hold) -> Result<()> {
    let operation = match hold {
        Hold::Shared => FlockOperation::NonBlockingLockShared,
        Hold::Exclusive => FlockOperation::NonBlockingLockExclusive,
        Hold::Private => return Ok(()),
    };
    match flock(file, operation).map_err(io::Error::from) {
        Ok(()) => Ok(()),
        Err(source) if source.kind() == io::ErrorKind::WouldBlock => Err(Error::Busy {
            path: path.to_owned(),
            holder: holder(file).unwrap_or("another process".to_owned()),
        }),
        Err(source) => Err(Error::Io { doing: "lock", path: path.to_owned(), source }),
    }
}

/// The process that holds a lock on the file, by the kernel's list of locks.
fn holder(file: &File) -> Option<String> {
    let meta = file.metadata().ok()?;
    let device = meta.dev();
    let inode = format!("{:02x}:{:02x}:{}", libc::major(device), libc::minor(device), meta.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let pid: u32 = locks
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        // A waiter's line has an arrow as its second word.
        .find(|words| words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&inode.as_str()))?
        .get(4)?
        .parse()
        .ok()?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(match name.trim() {
        "" => format!("process {pid}"),
        name => format!("process {pid} ({name})"),
    })
}
