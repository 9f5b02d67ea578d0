//! The cache of images, by content.
//!
//! ```text
//! apt/              private state of apt-get
//! packages/SHA256.deb
//! hashes/DEV-INODE  hashes of files of the user's, each with what the file was like
//! vmlinux/BLAKE3    ELF kernels, by the hash of the file they were taken from
//! resolved/KEY.json which packages a recipe came to, by recipe and package lists
//! images/ID/        kernel vmlinux initramfs manifest.json
//! names/NAME        link to ../images/ID
//! kernels/KEY/      kernels built from source, each with KEY.lock, which its build holds, and KEY.log
//! lock              held while anything else is written
//! ```
//!
//! Whatever is written is written beside its place, under a name that begins with a dot, and renamed into it. What a killed
//! process left under such a name is removed by the next that builds.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::{At, Error, Result};
use crate::hashes;
use crate::image::{Image, Manifest};
use crate::kernel::Kernel;
use crate::lock::Lock;
use crate::progress::{Progress, Silent};
use crate::recipe::nearest;

/// The cache of images.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    /// Package lists older than this are refreshed by a build.
    pub max_age: Duration,
}

impl Store {
    /// The store below `root`, which is made when something is built.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), max_age: Duration::from_secs(24 * 60 * 60) }
    }

    /// The user's store: `$XDG_CACHE_HOME/nvsim`, or `~/.cache/nvsim`.
    pub fn of_user() -> Result<Self> {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
        Ok(Self::new(cache.ok_or(Error::NoCache)?.join("nvsim")))
    }

    /// The store's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The image of that name, as built last.
    pub fn open(&self, name: &str) -> Result<Image> {
        let link = self.names().join(name);
        match fs::read_link(&link) {
            Ok(target) if plain(name) => Image::open(name, &self.names().join(target)),
            _ => {
                let names: Vec<String> = self.image_names();
                let suggestion = nearest(name, names.iter().map(String::as_str));
                Err(Error::UnknownImage { name: name.to_owned(), suggestion })
            }
        }
    }

    /// Manifests of all images by name. A damaged image is listed with its error.
    pub fn list(&self) -> Vec<(String, Result<Manifest>)> {
        let show = |name: String| {
            let manifest = self.show(&name);
            (name, manifest)
        };
        self.image_names().into_iter().map(show).collect()
    }

    /// The manifest of an image.
    pub fn show(&self, name: &str) -> Result<Manifest> {
        let image = self.open(name)?;
        image.manifest.ok_or_else(|| Error::UnknownImage { name: name.to_owned(), suggestion: None })
    }

    /// Removes an image. Downloaded packages stay in the cache.
    pub fn remove(&self, name: &str) -> Result<()> {
        let link = self.names().join(name);
        let Some(target) = fs::read_link(&link).ok().filter(|_| plain(name)) else {
            return self.open(name).map(drop);
        };
        let _lock = self.lock(&Silent)?;
        fs::remove_file(&link).at("remove", &link)?;
        let shared = self
            .image_names()
            .iter()
            .any(|other| fs::read_link(self.names().join(other)).is_ok_and(|other| other == target));
        let folder = self.names().join(target);
        if !shared && folder.exists() {
            fs::remove_dir_all(&folder).at("remove", &folder)?;
        }
        Ok(())
    }

    /// Waits until no other process writes to the store.
    pub(crate) fn lock(&self, progress: &dyn Progress) -> Result<Lock> {
        Lock::wait(&self.root.join("lock"), "Waiting for another nvsim", progress)
    }

    /// Removes what killed processes left half-written. The caller holds the store's lock.
    pub(crate) fn sweep(&self) {
        for folder in [self.images(), self.root.join("packages")] {
            for path in leftovers(&folder, ".") {
                tracing::info!("removing {}, which an interrupted build left behind", path.display());
                let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
            }
        }
        crate::source::sweep(&self.kernels());
    }

    pub(crate) fn kernels(&self) -> PathBuf {
        self.root.join("kernels")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(crate) fn names(&self) -> PathBuf {
        self.root.join("names")
    }

    fn image_names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.names()).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| plain(name))
            .collect();
        names.sort();
        names
    }

    /// Lets `name` stand for image `id`.
    pub(crate) fn name(&self, name: &str, id: &str) -> Result<()> {
        let (names, target) = (self.names(), Path::new("../images").join(id));
        if fs::read_link(names.join(name)).is_ok_and(|old| old == target) {
            return Ok(());
        }
        fs::create_dir_all(&names).at("create", &names)?;
        let new = names.join(format!(".{name}.new"));
        let _ = fs::remove_file(&new);
        std::os::unix::fs::symlink(target, &new).at("link", &new)?;
        fs::rename(&new, names.join(name)).at("rename", &new)
    }

    /// The ELF kernel within the kernel file `data`, unpacked once. Gives its path and release.
    pub(crate) fn vmlinux(&self, data: &[u8], origin: &Path) -> Result<(PathBuf, String)> {
        let path = self.place_of_vmlinux(blake3::hash(data));
        match crate::kernel::release(data) {
            Some(release) if path.exists() => return Ok((path, release)),
            _ => {}
        }
        let kernel = Kernel::unpack(data, origin)?;
        let folder = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(folder).at("create", folder)?;
        write_atomically(&path, &kernel.vmlinux)?;
        Ok((path, kernel.release))
    }

    /// The same of a kernel file. A bzImage that has been unpacked before is not held in memory: its first bytes and its hash
    /// say all.
    pub(crate) fn vmlinux_of(&self, origin: &Path) -> Result<(PathBuf, String)> {
        let file = fs::File::open(origin).at("read kernel", origin)?;
        let mut head = Vec::new();
        (&file).take(crate::kernel::HEAD).read_to_end(&mut head).at("read kernel", origin)?;
        let path = self.place_of_vmlinux(self.hash(&file, origin)?);
        match crate::kernel::release_of_bzimage(&head) {
            Some(release) if path.exists() => Ok((path, release)),
            _ => self.vmlinux(&fs::read(origin).at("read kernel", origin)?, origin),
        }
    }

    /// BLAKE3 of a file, which is read only if it has changed since it was asked for last.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn hash_of(&self, path: &Path) -> Result<blake3::Hash> {
        self.hash(&fs::File::open(path).at("read", path)?, path)
    }

    fn hash(&self, file: &fs::File, path: &Path) -> Result<blake3::Hash> {
        hashes::of(file, &self.root.join("hashes"), SystemTime::now()).at("read", path)
    }

    fn place_of_vmlinux(&self, hash: blake3::Hash) -> PathBuf {
        self.root.join("vmlinux").join(hash.to_hex().as_str())
    }
}

/// Whether `name` is a file name of its own, not a way out of the folder.
fn plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains('/')
}

/// Files and folders in `folder` whose name begins with `prefix`.
pub(crate) fn leftovers(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let left = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    left.map(|entry| entry.path()).collect()
}

/// Bytes that are a hole where they are zero.
const BLOCK: usize = 64 << 10;

/// Writes a file that appears whole or not at all.
pub(crate) fn write_atomically(path: &Path, data: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().prefix(".new-").tempfile_in(folder).at("create a file in", folder)?;
    for (n, block) in data.chunks(BLOCK).enumerate().filter(|(_, block)| block.iter().any(|&byte| byte != 0))
    {
        file.as_file().write_all_at(block, (n * BLOCK) as u64).at("write", path)?;
    }
    file.as_file().set_len(data.len() as u64).at("write", path)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).at("write", path)?;
    file.persist(path).map_err(|e| e.error).at("write", path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Artefact, FORMAT, INITRAMFS, KERNEL, MANIFEST, VMLINUX};

    fn image(store: &Store, name: &str, id: &str) {
        let folder = store.images().join(id);
        fs::create_dir_all(&folder).unwrap();
        let artefacts = [KERNEL, VMLINUX, INITRAMFS].map(|file| {
            fs::write(folder.join(file), id).unwrap();
            (file.to_owned(), Artefact::of(id.as_bytes()))
        });
        let manifest = Manifest {
            format: FORMAT,
            name: name.into(),
            description: String::new(),
            id: id.into(),
            recipe: String::new(),
            agent: String::new(),
            kernel: "6.12".into(),
            cmdline: "console=ttyS0".into(),
            packages: Vec::new(),
            artefacts: artefacts.into(),
            notes: Vec::new(),
        };
        fs::write(folder.join(MANIFEST), serde_json::to_vec(&manifest).unwrap()).unwrap();
        store.name(name, id).unwrap();
    }

    #[test]
    fn zeroes_are_holes_of_what_is_written() {
        use std::os::unix::fs::MetadataExt as _;
        let folder = tempfile::tempdir().unwrap();
        let mut data = vec![0; 4 * BLOCK + 5];
        (data[1], data[2 * BLOCK]) = (1, 2);
        for len in [data.len(), 3 * BLOCK, 2 * BLOCK, 1, 0] {
            let path = folder.path().join("file");
            write_atomically(&path, &data[..len]).unwrap();
            assert_eq!(fs::read(&path).unwrap(), data[..len]);
            // A file system may have taken some in advance.
            assert!(path.metadata().unwrap().blocks() * 512 <= 3 * BLOCK as u64, "{len}");
        }
    }

    #[test]
    fn images_are_named_listed_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        image(&store, "dax", "one");
        image(&store, "mine", "one");
        image(&store, "dax", "two");
        let ids: Vec<_> = store.list().into_iter().map(|(n, m)| (n, m.unwrap().id)).collect();
        assert_eq!(ids, [("dax".into(), "two".into()), ("mine".into(), "one".into())]);
        store.open("dax").unwrap().verify().unwrap();
        store.remove("dax").unwrap();
        assert!(!store.images().join("two").exists());
        assert!(store.open("mine").is_ok());
    }

    #[test]
    fn what_a_killed_build_left_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        image(&store, "dax", "one");
        let left = [store.images().join(".new-1"), store.root().join("packages/.fetch-2")];
        for path in &left {
            fs::create_dir_all(path.join("inside")).unwrap();
        }
        store.sweep();
        assert!(left.iter().all(|path| !path.exists()));
        store.open("dax").unwrap().verify().unwrap();
    }

    #[test]
    fn what_is_not_there_is_named_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        image(&store, "dax", "one");
        let error = store.open("dxa").unwrap_err().to_string();
        assert!(error.contains("did you mean `dax`") && error.contains("nvsim image build"), "{error}");
        assert!(matches!(store.remove("../images"), Err(Error::UnknownImage { .. })));
    }

    #[test]
    fn damage_is_found_by_size_at_once_and_by_hash_on_verifying() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        image(&store, "dax", "one");
        let kernel = store.images().join("one").join(KERNEL);
        fs::write(&kernel, "eno").unwrap();
        assert!(store.open("dax").unwrap().verify().is_err());
        fs::write(&kernel, "o").unwrap();
        let error = store.open("dax").unwrap_err().to_string();
        assert!(error.contains("nvsim image rm dax"), "{error}");
        assert!(store.list()[0].1.is_err());
    }
}
