use std::process::{Command, Stdio};

use super::super::superblock::tests::record;
use super::*;

fn make(dir: &tempfile::TempDir) -> PathBuf {
    let path = dir.path().join("a.dimm");
    Backing::create(&path, record(), vec![0x11; 128 << 10], |b| b.write_data(4096, b"hello")).unwrap();
    path
}

fn files(dir: &tempfile::TempDir) -> usize {
    std::fs::read_dir(dir.path()).unwrap().count()
}

#[test]
fn what_is_created_is_opened_and_sparse() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(&dir);
    assert_eq!(files(&dir), 1);
    let backing = Backing::open(&path, Hold::Shared).unwrap();
    assert_eq!(backing.record(), &record());
    assert_eq!(backing.labels(), vec![0x11; 128 << 10]);
    let mut bytes = [0; 6];
    backing.read_data(4096, &mut bytes).unwrap();
    assert_eq!(&bytes, b"hello\0");
    let meta = path.metadata().unwrap();
    assert_eq!(meta.len(), DATA + (16 << 20));
    assert!(meta.blocks() * 512 < 1 << 20, "{} bytes are allocated", meta.blocks() * 512);
}

#[test]
fn nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(&dir);
    let again = Backing::create(&path, record(), Vec::new(), |_| Ok(()));
    assert!(matches!(again, Err(Error::Exists { .. })));
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "precious").unwrap();
    assert!(matches!(Backing::create(&plain, record(), Vec::new(), |_| Ok(())), Err(Error::Exists { .. })));
    let refused = Backing::open(&plain, Hold::Exclusive).unwrap_err().to_string();
    assert!(refused.contains("is not an NV-DIMM of nvsim") && refused.contains("size=SIZE"), "{refused}");
    assert_eq!(std::fs::read(&plain).unwrap(), b"precious");
    assert!(matches!(
        Backing::open(dir.path(), Hold::Shared),
        Err(Error::Foreign { looks: "a directory", .. })
    ));
}

#[test]
fn a_failed_creation_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.dimm");
    let failed = Backing::create(&path, record(), Vec::new(), |b| b.write_data(u64::MAX, b"x"));
    assert!(failed.is_err());
    assert_eq!(files(&dir), 0);
}

#[test]
fn a_record_is_replaced_in_turn() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(&dir);
    for count in 1..5 {
        let mut backing = Backing::open(&path, Hold::Exclusive).unwrap();
        let mut record = backing.record().clone();
        record.health.dirty_shutdowns = count;
        let before = std::fs::read(&path).unwrap();
        backing.store(record).unwrap();
        drop(backing);
        // A write that was cut short anywhere leaves the record as it was, or as it is.
        let after = std::fs::read(&path).unwrap();
        for cut in [0, 1, 20, 40, 64, 100, 32 << 10, (32 << 10) + 70, 64 << 10] {
            std::fs::write(&path, [&after[..cut], &before[cut..]].concat()).unwrap();
            let found = Backing::open(&path, Hold::Shared).unwrap().record().health.dirty_shutdowns;
            assert!(found == count || found == count - 1, "cut at {cut}: {found}");
        }
        std::fs::write(&path, after).unwrap();
        assert_eq!(Backing::open(&path, Hold::Shared).unwrap().record().health.dirty_shutdowns, count);
    }
}

#[test]
fn labels_are_written_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(&dir);
    let mut backing = Backing::open(&path, Hold::Exclusive).unwrap();
    backing.write_labels(256, b"label").unwrap();
    assert!(backing.write_labels((128 << 10) - 2, b"label").is_err());
    assert!(backing.write_labels(usize::MAX, b"label").is_err());
    drop(backing);
    assert_eq!(&Backing::open(&path, Hold::Shared).unwrap().labels()[255..262], b"\x11label\x11");
}

#[test]
fn reading_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(&dir);
    let before = path.metadata().unwrap();
    let mut backing = Backing::open(&path, Hold::Shared).unwrap();
    assert!(backing.store(record()).is_err());
    assert!(backing.write_labels(0, &[1]).is_err());
    drop(backing);
    let after = path.metadata().unwrap();
    assert_eq!((before.mtime(), before.mtime_nsec()), (after.mtime(), after.mtime_nsec()));
    assert_eq!((before.ctime(), before.ctime_nsec()), (after.ctime(), after.ctime_nsec()));
}

#[test]
fn a_second_run_is_told_who_has_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(&dir);
    // Another process holds it, as another nvsim would.
    let mut other = Command::new("flock")
        .arg(&path)
        .args(["sh", "-c", "echo held; exec cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 5];
    io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut line).unwrap();
    let refused = Backing::open(&path, Hold::Exclusive).unwrap_err();
    assert!(matches!(&refused, Error::Busy { holder, .. } if holder.contains("process")), "{refused}");
    assert!(matches!(Backing::open(&path, Hold::Shared), Err(Error::Busy { .. })));
    drop(other.stdin.take());
    other.wait().unwrap();
    let first = Backing::open(&path, Hold::Shared).unwrap();
    let second = Backing::open(&path, Hold::Shared).unwrap();
    let refused = Backing::open(&path, Hold::Exclusive).unwrap_err().to_string();
    assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
    drop((first, second));
    Backing::open(&path, Hold::Exclusive).unwrap();
}

#[test]
fn damage_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(&dir);
    let whole = std::fs::read(&path).unwrap();
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Backing::open(&path, Hold::Exclusive).unwrap_err().to_string()
    };
    assert!(refused(&whole[..whole.len() - 1]).contains("its end is lost"));
    assert!(refused(&[&whole[..], b"x"].concat()).contains("something was appended"));
    assert!(refused(&[]).contains("an empty file"));
    assert!(refused(&whole[..20]).contains("neither superblock is whole"));
    let mut torn = whole.clone();
    torn[100] ^= 1;
    torn[(32 << 10) + 100] ^= 1;
    assert!(refused(&torn).contains("damaged at offset 0x0"));
    let mut newer = whole.clone();
    newer[16] = 2;
    newer[(32 << 10) + 16] = 2;
    assert!(refused(&newer).contains("has format 2"));
    // One superblock is enough.
    torn[100] ^= 1;
    std::fs::write(&path, &torn).unwrap();
    Backing::open(&path, Hold::Exclusive).unwrap();
}

#[test]
fn a_disk_that_is_too_small_is_told_up_front() {
    let dir = tempfile::tempdir().unwrap();
    let mut record = record();
    record.geometry.size = Geometry::MAX_SIZE;
    let refused = Backing::create(&dir.path().join("a"), record, Vec::new(), |_| Ok(()));
    assert!(matches!(refused, Err(Error::DiskFull { .. })), "{refused:?}");
    assert_eq!(files(&dir), 0);
}
