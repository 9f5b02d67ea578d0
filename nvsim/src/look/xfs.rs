//! What is where in an XFS file system, as xfs_db tells. What stands in its log only is not known.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Result;
use view::Place;

use super::ext4::printable;
use super::tools::Tools;

/// `daddr` counts sectors of this size.
const SECTOR: u64 = 512;
/// A line that sets answers apart.
const MARK: &str = "nvsim-next";

/// Names what is at some offsets.
pub fn locate(tools: &Tools, image: &Path, offsets: &BTreeSet<u64>) -> Result<HashMap<u64, Place>> {
    let ask = |commands: &str| {
        tools.run("xfs_db", &[OsStr::new("-r"), OsStr::new("-f"), image.as_os_str()], commands)
    };
    let told = ask("sb 0\np blocksize agblocks agblklog logstart logblocks\n")?;
    let block = number(&told, "blocksize").filter(|&size| size > 0).unwrap_or(4096);
    if let Some((at, len)) = log(&told, block) {
        clear(image, at, len)?;
    }
    let blocks: Vec<u64> =
        offsets.iter().map(|offset| offset / block).collect::<BTreeSet<_>>().into_iter().collect();
    // One run for all blocks, as blockget reads the whole file system.
    let mut commands = "blockget -n\n".to_owned();
    for at in &blocks {
        commands += &format!("echo {MARK}\ndaddr {}\nblockuse -n\n", at * block / SECTOR);
    }
    let uses: BTreeMap<u64, Use> =
        blocks.iter().copied().zip(ask(&commands)?.split(MARK).skip(1).map(Use::parse)).collect();
    let inodes: BTreeSet<u64> = uses.values().filter_map(|own| own.inode).collect();
    let mut commands = String::new();
    for inode in &inodes {
        commands += &format!("echo {MARK}\ninode {inode}\nbmap\n");
    }
    let listed = if inodes.is_empty() { String::new() } else { ask(&commands)? };
    let maps: HashMap<u64, Vec<Span>> =
        inodes.into_iter().zip(listed.split(MARK).skip(1).map(spans)).collect();
    let place = |offset: u64| {
        let own = uses.get(&(offset / block))?;
        let Some(inode) = own.inode else {
            return Some(Place { name: own.kind.clone(), offset: None });
        };
        let name = match (&own.path, own.kind.as_str()) {
            (Some(path), "data") => format!("/{}", printable(path)),
            (Some(path), kind) => format!("{kind} of /{}", printable(path)),
            (None, kind) => format!("{kind} of inode {inode}"),
        };
        let (group, at) = own.group?;
        let spans = maps.get(&inode).filter(|_| own.kind == "data");
        let logical = spans.and_then(|spans| {
            let span = spans.iter().find(|s| s.group == group && (s.at..s.at + s.len).contains(&at))?;
            Some((span.logical + at - span.at) * block + offset % block)
        });
        Some(Place { name, offset: logical })
    };
    Ok(offsets.iter().filter_map(|&offset| Some((offset, place(offset)?))).collect())
}

/// Where the log is, and how long: xfs_db tells of blocks only when nothing is to be replayed.
fn log(told: &str, block: u64) -> Option<(u64, u64)> {
    let start = number(told, "logstart").filter(|&start| start > 0)?;
    let (blocks, bits) = (number(told, "agblocks")?, u32::try_from(number(told, "agblklog")?).ok()?);
    let group = start.checked_shr(bits)?;
    let at = group.checked_mul(blocks)?.checked_add(start - (group << bits))?;
    Some((at.checked_mul(block)?, number(told, "logblocks")?.checked_mul(block)?))
}

/// Empties a part of the image, which is a copy; never makes it longer.
fn clear(image: &Path, at: u64, len: u64) -> Result<()> {
    let file = std::fs::OpenOptions::new().write(true).open(image)?;
    let end = at.saturating_add(len).min(file.metadata()?.len());
    let zeroes = vec![0; 1 << 20];
    let mut at = at;
    while at < end {
        let piece = (end - at).min(zeroes.len() as u64);
        file.write_all_at(&zeroes[..piece as usize], at)?;
        at += piece;
    }
    Ok(())
}

fn number(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.trim().strip_prefix(name)?.trim().strip_prefix('=')?.trim().parse().ok())
}

/// What a block is used for: `block 10 (0/10) type data inode 131 hello.txt`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Use {
    kind: String,
    inode: Option<u64>,
    path: Option<String>,
    /// Its allocation group, and its number there.
    group: Option<(u64, u64)>,
}

impl Use {
    fn parse(text: &str) -> Self {
        let Some(line) = text.lines().find(|line| line.starts_with("block ") && line.contains(" type "))
        else {
            return Self { kind: "unknown".to_owned(), ..Self::default() };
        };
        let mut words = line.splitn(8, ' ').skip(2);
        let group = words.next().and_then(pair);
        let kind = words.nth(1).unwrap_or_default();
        let inode = words.nth(1).and_then(|number| number.parse().ok());
        let path = words.next().map(|path| path.trim().to_owned()).filter(|path| !path.is_empty());
        let kind = match kind {
            "sb" => "superblock",
            "log" => "log",
            "agf" | "agi" | "agfl" => "allocation group's header",
            "free1" | "free2" => "free",
            "btbno" | "btcnt" => "free-space tree",
            "btino" | "btfino" => "inode tree",
            "btrmap" => "reverse-mapping tree",
            "btrefc" => "reference-count tree",
            "inode" => "inodes",
            "dir" => "directory",
            kind => kind,
        };
        Self { kind: kind.to_owned(), inode, path, group }
    }
}

/// `(0/10)`.
fn pair(word: &str) -> Option<(u64, u64)> {
    let (group, at) = word.strip_prefix('(')?.strip_suffix(')')?.split_once('/')?;
    Some((group.parse().ok()?, at.parse().ok()?))
}

/// A run of a file's blocks.
#[derive(Debug, PartialEq, Eq)]
struct Span {
    logical: u64,
    group: u64,
    at: u64,
    len: u64,
}

/// The runs that `bmap` lists: `data offset 0 startblock 10 (0/10) count 4 flag 0`.
fn spans(text: &str) -> Vec<Span> {
    let span = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["data", "offset", logical, "startblock", _, place, "count", len, ..] = words[..] else {
            return None;
        };
        let (group, at) = pair(place)?;
        Some(Span { logical: logical.parse().ok()?, group, at, len: len.parse().ok()? })
    };
    text.lines().filter_map(span).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xfs_db_is_understood() {
        let own = Use::parse("\nblock 10 (0/10) type data inode 131 a dir/hello.txt\n");
        assert_eq!((own.kind.as_str(), own.inode, own.group), ("data", Some(131), Some((0, 10))));
        assert_eq!(own.path.as_deref(), Some("a dir/hello.txt"));
        let own = Use::parse("block 65542 (2/6) type log\n");
        assert_eq!((own.kind.as_str(), own.inode, own.path), ("log", None, None));
        assert_eq!(Use::parse("bad fsblock").kind, "unknown");
        let span = Span { logical: 4, group: 1, at: 10, len: 4 };
        assert_eq!(spans("data offset 4 startblock 16394 (1/10) count 4 flag 0\nattr\n"), [span]);
        let told = "blocksize = 4096\nagblocks = 20480\nagblklog = 15\nlogstart = 65542\nlogblocks = 16384\n";
        assert_eq!(log(told, 4096), Some(((2 * 20480 + 6) * 4096, 16384 * 4096)));
        // A log elsewhere.
        assert_eq!(log("logstart = 0\n", 4096), None);
        assert_eq!(number("blocksize = 1024\n", "blocksize"), Some(1024));
    }
}
