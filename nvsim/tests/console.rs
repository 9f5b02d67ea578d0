//! The console as a person and as a pipe use it.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::pty;
use rustix::termios::{LocalModes, tcgetattr};

const NVSIM: &str = env!("CARGO_BIN_EXE_nvsim");
const PATIENCE: Duration = Duration::from_secs(300);

/// What appeared on a terminal so far, read by a thread.
#[derive(Clone)]
struct Screen(Arc<Mutex<String>>);

impl Screen {
    fn of(mut host: File) -> Self {
        let screen = Self(Arc::default());
        let shown = screen.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = host.read(&mut buffer) {
                shown.0.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        screen
    }

    /// Waits for a text behind what was seen before; gives where it ends.
    #[track_caller]
    fn expect(&self, text: &str, from: usize) -> usize {
        let started = Instant::now();
        loop {
            let shown = self.0.lock().unwrap().clone();
            if let Some(at) = shown.get(from..).and_then(|rest| rest.find(text)) {
                return from + at + text.len();
            }
            assert!(started.elapsed() < PATIENCE, "no {text:?} on the screen:\n{shown}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_person_types_ahead_interrupts_a_command_and_pulls_the_plug() {
    let (host, terminal) = pty();
    let before = tcgetattr(&terminal).unwrap();
    let stream = || Stdio::from(terminal.try_clone().unwrap());
    let mut child = Command::new(NVSIM)
        .args(["run", "--engine", "soft"])
        .stdin(stream())
        .stdout(stream())
        .stderr(stream())
        .spawn()
        .unwrap();
    let mut keys = File::from(host);
    let screen = Screen::of(keys.try_clone().unwrap());
    // Before the guest has a shell, or a kernel.
    keys.write_all(b"echo typed-$((40 + 2))\r").unwrap();
    let at = screen.expect("typed-42", 0);
    let at = screen.expect("# ", at);
    assert!(!tcgetattr(&terminal).unwrap().local_modes.contains(LocalModes::ICANON), "the terminal is raw");
    keys.write_all(b"sleep 1000; echo left-$?\r").unwrap();
    let at = screen.expect("left-$?", at);
    std::thread::sleep(Duration::from_millis(500));
    keys.write_all(b"\x03").unwrap();
    let at = screen.expect("# ", at);
    keys.write_all(b"echo status-$?\r").unwrap();
    screen.expect("status-130", at);
    keys.write_all(b"\x1d").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(123));
    let after = tcgetattr(&terminal).unwrap();
    assert_eq!(
        (after.local_modes, after.input_modes, after.output_modes),
        (before.local_modes, before.input_modes, before.output_modes)
    );
}

#[test]
fn a_shell_fed_from_a_pipe_runs_it_all_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(NVSIM)
        .args(["run", "--engine", "soft", "--timeout", "5m", "--nvdimm", "a.nvd,size=64M"])
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"echo first-$((1 + 1))\ngrep -c dax /proc/mounts").unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{:?}\n{text}", output.status);
    assert!(text.contains("first-2\r\n") && text.contains("1\r\n"), "{text}");
    // A kernel that works says nothing to a person.
    assert!(!text.contains("PCI: "), "{text}");
}

#[test]
fn a_run_that_is_asked_to_end_ends_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(NVSIM)
        .args(["run", "--engine", "soft", "--nvdimm", "a.nvd,size=64M", "--exec", "sleep 1000000"])
        .current_dir(folder.path())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !folder.path().join("a.nvd").exists() {
        assert!(started.elapsed() < PATIENCE && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_secs(1));
    let id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(123));
    common::nvsim(folder.path(), &["dimm", "info", "a.nvd"]).ok();
}
