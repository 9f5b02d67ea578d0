//! The cache of boot snapshots in the store's folder. What was not used for longest goes first.
//!
//! `snapshots/KEY.snap` is the snapshot, `snapshots/KEY.checked` says which file it was that has been checked, and during
//! which uptime of the host: as long as that has not changed, hashing all of its memory again would tell nothing new.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use guest_image::Store;
use vmm::Snapshot;

/// Snapshots kept, two of a machine with NV-DIMMs, and the bytes that they may take on the disk together.
const COUNT: usize = 32;
const BYTES: u64 = 4 << 30;
/// A draft this old was left by a process that died.
const ABANDONED: Duration = Duration::from_secs(3600);

const ENDING: &str = "snap";
const CHECKED: &str = "checked";

/// See [`guest_image::identity`].
fn identity(path: &Path) -> Option<String> {
    guest_image::identity(&path.metadata().ok()?)
}

/// Removes a snapshot and its mark. Another process may have done so.
fn remove(path: &Path) {
    let _ = fs::remove_file(path);
    let _ = fs::remove_file(path.with_extension(CHECKED));
}

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

    /// The snapshot of a key, if there is one; it counts as used.
    pub fn find(&self, key: &str) -> Option<vmm::Result<Snapshot>> {
        let path = self.path(key);
        let identity = identity(&path)?;
        let mark = path.with_extension(CHECKED);
        if fs::read_to_string(&mark).is_ok_and(|known| known == identity) {
            // On a cache that cannot be written the order of use is lost, no more.
            let _ = File::open(&mark).and_then(|mark| mark.set_modified(SystemTime::now()));
            return Some(Snapshot::open_checked(&path));
        }
        let snapshot = Snapshot::open(&path);
        if snapshot.is_ok() {
            let _ = fs::write(&mark, identity);
        }
        Some(snapshot)
    }

    /// Puts a snapshot in, unless another process was faster, and removes what is too much.
    pub fn insert(&self, key: &str, snapshot: &Snapshot) -> Result<()> {
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("Cannot create {}", self.folder.display()))?;
        let path = self.path(key);
        match snapshot.save(&path, false) {
            Err(_) if path.exists() => {}
            saved => {
                saved?;
                // What was written is what will be read, as long as the host is up.
                if let Some(identity) = identity(&path) {
                    let _ = fs::write(path.with_extension(CHECKED), identity);
                }
            }
        }
        self.tidy(&path);
        Ok(())
    }

    /// Forgets all.
    pub fn clear(&self) {
        self.entries().iter().for_each(|entry| remove(&entry.path));
    }

    /// Forgets a key.
    pub fn remove(&self, key: &str) {
        remove(&self.path(key));
    }

    /// All snapshots, what was used last first.
    pub fn entries(&self) -> Vec<Entry> {
        let entry = |found: fs::DirEntry| {
            let path = found.path();
            let meta = found.metadata().ok()?;
            let ours = path.extension().is_some_and(|ending| ending == ENDING) && meta.is_file();
            let mark = path.with_extension(CHECKED).metadata();
            let used = mark.and_then(|mark| mark.modified()).or_else(|_| meta.modified());
            let used = used.unwrap_or(SystemTime::UNIX_EPOCH);
            ours.then(|| Entry { path, bytes: meta.blocks() * 512, used })
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
                remove(&entry.path);
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
