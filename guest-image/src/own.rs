//! Own kernels: `--kernel`, `--initrd`, `--modules`, brought into the shape of an image.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use crate::build::MODULE_LIST;
use crate::compress::{self, Format};
use crate::cpio::{Node, Tree};
use crate::error::{At, Error, Result};
use crate::image::Image;
use crate::modules;
use crate::store::{Store, write_atomically};

/// An initial RAM disk does not unpack to more than this.
const INITRD_LIMIT: usize = 4 << 30;

/// What init loads of an own kernel's modules, where there are such.
const AT_BOOT: [&str; 5] = ["nfit", "nd_pmem", "nd_btt", "device_dax", "dax_pmem"];

/// What every newc archive begins with.
const CPIO_MAGIC: [&[u8]; 2] = [b"070701", b"070702"];

/// A kernel and what goes with it, from the user's own files.
#[derive(Debug, Clone, Default)]
pub struct OwnKernel {
    /// A bzImage or an ELF vmlinux.
    pub kernel: PathBuf,
    /// An initial RAM disk, as it is or compressed.
    pub initrd: Option<PathBuf>,
    /// A folder with modules of this kernel, such as /lib/modules/RELEASE: they appear there in the guest.
    pub modules: Option<PathBuf>,
    /// An image whose initial RAM disk is used where none is given.
    pub base: Option<Image>,
}

impl Store {
    /// Brings a user's own kernel into the shape of an image. The files themselves are only read; what is made of them
    /// is cached by its content. The command line is the base's, or a console on the first serial port.
    pub fn own(&self, own: &OwnKernel) -> Result<Image> {
        let (vmlinux, release) = self.vmlinux_of(&own.kernel)?;
        let layout = own.initrd.as_deref().map(Layout::of_file).transpose()?.unwrap_or_default();
        let modules =
            own.modules.as_deref().map(|folder| Self::read_modules(folder, &release)).transpose()?;
        let initramfs = match (&own.initrd, &own.base, modules) {
            (Some(path), _, None) => Some(path.clone()),
            (Some(path), _, Some((tree, _))) => Some(self.overlay(Some((path, layout)), &tree)?),
            // The agent is told to load this kernel's modules, not those of the kernel that the base was built for.
            (None, Some(base), modules) => {
                let (mut tree, boot) = modules.unwrap_or_default();
                tree.file(MODULE_LIST, 0o644, boot.join("\n") + "\n");
                let under =
                    base.initramfs.as_deref().map(|path| Ok::<_, Error>((path, Layout::of_file(path)?)));
                Some(self.overlay(under.transpose()?, &tree)?)
            }
            (None, None, Some((tree, _))) => Some(self.overlay(None, &tree)?),
            (None, None, None) => None,
        };
        let cmdline = own.base.as_ref().map_or("console=ttyS0 panic=-1", |base| &base.cmdline);
        Ok(Image {
            kernel: own.kernel.clone(),
            vmlinux,
            system_map: None,
            initramfs,
            cmdline: cmdline.to_owned(),
            release,
            manifest: None,
        })
    }

    /// The modules in `folder`, and the paths of those that init loads.
    fn read_modules(folder: &Path, release: &str) -> Result<(Tree, Vec<String>)> {
        let files = modules::files_below(folder).at("read modules", folder)?;
        if files.is_empty() {
            return Err(Error::Module {
                path: folder.to_owned(),
                why: "the folder holds no .ko file".into(),
            });
        }
        let mut found = modules::Modules::default();
        for path in &files {
            let data = fs::read(path).at("read module", path)?;
            if path.ends_with("modules.builtin") {
                found.built_in(&data);
                continue;
            }
            let below = path.strip_prefix(folder).unwrap_or(path);
            found.stage(&format!("/lib/modules/{release}/{}", below.display()), data);
        }
        let mut tree = Tree::merged();
        let boot = found.install_all(&mut tree, release, &AT_BOOT, folder)?;
        Ok((tree, boot))
    }

    /// An initial RAM disk followed by an archive of `tree`. The kernel unpacks one after the other.
    fn overlay(&self, initrd: Option<(&Path, Layout)>, tree: &Tree) -> Result<PathBuf> {
        let (mut archive, layout) = match initrd {
            Some((path, layout)) => (fs::read(path).at("read initrd", path)?, layout),
            None => (Vec::new(), Layout::default()),
        };
        // An archive begins on a word boundary; zeroes between archives are skipped.
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(layout.overlay(tree));
        let cache = self.root().join("initrd");
        fs::create_dir_all(&cache).at("create", &cache)?;
        let path = cache.join(blake3::hash(&archive).to_hex().as_str());
        if !path.exists() {
            write_atomically(&path, &archive)?;
        }
        Ok(path)
    }
}

/// What matters of an initial RAM disk to an archive that is laid over it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Layout {
    /// `/lib` is a link to `/usr/lib`. An entry for a folder of that name would take the link away.
    merged: bool,
}

impl Layout {
    /// Walks an initial RAM disk to its end, so that damage is found here and not by a guest that finds no init.
    fn of_file(path: &Path) -> Result<Self> {
        let file = fs::File::open(path).at("read initrd", path)?;
        let mut layout = Self::default();
        layout.read(&file, true).map_err(|why| Error::Initrd { path: path.to_owned(), why })?;
        Ok(layout)
    }

    /// Archives follow each other, with zeroes between them; the last one may be compressed.
    fn read(&mut self, data: &impl ReadAt, may_be_packed: bool) -> std::result::Result<(), String> {
        let mut at = 0;
        loop {
            let begin = data.at(at, 16)?;
            if is_cpio(&begin) {
                at = self.read_archive(data, at)?;
            } else if may_be_packed && Format::of(&begin).is_some() {
                let packed = data.at(at, usize::MAX)?;
                let unpacked =
                    compress::decompress(&packed, INITRD_LIMIT).map_err(|e| format!("corrupt: {e}"))?;
                return self.read(&unpacked.as_slice(), false);
            } else if at == 0 {
                return Err("it holds neither a cpio archive nor one compressed in a known way".into());
            } else {
                return Err(format!("corrupt: byte {at} begins no archive"));
            }
            loop {
                let some = data.at(at, 4096)?;
                let zeroes = some.iter().take_while(|&&byte| byte == 0).count();
                at += zeroes as u64;
                match (some.len(), zeroes) {
                    (0, _) => return Ok(()),
                    (len, zeroes) if zeroes < len => break,
                    _ => {}
                }
            }
        }
    }

    /// Walks an archive that begins at a byte of its file, and gives where its trailer ends. The files' contents are not looked at.
    fn read_archive(&mut self, data: &impl ReadAt, base: u64) -> std::result::Result<u64, String> {
        const HEADER: usize = 110;
        const LINK: usize = 0o12;
        /// Of most names all.
        const NAME: usize = 146;
        let mut at = base;
        loop {
            let truncated = || format!("truncated: the entry at byte {at} ends beyond the file");
            let entry = data.at(at, HEADER + NAME)?;
            if entry.len() < HEADER {
                return Err(truncated());
            }
            let corrupt = || format!("corrupt: no entry header at byte {at}");
            if !is_cpio(&entry) {
                return Err(corrupt());
            }
            let field = |n: usize| {
                let text = std::str::from_utf8(&entry[6 + 8 * n..14 + 8 * n]).ok()?;
                usize::from_str_radix(text, 16).ok()
            };
            let (mode, size, name) = (field(1), field(6), field(11));
            let (Some(mode), Some(size), Some(length)) = (mode, size, name) else { return Err(corrupt()) };
            let end = (HEADER + length).next_multiple_of(4) + size;
            // The last byte of all that it has: if it is there, so is the rest.
            if data.at(at + end as u64 - 1, 1)?.is_empty() {
                return Err(truncated());
            }
            match entry.get(HEADER..HEADER + length) {
                Some(b"TRAILER!!!\0") => return Ok(at + end as u64),
                Some(b"lib\0" | b"./lib\0" | b"/lib\0") => self.merged = mode >> 12 == LINK,
                _ => {}
            }
            at += end.next_multiple_of(4) as u64;
        }
    }

    /// The files of a merged `tree`, where this layout has them.
    fn overlay(self, tree: &Tree) -> Vec<u8> {
        let mut files = Tree::default();
        for (path, node) in tree.iter().filter(|(_, node)| matches!(node, Node::File { .. })) {
            let library = path.strip_prefix("usr/").filter(|rest| rest.starts_with("lib/"));
            files.insert(library.filter(|_| !self.merged).unwrap_or(path), node.clone());
        }
        files.to_cpio()
    }
}

/// What is read by position.
trait ReadAt {
    /// So many bytes from a place on, or as many as there are.
    fn at(&self, place: u64, bytes: usize) -> std::result::Result<Vec<u8>, String>;
}

impl ReadAt for fs::File {
    fn at(&self, place: u64, bytes: usize) -> std::result::Result<Vec<u8>, String> {
        let mut file = self;
        let mut found = Vec::new();
        file.seek(SeekFrom::Start(place))
            .and_then(|_| file.take(bytes as u64).read_to_end(&mut found))
            .map_err(|error| format!("byte {place} cannot be read: {error}"))?;
        Ok(found)
    }
}

impl ReadAt for &[u8] {
    fn at(&self, place: u64, bytes: usize) -> std::result::Result<Vec<u8>, String> {
        let rest = usize::try_from(place).ok().and_then(|place| self.get(place..)).unwrap_or_default();
        Ok(rest[..bytes.min(rest.len())].to_vec())
    }
}

fn is_cpio(data: &[u8]) -> bool {
    CPIO_MAGIC.iter().any(|magic| data.starts_with(magic))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::tests::tiny_vmlinux;
    use proptest::prelude::*;

    fn archive() -> Vec<u8> {
        let mut tree = Tree::default();
        tree.file("init", 0o755, *b"#!/bin/sh\n");
        tree.to_cpio()
    }

    fn own(folder: &Path) -> OwnKernel {
        let kernel = folder.join("vmlinux");
        fs::write(&kernel, tiny_vmlinux()).unwrap();
        OwnKernel { kernel, ..OwnKernel::default() }
    }

    #[test]
    fn a_kernel_alone_is_an_image_and_nothing_of_the_users_changes() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("store"));
        let image = store.own(&own(folder.path())).unwrap();
        assert_eq!(image.release, "6.12.99-test");
        assert_eq!(image.initramfs, None);
        assert_eq!(fs::read(&image.vmlinux).unwrap(), fs::read(&image.kernel).unwrap());
        // The second time it comes out of the cache.
        assert_eq!(store.own(&own(folder.path())).unwrap().vmlinux, image.vmlinux);
    }

    #[test]
    fn damaged_files_are_named_and_leave_the_cache_empty() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("store"));
        let mut asked = own(folder.path());
        let initrd = folder.path().join("rd.img");
        fs::write(&initrd, &archive()[..130]).unwrap();
        asked.initrd = Some(initrd.clone());
        let error = store.own(&asked).unwrap_err().to_string();
        assert!(error.contains("rd.img: truncated") && error.contains("give a newc cpio archive"), "{error}");
        fs::write(&initrd, b"what?").unwrap();
        assert!(store.own(&asked).unwrap_err().to_string().contains("neither"));
        fs::write(&asked.kernel, b"what?").unwrap();
        let fresh = Store::new(folder.path().join("fresh"));
        assert!(matches!(fresh.own(&asked), Err(Error::Kernel { .. })));
        assert!(!fresh.root().join("vmlinux").exists());
    }

    #[test]
    fn compressed_disks_are_looked_into() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rd.gz");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gzip, &archive()).unwrap();
        let whole = gzip.finish().unwrap();
        fs::write(&path, &whole).unwrap();
        Layout::of_file(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 20]).unwrap();
        assert!(Layout::of_file(&path).is_err());
    }

    #[test]
    fn modules_go_where_the_first_archive_has_its_libraries() {
        let mut modules = Tree::merged();
        modules.file("/lib/modules/6/a.ko", 0o644, *b"a");
        for (base, folder) in
            [(Tree::merged(), "usr/lib/modules/6/a.ko"), (Tree::default(), "lib/modules/6/a.ko")]
        {
            let mut both = base.to_cpio();
            let mut layout = Layout::default();
            layout.read(&both.as_slice(), true).unwrap();
            both.extend(layout.overlay(&modules));
            Layout::default().read(&both.as_slice(), true).unwrap();
            let text = String::from_utf8_lossy(&both);
            assert!(text.contains(&format!("00000000{folder}\0")), "{folder}");
        }
    }

    #[test]
    fn a_folder_without_modules_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("store"));
        let mut asked = own(folder.path());
        asked.modules = Some(folder.path().to_owned());
        assert!(store.own(&asked).unwrap_err().to_string().contains("no .ko file"));
    }

    proptest! {
        #[test]
        fn damage_never_panics(at in 0usize..600, byte: u8, cut in 0usize..700) {
            let mut data = archive();
            if let Some(b) = data.get_mut(at) { *b = byte; }
            data.truncate(cut);
            let _ = Layout::default().read(&data.as_slice(), true);
        }
    }
}
