//! Machines kept in files.

mod common;

use common::nvsim;
use tempfile::tempdir;

#[test]
fn a_machine_goes_on_from_where_it_was_kept_as_often_as_wanted() {
    let folder = tempdir().unwrap();
    let nvsim = |args: &[&str]| nvsim(folder.path(), args);
    let save = ["snapshot", "save", "s.snap", "--engine", "soft", "--timeout", "10m", "--seed", "601"];
    let command = "echo kept > /mnt/pmem0/file; cd /tmp; echo here > here; exit 3";
    let saved = nvsim(&[&save[..], &["--nvdimm", "d.nvd,size=64M", "--exec", command]].concat());
    assert_eq!((saved.code, saved.stderr.as_str()), (3, ""), "the command's own status");
    let dimm = std::fs::read(folder.path().join("d.nvd")).unwrap();
    // Each finds what the first one left, on a copy of its own.
    for _ in 0..2 {
        let restored = nvsim(&[
            "snapshot",
            "restore",
            "s.snap",
            "--engine",
            "soft",
            "--timeout",
            "10m",
            "--exec",
            "cat /mnt/pmem0/file /tmp/here && rm /mnt/pmem0/file && sync",
        ]);
        assert_eq!(restored.ok(), "kept\nhere\n");
    }
    assert_eq!(std::fs::read(folder.path().join("d.nvd")).unwrap(), dimm);
    // The run that was kept went on to a clean end.
    let info = nvsim(&["dimm", "info", "d.nvd", "--json"]).json();
    assert_eq!(info[0]["dimms"][0]["left_on"], false, "{info}");

    let listed = nvsim(&["snapshot", "ls", "s.snap", "--json"]).json();
    assert_eq!(
        (&listed[0]["vcpus"], &listed[0]["dimms"]),
        (&1.into(), &serde_json::json!([folder.path().join("d.nvd").file_name().unwrap().to_str().unwrap()]))
    );
    let again = nvsim(&[&save[..], &["--exec", "true"]].concat());
    assert!(again.code == 125 && again.stderr.contains("s.snap exists already"), "{}", again.stderr);
    std::fs::write(folder.path().join("other"), "a user's").unwrap();
    let refused = nvsim(&["snapshot", "rm", "other"]);
    assert!(refused.code == 125 && refused.stderr.contains("no snapshot"), "{}", refused.stderr);
    nvsim(&["snapshot", "rm", "s.snap"]).ok();
    let mut names: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["d.nvd", "other"]);
}

/// Kept in the middle of a command and gone on with, it ends as the run that was never kept: 1 and 4 processors.
#[test]
fn the_middle_of_a_command_is_a_point_like_any_other() {
    for cpus in ["1", "4"] {
        let folder = tempdir().unwrap();
        let command = "for n in 1 2 3; do (md5sum /bin/busybox | cut -c1-8) & done; wait; date +%N";
        let run =
            ["--engine", "soft", "--timeout", "10m", "--seed", "602", "--cpus", cpus, "--exec", command];
        let told = |args: &[&str]| {
            let ran = nvsim(folder.path(), &[args, &["--json", "--hash", "--summary", "told.json"]].concat());
            let summary = std::fs::read(folder.path().join("told.json")).unwrap();
            let summary: serde_json::Value = serde_json::from_slice(&summary).unwrap();
            std::fs::remove_file(folder.path().join("told.json")).unwrap();
            let numbers = ["instructions", "memory_hash"].map(|name| summary[name].to_string());
            (ran.ok(), numbers)
        };
        let whole = told(&[&["run"][..], &run].concat());
        let end: u64 = whole.1[0].parse().unwrap();
        // Well within the command.
        let at = (end - 8_000_000).to_string();
        let kept = told(&[&["snapshot", "save", "s.snap", "--at", &at][..], &run].concat());
        assert_eq!(kept, whole);
        let restore = ["snapshot", "restore", "s.snap", "--engine", "soft", "--timeout", "10m"];
        let restored = told(&restore);
        assert_eq!(restored.1, whole.1);
        assert!(whole.0.ends_with(&restored.0), "{restored:?}");
        let refused = nvsim(folder.path(), &[&restore[..], &["--exec", "true"]].concat());
        assert!(refused.stderr.contains("in the middle of a command"), "{}", refused.stderr);
    }
}
