//! What every guest has beside its packages: folders, accounts, busybox's applets, init.

use crate::cpio::{Node, Tree};
use crate::error::{Error, Result};

const FOLDERS: [&str; 13] = [
    "dev",
    "etc/nvsim",
    "mnt",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr/bin",
    "usr/sbin",
    "var/log",
    "var/tmp",
    "opt",
];

/// Applets that the kernel and scripts look for in /sbin.
const IN_SBIN: [&str; 3] = ["modprobe", "insmod", "init"];

/// Programs that the agent also is.
const PROGRAMS: [&str; 2] = ["nvsim-mark", "nvsim-store"];

/// The most NV-DIMM file systems that init mounts.
const MOUNT_POINTS: usize = 8;

/// The tree that packages are laid into.
pub(crate) fn tree(agent: &[u8], hostname: &str) -> Tree {
    let mut tree = Tree::merged();
    for folder in FOLDERS {
        tree.insert(folder, Node::Dir);
    }
    for n in 0..MOUNT_POINTS {
        tree.insert(&format!("mnt/pmem{n}"), Node::Dir);
    }
    tree.file(
        "etc/passwd",
        0o644,
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    );
    tree.file("etc/group", 0o644, "root:x:0:\ntty:x:5:\ndisk:x:6:\nnogroup:x:65534:\n");
    tree.file("etc/hostname", 0o644, format!("{hostname}\n"));
    tree.file("etc/hosts", 0o644, format!("127.0.0.1 localhost {hostname}\n"));
    tree.file("etc/profile", 0o644, "export PATH=/usr/sbin:/usr/bin\nexport PS1='\\u@\\h:\\w\\$ '\n");
    tree.link("etc/mtab", "/proc/self/mounts");
    tree.file("init", 0o755, agent);
    for program in PROGRAMS {
        tree.link(&format!("usr/bin/{program}"), "/init");
    }
    // Init starts with the console open, before it has mounted /dev.
    tree.insert("dev/console", Node::Device(5, 1));
    tree.insert("dev/null", Node::Device(1, 3));
    tree
}

/// Links each applet of /bin/busybox to it, where no other program has the name.
pub(crate) fn link_applets(tree: &mut Tree) -> Result<()> {
    let Some(Node::File { data, .. }) = tree.get("/bin/busybox") else { return Ok(()) };
    let Some(applets) = applets(data) else {
        return Err(Error::NotInPackage { package: "busybox-static".into(), path: "list of applets".into() });
    };
    for applet in applets {
        let folder = if IN_SBIN.contains(&applet.as_str()) { "usr/sbin" } else { "usr/bin" };
        let taken = ["usr/sbin", "usr/bin"].iter().any(|f| tree.get(&format!("{f}/{applet}")).is_some());
        if !taken && applet != "init" {
            tree.link(&format!("{folder}/{applet}"), "/bin/busybox");
        }
    }
    Ok(())
}

/// The names in busybox's own table: NUL-terminated, sorted, the first one `[`, after the last one an empty name.
fn applets(busybox: &[u8]) -> Option<Vec<String>> {
    const FIRST: &[u8] = b"\0[\0[[\0";
    let at = busybox.windows(FIRST.len()).position(|w| w == FIRST)? + 1;
    let names: Vec<String> = busybox[at..]
        .split(|&b| b == 0)
        .take_while(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    let named = |name: &str| names.iter().any(|n| n == name);
    (named("sh") && named("mount")).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applets_give_way_to_real_programs() {
        let mut tree = tree(b"agent", "g");
        tree.file("/bin/busybox", 0o755, *b"code\0[\0[[\0mke2fs\0modprobe\0mount\0sh\0\0more\0");
        tree.file("/sbin/mke2fs", 0o755, *b"real");
        link_applets(&mut tree).unwrap();
        assert_eq!(tree.get("/bin/mount"), Some(&Node::Link("/bin/busybox".into())));
        assert_eq!(tree.get("/sbin/modprobe"), Some(&Node::Link("/bin/busybox".into())));
        assert_eq!(tree.get("/bin/mke2fs"), None);
        assert!(matches!(tree.get("/sbin/mke2fs"), Some(Node::File { .. })));
    }

    #[test]
    fn a_busybox_without_applets_is_an_error() {
        let mut tree = tree(b"agent", "g");
        tree.file("/bin/busybox", 0o755, *b"nothing");
        assert!(link_applets(&mut tree).is_err());
    }
}
