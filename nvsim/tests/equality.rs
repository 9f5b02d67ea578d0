//! The translator and the interpreter are one engine: a run is the same under both, to the instruction and the byte.

mod common;

use common::nvsim;
use serde_json::Value;
use tempfile::tempdir;

/// Output, instructions and memory of a run.
fn run(engine: &str, cpus: (&str, &str), command: &str) -> (String, Value, Value) {
    let folder = tempdir().unwrap();
    let (cpus, cpu) = cpus;
    let args = ["run", "--engine", engine, "--cpus", cpus, "--cpu", cpu];
    let args = [args.as_slice(), &["--timeout", "10m", "--hash", "--json"]].concat();
    let more = ["--summary", "summary.json", "--exec", command];
    let output = nvsim(folder.path(), &[args.as_slice(), &more].concat()).ok();
    let summary = std::fs::read(folder.path().join("summary.json")).unwrap();
    let summary: Value = serde_json::from_slice(&summary).unwrap();
    (output, summary["instructions"].clone(), summary["memory_hash"].clone())
}

fn the_same_under_both(cpus: (&str, &str), command: &str) {
    let translated = run("soft", cpus, command);
    assert!(translated.1.as_u64().is_some_and(|count| count > 100_000_000), "{translated:?}");
    assert_eq!(run("interp", cpus, command), translated);
}

#[test]
fn a_run_is_the_same_translated_and_interpreted() {
    the_same_under_both(
        ("1", "v2"),
        "md5sum /proc/version; ls /sys | wc -l; awk 'BEGIN { for (n = 1; n < 99; n++) s += 1 / n; print s }'",
    );
}

#[test]
fn so_is_one_with_four_processors() {
    let command =
        "nproc; for n in 1 2 3 4; do (md5sum /proc/version) & done; wait; head -c 8 /dev/urandom | md5sum";
    the_same_under_both(("4", "v2"), command);
}

/// With YMM registers in use: by the kernel, which switches them on and saves them, and by programs.
#[test]
fn so_is_one_on_a_cpu_of_x86_64_v3() {
    if !is_x86_feature_detected!("avx2") {
        println!("skipped: the host has no AVX2");
        return;
    }
    let command = "grep -c avx2 /proc/cpuinfo; md5sum /proc/version; head -c 300000 /dev/zero | sha256sum";
    the_same_under_both(("2", "v3"), command);
}
