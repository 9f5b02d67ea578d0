//! The initial RAM disk: a tree of files in memory, written as a "newc" cpio archive (Linux
//! Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! The tree is usr-merged: `/bin`, `/sbin`, `/lib` and `/lib64` are links into `/usr`, and paths below them are
//! rewritten on insertion, so that packages from before and after the merge meet in one place.

use std::collections::BTreeMap;
use std::path::{Component, Path};

/// What stands at a path of a [`Tree`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A folder.
    Dir,
    /// A regular file with its permission bits.
    File {
        /// Contents.
        data: Vec<u8>,
        /// Permission bits.
        mode: u32,
    },
    /// A symbolic link.
    Link(String),
    /// A character device, by major and minor number.
    Device(u32, u32),
}

/// An entry of an archive: its path, the type and permission bits of its mode, and its contents.
pub type Entry<'a> = (&'a str, u32, &'a [u8]);

/// The entries of a "newc" archive, up to the first that makes no sense.
pub fn entries(archive: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    let mut at = 0usize;
    std::iter::from_fn(move || {
        let head = archive.get(at..)?.get(..110).filter(|head| head.starts_with(b"070701"))?;
        let number = |n: usize| {
            let digits = std::str::from_utf8(&head[6 + 8 * n..14 + 8 * n]).ok()?;
            u32::from_str_radix(digits, 16).ok()
        };
        let (mode, size, name) = (number(1)?, number(6)? as usize, number(11)? as usize);
        let start = (at + 110).checked_add(name)?;
        let path = std::str::from_utf8(archive.get(at + 110..start.checked_sub(1)?)?).ok()?;
        let data = start.next_multiple_of(4);
        let contents = archive.get(data..data.checked_add(size)?)?;
        at = (data + size).next_multiple_of(4);
        (path != "TRAILER!!!").then_some((path, mode, contents))
    })
}

/// Files of a guest, by path without leading slash. Deterministic: the same files give the same archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
}

const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

impl Tree {
    /// An empty tree with the four links of a merged `/usr`.
    pub fn merged() -> Self {
        let mut tree = Self::default();
        for name in MERGED {
            tree.insert(&format!("usr/{name}"), Node::Dir);
            tree.nodes.insert(name.into(), Node::Link(format!("usr/{name}")));
        }
        tree
    }

    /// Puts `node` at `path`, with all folders above it. A folder that exists stays as it is.
    pub fn insert(&mut self, path: &str, node: Node) {
        let path = self.canonical(path);
        if path.is_empty() {
            return;
        }
        for (at, _) in path.match_indices('/') {
            self.nodes.entry(path[..at].into()).or_insert(Node::Dir);
        }
        if node == Node::Dir {
            self.nodes.entry(path).or_insert(node);
        } else {
            self.nodes.insert(path, node);
        }
    }

    /// Puts a file at `path`.
    pub fn file(&mut self, path: &str, mode: u32, data: impl Into<Vec<u8>>) {
        self.insert(path, Node::File { data: data.into(), mode });
    }

    /// Puts a symbolic link at `path`.
    pub fn link(&mut self, path: &str, target: &str) {
        self.insert(path, Node::Link(target.into()));
    }

    /// What stands at `path`, links of the merged `/usr` followed.
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(&self.canonical(path))
    }

    /// All nodes by path.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    fn canonical(&self, path: &str) -> String {
        let path = normal(path);
        let first = path.split('/').next().unwrap_or_default();
        match self.nodes.get(first) {
            Some(Node::Link(target)) if first.len() < path.len() && MERGED.contains(&first) => {
                format!("{target}{}", &path[first.len()..])
            }
            _ => path,
        }
    }

    /// The archive, ending in its trailer and padded to 512 bytes.
    pub fn to_cpio(&self) -> Vec<u8> {
        let size: usize = self
            .nodes
            .iter()
            .map(|(path, node)| {
                120 + path.len() + if let Node::File { data, .. } = node { data.len() } else { 0 }
            })
            .sum();
        let mut out = Vec::with_capacity(size + 1024);
        for (ino, (path, node)) in self.nodes.iter().enumerate() {
            let ino = ino as u32 + 1;
            match node {
                Node::Dir => entry(&mut out, ino, 0o040_755, (0, 0), path, &[]),
                Node::File { data, mode } => {
                    entry(&mut out, ino, 0o100_000 | mode & 0o7777, (0, 0), path, data)
                }
                Node::Link(target) => entry(&mut out, ino, 0o120_777, (0, 0), path, target.as_bytes()),
                Node::Device(major, minor) => entry(&mut out, ino, 0o020_600, (*major, *minor), path, &[]),
            }
        }
        entry(&mut out, 0, 0, (0, 0), "TRAILER!!!", &[]);
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }
}

/// `path` without leading slash, `.` and `..`.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => parts.extend(part.to_str()),
            Component::ParentDir => {
                parts.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    parts.join("/")
}

fn entry(out: &mut Vec<u8>, ino: u32, mode: u32, device: (u32, u32), name: &str, data: &[u8]) {
    // Owner and times are root and the epoch, so that archives are equal wherever they are made.
    let fields =
        [ino, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
    out.extend(b"070701");
    for field in fields {
        out.extend(format!("{field:08x}").bytes());
    }
    out.extend(name.bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(data);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_merged_into_usr() {
        let mut tree = Tree::merged();
        tree.file("/sbin/mke2fs", 0o755, *b"x");
        tree.file("./usr/sbin/../bin/y", 0o644, *b"y");
        assert!(matches!(tree.get("usr/sbin/mke2fs"), Some(Node::File { .. })));
        assert!(matches!(tree.get("/bin/y"), Some(Node::File { mode: 0o644, .. })));
        assert_eq!(tree.get("lib64"), Some(&Node::Link("usr/lib64".into())));
    }

    #[test]
    fn parents_are_made_once_and_first() {
        let mut tree = Tree::default();
        tree.file("/a/b/c", 0o600, *b"1");
        tree.insert("/a/b", Node::Dir);
        let paths: Vec<_> = tree.iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["a", "a/b", "a/b/c"]);
    }

    #[test]
    fn archive_has_the_layout_of_newc() {
        let mut tree = Tree::default();
        tree.file("/f", 0o640, *b"hello");
        let cpio = tree.to_cpio();
        assert_eq!(&cpio[..6], b"070701");
        assert_eq!(&cpio[14..22], b"000081a0");
        assert_eq!(&cpio[54..62], b"00000005");
        assert_eq!(&cpio[94..102], b"00000002");
        assert_eq!(&cpio[110..112], b"f\0");
        assert_eq!(&cpio[112..120], b"hello\0\0\0");
        assert_eq!(&cpio[120 + 110..120 + 120], b"TRAILER!!!");
        assert_eq!(cpio.len() % 512, 0);
    }

    #[test]
    fn an_archive_is_read_as_it_was_written() {
        let mut tree = Tree::merged();
        tree.file("/sbin/tool", 0o755, "odd");
        tree.link("/lib/one.so", "two.so");
        let archive = tree.to_cpio();
        let found: Vec<Entry<'_>> = entries(&archive).filter(|entry| !entry.2.is_empty()).collect();
        assert!(found.contains(&("usr/sbin/tool", 0o100_755, b"odd")), "{found:?}");
        assert!(found.contains(&("usr/lib/one.so", 0o120_777, b"two.so")), "{found:?}");
        for cut in 0..archive.len() {
            let _ = entries(&archive[..cut]).count();
        }
    }
}
