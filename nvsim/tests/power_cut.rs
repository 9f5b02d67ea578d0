//! Power cuts, from the command line to the bytes that are left.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{exec, nvsim};
use tempfile::tempdir;

/// Where the first block of an fsdax namespace is in a DIMM's file: behind what the file says of itself, and the page map.
const FIRST_BLOCK: u64 = 4 << 20;

#[test]
fn a_run_and_its_trace_are_cut_alike_and_what_is_left_boots() {
    let folder = tempdir().unwrap();
    let command = "printf before > /mnt/pmem0/f; sync; nvsim-mark begin; dd if=/dev/urandom of=/mnt/pmem0/g bs=4k count=20; sync";
    let args = [
        "--nvdimm",
        "d.nvd,size=64M",
        "--record",
        "run.nvt",
        "--cut",
        "after:begin,store:700",
        "--survivors",
        "random:3",
    ];
    let ran = exec(folder.path(), command, &args);
    assert_eq!((ran.code, &ran.summary["outcome"]), (118, &"PowerCut".into()), "{}", ran.stderr);
    let cut = &ran.summary["recording"]["cut"];
    assert!(cut["lines_in_doubt"].as_u64() > Some(0), "{cut}");

    let again = |survivors: &str, file: &str| {
        let args = [
            "cut",
            "run.nvt",
            "--at",
            "after:begin,store:700",
            "--survivors",
            survivors,
            "-o",
            file,
            "--json",
        ];
        nvsim(folder.path(), &args).json()
    };
    assert_eq!(again("random:3", "same.nvd")["outcome"], cut["outcome"]);
    let file = |name: &str| fs::read(folder.path().join(name)).unwrap();
    assert!(file("same.nvd") == file("d.nvd"), "the run and its trace leave different files");
    assert_ne!(again("none", "none.nvd")["outcome"], cut["outcome"]);

    for dimm in ["d.nvd", "none.nvd"] {
        let read = exec(folder.path(), "cat /mnt/pmem0/f", &["--nvdimm", dimm]);
        assert_eq!(read.ok(), "before");
        // That a shutdown was dirty is counted.
        let health = nvsim(folder.path(), &["dimm", "info", "--json", dimm]).ok();
        assert!(health.contains("\"dirty_shutdowns\": 1"), "{health}");
    }
    bad_traces(folder.path());
}

/// A trace that is damaged, cut short, or asked for what it does not have.
fn bad_traces(folder: &Path) {
    let cut = |trace: &str, at: &str| nvsim(folder, &["cut", trace, "--at", at, "-o", "bad.nvd"]);
    let never = cut("run.nvt", "mark:nonesuch");
    assert_eq!(never.code, 119);
    assert!(never.stderr.contains("mark:nonesuch never came"), "{}", never.stderr);
    let whole = fs::read(folder.join("run.nvt")).unwrap();
    fs::write(folder.join("short.nvt"), &whole[..whole.len() - 10]).unwrap();
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 1;
    fs::write(folder.join("changed.nvt"), changed).unwrap();
    fs::write(folder.join("foreign.nvt"), "nothing of the kind, though long enough").unwrap();
    for (trace, part) in [
        ("short.nvt", "short.nvt: The trace is cut short at offset 0x"),
        ("changed.nvt", "changed.nvt: The trace is damaged at offset 0x"),
        ("foreign.nvt", "foreign.nvt: This is no trace of nvsim"),
    ] {
        let refused = cut(trace, "mark:nonesuch");
        assert_eq!(refused.code, 125);
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
        assert!(!folder.join("bad.nvd").exists());
    }
    fs::write(folder.join("picks.json"), r#"{"0x40": {"kept": 1}}"#).unwrap();
    let args = ["cut", "run.nvt", "--at", "mark:begin", "--survivors", "picks.json", "-o", "bad.nvd"];
    let refused = nvsim(folder, &args);
    assert_eq!(refused.code, 125);
    assert!(refused.stderr.contains("0x40"), "{}", refused.stderr);
    let refused = nvsim(folder, &["cut", "run.nvt", "--at", "mark:begin", "-o", "d.nvd"]);
    assert!(refused.code == 125 && refused.stderr.contains("exists already"), "{}", refused.stderr);
}

/// The workloads of faults.sh whose acknowledged data a power cut right after can lose, as `FS-FAULT-HOW`.
fn losses(domain: &str) -> BTreeSet<String> {
    let folder = tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults.sh");
    let (ext4, xfs) =
        (format!("0.nvd,size=64M,domain={domain}"), format!("1.nvd,size=64M,fs=xfs,domain={domain}"));
    let args = [
        "run", "--engine", "soft", "--nvdimm", &ext4, "--nvdimm", &xfs, "--record", "t.nvt", "--script",
        script,
    ];
    let output = nvsim(folder.path(), &args).ok();
    let blocks: BTreeMap<&str, u64> = output
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(f, n)| (f, n.parse().unwrap()))
        .collect();
    assert_eq!(blocks.len(), 24, "{output}");
    let mut lost = BTreeSet::new();
    for (file, block) in blocks {
        let (n, name) = (&file[4..5], &file[6..]);
        if n == "1" && name.starts_with("nobarrier") {
            // XFS has no such option any more.
            continue;
        }
        let at = format!("mark:{n}-{name}");
        nvsim(folder.path(), &["cut", "t.nvt", "--at", &at, "-o", "a", "-o", "b"]).ok();
        let mut data = [0; 4096];
        let image = fs::File::open(folder.path().join(["a", "b"][usize::from(n == "1")])).unwrap();
        image.read_exact_at(&mut data, FIRST_BLOCK + block * 4096).unwrap();
        assert!(data.iter().all(|byte| b"No".contains(byte)), "{at}: not the file's block");
        if data.contains(&b'o') {
            lost.insert(format!("{}-{name}", ["ext4", "xfs"][usize::from(n == "1")]));
        }
        ["a", "b"].iter().for_each(|cut| fs::remove_file(folder.path().join(cut)).unwrap());
    }
    lost
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Caches that survive lose nothing, whatever is not flushed.
#[test]
fn with_eadr_no_fault_loses_data() {
    assert_eq!(losses("eadr"), set(&[]));
}

/// Only what relies on the kernel's CLWB is lost without it; and without the flush at the end of msync, its fence.
#[test]
fn with_adr_a_write_cache_that_is_denied_loses_mapped_data() {
    assert_eq!(losses("adr"), set(&["ext4-nocache-mmap", "ext4-through-mmap", "xfs-nocache-mmap"]));
}

/// Each fault shows; and a program that only flushes and fences by itself never asked for what makes it sure.
#[test]
fn with_hints_each_fault_loses_data() {
    let mut expected = set(&["ext4-nocache-mmap", "xfs-nocache-mmap"]);
    for fault in ["ext4-through", "ext4-nobarrier", "xfs-through"] {
        expected.extend(["write", "mmap"].map(|how| format!("{fault}-{how}")));
    }
    for fault in [
        "ext4-base",
        "ext4-nocache",
        "ext4-through",
        "ext4-nobarrier",
        "xfs-base",
        "xfs-nocache",
        "xfs-through",
    ] {
        expected.insert(format!("{fault}-sync"));
    }
    assert_eq!(losses("hint"), expected);
}
