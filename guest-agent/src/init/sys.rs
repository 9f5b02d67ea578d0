//! The system calls that std has no safe form of.
#![expect(unsafe_code, reason = "init is made of system calls that std does not wrap")]

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use guest_agent::Exited;

/// How the machine is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Power off.
    PowerOff,
    /// Start again.
    Reboot,
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn c_string(text: impl AsRef<OsStr>) -> io::Result<CString> {
    CString::new(text.as_ref().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// mount(2) with no flags.
pub fn mount(source: &str, target: &Path, kind: &str, data: &str) -> io::Result<()> {
    let (source, target, kind, data) =
        (c_string(source)?, c_string(target)?, c_string(kind)?, c_string(data)?);
    // SAFETY: all four are NUL-terminated strings that live through the call.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, data.as_ptr().cast()) })?;
    Ok(())
}

/// umount2(2); `lazy` detaches it now and cleans up when it is no longer used.
pub fn unmount(target: &Path, lazy: bool) -> io::Result<()> {
    let target = c_string(target)?;
    // SAFETY: a NUL-terminated string that lives through the call.
    check(unsafe { libc::umount2(target.as_ptr(), if lazy { libc::MNT_DETACH } else { 0 }) })?;
    Ok(())
}

/// Loads an uncompressed module.
pub fn load_module(file: &File, parameters: &str) -> io::Result<()> {
    let parameters = c_string(parameters)?;
    // SAFETY: finit_module(2) takes a descriptor, a NUL-terminated string that lives through the call, and flags.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) };
    check(result as libc::c_int)?;
    Ok(())
}

/// Sets the host name.
pub fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length are of one string.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })?;
    Ok(())
}

/// Writes everything back and leaves. Comes back only when the kernel refuses.
pub fn leave(how: Leave) -> io::Error {
    let command = match how {
        Leave::PowerOff => libc::RB_POWER_OFF,
        Leave::Reboot => libc::RB_AUTOBOOT,
    };
    // SAFETY: neither call takes a pointer.
    unsafe {
        libc::sync();
        libc::reboot(command);
    }
    io::Error::last_os_error()
}

/// Sends a signal to all processes but init.
pub fn signal_all(signal: libc::c_int) {
    // SAFETY: kill(2) takes no pointer; -1 leaves out the caller, and PID 1.
    unsafe { libc::kill(-1, signal) };
}

/// A descriptor that reads one record for each of `signals`, which are blocked.
pub fn signal_descriptor(signals: &[libc::c_int]) -> io::Result<File> {
    // SAFETY: the set is initialised by sigemptyset before its use; signalfd gives a new descriptor that we own.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for &signal in signals {
            libc::sigaddset(&mut set, signal);
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()))?;
        let fd = check(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(File::from_raw_fd(fd))
    }
}

/// A descriptor that can be read when process `pid`, a child of ours, has ended. Kernels before 5.3 have none; there, and
/// everywhere else, SIGCHLD tells it too.
pub fn process_descriptor(pid: u32) -> Option<OwnedFd> {
    // SAFETY: pidfd_open(2) takes integers; it gives a new descriptor, which we own.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_pidfd_open, pid, 0) as libc::c_int).ok()?;
        Some(OwnedFd::from_raw_fd(fd))
    }
}

/// A child that ended: `pid` or, when that is `None`, any. `None` while none has.
pub fn reap(pid: Option<u32>) -> io::Result<Option<(u32, Exited)>> {
    let mut status = 0;
    let which = pid.map_or(-1, |pid| pid as libc::pid_t);
    // SAFETY: `status` is a valid place for the result.
    let ended = check(unsafe { libc::waitpid(which, &mut status, libc::WNOHANG) })?;
    let exited = if libc::WIFEXITED(status) {
        Exited::Status(libc::WEXITSTATUS(status) as u8)
    } else {
        Exited::Signal(libc::WTERMSIG(status) as u8)
    };
    Ok((ended > 0).then_some((ended as u32, exited)))
}

/// Waits until one of `files` can be read or was closed at its other end, and tells which.
pub fn wait_readable(files: &[BorrowedFd<'_>]) -> io::Result<Vec<bool>> {
    let mut polls: Vec<_> = files
        .iter()
        .map(|file| libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    loop {
        // SAFETY: pointer and length are of one vector.
        match check(unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, -1) }) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
            Ok(_) => return Ok(polls.iter().map(|poll| poll.revents != 0).collect()),
        }
    }
}

/// Lets reads of `file` give `WouldBlock` instead of waiting.
pub fn set_nonblocking(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: fcntl(2) with integers only, on a descriptor that is open.
    unsafe {
        let flags = check(libc::fcntl(file.as_raw_fd(), libc::F_GETFL))?;
        check(libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK))?;
    }
    Ok(())
}

/// Takes all meaning from a terminal's bytes, at 115200 baud.
pub fn make_raw(terminal: &File) -> io::Result<()> {
    // SAFETY: tcgetattr fills the structure before it is used.
    unsafe {
        let mut settings = std::mem::zeroed();
        check(libc::tcgetattr(terminal.as_raw_fd(), &mut settings))?;
        libc::cfmakeraw(&mut settings);
        settings.c_cflag = settings.c_cflag & !libc::CBAUD | libc::B115200 | libc::CLOCAL | libc::CREAD;
        check(libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &settings))?;
    }
    Ok(())
}

/// Waits until all that was written to a terminal is sent.
pub fn drain(terminal: &File) {
    // SAFETY: takes a descriptor only. A terminal that cannot be drained has nothing to wait for.
    unsafe { libc::tcdrain(terminal.as_raw_fd()) };
}

/// Tells a terminal, and whoever runs in its foreground, its size.
pub fn set_window(terminal: &File, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) })?;
    Ok(())
}

/// Lets `command` lead a session of its own, with its standard input as controlling terminal when `terminal` is set, and
/// without the signals blocked that init blocks, which it would inherit.
pub fn in_new_session(command: &mut Command, terminal: bool) {
    let enter = move || {
        // SAFETY: all calls are allowed between fork and exec; the set is initialised by sigemptyset before its use.
        unsafe {
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            check(libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()))?;
            check(libc::setsid())?;
            if terminal {
                check(libc::ioctl(0, libc::TIOCSCTTY, 1))?;
            }
        }
        Ok(())
    };
    // SAFETY: `enter` makes only async-signal-safe calls.
    unsafe { command.pre_exec(enter) };
}
