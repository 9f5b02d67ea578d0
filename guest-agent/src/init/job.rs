//! Running what the host sent, its output kept apart.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};

use guest_agent::{Exited, FromGuest, Job};

use super::channel::Channel;
use super::signals::Signals;
use super::sys;

/// What a shell says of a command that it cannot start.
const NOT_STARTED: Exited = Exited::Status(127);

/// The environment of everything that runs in the guest.
pub const ENVIRONMENT: [(&str, &str); 4] =
    [("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/root"), ("USER", "root"), ("LANG", "C.UTF-8")];

/// The command that a job stands for. A script is first written to `script`.
pub fn command(job: &Job, script: &Path) -> io::Result<Command> {
    let os = |bytes: &[u8]| std::ffi::OsString::from_vec(bytes.to_vec());
    let mut command = match job {
        Job::Program(words) => {
            let (program, arguments) =
                words.split_first().ok_or_else(|| io::Error::other("the host named no program"))?;
            let mut command = Command::new(os(program));
            command.args(arguments.iter().map(|word| os(word)));
            command
        }
        Job::Command(line) => {
            let mut command = Command::new("/bin/sh");
            command.arg("-c").arg(os(line));
            command
        }
        Job::Script(text) if text.starts_with(b"#!") => {
            fs::write(script, text)?;
            fs::set_permissions(script, fs::Permissions::from_mode(0o700))?;
            Command::new(script)
        }
        Job::Script(text) => {
            fs::write(script, text)?;
            let mut command = Command::new("/bin/sh");
            command.arg(script);
            command
        }
        Job::Shell { .. } => return Err(io::Error::other("a shell is no command")),
    };
    command.env_clear().envs(ENVIRONMENT).env("TERM", "dumb");
    Ok(command)
}

/// Runs `command` to its end and passes on its output as it comes. What its own children still hold open when it has
/// ended is not waited for. Gives `Err` when the machine is to be left instead.
pub fn run(
    command: &mut Command,
    signals: &mut Signals,
    mut send: impl FnMut(FromGuest),
) -> Result<Exited, sys::Leave> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    sys::in_new_session(command, false);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) => {
            let program = command.get_program().display().to_string();
            send(FromGuest::Stderr(format!("nvsim: cannot run {program}: {e}\n").into_bytes()));
            return Ok(NOT_STARTED);
        }
    };
    let mut output = Output::of(&mut child);
    let process = sys::process_descriptor(child.id());
    loop {
        let mut files = vec![signals.as_fd()];
        files.extend(process.iter().map(AsFd::as_fd));
        files.extend(output.pipes());
        let _ = sys::wait_readable(&files);
        // First see whether it has ended, then read what it had written by then.
        let happened = signals.take(child.id());
        output.pass_on(&mut send);
        if let Some(happened) = happened {
            return happened;
        }
    }
}

/// The pipes of a child.
struct Output {
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
}

impl Output {
    fn of(child: &mut Child) -> Self {
        let output = Self { stdout: child.stdout.take(), stderr: child.stderr.take() };
        for pipe in output.pipes() {
            // A pipe that stays blocking costs a wait, not an answer.
            let _ = sys::set_nonblocking(pipe);
        }
        output
    }

    fn pipes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.stdout.iter().map(AsFd::as_fd).chain(self.stderr.iter().map(AsFd::as_fd))
    }

    fn pass_on(&mut self, send: &mut impl FnMut(FromGuest)) {
        pump(&mut self.stdout, |data| send(FromGuest::Stdout(data)));
        pump(&mut self.stderr, |data| send(FromGuest::Stderr(data)));
    }
}

/// Passes on all that a pipe has, and closes it at its end.
fn pump(pipe: &mut Option<impl Read>, mut send: impl FnMut(Vec<u8>)) {
    let mut buffer = vec![0; guest_agent::MAX_PAYLOAD];
    while let Some(reader) = pipe {
        match reader.read(&mut buffer) {
            Ok(count) if count > 0 => send(buffer[..count].to_vec()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            _ => *pipe = None,
        }
    }
}

/// Runs a shell on the console until it ends. The host tells through `channel` when the window changes.
pub fn shell(
    console: &Path,
    term: &str,
    signals: &mut Signals,
    mut channel: Option<&mut Channel>,
) -> Result<Exited, sys::Leave> {
    let open = || File::options().read(true).write(true).open(console);
    let mut command = Command::new("/bin/sh");
    let started = open().and_then(|terminal| {
        command.arg("-l").current_dir("/root").env_clear().envs(ENVIRONMENT).env("TERM", term);
        command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal.try_clone()?);
        sys::in_new_session(&mut command, true);
        Ok((command.spawn()?, terminal))
    });
    let (child, terminal) = match started {
        Ok(started) => started,
        Err(e) => {
            println!("nvsim: cannot run a shell on {}: {e}", console.display());
            return Ok(NOT_STARTED);
        }
    };
    loop {
        let mut files = vec![signals.as_fd()];
        files.extend(channel.iter().map(|channel| channel.as_fd()));
        let ready = sys::wait_readable(&files).unwrap_or_default();
        if let (Some(true), Some(line)) = (ready.get(1), &mut channel) {
            match line.message() {
                Ok(Some(guest_agent::FromHost::Resize { rows, columns })) => {
                    let _ = sys::set_window(&terminal, rows, columns);
                }
                Ok(_) => {}
                Err(_) => channel = None,
            }
        }
        if let Some(happened) = signals.take(child.id()) {
            return happened;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(job: &Job) -> (Vec<u8>, Vec<u8>, Exited) {
        let folder = std::env::temp_dir().join(format!("nvsim-agent-{:?}", std::thread::current().id()));
        let mut command = command(job, &folder).unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exited = run(&mut command, &mut Signals::new().unwrap(), |message| match message {
            FromGuest::Stdout(data) => out.extend(data),
            FromGuest::Stderr(data) => err.extend(data),
            other => panic!("{other:?}"),
        });
        let _ = fs::remove_file(folder);
        (out, err, exited.unwrap())
    }

    /// One test, because signals are blocked by thread and children are the process's.
    #[test]
    fn jobs_end_with_their_status_and_output() {
        let (out, err, exited) = outcome(&Job::Command(b"echo out; echo err >&2; exit 3".to_vec()));
        assert_eq!((&*out, &*err, exited), (&b"out\n"[..], &b"err\n"[..], Exited::Status(3)));

        let (_, _, exited) = outcome(&Job::Command(b"kill -9 $$".to_vec()));
        assert_eq!(exited, Exited::Signal(9));

        let (out, _, _) =
            outcome(&Job::Program(vec![b"/bin/echo".to_vec(), b"a b".to_vec(), b"\xff".to_vec()]));
        assert_eq!(out, b"a b \xff\n");

        let (_, err, exited) = outcome(&Job::Program(vec![b"/does/not/exist".to_vec()]));
        assert_eq!(exited, Exited::Status(127));
        assert!(String::from_utf8(err).unwrap().contains("/does/not/exist"));

        let (out, _, _) = outcome(&Job::Script(b"read line && echo got || echo no input\n".to_vec()));
        assert_eq!(out, b"no input\n");
        let (out, _, _) = outcome(&Job::Script(b"#!/bin/sh -e\necho one; false; echo two".to_vec()));
        assert_eq!(out, b"one\n");

        let (out, _, exited) = outcome(&Job::Command(b"head -c 1000000 /dev/zero".to_vec()));
        assert_eq!((out.len(), exited), (1_000_000, Exited::Status(0)));

        // A child left behind holds the pipes open.
        let start = std::time::Instant::now();
        let (out, _, _) = outcome(&Job::Command(b"sleep 20 & echo done".to_vec()));
        assert_eq!(out, b"done\n");
        assert!(start.elapsed().as_secs() < 10);
    }
}
