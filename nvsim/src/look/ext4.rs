//! What is where in an ext2, ext3 or ext4 file system, as debugfs tells.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::path::Path;

use anyhow::Result;
use view::Place;

use super::tools::Tools;

/// The journal's inode.
const JOURNAL: u64 = 8;
/// Blocks that are asked for in one line, and inodes whose blocks are listed.
const AT_ONCE: usize = 200;
const INODES: usize = 1000;

/// Names what is at some offsets.
pub fn locate(tools: &Tools, image: &Path, offsets: &BTreeSet<u64>) -> Result<HashMap<u64, Place>> {
    let ask = |commands: &str| {
        tools.run("debugfs", &[OsStr::new("-f"), OsStr::new("-"), image.as_os_str()], commands)
    };
    let layout = Layout::parse(&ask("stats\n")?);
    let blocks: BTreeSet<u64> = offsets.iter().map(|offset| offset / layout.block).collect();
    let blocks: Vec<String> = blocks.iter().map(ToString::to_string).collect();
    let owners = owners(&ask(&lines("icheck", &blocks))?);
    let mut inodes: BTreeSet<u64> = owners.values().copied().collect();
    // Those whose own entries in the inode tables are among the offsets have names, too.
    inodes.extend(offsets.iter().filter_map(|&offset| layout.inode_at(offset)));
    let inodes: Vec<u64> = inodes.into_iter().take(INODES).collect();
    let numbers: Vec<String> = inodes.iter().map(ToString::to_string).collect();
    let paths = paths(&ask(&lines("ncheck", &numbers))?);
    let mut extents = HashMap::new();
    for inode in owners.values().copied().filter(|inode| inodes.contains(inode)).collect::<BTreeSet<_>>() {
        extents.insert(inode, spans(&ask(&format!("dump_extents -l <{inode}>\n"))?));
    }
    let path = |inode: u64| paths.get(&inode).cloned();
    let place = |offset: u64| {
        let (block, within) = (offset / layout.block, offset % layout.block);
        let Some(&inode) = owners.get(&block) else {
            return match layout.inode_at(offset) {
                Some(inode) => Place { name: of_inode(inode, path(inode)), offset: None },
                None => Place { name: layout.name_of(block).to_owned(), offset: None },
            };
        };
        let logical = extents.get(&inode).and_then(|spans: &Vec<Span>| {
            let span =
                spans.iter().find(|span| (span.physical..span.physical + span.len).contains(&block))?;
            Some((span.logical + block - span.physical) * layout.block + within)
        });
        let name = match (inode, path(inode)) {
            (JOURNAL, _) => "journal".to_owned(),
            (_, Some(path)) => path,
            (2, None) => "/".to_owned(),
            (7, None) => "reserved for resizing".to_owned(),
            (inode, None) => format!("file of inode {inode}"),
        };
        Place { name, offset: logical }
    };
    Ok(offsets.iter().map(|&offset| (offset, place(offset))).collect())
}

fn of_inode(inode: u64, path: Option<String>) -> String {
    match (inode, path) {
        (JOURNAL, _) => "inode 8 (journal)".to_owned(),
        (_, Some(path)) => format!("inode {inode} ({path})"),
        (_, None) => format!("inode {inode}"),
    }
}

/// A command with many arguments, as several.
fn lines(command: &str, arguments: &[String]) -> String {
    arguments.chunks(AT_ONCE).map(|some| format!("{command} {}\n", some.join(" "))).collect()
}

/// Where the file system keeps its own books.
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    block: u64,
    inode_size: u64,
    per_group: u64,
    inode_blocks: u64,
    /// Of each group the blocks of its bitmaps and where its inode table begins.
    groups: Vec<[u64; 3]>,
}

impl Layout {
    fn parse(text: &str) -> Self {
        let number = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse::<u64>().ok()
        };
        let groups = text.lines().filter_map(|line| {
            let (_, rest) = line.trim_start().strip_prefix("Group ")?.split_once(": block bitmap at ")?;
            let (blocks, rest) = rest.split_once(", inode bitmap at ")?;
            let (inodes, table) = rest.split_once(", inode table at ")?;
            Some([blocks.parse().ok()?, inodes.parse().ok()?, table.trim().parse().ok()?])
        });
        Self {
            block: number("Block size:").filter(|&size| size > 0).unwrap_or(4096),
            inode_size: number("Inode size:").filter(|&size| size > 0).unwrap_or(256),
            per_group: number("Inodes per group:").unwrap_or(0),
            inode_blocks: number("Inode blocks per group:").unwrap_or(0),
            groups: groups.collect(),
        }
    }

    /// The inode whose entry in a table is at an offset.
    fn inode_at(&self, offset: u64) -> Option<u64> {
        let block = offset / self.block;
        let within = |table: u64| (table..table.saturating_add(self.inode_blocks)).contains(&block);
        let (group, [.., table]) = (0..).zip(&self.groups).find(|(_, [.., table])| within(*table))?;
        let n = (offset - table * self.block) / self.inode_size;
        Some(group * self.per_group + n + 1)
    }

    fn name_of(&self, block: u64) -> &'static str {
        match () {
            () if self.groups.iter().any(|group| group[0] == block) => "block bitmap",
            () if self.groups.iter().any(|group| group[1] == block) => "inode bitmap",
            () if block == 0 => "superblock",
            () => "free or metadata",
        }
    }
}

/// Blocks with their inodes, as `icheck` lists them.
fn owners(text: &str) -> BTreeMap<u64, u64> {
    let pair = |line: &str| {
        let (block, inode) = line.split_once('\t')?;
        Some((block.trim().parse().ok()?, inode.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

/// Inodes with their paths, as `ncheck` lists them; of several the first.
fn paths(text: &str) -> HashMap<u64, String> {
    let mut paths = HashMap::new();
    for line in text.lines() {
        if let Some((inode, path)) = line.split_once('\t')
            && let Ok(inode) = inode.trim().parse()
        {
            // Those in the root directory come with two slashes.
            paths.entry(inode).or_insert_with(|| format!("/{}", printable(path.trim_start_matches('/'))));
        }
    }
    paths
}

/// A run of a file's blocks.
#[derive(Debug, PartialEq, Eq)]
struct Span {
    logical: u64,
    physical: u64,
    len: u64,
}

/// The runs that `dump_extents -l` lists: level, entries, logical first and last, physical first and last, length.
fn spans(text: &str) -> Vec<Span> {
    let span = |line: &str| {
        let (_, rest) = line.split_once('/')?;
        let (_, rest) = rest.split_once('/')?;
        let numbers: Vec<u64> = rest.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [_, logical, _, physical, _, len, ..] = numbers[..] else { return None };
        Some(Span { logical, physical, len })
    };
    text.lines().filter_map(span).collect()
}

/// A guest's name, fit for a terminal.
pub fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATS: &str = "\
Inode count:              16384
Block size:               4096
Inodes per group:         8192
Inode blocks per group:   512
Inode size:\t          256
 Group  0: block bitmap at 9, inode bitmap at 25, inode table at 41
           14314 free blocks, 16371 free inodes, 3 used directories, 16371 unused inodes
 Group  1: block bitmap at 10, inode bitmap at 26, inode table at 553
";

    #[test]
    fn the_books_of_a_file_system_are_told_apart() {
        let layout = Layout::parse(STATS);
        assert_eq!((layout.block, layout.inode_size, layout.groups.len()), (4096, 256, 2));
        assert_eq!(layout.inode_at(41 * 4096 + 0xb00), Some(12));
        assert_eq!(layout.inode_at(553 * 4096), Some(8193));
        assert_eq!(layout.inode_at(40 * 4096), None);
        assert_eq!(
            [0, 10, 25, 30].map(|b| layout.name_of(b)),
            ["superblock", "block bitmap", "inode bitmap", "free or metadata"]
        );
        // Nothing can be read: nothing is found.
        assert_eq!(Layout::parse("").inode_at(0), None);
    }

    #[test]
    fn debugfs_is_understood() {
        let blocks = "debugfs: icheck 1 2065\nBlock\tInode number\n1\t<block not found>\n2065\t12\n";
        assert_eq!(owners(blocks), BTreeMap::from([(2065, 12)]));
        let names =
            paths("debugfs: ncheck 12\nInode\tPathname\n12\t//hello.txt\n12\t//again\n13\t//dir/a\u{7}b\n");
        assert_eq!((names[&12].as_str(), names[&13].as_str()), ("/hello.txt", "/dir/a\u{fffd}b"));
        let listed = "Level Entries       Logical      Physical Length Flags\n 0/ 0   1/  2     0 -     3  2065 -  2068      4 \n 0/ 0   2/  2     8 -     8  3000 -  3000      1 Uninit\n";
        let span = |logical, physical, len| Span { logical, physical, len };
        assert_eq!(spans(listed), [span(0, 2065, 4), span(8, 3000, 1)]);
    }
}
