//! `nvsim-store HOW FILE OFFSET LEN BYTE [MARK]`: stores bytes into a file so that they shall survive a power cut, and then
//! sets a mark: from there on they are acknowledged. Behind a mark may follow another store, HOW and all.
//!
//! | HOW | |
//! |---|---|
//! | write | write(2), fsync(2) |
//! | mmap | stores to a shared mapping, msync(2) |
//! | sync | stores to a mapping with MAP_SYNC, CLWB of each line, SFENCE: no system call |
#![expect(unsafe_code, reason = "files are mapped and lines flushed")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::mark;

const USAGE: &str = "usage: nvsim-store write|mmap|sync FILE OFFSET LEN BYTE [MARK [write|mmap|sync ...]]";
const PAGE: u64 = 4096;
const LINE: usize = 64;

/// Does what the arguments say.
pub fn run(words: &[String]) -> Result<(), String> {
    match words {
        [] => Err(USAGE.to_owned()),
        words => words.chunks(6).try_for_each(store),
    }
}

/// One store and its mark.
fn store(words: &[String]) -> Result<(), String> {
    let (how, file, offset, len, byte, name) = match words {
        [how, file, offset, len, byte] => (how, file, offset, len, byte, None),
        [how, file, offset, len, byte, name] => (how, file, offset, len, byte, Some(name)),
        _ => return Err(USAGE.to_owned()),
    };
    let number = |text: &String| text.parse::<u64>().map_err(|_| format!("{text} is no number; {USAGE}"));
    let (offset, len) = (number(offset)?, number(len)?);
    let &[byte] = byte.as_bytes() else { return Err(format!("{byte:?} is not one byte; {USAGE}")) };
    let failed = |e: io::Error| format!("{how} {file}: {e}");
    let opened = OpenOptions::new().read(true).write(true).open(file).map_err(failed)?;
    let done = match how.as_str() {
        "write" => write(&opened, offset, &vec![byte; len as usize]),
        "mmap" => map(&opened, offset, len, byte, false),
        "sync" => map(&opened, offset, len, byte, true),
        _ => return Err(USAGE.to_owned()),
    };
    done.map_err(failed)?;
    name.map_or(Ok(()), |name| mark::set(name))
}

fn write(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    file.write_all_at(bytes, offset)?;
    file.sync_all()
}

fn map(file: &File, offset: u64, len: u64, byte: u8, sync: bool) -> io::Result<()> {
    let too_large = || io::Error::from(io::ErrorKind::InvalidInput);
    let end = offset.checked_add(len).filter(|_| len > 0).ok_or_else(too_large)?;
    if end > file.metadata()?.len() {
        return Err(io::Error::other("the stretch is not within the file"));
    }
    let start = offset / PAGE * PAGE;
    let size = usize::try_from(end - start).map_err(|_| too_large())?;
    let flags = if sync { libc::MAP_SHARED_VALIDATE | libc::MAP_SYNC } else { libc::MAP_SHARED };
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let at = i64::try_from(start).map_err(|_| too_large())?;
    // SAFETY: a new mapping at a place that the kernel chooses.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), size, protection, flags, file.as_raw_fd(), at) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let first = base.cast::<u8>().wrapping_add((offset - start) as usize);
    // SAFETY: the stretch is within the mapping and the file; nobody else here knows of it.
    unsafe { first.write_bytes(byte, len as usize) };
    if sync {
        let lines = (first.addr() / LINE)..=((first.addr() + len as usize - 1) / LINE);
        for line in lines {
            // SAFETY: within the mapping. Every x86-64 machine of nvsim has CLWB.
            unsafe {
                std::arch::asm!("clwb [{}]", in(reg) line * LINE, options(nostack, preserves_flags));
            }
        }
        // SAFETY: orders, and touches nothing.
        unsafe { std::arch::asm!("sfence", options(nostack, preserves_flags)) };
        return Ok(());
    }
    // SAFETY: exactly the mapping.
    if unsafe { libc::msync(base, size, libc::MS_SYNC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
