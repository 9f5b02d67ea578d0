//! Runs the nvsim command as its users do.
#![allow(dead_code, clippy::allow_attributes, clippy::allow_attributes_without_reason)]

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Output};

use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;

/// What a run of nvsim gave.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    /// The summary of `--json`, where it was asked for.
    pub summary: Value,
}

/// `nvsim ARGS`, in a folder.
pub fn nvsim(folder: &Path, args: &[&str]) -> Ran {
    ran(
        Command::new(env!("CARGO_BIN_EXE_nvsim")).current_dir(folder).args(args).output().unwrap(),
        Value::Null,
    )
}

/// `nvsim run --exec COMMAND ARGS` on the software engine, with its summary.
pub fn exec(folder: &Path, command: &str, args: &[&str]) -> Ran {
    let summary = folder.join("summary.json");
    let _ = std::fs::remove_file(&summary);
    let output = Command::new(env!("CARGO_BIN_EXE_nvsim"))
        .current_dir(folder)
        .args([
            "run",
            "--engine",
            "soft",
            "--timeout",
            "10m",
            "--console",
            "console.txt",
            "--json",
            "--summary",
        ])
        .arg(&summary)
        .args(["--exec", command])
        .args(args)
        .output()
        .unwrap();
    let summary = std::fs::read(&summary).ok().and_then(|text| serde_json::from_slice(&text).ok());
    ran(output, summary.unwrap_or(Value::Null))
}

fn ran(output: Output, summary: Value) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        summary,
    }
}

impl Ran {
    /// The output of a command that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self.stdout
    }

    /// The JSON that a command that must have succeeded printed.
    #[track_caller]
    pub fn json(self) -> Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in:\n{text}"))
    }
}

/// Both ends of a terminal.
pub fn pty() -> (OwnedFd, File) {
    let host = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&host).unwrap();
    unlockpt(&host).unwrap();
    let name = ptsname(&host, Vec::new()).unwrap();
    let guest = rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY, rustix::fs::Mode::empty()).unwrap();
    (host, File::from(guest))
}
