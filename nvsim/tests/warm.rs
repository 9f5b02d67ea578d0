//! A run that starts from a snapshot of an equal boot is the run that boots.

mod common;

use std::fs;
use std::path::Path;

use common::{Ran, exec, nvsim};
use tempfile::tempdir;

/// What must be equal: output, counts, memory, console, and the file of the DIMM.
fn told(folder: &Path, ran: Ran) -> (String, [String; 5]) {
    let console = fs::read_to_string(folder.join("console.txt")).unwrap();
    let numbers = ["instructions", "guest_time", "memory_hash"].map(|name| ran.summary[name].to_string());
    let [instructions, guest_time, hash] = numbers;
    let dimm = fs::read(folder.join("d.nvd")).map_or(String::new(), |bytes| blake3::hash(&bytes).to_string());
    (ran.ok(), [instructions, guest_time, hash, console, dimm])
}

/// How far the guest of a run was when it began.
fn started(ran: &Ran) -> String {
    ran.summary["started"].as_str().unwrap_or_default().to_owned()
}

/// Runs a command cold, then so often as it takes to leave each snapshot, and from the last one.
fn cold_and_warm(seed: &str, command: &str, args: &[&str], dimm: Option<&str>) {
    // The same folder: uuids of a new DIMM hang on the path of its file.
    let folder = tempdir().unwrap();
    let starts =
        if dimm.is_some() { &["cold", "cold", "booted", "probed"][..] } else { &["cold", "cold", "booted"] };
    let mut first = None;
    for (n, start) in starts.iter().enumerate() {
        for file in ["d.nvd", "e.nvd"] {
            let _ = fs::remove_file(folder.path().join(file));
        }
        let mut args = [args, &["--hash", "--seed", seed]].concat();
        args.extend(dimm.iter().flat_map(|dimm| ["--nvdimm", dimm]));
        args.extend((n == 0).then_some("--cold"));
        let ran = exec(folder.path(), command, &args);
        // A snapshot may be there from an earlier run of this test, but not without `--cold`.
        assert!(n == 1 || started(&ran) == *start, "run {n} began {}", started(&ran));
        let told = told(folder.path(), ran);
        assert_eq!(*first.get_or_insert_with(|| told.clone()), told, "run {n}");
    }
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
fn with_a_new_dimm_and_two_processors() {
    let command = "ndctl list -DHNi | md5sum; grep -c dax=always /proc/mounts; dmesg | tail -n 3";
    let other = ["--cpus", "2", "--nvdimm", "e.nvd,size=32M,fs=xfs,domain=eadr"];
    cold_and_warm("507", command, &other, Some("d.nvd,size=64M"));
}

/// Only what the guest would find as it was is not looked at again, and whoever wants to see the looking does.
#[test]
fn a_dimm_that_has_changed_is_probed_anew() {
    let folder = tempdir().unwrap();
    let run = |command: &str, more: &[&str]| {
        let args = [&["--seed", "508", "--nvdimm", "d.nvd,size=64M"], more].concat();
        let ran = exec(folder.path(), command, &args);
        (started(&ran), ran.code, ran.stdout)
    };
    let begins = |start: &str, command: &str| {
        let ran = run(command, &[]);
        assert_eq!((ran.0.as_str(), ran.1), (start, 0), "{command}: {}", ran.2);
        ran.2
    };
    begins("cold", "true");
    begins("booted", "true");
    // A file system changes at each mount, and when it is written to; probing does not look there.
    begins("probed", "echo kept > /mnt/pmem0/file; sync");
    assert_eq!(begins("probed", "cat /mnt/pmem0/file"), "kept\n");

    for how in [&["--record", "a.nvt"][..], &["--record", "b.nvt", "--cold"], &["--cut", "mark:1"]] {
        // As it was, so that traces may be compared.
        fs::copy(folder.path().join("d.nvd"), folder.path().join("kept.nvd")).unwrap();
        let ran = run("nvsim-mark 1", how);
        let begun = if how.contains(&"--cold") { "cold" } else { "booted" };
        assert_eq!(ran.0, begun, "{how:?}");
        if how[0] == "--record" {
            fs::copy(folder.path().join("kept.nvd"), folder.path().join("d.nvd")).unwrap();
        }
    }
    let trace = |name: &str| nvsim(folder.path(), &["trace", "show", name]).ok();
    assert_eq!(trace("a.nvt"), trace("b.nvt"));

    // The cut has been counted as a dirty shutdown; the next one was a clean one again.
    begins("booted", "true");
    begins("booted", "true");
    begins("probed", "ndctl inject-smart --media-temperature=60 nmem0 > /dev/null");
    begins("booted", "true");
    // A partition table's signature, which is looked at and found to have nothing behind it.
    begins("probed", "printf '\\x55\\xaa' | dd of=/dev/pmem0 bs=1 seek=510 conv=notrunc 2>/dev/null; sync");
    begins("booted", "true");
    begins("probed", "true");
    let label = ["dimm", "label", "d.nvd", "--erase", "--namespace", "mode=fsdax,name=other"];
    nvsim(folder.path(), &label).ok();
    begins("booted", "true");
    let other = exec(folder.path(), "true", &["--seed", "508", "--nvdimm", "d2.nvd,size=128M"]);
    assert_eq!(started(&other), "cold");
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
    nvsim(folder.path(), &["image", "build", "dax"]).ok();
    fs::create_dir_all(cache.join("nvsim")).unwrap();
    for entry in fs::read_dir(store.join("nvsim")).unwrap().flatten() {
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
        let found = fs::read_dir(cache.join("nvsim/snapshots")).unwrap();
        let paths = found.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|kind| kind == "snap")).collect::<Vec<_>>()
    };
    let [snapshot] = &snapshots()[..] else { panic!("{:?}", snapshots()) };
    let mut bytes = fs::read(snapshot).unwrap();
    let used = bytes.iter().rposition(|&byte| byte != 0).unwrap();
    bytes[used] ^= 1;
    fs::write(snapshot, &bytes).unwrap();
    let warning = run();
    assert!(warning.contains("booting cold") && warning.contains("checksum of its memory"), "{warning}");
    assert_eq!(run(), "", "it was made anew");
}

/// What comes after the first snapshot is done at each start where a DIMM has changed: loading the driver of the NV-DIMMs is not
/// part of it, and of the DIMM's functions AML knows itself.
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
    assert!(after < AFTER && calls < 15, "{after} instructions, {calls} calls");
}

/// Instructions from the snapshot to the power-off of a run with one DIMM of 64 MiB.
const AFTER: u64 = 12_000_000;
