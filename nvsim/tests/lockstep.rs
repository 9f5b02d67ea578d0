//! Interpreter and translator side by side over a whole boot, and the tool that finds where they part.

mod common;

use common::nvsim;
use serde_json::Value;
use tempfile::tempdir;

#[test]
fn a_whole_boot_is_the_same_at_a_thousand_milestones() {
    let folder = tempdir().unwrap();
    let args = [
        "lockstep",
        "--cpus",
        "2",
        "--nvdimm",
        "size=64M",
        "--exec",
        "cp /bin/busybox /mnt/pmem0; sync",
        "--json",
    ];
    let verdict: Value = serde_json::from_str(&nvsim(folder.path(), &args).ok()).unwrap();
    assert_eq!(verdict["agree"], true, "{verdict}");
    assert_eq!(verdict["ends"][0]["outcome"], "PowerOff");
    assert!(
        verdict["ends"][0]["instructions"].as_u64().is_some_and(|count| count > 100_000_000),
        "{verdict}"
    );
}

#[test]
fn a_mistake_is_found_to_the_instruction() {
    let folder = tempdir().unwrap();
    let planted = 12_345_678;
    let args = ["lockstep", "--until", "20000000", "--plant", &planted.to_string(), "--json"];
    let ran = nvsim(folder.path(), &args);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let verdict: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(verdict["difference"]["after"], planted, "{verdict}");
    let fields = verdict["difference"]["fields"].as_array().unwrap();
    assert!(fields.iter().any(|field| field[0] == "vcpu[0].registers.gpr[3]"), "{verdict}");
}

#[test]
fn so_is_a_boot_with_the_translator_under_stress() {
    let folder = tempdir().unwrap();
    let args = ["lockstep", "--cpus", "2", "--until", "200000000", "--stress", "1", "--json"];
    let verdict: Value = serde_json::from_str(&nvsim(folder.path(), &args).ok()).unwrap();
    assert_eq!(verdict["agree"], true, "{verdict}");
}
