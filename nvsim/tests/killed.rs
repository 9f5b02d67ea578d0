//! nvsim is killed, or its disk is full: whatever it was doing, each DIMM file is there whole or not at all, and opens.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use common::{exec, nvsim};
use tempfile::tempdir;

const BEFORE: &str = "printf before > /mnt/pmem0/f; sync";
const WRITES: &str =
    "for n in 1 2 3 4; do head -c 256k /dev/urandom > /mnt/pmem0/g; sync; done; nvsim-mark end";

fn run(folder: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nvsim"));
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.args(["run", "--engine", "soft", "--nvdimm", "d.nvd", "--exec", WRITES]).args(more);
    command
}

/// A later run mounts the DIMM and finds what was acknowledged.
fn sound(folder: &Path, dimm: &str) {
    nvsim(folder, &["dimm", "info", dimm]).ok();
    assert_eq!(exec(folder, "cat /mnt/pmem0/f", &["--nvdimm", dimm]).ok(), "before");
}

/// At moments all over the run, the power cut at its end among them.
#[test]
fn a_killed_run_leaves_a_dimm_that_opens_and_mounts() {
    let folder = tempdir().unwrap();
    exec(folder.path(), BEFORE, &["--nvdimm", "d.nvd,size=64M"]).ok();
    let cut = ["--record", "t.nvt", "--cut", "mark:end", "--survivors", "random:1"];
    let started = Instant::now();
    assert_eq!(run(folder.path(), &cut).status().unwrap().code(), Some(118));
    let whole = started.elapsed();
    for percent in [40, 70, 90, 97, 100] {
        fs::remove_file(folder.path().join("t.nvt")).unwrap();
        let mut killed = run(folder.path(), &cut).spawn().unwrap();
        std::thread::sleep(whole * percent / 100);
        killed.kill().unwrap();
        killed.wait().unwrap();
        sound(folder.path(), "d.nvd");
        // What the trace has is good, up to where it was cut short.
        let stats = nvsim(folder.path(), &["trace", "stats", "t.nvt"]);
        assert!(stats.code == 0 || stats.stderr.contains("cut short"), "{}", stats.stderr);
    }
}

#[test]
fn a_killed_cut_leaves_a_whole_file_or_none() {
    let folder = tempdir().unwrap();
    exec(folder.path(), BEFORE, &["--nvdimm", "d.nvd,size=64M"]).ok();
    assert_eq!(run(folder.path(), &["--record", "t.nvt"]).status().unwrap().code(), Some(0));
    let cut = |name: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nvsim"));
        command.current_dir(folder.path()).args(["cut", "t.nvt", "--at", "mark:end", "-o", name]);
        command.stdout(Stdio::null());
        command
    };
    let started = Instant::now();
    assert!(cut("whole.nvd").status().unwrap().success());
    let whole = started.elapsed();
    for percent in [20, 60, 95, 100] {
        let name = format!("{percent}.nvd");
        let mut killed = cut(&name).spawn().unwrap();
        std::thread::sleep(whole * percent / 100);
        killed.kill().unwrap();
        killed.wait().unwrap();
        if folder.path().join(&name).exists() {
            sound(folder.path(), &name);
        }
    }
    // What is unfinished has no name.
    let left = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with('.')).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// No file may grow beyond a limit: as on a full disk, writing fails.
#[test]
fn a_full_disk_is_told_and_no_dimm_is_lost() {
    let folder = tempdir().unwrap();
    exec(folder.path(), BEFORE, &["--nvdimm", "d.nvd,size=64M"]).ok();
    let limited = |blocks: u32, args: &str| {
        let nvsim = env!("CARGO_BIN_EXE_nvsim");
        // Blocks of 512 bytes. Whoever ignores the signal gets an error.
        let line = format!("trap '' XFSZ; ulimit -f {blocks}; exec {nvsim} {args}");
        let ran = Command::new("sh").current_dir(folder.path()).args(["-c", &line]).output().unwrap();
        (ran.status.code(), String::from_utf8_lossy(&ran.stderr).into_owned())
    };
    let run = format!("run --engine soft --nvdimm d.nvd --exec '{WRITES}'");
    // The trace, in the midst of the run.
    let (code, said) = limited(1200, &format!("{run} --record t.nvt"));
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("t.nvt") && said.contains("written"), "{said}");
    sound(folder.path(), "d.nvd");
    let stats = nvsim(folder.path(), &["trace", "stats", "t.nvt"]);
    assert!(stats.code == 0 || stats.stderr.contains("cut short"), "{}", stats.stderr);
    // The copy beside the DIMM that a cut needs.
    let (code, said) = limited(1200, &format!("{run} --cut mark:end"));
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("free some space beside"), "{said}");
    sound(folder.path(), "d.nvd");
    fs::remove_file(folder.path().join("t.nvt")).unwrap();
    // The files of a cut.
    exec(folder.path(), WRITES, &["--nvdimm", "d.nvd", "--record", "t.nvt"]).ok();
    let (code, said) = limited(1200, "cut t.nvt --at mark:end -o cut.nvd");
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("t.nvt") && said.contains("free some space"), "{said}");
    let left = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("cut")).collect();
    assert!(left.is_empty(), "{left:?}");
}
