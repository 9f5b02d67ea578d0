//! Stock kernels boot, run what they are told, and end as they should.

mod common;

use common::exec;
use tempfile::tempdir;

#[test]
fn a_command_has_its_own_output_and_status() {
    let folder = tempdir().unwrap();
    let ran = exec(folder.path(), "echo out; echo err >&2; exit 3", &[]);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (3, "out\n", "err\n"));
    assert_eq!(ran.summary["outcome"], "PowerOff");
    let console = std::fs::read_to_string(folder.path().join("console.txt")).unwrap();
    assert!(!console.contains("out\n"), "{console}");
}

#[test]
fn a_script_runs_under_its_own_interpreter_and_signals_are_told() {
    let folder = tempdir().unwrap();
    std::fs::write(folder.path().join("job"), "#!/bin/sh -e\necho from a script\nkill -9 $$\n").unwrap();
    let args = ["run", "--engine", "soft", "--timeout", "10m", "--script", "job"];
    let ran = common::nvsim(folder.path(), &args);
    assert_eq!((ran.code, ran.stdout.as_str()), (128 + 9, "from a script\n"), "{}", ran.stderr);
}

#[test]
fn equal_runs_are_equal_and_the_seed_matters() {
    let folder = tempdir().unwrap();
    let run = |seed: &str| {
        let ran = exec(folder.path(), "head -c 8 /dev/urandom | md5sum", &["--hash", "--seed", seed]);
        let numbers = (ran.summary["instructions"].as_u64(), ran.summary["memory_hash"].to_string());
        (ran.ok(), numbers)
    };
    let first = run("1");
    assert!(first.1.0.is_some_and(|count| count > 100_000_000), "{first:?}");
    assert_eq!(run("1"), first);
    assert_ne!(run("2").0, first.0);
}

#[test]
fn four_processors_come_up_and_equal_runs_are_equal() {
    let folder = tempdir().unwrap();
    let command = "nproc; for n in 1 2 3 4; do (md5sum /bin/busybox | cut -c1-32) & done; wait";
    let run = || {
        let ran = exec(folder.path(), command, &["--cpus", "4", "--hash"]);
        let numbers = (ran.summary["instructions"].as_u64(), ran.summary["memory_hash"].to_string());
        (ran.ok(), numbers)
    };
    let first = run();
    let lines: Vec<&str> = first.0.lines().collect();
    assert_eq!(lines[0], "4");
    assert!(lines.len() == 5 && lines[2..].iter().all(|line| *line == lines[1]), "{lines:?}");
    assert_eq!(run(), first);
}

#[test]
fn a_reset_boots_again_and_dimms_keep_what_they_hold() {
    let folder = tempdir().unwrap();
    let command = "if [ -e /mnt/pmem0/been ]; then cat /mnt/pmem0/been; else echo here > /mnt/pmem0/been; sync; reboot -f; sleep 10; fi";
    let ran = exec(folder.path(), command, &["--nvdimm", "d.nvd,size=64M"]);
    assert_eq!(ran.summary["resets"], 1);
    assert_eq!(ran.ok(), "here\n");
}

#[test]
fn a_panic_is_told_with_the_last_words() {
    let folder = tempdir().unwrap();
    let ran = exec(folder.path(), "echo c > /proc/sysrq-trigger; sleep 10", &[]);
    assert_eq!(ran.code, 120, "{}", ran.stderr);
    assert!(ran.stderr.contains("sysrq triggered crash"), "{}", ran.stderr);
    assert_eq!(ran.summary["outcome"], "Panic");
}

#[test]
fn a_guest_that_never_ends_is_timed_out() {
    let folder = tempdir().unwrap();
    let args = ["run", "--engine", "soft", "--timeout", "40s", "--exec", "echo begun; while :; do :; done"];
    let ran = common::nvsim(folder.path(), &args);
    assert_eq!((ran.code, ran.stdout.as_str()), (124, "begun\n"), "{}", ran.stderr);
}

#[test]
fn the_other_kernels_boot_to_dax_ext4() {
    let folder = tempdir().unwrap();
    for (image, release) in [("dax-6.1", "cloud-amd64"), ("dax-generic", "-amd64")] {
        let dimm = format!("{image}.nvd,size=64M");
        let command =
            "uname -r; cat /sys/block/pmem0/queue/dax; grep -c 'pmem0 ext4.*dax=always' /proc/mounts";
        let output = exec(folder.path(), command, &["--image", image, "--nvdimm", &dimm]).ok();
        let lines: Vec<&str> = output.lines().collect();
        assert!(lines[0].starts_with("6.1.") && lines[0].ends_with(release), "{lines:?}");
        assert_eq!(&lines[1..], ["1", "1"]);
    }
}

#[test]
fn a_disk_is_a_block_device_that_keeps_what_it_holds() {
    let folder = tempdir().unwrap();
    let disk = folder.path().join("disk.img");
    std::fs::File::create(&disk).unwrap().set_len(8 << 20).unwrap();
    let command = "modprobe virtio_mmio; modprobe virtio_blk; cat /sys/block/vda/size; printf here | dd of=/dev/vda seek=1 conv=fsync 2>/dev/null";
    assert_eq!(exec(folder.path(), command, &["--disk", "disk.img"]).ok(), "16384\n");
    let bytes = std::fs::read(&disk).unwrap();
    assert_eq!((bytes.len(), &bytes[512..516]), (8 << 20, &b"here"[..]));
}
