//! A run that starts from the snapshot of an equal boot is the run that boots.

mod common;

use std::path::Path;

use common::{Ran, exec};
use tempfile::tempdir;

/// What must be equal: output, counts, memory, console.
fn told(folder: &Path, ran: Ran) -> (String, [String; 4]) {
    let console = std::fs::read_to_string(folder.join("console.txt")).unwrap();
    let numbers = ["instructions", "guest_time", "memory_hash"].map(|name| ran.summary[name].to_string());
    let [instructions, guest_time, hash] = numbers;
    (ran.ok(), [instructions, guest_time, hash, console])
}

/// Runs a command cold, then, after a run that may have left a snapshot, warm.
fn cold_and_warm(seed: &str, command: &str, args: &[&str], dimm: Option<&str>) {
    let mut results = Vec::new();
    // The same folder: uuids of a new DIMM hang on the path of its file.
    let folder = tempdir().unwrap();
    for how in [&["--cold"][..], &[], &[]] {
        let _ = std::fs::remove_file(folder.path().join("d.nvd"));
        let mut args = [args, how, &["--hash", "--seed", seed]].concat();
        if let Some(dimm) = dimm {
            args.extend(["--nvdimm", dimm]);
        }
        let ran = exec(folder.path(), command, &args);
        results.push((ran.summary["warm"].as_bool(), told(folder.path(), ran)));
    }
    assert_eq!((results[0].0, results[2].0), (Some(false), Some(true)));
    assert_eq!(results[1].1, results[0].1);
    assert_eq!(results[2].1, results[0].1);
}

#[test]
fn without_dimms() {
    cold_and_warm("501", "echo hi; dmesg | tail -n 3; date +%s", &[], None);
}

#[test]
fn with_four_processors() {
    cold_and_warm(
        "502",
        "for n in 1 2 3 4; do (md5sum /bin/busybox | cut -c1-8) & done; wait",
        &["--cpus", "4"],
        None,
    );
}

#[test]
fn with_a_new_dimm() {
    let command = "grep -c dax=always /proc/mounts; echo kept > /mnt/pmem0/file; sync; cat /mnt/pmem0/file";
    cold_and_warm("503", command, &[], Some("d.nvd,size=64M"));
}

#[test]
fn what_a_dimm_holds_is_read_anew() {
    let folder = tempdir().unwrap();
    let run = |command: &str, dimm: &str| {
        let ran = exec(folder.path(), command, &["--seed", "504", "--nvdimm", dimm]);
        (ran.summary["warm"].as_bool(), ran.ok())
    };
    run("echo one > /mnt/pmem0/file", "d.nvd,size=64M");
    // The snapshot knows nothing of the file system that was made and written since.
    assert_eq!(
        run("cat /mnt/pmem0/file; echo two > /mnt/pmem0/file", "d.nvd"),
        (Some(true), "one\n".to_owned())
    );
    assert_eq!(run("cat /mnt/pmem0/file", "d.nvd"), (Some(true), "two\n".to_owned()));
    // Another DIMM is another machine.
    assert_eq!(run("ls /mnt/pmem0", "e.nvd,size=128M").0, Some(false));
}

#[test]
fn a_damaged_snapshot_is_told_and_not_used() {
    let folder = tempdir().unwrap();
    let cache = folder.path().join("cache");
    let home = std::env::var_os("HOME").unwrap();
    let store =
        std::env::var_os("XDG_CACHE_HOME").map_or_else(|| Path::new(&home).join(".cache"), Into::into);
    // The same images, but no snapshots.
    common::nvsim(folder.path(), &["image", "build", "dax"]).ok();
    std::fs::create_dir_all(cache.join("nvsim")).unwrap();
    for entry in std::fs::read_dir(store.join("nvsim")).unwrap().flatten() {
        if entry.file_name() != "snapshots" {
            std::os::unix::fs::symlink(entry.path(), cache.join("nvsim").join(entry.file_name())).unwrap();
        }
    }
    let run = || {
        let ran = std::process::Command::new(env!("CARGO_BIN_EXE_nvsim"))
            .current_dir(folder.path())
            .env("XDG_CACHE_HOME", &cache)
            .args(["run", "--engine", "soft", "--seed", "505", "--timeout", "10m", "--exec", "echo hi"])
            .output()
            .unwrap();
        assert_eq!(ran.stdout, b"hi\n");
        String::from_utf8(ran.stderr).unwrap()
    };
    assert_eq!(run(), "");
    let snapshots = || {
        let found = std::fs::read_dir(cache.join("nvsim/snapshots")).unwrap();
        let paths = found.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|kind| kind == "snap")).collect::<Vec<_>>()
    };
    let [snapshot] = &snapshots()[..] else { panic!("{:?}", snapshots()) };
    let mut bytes = std::fs::read(snapshot).unwrap();
    let used = bytes.iter().rposition(|&byte| byte != 0).unwrap();
    bytes[used] ^= 1;
    std::fs::write(snapshot, &bytes).unwrap();
    let warning = run();
    assert!(warning.contains("booting cold") && warning.contains("checksum of its memory"), "{warning}");
    assert_eq!(run(), "", "it was made anew");
}

/// What comes after the snapshot is done at each start: loading the driver of the NV-DIMMs is not part of it, and of the
/// DIMM's functions AML knows itself.
#[test]
fn a_warm_start_has_little_to_do() {
    let folder = tempdir().unwrap();
    let run = || {
        let more = ["--cold", "-vv", "--seed", "506", "--nvdimm", "d.nvd,size=64M"];
        let ran = exec(folder.path(), "cut -d' ' -f1 /proc/modules", &more);
        assert!(ran.stdout.lines().any(|module| module == "nfit"), "{}", ran.stdout);
        ran
    };
    run();
    let ran = run();
    // Colours of the log may be around the number.
    let rests = ran.stderr.lines().find(|line| line.contains("at rest")).unwrap();
    let rested = rests.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap().parse::<u64>().unwrap();
    let after = ran.summary["instructions"].as_u64().unwrap() - rested;
    let calls = ran.stderr.lines().filter(|line| line.contains("a DSM call")).count();
    println!("{after} instructions after the snapshot, {calls} calls of DIMMs and their bus");
    assert!(after < AFTER && calls < 30, "{after} instructions, {calls} calls");
}

/// Instructions from the snapshot to the power-off of a run with one DIMM of 64 MiB.
const AFTER: u64 = 13_000_000;
