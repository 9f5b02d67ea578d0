//! Power cuts, from the command line to the bytes that are left.

mod common;

use std::fs;
use std::path::Path;

use common::{exec, nvsim};
use tempfile::tempdir;

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

/// Wall and CPU time of nvsim runs.
fn timed(what: impl FnOnce()) -> (f64, f64) {
    // User and system time of children that were waited for, in hundredths of a second (proc(5)).
    let spent = || {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let after = stat.rsplit_once(") ").map_or(stat.as_str(), |(_, after)| after);
        let hundredths: f64 = after.split(' ').skip(13).take(2).map(|n| n.parse::<f64>().unwrap()).sum();
        hundredths / 100.0
    };
    let (started, before) = (std::time::Instant::now(), spent());
    what();
    (started.elapsed().as_secs_f64(), spent() - before)
}

/// Prints what it takes to cut a run at an instruction and to boot what is left to a mounted file system, each from its boot
/// snapshot, and what recording costs: `cargo test --release -p nvsim --test power_cut -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn figures() {
    let folder = tempdir().unwrap();
    let work = "head -c 4M /dev/urandom > /mnt/pmem0/g; sync; nvsim-mark end";
    exec(folder.path(), "printf before > /mnt/pmem0/f; sync", &["--nvdimm", "d.nvd,size=64M"]).ok();
    let plain = exec(folder.path(), work, &["--nvdimm", "d.nvd"]);
    let end = plain.summary["marks"][0]["instructions"].as_u64().unwrap();
    for round in 0..3 {
        let at = format!("insn:{}", end - 100_000);
        let cut = timed(|| {
            let ran =
                exec(folder.path(), work, &["--nvdimm", "d.nvd", "--cut", &at, "--survivors", "random:1"]);
            assert_eq!(ran.code, 118, "{}", ran.stderr);
        });
        let boot = timed(|| {
            let read = exec(folder.path(), "cat /mnt/pmem0/f", &["--nvdimm", "d.nvd"]);
            assert_eq!(read.ok(), "before");
        });
        println!("cut {:.2} s ({:.2} s CPU), boot {:.2} s ({:.2} s CPU)", cut.0, cut.1, boot.0, boot.1);
        let trace = format!("{round}.nvt");
        let plain = timed(|| drop(exec(folder.path(), work, &["--nvdimm", "d.nvd"]).ok()));
        let recorded =
            timed(|| drop(exec(folder.path(), work, &["--nvdimm", "d.nvd", "--record", &trace]).ok()));
        let stats = nvsim(folder.path(), &["trace", "stats", &trace, "--json"]).json();
        println!(
            "plain {:.2} s ({:.2} s CPU), recorded with chains {:.2} s ({:.2} s CPU), {} events",
            plain.0, plain.1, recorded.0, recorded.1, stats["end"]["events"]
        );
    }
}
