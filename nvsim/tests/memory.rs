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

/// A mapping of a process, in KiB.
struct Mapping {
    begin: u64,
    end: u64,
    resident: u64,
    of_dimm: bool,
}

fn mappings(pid: u32) -> Vec<Mapping> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut all: Vec<Mapping> = Vec::new();
    for line in maps.lines() {
        let first = line.split(' ').next().and_then(|word| word.split_once('-'));
        let kib = |address: &str| u64::from_str_radix(address, 16).ok().map(|address| address >> 10);
        if let Some((begin, end)) = first.and_then(|(begin, end)| Some((kib(begin)?, kib(end)?))) {
            all.push(Mapping { begin, end, resident: 0, of_dimm: line.ends_with(DIMM) });
        } else if let (Some(rss), Some(last)) = (line.strip_prefix("Rss:"), all.last_mut()) {
            last.resident = rss.trim().trim_end_matches(" kB").parse().unwrap();
        }
    }
    all
}

/// The mappings that are the guest's RAM: in the midst of it its kernel's file is mapped, so it is known by their sum.
fn guest_ram(all: &[Mapping]) -> std::ops::Range<usize> {
    let adjacent = |n: &usize| all[*n].begin == all[*n - 1].end;
    (0..all.len())
        .find_map(|first| {
            let last = (first + 1..all.len()).take_while(adjacent).last().unwrap_or(first);
            let fits = |&end: &usize| all[end].end - all[first].begin == GUEST_KIB;
            (first..=last).find(fits).map(|end| first..end + 1)
        })
        .expect("RAM is mapped in one piece")
}

/// Resident KiB of a process but for the guest's RAM and the DIMM's file, and of the guest's RAM.
fn own_kib(pid: u32) -> (u64, u64) {
    let all = mappings(pid);
    let ram = guest_ram(&all);
    let sum = |which: &dyn Fn(&usize) -> bool| {
        (0..all.len()).filter(|n| which(n) && !all[*n].of_dimm).map(|n| all[n].resident).sum()
    };
    (sum(&|n| !ram.contains(n)), sum(&|n| ram.contains(n)))
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
