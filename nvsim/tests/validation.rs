//! The validation kernel: built from Debian's source with guest-kernel-patches/6.12, it boots to DAX on ext2, ext4 and XFS,
//! and its trace events tell of every way by which a kernel stores to, flushes and fences persistent memory.
//!
//! Building the kernel takes many minutes, so these are ignored unless `ci/test validation` asks for them.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{Ran, exec, nvsim};
use tempfile::tempdir;

/// One file system each, a sector namespace for BTT, and one that stays empty.
const DIMMS: [&str; 5] = [
    "ext4.nvd,size=128M,fs=ext4,domain=hint",
    "xfs.nvd,size=512M,fs=xfs",
    "ext2.nvd,size=128M,fs=ext2",
    "btt.nvd,size=64M,mode=sector",
    "bare.nvd,size=64M,fs=none",
];

#[test]
#[ignore = "builds a kernel: ci/test validation"]
fn it_is_built_once() {
    let folder = tempdir().unwrap();
    let first = nvsim(folder.path(), &["image", "build", "validation"]).ok();
    let since = Instant::now();
    assert_eq!(nvsim(folder.path(), &["image", "build", "validation"]).ok(), first);
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
}

#[test]
#[ignore = "builds a kernel: ci/test validation"]
fn every_file_system_is_mounted_with_dax_by_its_own_driver() {
    let folder = tempdir().unwrap();
    let command = "for n in 0 1 2; do cat /sys/block/pmem$n/queue/dax; done; grep -o ' ext[24] .*dax\\| xfs .*dax' /proc/mounts; \
                   for n in 0 1 2; do echo kept > /mnt/pmem$n/file; done; sync; ls /sys/kernel/tracing/events/pmem | grep pmem";
    let output = run(folder.path(), &["--exec", command]).ok();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[..3], ["1", "1", "1"], "{output}");
    let mounts: Vec<&str> = lines[3..6].iter().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(mounts, ["ext4", "xfs", "ext2"], "{output}");
    assert_eq!(lines[6..], ["pmem_drain", "pmem_fence", "pmem_flush", "pmem_hint", "pmem_store"]);
    let read = run(folder.path(), &["--exec", "cat /mnt/pmem*/file"]).ok();
    assert_eq!(read, "kept\nkept\nkept\n");
}

fn run(folder: &Path, args: &[&str]) -> Ran {
    let dimms = DIMMS.iter().flat_map(|dimm| ["--nvdimm", dimm]);
    let all: Vec<&str> =
        ["run", "--engine", "soft", "--image", "validation", "--timeout", "10m", "--console", "console.txt"]
            .into_iter()
            .chain(dimms)
            .chain(args.iter().copied())
            .collect();
    nvsim(folder, &all)
}

/// What one scenario of paths.sh must show: an event, and the functions that lead to it, innermost first.
struct Told(&'static str, &'static str, &'static [&'static str]);

/// ../shared/reference/dax-behaviour.md, section 4.1, line by line; what is missing here has its reason below.
const PATHS: &[Told] = &[
    // __memcpy_flushcache: body, and cached ends with their write-back.
    Told("direct", "pmem_store nt", &["__memcpy_flushcache", "pmem_submit_bio"]),
    Told("write-ext4", "pmem_store nt", &["__memcpy_flushcache", "pmem_submit_bio", "jbd2_journal_commit_transaction"]),
];

#[test]
#[ignore = "builds a kernel: ci/test validation"]
fn every_path_to_persistent_memory_is_traced() {
    let folder = tempdir().unwrap();
    std::fs::File::create(folder.path().join("disk.img")).unwrap().set_len(16 << 20).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/validation/paths.sh");
    let ran = run(folder.path(), &["--disk", "disk.img", "--script", script]);
    let said = ran.stderr.clone();
    let output = ran.ok();
    assert!(!said.contains("failed:"), "{said}");
    for Told(scenario, event, functions) in PATHS {
        let found = output.lines().filter_map(|line| line.strip_prefix(scenario)?.strip_prefix('|')).any(|line| {
            line.split_once('|').is_some_and(|(told, chain)| {
                let mut chain = chain.split(' ');
                told == *event && functions.iter().all(|function| chain.any(|name| name == *function))
            })
        });
        assert!(found, "{scenario}: no {event} by {functions:?} in\n{output}");
    }
}
