//! Signals to init: children that ended, and requests to leave the machine.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use guest_agent::Exited;

use super::sys::{self, Leave};

/// Size of a signalfd_siginfo record, which begins with the signal's number.
const RECORD: usize = 128;

/// Blocked signals, read from a descriptor.
#[derive(Debug)]
pub struct Signals {
    file: File,
}

impl Signals {
    /// Blocks the signals that init reads. They stay blocked in children until [`sys::in_new_session`]
    /// unblocks them.
    pub fn new() -> io::Result<Self> {
        let signals = [libc::SIGCHLD, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2, libc::SIGINT];
        Ok(Self { file: sys::signal_descriptor(&signals)? })
    }

    /// How `child` ended, or how the machine is to be left, if either has happened. Reaps orphans by the way, when we
    /// are init; else only `child` is ours to reap.
    pub fn take(&mut self, child: u32) -> Option<Result<Exited, Leave>> {
        let mut happened = None;
        let mut record = [0; RECORD];
        while matches!(self.file.read(&mut record), Ok(RECORD)) {
            // As busybox's `halt`, `poweroff` and `reboot` ask.
            match i32::from_ne_bytes([record[0], record[1], record[2], record[3]]) {
                libc::SIGUSR1 | libc::SIGUSR2 => happened = Some(Err(Leave::PowerOff)),
                libc::SIGTERM | libc::SIGINT => happened = Some(Err(Leave::Reboot)),
                _ => {}
            }
        }
        // One SIGCHLD may stand for several children.
        let whose = (std::process::id() != 1).then_some(child);
        while let Ok(Some((pid, exited))) = sys::reap(whose) {
            if pid == child {
                happened = happened.or(Some(Ok(exited)));
            }
        }
        happened
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
