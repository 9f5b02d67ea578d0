//! Traces of real runs, and what `nvsim trace` shows of them.

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{exec, nvsim, pty};
use serde_json::Value;
use tempfile::tempdir;

/// Writes a file from each of two processors, one after the other, between two marks.
const BOTH: &str = "echo old > /mnt/pmem0/f; sync; nvsim-mark begin; \
     for n in 0 1; do taskset $((n + 1)) dd if=/dev/urandom of=/mnt/pmem0/g$n bs=4k count=3 conv=fsync 2>/dev/null; done; \
     nvsim-mark end; echo later > /mnt/pmem0/h; sync";

/// What `trace show` or `grep` prints, an object an event.
fn events(folder: &Path, args: &[&str]) -> Vec<Value> {
    let text = nvsim(folder, &[&["trace"], args, &["--json"]].concat()).ok();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn two_processors_are_recorded_in_order_wholly_and_in_a_window() {
    let folder = tempdir().unwrap();
    let run = |dimm: &str, trace: &str, more: &[&str]| {
        let dimm = format!("{dimm},size=64M,serial=7");
        exec(folder.path(), BOTH, &[&["--cpus", "2", "--nvdimm", &dimm, "--record", trace], more].concat())
            .ok()
    };
    run("a.nvd", "whole.nvt", &[]);
    run("b.nvd", "part.nvt", &["--window", "begin..end"]);
    // Stores and flushes of the part are those of the whole between the marks: who, where, when, and by which calls.
    let told = |trace: &str, between: &[&str]| {
        let mut events = events(
            folder.path(),
            &[&["grep", trace, "--kind", "store,ntstore,locked,clwb"], between].concat(),
        );
        for event in &mut events {
            event.as_object_mut().unwrap().remove("event");
        }
        events
    };
    let whole = told("whole.nvt", &["--from", "mark:begin", "--to", "mark:end"]);
    assert!(whole.len() > 500, "{}", whole.len());
    assert_eq!(told("part.nvt", &[]), whole);
    for vcpu in 0..2 {
        let own = whole.iter().filter(|event| event["vcpu"] == vcpu).count();
        assert!(own > 100, "vCPU {vcpu} has {own} events");
    }
    let instructions: Vec<u64> = whole.iter().map(|event| event["instruction"].as_u64().unwrap()).collect();
    assert!(instructions.is_sorted());
    let window = events(folder.path(), &["show", "part.nvt"]);
    let (first, last) = (window.first().unwrap(), window.last().unwrap());
    assert_eq!((&first["mark"], &last["mark"]), (&"begin".into(), &"end".into()));

    found(folder.path());
    paged_and_coloured(folder.path());
    refused(folder.path());
}

#[test]
fn the_interpreters_trace_is_the_translators() {
    let folder = tempdir().unwrap();
    let work = "dd if=/dev/urandom of=/mnt/pmem0/a bs=4k count=16 2>/dev/null; sync; nvsim-mark begin; \
         for n in 1 2; do taskset $n cp /mnt/pmem0/a /mnt/pmem0/b$n; done; sync; nvsim-mark end";
    let told = |engine: &str| {
        let (dimm, trace) = (format!("{engine}.nvd,size=64M,serial=7"), format!("{engine}.nvt"));
        let args = ["run", "--engine", engine, "--timeout", "10m", "--cpus", "2", "--exec", work];
        nvsim(folder.path(), &[&args[..], &["--nvdimm", &dimm, "--record", &trace]].concat()).ok();
        events(folder.path(), &["grep", &trace, "--from", "mark:begin", "--to", "mark:end"])
    };
    let (soft, interp) = (told("soft"), told("interp"));
    // Two copies of 64 KiB, in words.
    let copied = soft.iter().filter(|event| event["kind"] == "ntstore").count();
    assert!(copied > 2 * 8192, "{copied}");
    let first = soft.iter().zip(&interp).position(|(a, b)| a != b);
    assert_eq!(first.map(|n| (&soft[n], &interp[n])), None);
    assert_eq!(soft.len(), interp.len());
}

/// What `grep` looks for.
fn found(folder: &Path) {
    let line = |event: &Value| event["address"].as_str().unwrap().to_owned();
    let stores = events(folder, &["grep", "part.nvt", "--kind", "ntstore"]);
    assert!(stores.iter().all(|event| event["kind"] == "ntstore"));
    let at = line(&stores[0]);
    let there = events(folder, &["grep", "part.nvt", "--address", &at]);
    assert!(!there.is_empty() && there.len() < 10, "{there:?}");
    let second = events(folder, &["grep", "part.nvt", "--vcpu", "1", "--kind", "ntstore"]);
    assert!(!second.is_empty() && second.len() < stores.len());
    let marks = nvsim(folder, &["trace", "grep", "part.nvt", "--text", "begin"]).ok();
    assert_eq!(marks.lines().filter(|line| line.contains("mark")).count(), 1, "{marks}");
    assert_eq!(
        events(folder, &["grep", "part.nvt", "--kind", "hint", "--vcpu", "1", "--text", "nonesuch"]).len(),
        0
    );
}

/// A person sees colours, by way of the pager of their choice; nobody else does.
fn paged_and_coloured(folder: &Path) {
    let show = |colours: &str| {
        let (host, guest) = pty();
        let mut shown = Command::new(env!("CARGO_BIN_EXE_nvsim"))
            .current_dir(folder)
            .args(["trace", "grep", "part.nvt", "--kind", "mark"])
            .env("PAGER", "sed 's/^/paged: /'")
            .env("NO_COLOR", colours)
            .stdin(Stdio::null())
            .stdout(guest)
            .spawn()
            .unwrap();
        assert!(shown.wait().unwrap().success());
        let mut text = vec![0; 1 << 16];
        let n = File::from(host).read(&mut text).unwrap();
        String::from_utf8(text[..n].to_vec()).unwrap()
    };
    let (coloured, plain) = (show(""), show("1"));
    assert!(coloured.starts_with("paged: ") && coloured.contains("\x1b["), "{coloured:?}");
    assert!(plain.starts_with("paged: ") && !plain.contains('\x1b'), "{plain:?}");
    let piped = nvsim(folder, &["trace", "grep", "part.nvt", "--kind", "mark"]).ok();
    assert!(!piped.contains("paged") && !piped.contains('\x1b'), "{piped:?}");
}

/// A trace is of its own DIMMs, and of nothing else.
fn refused(folder: &Path) {
    let two = nvsim(folder, &["cut", "part.nvt", "--at", "mark:end", "-o", "x.nvd", "-o", "y.nvd"]);
    assert_eq!(two.code, 125);
    assert!(two.stderr.contains("has 1 NV-DIMMs (b.nvd), but 2 output files"), "{}", two.stderr);
    fs::write(folder.join("picks"), r#"{"0x7000000000": {"kept": 1}}"#).unwrap();
    let foreign =
        nvsim(folder, &["cut", "part.nvt", "--at", "mark:end", "--survivors", "picks", "-o", "x.nvd"]);
    assert!(foreign.code == 125 && foreign.stderr.contains("0x7000000000"), "{}", foreign.stderr);
    assert!(!folder.join("x.nvd").exists());
}

/// Ctrl-C, or a signal, ends a recording in order: the trace is whole.
#[test]
fn an_interrupted_recording_leaves_a_whole_trace() {
    let folder = tempdir().unwrap();
    let command = "nvsim-mark begin; while :; do head -c 64k /dev/urandom > /mnt/pmem0/f; done";
    let mut run = Command::new(env!("CARGO_BIN_EXE_nvsim"))
        .current_dir(folder.path())
        .args([
            "run",
            "--engine",
            "soft",
            "--nvdimm",
            "d.nvd,size=64M",
            "--record",
            "t.nvt",
            "--exec",
            command,
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let len = || fs::metadata(folder.path().join("t.nvt")).map_or(0, |meta| meta.len());
    while len() < 3 << 20 {
        assert_eq!(run.try_wait().unwrap(), None);
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = rustix::process::Pid::from_child(&run);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(123));
    let stats = nvsim(folder.path(), &["trace", "stats", "t.nvt", "--json"]).json();
    assert_eq!(stats["end"]["outcome"], "Stopped", "{stats:#}");
    nvsim(folder.path(), &["cut", "t.nvt", "--at", "mark:begin", "-o", "cut.nvd"]).ok();
}
