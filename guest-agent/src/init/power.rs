//! Leaving the machine with file systems clean.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::sys::{self, Leave};

/// How long processes have between SIGTERM and SIGKILL, and after it, in steps of 10 ms.
const PATIENCE: u32 = 50;

/// Ends all processes and unmounts what is on a device. What cannot be unmounted is told.
pub fn quiesce() -> Vec<String> {
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        sys::signal_all(signal);
        sys::signal_all(libc::SIGCONT);
        for _ in 0..PATIENCE {
            // Fails with ECHILD when none is left. Children of children become ours when their parents end.
            if sys::reap(None).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let mut troubles = Vec::new();
    for target in mounted(&fs::read_to_string("/proc/self/mounts").unwrap_or_default()) {
        if let Err(e) = sys::unmount(&target, false).or_else(|_| sys::unmount(&target, true)) {
            troubles.push(format!("cannot unmount {}: {e}", target.display()));
        }
    }
    troubles
}

/// Mount points of block devices, innermost first.
fn mounted(mounts: &str) -> Vec<PathBuf> {
    let mut targets: Vec<PathBuf> = mounts
        .lines()
        .filter(|line| line.starts_with("/dev/"))
        .filter_map(|line| line.split_whitespace().nth(1))
        .map(|target| PathBuf::from(target.replace("\\040", " ")))
        .collect();
    targets.reverse();
    targets
}

/// Leaves the machine for good.
pub fn leave(how: Leave) -> ! {
    loop {
        println!("nvsim: the kernel refuses to {}: {}", verb(how), sys::leave(how));
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn verb(how: Leave) -> &'static str {
    match how {
        Leave::PowerOff => "power off",
        Leave::Reboot => "reboot",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_unmounted_innermost_first() {
        let mounts = "proc /proc proc rw 0 0\n/dev/pmem0 /mnt/pmem0 ext4 rw 0 0\n/dev/vda /mnt/pmem0/a\\040b xfs rw 0 0\n";
        assert_eq!(mounted(mounts), [PathBuf::from("/mnt/pmem0/a b"), PathBuf::from("/mnt/pmem0")]);
    }
}
