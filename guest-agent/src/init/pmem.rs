//! Persistent memory block devices: what is on them, formatting of empty ones, mounting.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use guest_agent::{Fs, Pmem};

use super::job::ENVIRONMENT;
use super::sys;

/// As much of a device is read to tell that it is empty: past the superblocks of all that keeps one near the front.
const PROBED: usize = 128 << 10;

/// As much of it is read first: enough to know the file systems that we mount. What more is read, mounting drops again.
const FRONT: usize = 4 << 10;

/// Below this, mkfs.xfs makes no file system unless told that nobody supports it.
const XFS_SMALLEST_SUPPORTED: u64 = 300 << 20;

/// What a device holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// Zeroes, as far as was read.
    Nothing,
    /// A file system that we mount.
    FileSystem(Fs),
    /// Something that we leave alone.
    Unknown,
}

/// Reads the signatures at the front of a device.
pub fn probe(front: &[u8]) -> Holds {
    const EXT_SUPERBLOCK: usize = 1024;
    let ext = |offset: usize| {
        front.get(EXT_SUPERBLOCK + offset..)?.first_chunk::<4>().map(|b| u32::from_le_bytes(*b))
    };
    if front.starts_with(b"XFSB") {
        return Holds::FileSystem(Fs::Xfs);
    }
    if ext(56).is_some_and(|magic| magic & 0xffff == 0xef53) {
        // ext4 is told from ext2 by a journal, or extents and the like: features that ext2 does not know.
        let (compatible, incompatible) = (ext(92).unwrap_or(0), ext(96).unwrap_or(0));
        let (has_journal, filetype_and_meta_bg) = (4, 0x12);
        let newer = compatible & has_journal != 0 || incompatible & !filetype_and_meta_bg != 0;
        return Holds::FileSystem(if newer { Fs::Ext4 } else { Fs::Ext2 });
    }
    if front.iter().all(|&byte| byte == 0) { Holds::Nothing } else { Holds::Unknown }
}

/// Devices by the number of their region: `pmem1` and `pmem1.2` are of region 1. Sector devices, `pmem1s`, are not DAX's.
pub fn region_of(device: &str) -> Option<usize> {
    let number = device.strip_prefix("pmem")?;
    if number.ends_with('s') {
        return None;
    }
    number.split_once('.').map_or(number, |(region, _)| region).parse().ok()
}

/// The command that lays down `fs` on a device of `bytes` bytes.
pub fn mkfs(fs: Fs, device: &str, bytes: u64) -> Option<Vec<String>> {
    let words: &[&str] = match fs {
        Fs::None => return None,
        // The device is all zeroes where nobody wrote, so tables need no clearing, and nothing runs behind the user.
        Fs::Ext4 => {
            &["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-E", "nodiscard,assume_storage_prezeroed=1"]
        }
        Fs::Ext2 => {
            &["mke2fs", "-q", "-t", "ext2", "-b", "4096", "-E", "nodiscard,assume_storage_prezeroed=1"]
        }
        Fs::Xfs if bytes < XFS_SMALLEST_SUPPORTED => &["mkfs.xfs", "-q", "-K", "--unsupported"],
        Fs::Xfs => &["mkfs.xfs", "-q", "-K"],
    };
    Some(words.iter().map(|word| (*word).to_owned()).chain([device.to_owned()]).collect())
}

/// Formats and mounts devices as the host asked. Tells what it did.
pub fn bring_up(wanted: &[Pmem], format: bool, mut log: impl FnMut(String)) {
    let mut devices: Vec<String> = fs::read_dir("/sys/block")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| region_of(name).is_some())
        .collect();
    devices.sort();
    for device in devices {
        let Some(pmem) = region_of(&device).and_then(|region| wanted.get(region)) else { continue };
        match bring_up_one(&device, *pmem, format) {
            Ok(told) => told.into_iter().for_each(|line| log(format!("{device}: {line}"))),
            Err(e) => log(format!("{device}: {e}")),
        }
    }
}

fn bring_up_one(device: &str, pmem: Pmem, format: bool) -> io::Result<Vec<String>> {
    let node = format!("/dev/{device}");
    let mut device_file = File::open(&node)?;
    let mut front = Vec::with_capacity(PROBED);
    let mut holds = Holds::Nothing;
    for len in [FRONT, PROBED] {
        (&mut device_file).take((len - front.len()) as u64).read_to_end(&mut front)?;
        holds = probe(&front);
        if matches!(holds, Holds::FileSystem(_)) {
            break;
        }
    }
    drop(device_file);
    let mut told = Vec::new();
    let fs = match (holds, mkfs(pmem.fs, &node, size_of(device))) {
        (Holds::FileSystem(fs), _) => fs,
        (Holds::Nothing, Some(command)) if format => {
            run(&command)?;
            told.push(format!("was empty, now {}", pmem.fs.name()));
            pmem.fs
        }
        (Holds::Nothing, _) => return Ok(told),
        (Holds::Unknown, _) => {
            told.push("holds something that is no ext2, ext4 or XFS; left as it is".into());
            return Ok(told);
        }
    };
    if !pmem.mount {
        return Ok(told);
    }
    let target = Path::new("/mnt").join(device);
    fs::create_dir_all(&target)?;
    let dax =
        fs::read_to_string(format!("/sys/block/{device}/queue/dax")).is_ok_and(|flag| flag.trim() == "1");
    let options = match (dax, fs) {
        (false, _) => "",
        (true, Fs::Ext2) => "dax",
        (true, _) => "dax=always",
    };
    load_driver(fs);
    sys::mount(&node, &target, fs.name(), options).map_err(|e| {
        io::Error::new(e.kind(), format!("cannot mount {} with -o {options}: {e}", fs.name()))
    })?;
    if !dax {
        told.push(format!("mounted at {} without DAX: the device does not offer it", target.display()));
    }
    Ok(told)
}

/// Asks modprobe for a driver that the kernel lacks. It would do so itself, if it has a module loader configured.
fn load_driver(fs: Fs) {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !known.lines().any(|line| line.split_whitespace().last() == Some(fs.name())) {
        let _ = run(&["modprobe".to_owned(), fs.name().to_owned()]);
    }
}

/// Bytes of a block device.
fn size_of(device: &str) -> u64 {
    let sectors = fs::read_to_string(format!("/sys/block/{device}/size")).unwrap_or_default();
    sectors.trim().parse::<u64>().unwrap_or(0).saturating_mul(512)
}

fn run(words: &[String]) -> io::Result<()> {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env_clear().envs(ENVIRONMENT).stdin(Stdio::null());
    let output = command.output();
    let output = output.map_err(|e| io::Error::new(e.kind(), format!("cannot run {}: {e}", words[0])))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("`{}` failed ({}): {}", words.join(" "), output.status, said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ext(compatible: u32, incompatible: u32) -> Vec<u8> {
        let mut front = vec![0; 4096];
        front[1024 + 56..1024 + 58].copy_from_slice(&[0x53, 0xef]);
        front[1024 + 92..1024 + 96].copy_from_slice(&compatible.to_le_bytes());
        front[1024 + 96..1024 + 100].copy_from_slice(&incompatible.to_le_bytes());
        front
    }

    #[test]
    fn file_systems_are_told_apart() {
        assert_eq!(probe(&ext(0x38, 0x2)), Holds::FileSystem(Fs::Ext2));
        assert_eq!(probe(&ext(0x3c, 0x2)), Holds::FileSystem(Fs::Ext4));
        assert_eq!(probe(&ext(0x38, 0x2c2)), Holds::FileSystem(Fs::Ext4));
        assert_eq!(probe(b"XFSB rest"), Holds::FileSystem(Fs::Xfs));
    }

    #[test]
    fn only_zeroes_are_nothing() {
        assert_eq!(probe(&[0; PROBED]), Holds::Nothing);
        let mut one = vec![0; PROBED];
        one[PROBED - 1] = 1;
        assert_eq!(probe(&one), Holds::Unknown);
        assert_eq!(probe(&[]), Holds::Nothing);
    }

    #[test]
    fn devices_belong_to_regions_and_sector_devices_to_none() {
        assert_eq!(region_of("pmem3"), Some(3));
        assert_eq!(region_of("pmem3.1"), Some(3));
        assert_eq!(region_of("pmem3s"), None);
        assert_eq!(region_of("pmem0.1s"), None);
        assert_eq!(region_of("vda"), None);
    }

    #[test]
    fn every_file_system_gets_blocks_of_a_page() {
        for fs in [Fs::Ext4, Fs::Ext2] {
            let command = mkfs(fs, "/dev/pmem0", 1 << 30).unwrap().join(" ");
            assert!(command.contains(&format!("-t {} -b 4096", fs.name())), "{command}");
        }
        assert!(mkfs(Fs::Xfs, "/dev/pmem0", 1 << 30).unwrap().join(" ").ends_with("-K /dev/pmem0"));
        assert!(mkfs(Fs::Xfs, "/dev/pmem0", 64 << 20).unwrap().contains(&"--unsupported".to_owned()));
        assert_eq!(mkfs(Fs::None, "/dev/pmem0", 1 << 30), None);
    }
}
