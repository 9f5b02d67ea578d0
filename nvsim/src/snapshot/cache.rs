//! The cache of boot snapshots: `snapshots/KEY.snap` in the store's folder. What was not used for longest goes first.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use guest_image::Store;
use vmm::Snapshot;

/// Snapshots kept, and the bytes that they may take on the disk together.
const COUNT: usize = 16;
const BYTES: u64 = 4 << 30;
/// A draft this old was left by a process that died.
const ABANDONED: Duration = Duration::from_secs(3600);

const ENDING: &str = "snap";

/// The cache.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
}

/// A snapshot in the cache.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its file.
    pub path: PathBuf,
    /// Bytes that the disk holds.
    pub bytes: u64,
    /// When it was used last.
    pub used: SystemTime,
}

impl Cache {
    /// In the user's store.
    pub fn of(store: &Store) -> Self {
        Self { folder: store.root().join("snapshots") }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder.join(key).with_extension(ENDING)
    }

    /// The file of a key, if there is one; it counts as used.
    pub fn find(&self, key: &str) -> Option<PathBuf> {
        let path = self.path(key);
        let file = File::open(&path).ok()?;
        // On a cache that cannot be written the order of use is lost, no more.
        let _ = file.set_modified(SystemTime::now());
        Some(path)
    }

    /// Puts a snapshot in, unless another process was faster, and removes what is too much.
    pub fn insert(&self, key: &str, snapshot: &Snapshot) -> Result<()> {
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("Cannot create {}", self.folder.display()))?;
        let path = self.path(key);
        match snapshot.save(&path, false) {
            Err(_) if path.exists() => {}
            saved => saved?,
        }
        self.tidy(&path);
        Ok(())
    }

    /// Forgets a key.
    pub fn remove(&self, key: &str) {
        // Another process may have removed it.
        let _ = fs::remove_file(self.path(key));
    }

    /// All snapshots, what was used last first.
    pub fn entries(&self) -> Vec<Entry> {
        let entry = |found: fs::DirEntry| {
            let path = found.path();
            let meta = found.metadata().ok()?;
            let ours = path.extension().is_some_and(|ending| ending == ENDING) && meta.is_file();
            ours.then(|| Entry {
                path,
                bytes: meta.blocks() * 512,
                used: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            })
        };
        let mut entries: Vec<Entry> =
            fs::read_dir(&self.folder).into_iter().flatten().flatten().filter_map(entry).collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.used));
        entries
    }

    /// Removes what is too much, but never `keep`, and abandoned drafts. A run that goes on from a removed file keeps it
    /// until it ends.
    fn tidy(&self, keep: &Path) {
        let mut bytes = 0;
        for (n, entry) in self.entries().iter().enumerate() {
            bytes += entry.bytes;
            if entry.path != keep && (n >= COUNT || bytes > BYTES) {
                let _ = fs::remove_file(&entry.path);
            }
        }
        for draft in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let old = draft
                .metadata()
                .and_then(|meta| meta.modified())
                .is_ok_and(|time| time.elapsed().is_ok_and(|age| age > ABANDONED));
            if old && draft.path().extension().is_some_and(|ending| ending == "new") {
                let _ = fs::remove_file(draft.path());
            }
        }
    }
}
