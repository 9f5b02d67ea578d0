//! The shared libraries that the programs of an image need, found among their packages' dependencies.

use std::collections::{BTreeMap, BTreeSet};

use crate::apt::{Apt, Package};
use crate::cpio::{Node, Tree};
use crate::deb::Deb;
use crate::elf;
use crate::error::{Error, Result};
use crate::progress::Progress;

/// Where the loader looks, in the merged `/usr`.
const FOLDERS: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "usr/lib"];

/// Adds to `tree` every library that a file of it needs, transitively. `packages` gains the packages they are from.
pub(crate) fn close(
    tree: &mut Tree,
    packages: &mut BTreeMap<String, Package>,
    apt: &Apt,
    progress: &dyn Progress,
) -> Result<()> {
    let mut checked = BTreeSet::new();
    // Package names in the order in which they are tried; a library's own dependencies come later.
    let mut reachable: Vec<String> = Vec::new();
    let mut unpacked: BTreeMap<String, BTreeMap<String, Node>> = BTreeMap::new();
    for package in packages.values() {
        enqueue(&mut reachable, &package.depends);
    }
    while let Some((soname, needed_by)) = missing(tree, &mut checked) {
        let mut tried = BTreeSet::new();
        let owner = loop {
            let next = candidates(&soname, &reachable).into_iter().find(|name| !tried.contains(name));
            let Some(name) = next else {
                return Err(Error::NoLibrary { soname, needed_by });
            };
            tried.insert(name.clone());
            if !unpacked.contains_key(&name) {
                let Some(package) = apt.candidates(&[&name])?.remove(&name) else { continue };
                enqueue(&mut reachable, &package.depends);
                unpacked.insert(name.clone(), libraries_of(apt, &package, progress)?);
                packages.insert(name.clone(), package);
            }
            if unpacked[&name].contains_key(&soname) {
                break name;
            }
        };
        take(tree, &unpacked[&owner], &soname);
    }
    packages.retain(|name, _| !unpacked.contains_key(name) || uses(tree, &unpacked[name]));
    Ok(())
}

/// The first library that a file of `tree` needs and that is not there.
fn missing(tree: &Tree, checked: &mut BTreeSet<String>) -> Option<(String, String)> {
    for (path, node) in tree.iter() {
        let Node::File { data, .. } = node else { continue };
        if checked.contains(path) || path.ends_with(".ko") {
            continue;
        }
        if let Ok(Some(needs)) = elf::needs(data) {
            let loader = needs.interpreter.iter().map(|path| path.rsplit('/').next().unwrap_or(path));
            for soname in needs.libraries.iter().map(String::as_str).chain(loader) {
                if !present(tree, soname) {
                    return Some((soname.to_owned(), format!("/{path}")));
                }
            }
        }
        checked.insert(path.to_owned());
    }
    None
}

fn present(tree: &Tree, soname: &str) -> bool {
    FOLDERS.iter().any(|folder| tree.get(&format!("{folder}/{soname}")).is_some())
}

fn enqueue(reachable: &mut Vec<String>, depends: &[String]) {
    for name in depends {
        if name.starts_with("lib") && !reachable.contains(name) {
            reachable.push(name.clone());
        }
    }
}

/// Reachable packages, those named after `soname` (Debian Policy 8.1) first.
fn candidates(soname: &str, reachable: &[String]) -> Vec<String> {
    let (stem, version) = soname.split_once(".so.").unwrap_or((soname, ""));
    let stem = stem.replace('_', "-").to_lowercase();
    let dash = if stem.ends_with(|c: char| c.is_ascii_digit()) { "-" } else { "" };
    let policy = format!("{stem}{dash}{version}");
    let rank = |name: &String| match name {
        _ if *name == policy => 0,
        // The loader is the C library's.
        _ if soname.starts_with("ld-linux") && name.starts_with("libc6") => 0,
        _ if name.starts_with(&stem) => 1,
        _ => 2,
    };
    let mut ranked: Vec<_> = reachable.to_vec();
    ranked.sort_by_key(rank);
    ranked
}

/// Libraries and their links in the loader's folders, by file name.
fn libraries_of(apt: &Apt, package: &Package, progress: &dyn Progress) -> Result<BTreeMap<String, Node>> {
    let mut found = BTreeMap::new();
    let file = apt.fetch(package, progress)?;
    Deb::new(&file).unpack(
        |path| {
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            let folder = folder.trim_start_matches("/usr").trim_start_matches('/');
            matches!(folder, "lib/x86_64-linux-gnu" | "lib64" | "lib") && path.contains(".so")
        },
        |path, node| {
            if let Some((_, name)) = path.rsplit_once('/') {
                // libc6 has its loader twice: the file, and a link from /lib64.
                if !matches!((&node, found.get(name)), (Node::Link(_), Some(Node::File { .. }))) {
                    found.insert(name.to_owned(), node);
                }
            }
            Ok(())
        },
    )?;
    Ok(found)
}

/// Puts `soname` into `tree`, following its links within the package.
fn take(tree: &mut Tree, library: &BTreeMap<String, Node>, soname: &str) {
    let mut name = soname;
    for _ in 0..8 {
        match library.get(name) {
            Some(Node::Link(target)) => {
                tree.link(&format!("{}/{name}", FOLDERS[0]), target);
                name = target.rsplit('/').next().unwrap_or(target);
            }
            Some(node) => {
                tree.insert(&format!("{}/{name}", FOLDERS[0]), node.clone());
                break;
            }
            None => break,
        }
    }
    if soname.starts_with("ld-linux") {
        tree.link(&format!("usr/lib64/{soname}"), &format!("../lib/x86_64-linux-gnu/{soname}"));
    }
}

fn uses(tree: &Tree, library: &BTreeMap<String, Node>) -> bool {
    library.keys().any(|name| present(tree, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_that_policy_names_is_tried_first() {
        let reachable: Vec<String> =
            ["libss2", "libc6", "libcom-err2", "libext2fs2", "libdevmapper1.02.1"].map(str::to_owned).into();
        assert_eq!(candidates("libcom_err.so.2", &reachable)[0], "libcom-err2");
        assert_eq!(candidates("libc.so.6", &reachable)[0], "libc6");
        assert_eq!(candidates("ld-linux-x86-64.so.2", &reachable)[0], "libc6");
        assert_eq!(candidates("libdevmapper.so.1.02.1", &reachable)[0], "libdevmapper1.02.1");
        assert_eq!(candidates("libe2p.so.2", &reachable).len(), 5);
    }

    #[test]
    fn a_library_comes_with_the_file_its_link_names() {
        let library = BTreeMap::from([
            ("libx.so.1".to_owned(), Node::Link("libx.so.1.2".into())),
            ("libx.so.1.2".to_owned(), Node::File { data: b"x".to_vec(), mode: 0o644 }),
        ]);
        let mut tree = Tree::merged();
        take(&mut tree, &library, "libx.so.1");
        assert!(present(&tree, "libx.so.1") && present(&tree, "libx.so.1.2"));
    }
}
