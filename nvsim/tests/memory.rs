//! What nvsim itself keeps in memory beside its guest: at most 64 MiB on the software engines.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use tempfile::tempdir;

const LIMIT_KIB: u64 = 64 << 10;
const GUEST_KIB: u64 = 512 << 10;
const DIMM: &str = "d.nvd";

/// Ends the process with the test, passed or failed.
struct Run(Child);

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Resident KiB of a process but for the guest's RAM, known by its size, and the DIMM's file.
fn own_kib(pid: u32) -> (u64, u64) {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut own, mut guest, mut dimm, mut size) = (0, 0, false, 0);
    for line in maps.lines() {
        let field = |name| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok();
        if line.starts_with(|c: char| c.is_ascii_digit() || matches!(c, 'a'..='f')) {
            dimm = line.ends_with(DIMM);
        } else if let Some(kib) = field("Size:") {
            size = kib;
        } else if let Some(kib) = field("Rss:") {
            match size == GUEST_KIB {
                true => guest += kib,
                false if !dimm => own += kib,
                false => {}
            }
        }
    }
    (own, guest)
}

#[test]
fn nvsim_itself_needs_little_memory() {
    for engine in ["soft", "interp"] {
        let folder = tempdir().unwrap();
        let command = "md5sum /bin/busybox; cp /bin/busybox /mnt/pmem0; sync; echo up; while :; do :; done";
        let child = Command::new(env!("CARGO_BIN_EXE_nvsim"))
            .current_dir(folder.path())
            .args(["run", "--engine", engine, "--cold", "--memory", "512M", "--timeout", "5m"])
            .args(["--nvdimm", &format!("{DIMM},size=64M"), "--exec", command])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut run = Run(child);
        let mut lines = BufReader::new(run.0.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "up"), "the guest came up");
        let (own, guest) = own_kib(run.0.id());
        println!("{engine}: nvsim itself has {own} KiB resident, the guest {guest} KiB");
        assert!(guest > 50 << 10, "the guest's RAM was recognised: {guest} KiB");
        assert!(own <= LIMIT_KIB, "{own} KiB on {engine}");
    }
}
