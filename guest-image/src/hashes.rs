//! Hashes of files, known from the last time for as long as a file has not changed: a kernel is megabytes that are read for
//! nothing else.

use std::fs::{self, File, Metadata};
use std::io::{Result, Seek as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A file that has changed this lately may do so again without another change time: that is a clock of ticks.
const SETTLED: Duration = Duration::from_secs(2);

/// Which file this is, in which state: its change time is the kernel's, and nobody can set it back while the host is up.
#[must_use]
pub fn identity(meta: &Metadata) -> Option<String> {
    let uptime = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let numbers = [
        meta.dev(),
        meta.ino(),
        meta.size(),
        meta.ctime().cast_unsigned(),
        meta.ctime_nsec().cast_unsigned(),
    ];
    Some(format!("{} {numbers:?}\n", uptime.trim()))
}

/// BLAKE3 of a file, of which notes are kept in a folder. One that cannot be written is no failure.
pub(crate) fn of(mut file: &File, notes: &Path, now: SystemTime) -> Result<blake3::Hash> {
    let meta = file.metadata()?;
    if let Some(hash) = known(&meta, notes) {
        return Ok(hash);
    }
    file.rewind()?;
    let hash = blake3::Hasher::new().update_reader(file)?.finalize();
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(meta.ctime().try_into().unwrap_or(0));
    let settled = now.duration_since(changed).is_ok_and(|since| since > SETTLED);
    let after = identity(&file.metadata()?);
    if let Some(identity) = identity(&meta).filter(|before| settled && after.as_ref() == Some(before)) {
        let _ = fs::create_dir_all(notes);
        let _ = crate::store::write_atomically(&note(&meta, notes), format!("{identity}{hash}\n").as_bytes());
    }
    Ok(hash)
}

/// The hash of a file that is as it was when its note was made.
fn known(meta: &Metadata, notes: &Path) -> Option<blake3::Hash> {
    let text = fs::read_to_string(note(meta, notes)).ok()?;
    blake3::Hash::from_hex(text.strip_prefix(&identity(meta)?)?.trim_end()).ok()
}

fn note(meta: &Metadata, notes: &Path) -> PathBuf {
    notes.join(format!("{}-{}", meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn later() -> SystemTime {
        SystemTime::now() + 5 * SETTLED
    }

    /// A second or less behind a file's last change.
    fn soon(path: &Path) -> SystemTime {
        let changed = path.metadata().unwrap().ctime();
        SystemTime::UNIX_EPOCH + Duration::from_secs(changed.try_into().unwrap()) + SETTLED / 2
    }

    #[test]
    fn a_file_is_read_once_until_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (path, notes) = (folder.path().join("kernel"), folder.path().join("hashes"));
        // And whether it was read for that.
        let hash = |now| {
            let read = known(&path.metadata().unwrap(), &notes).is_none();
            (of(&File::open(&path).unwrap(), &notes, now).unwrap(), read)
        };
        fs::write(&path, "one").unwrap();
        // It may change at this very moment.
        assert_eq!(hash(soon(&path)), (blake3::hash(b"one"), true));
        assert_eq!(hash(soon(&path)), (blake3::hash(b"one"), true));
        assert_eq!(hash(later()), (blake3::hash(b"one"), true));
        assert_eq!(hash(later()), (blake3::hash(b"one"), false));
        // The same size and modification time, another content.
        let modified = path.metadata().unwrap().modified().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let mut file = File::options().write(true).open(&path).unwrap();
        file.write_all(b"two").unwrap();
        file.set_modified(modified).unwrap();
        assert_eq!(hash(later()), (blake3::hash(b"two"), true));
        assert_eq!(hash(later()), (blake3::hash(b"two"), false));
        fs::write(notes.read_dir().unwrap().next().unwrap().unwrap().path(), "nonsense").unwrap();
        assert_eq!(hash(later()), (blake3::hash(b"two"), true));
    }

    #[test]
    fn notes_that_cannot_be_written_are_no_failure() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel");
        fs::write(&path, "one").unwrap();
        // A file is where the folder should be.
        assert_eq!(of(&File::open(&path).unwrap(), &path, later()).unwrap(), blake3::hash(b"one"));
    }
}
