//! The validation kernel: built from Debian's source with guest-kernel-patches/6.12, it boots to DAX on ext2, ext4 and XFS,
//! and its trace events tell of every way by which a kernel stores to, flushes and fences persistent memory.
//!
//! Building the kernel takes many minutes, so these are ignored unless `ci/test validation` asks for them.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{Ran, nvsim};
use tempfile::tempdir;

/// One file system each, a sector namespace for BTT, and one that stays empty.
const DIMMS: [&str; 5] = [
    "ext4.nvd,size=128M,fs=ext4,domain=hint",
    "xfs.nvd,size=512M,fs=xfs",
    "ext2.nvd,size=128M,fs=ext2",
    "btt.nvd,size=64M,mode=sector",
    "bare.nvd,size=64M,fs=none",
];

#[test]
#[ignore = "builds a kernel: ci/test validation"]
fn it_is_built_once() {
    let folder = tempdir().unwrap();
    let first = nvsim(folder.path(), &["image", "build", "validation"]).ok();
    let since = Instant::now();
    assert_eq!(nvsim(folder.path(), &["image", "build", "validation"]).ok(), first);
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
}

#[test]
#[ignore = "builds a kernel: ci/test validation"]
fn every_file_system_is_mounted_with_dax_by_its_own_driver() {
    let folder = tempdir().unwrap();
    let command = "for n in 0 1 2; do cat /sys/block/pmem$n/queue/dax; done; grep -o ' ext[24] .*dax\\| xfs .*dax' /proc/mounts; \
                   for n in 0 1 2; do echo kept > /mnt/pmem$n/file; done; sync; ls /sys/kernel/tracing/events/pmem | grep pmem";
    let output = run(folder.path(), &["--exec", command]).ok();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[..3], ["1", "1", "1"], "{output}");
    let mounts: Vec<&str> = lines[3..6].iter().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(mounts, ["ext4", "xfs", "ext2"], "{output}");
    assert_eq!(lines[6..], ["pmem_drain", "pmem_fence", "pmem_flush", "pmem_hint", "pmem_store"]);
    let read = run(folder.path(), &["--exec", "cat /mnt/pmem*/file"]).ok();
    assert_eq!(read, "kept\nkept\nkept\n");
}

fn run(folder: &Path, args: &[&str]) -> Ran {
    let dimms = DIMMS.iter().flat_map(|dimm| ["--nvdimm", dimm]);
    let all: Vec<&str> =
        ["run", "--engine", "soft", "--image", "validation", "--timeout", "10m", "--console", "console.txt"]
            .into_iter()
            .chain(dimms)
            .chain(args.iter().copied())
            .collect();
    nvsim(folder, &all)
}

/// What one scenario of paths.sh must show: an event, and the functions that lead to it, innermost first.
struct Told(&'static str, &'static str, &'static [&'static str]);

/// Stores, then write-backs, then fences, with those that ask for them.
///
/// Not here, because no file system of this kernel comes by on this machine: `dax_zero_page_range` of whole pages, which
/// ends in `pmem_do_write` as every bio does; `dax_flush` of the zeroed edges of a copy on write; virtio-pmem, virtio-fs and
/// rxe, whose devices the machine lacks; `nd_pmem_shutdown`, at which no trace can be read any more.
const PATHS: &[Told] = &[
    // __memcpy_flushcache for a bio: direct I/O, a journal, a log, zeroing of new blocks; and for BTT.
    Told("direct", "pmem_store nt", &["__memcpy_flushcache", "pmem_do_write", "__blkdev_direct_IO_simple"]),
    Told(
        "write-ext4",
        "pmem_store nt",
        &["__memcpy_flushcache", "pmem_do_write", "journal_submit_commit_record"],
    ),
    Told("write-ext4", "pmem_store nt", &["pmem_do_write", "blkdev_issue_zeroout", "ext4_iomap_begin"]),
    Told("write-xfs", "pmem_store nt", &["pmem_do_write", "xlog_state_release_iclog", "xfs_file_fsync"]),
    Told(
        "write-xfs",
        "pmem_store nt",
        &["pmem_do_write", "blkdev_issue_zeroout", "xfs_direct_write_iomap_begin"],
    ),
    Told("write-ext2", "pmem_store nt", &["pmem_do_write", "blkdev_issue_zeroout", "ext2_iomap_begin"]),
    Told("write-ext2", "pmem_store nt", &["pmem_do_write", "__ext2_write_inode", "ext2_fsync"]),
    Told("btt", "pmem_store nt", &["__memcpy_flushcache", "nsio_rw_bytes", "__btt_log_write"]),
    // Its ends that are not aligned: cached, and written back.
    Told("btt", "pmem_store cached", &["__memcpy_flushcache", "nsio_rw_bytes"]),
    Told("btt", "pmem_flush clwb", &["__memcpy_flushcache", "nsio_rw_bytes"]),
    // copy_user_flushcache: write(2), and over poison; its cached ends.
    Told(
        "write-ext4",
        "pmem_store user-nt",
        &["copy_user_flushcache", "dax_iomap_rw", "ext4_file_write_iter"],
    ),
    Told("write-xfs", "pmem_store user-nt", &["copy_user_flushcache", "dax_iomap_rw", "xfs_file_dax_write"]),
    Told(
        "write-ext2",
        "pmem_store user-nt",
        &["copy_user_flushcache", "dax_iomap_rw", "ext2_file_write_iter"],
    ),
    Told(
        "write-ext4",
        "pmem_flush clwb",
        &["clean_cache_range", "copy_user_flushcache", "ext4_file_write_iter"],
    ),
    Told("recovery", "pmem_store user-nt", &["copy_user_flushcache", "pmem_recovery_write"]),
    // Cached: zeroing in place, copies on write, unsharing.
    Told("truncate-ext4", "pmem_store cached", &["dax_zero_range", "ext4_truncate"]),
    Told("truncate-xfs", "pmem_store cached", &["dax_zero_range", "xfs_setattr_size"]),
    Told("cow-fault", "pmem_store cached", &["dax_iomap_copy_around", "dax_iomap_pte_fault"]),
    Told("cow-write", "pmem_store cached", &["dax_iomap_copy_around", "dax_iomap_rw"]),
    Told("unshare", "pmem_store cached", &["dax_file_unshare"]),
    // dm-writecache: whole blocks cached and flushed, its own records by inline non-temporal stores.
    Told("writecache", "pmem_store cached", &["bio_copy_block", "writecache_map"]),
    Told("writecache", "pmem_flush clflushopt", &["bio_copy_block", "writecache_map"]),
    Told("writecache", "pmem_store nt", &["writecache_flush"]),
    Told("writecache", "pmem_fence ", &["writecache_flush"]),
    // dax_flush: msync and fsync of a mapping, zeroing in place.
    Told(
        "msync-ext4",
        "pmem_flush clwb",
        &["clean_cache_range", "dax_writeback_mapping_range", "ext4_dax_writepages"],
    ),
    Told(
        "msync-xfs",
        "pmem_flush clwb",
        &["dax_writeback_mapping_range", "xfs_file_fsync", "__x64_sys_msync"],
    ),
    Told("msync-ext2", "pmem_flush clwb", &["clean_cache_range", "dax_writeback_mapping_range"]),
    Told("truncate-ext4", "pmem_flush clwb", &["clean_cache_range", "dax_zero_range"]),
    // arch_invalidate_pmem, once poison is cleared.
    Told("recovery", "pmem_flush clflush-fenced", &["arch_invalidate_pmem", "pmem_recovery_write"]),
    Told("clear", "pmem_flush clflush-fenced", &["arch_invalidate_pmem", "pmem_do_write"]),
    // nvdimm_flush: before and after bios, by BTT, by hand, when the driver goes; its fence and its hint.
    Told(
        "write-ext4",
        "pmem_drain cpu",
        &["nvdimm_flush", "pmem_submit_bio", "journal_submit_commit_record"],
    ),
    Told("msync-ext4", "pmem_drain cpu", &["nvdimm_flush", "blkdev_issue_flush", "ext4_sync_file"]),
    Told("write-xfs", "pmem_drain cpu", &["nvdimm_flush", "xlog_state_release_iclog", "xfs_file_fsync"]),
    Told("write-ext2", "pmem_drain cpu", &["nvdimm_flush", "blkdev_issue_flush", "ext2_fsync"]),
    Told("map-sync-ext4", "pmem_drain cpu", &["nvdimm_flush", "pmem_submit_bio"]),
    Told("map-sync-xfs", "pmem_drain cpu", &["nvdimm_flush", "xfs_file_fsync", "dax_finish_sync_fault"]),
    Told("btt", "pmem_drain cpu", &["nvdimm_flush", "nsio_rw_bytes", "__btt_log_write"]),
    Told("deep-flush", "pmem_drain cpu", &["nvdimm_flush", "deep_flush_store"]),
    Told("unbind", "pmem_drain cpu", &["nvdimm_flush", "unbind_store"]),
    Told("write-ext4", "pmem_fence ", &["generic_nvdimm_flush", "pmem_submit_bio"]),
    Told("write-ext4", "pmem_hint ", &["generic_nvdimm_flush", "pmem_submit_bio"]),
];

#[test]
#[ignore = "builds a kernel: ci/test validation"]
fn every_path_to_persistent_memory_is_traced() {
    let folder = tempdir().unwrap();
    std::fs::File::create(folder.path().join("disk.img")).unwrap().set_len(16 << 20).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/validation/paths.sh");
    let ran = run(folder.path(), &["--disk", "disk.img", "--script", script]);
    let said = ran.stderr.clone();
    let output = ran.ok();
    assert!(!said.contains("failed:"), "{said}");
    for Told(scenario, event, functions) in PATHS {
        let found =
            output.lines().filter_map(|line| line.strip_prefix(scenario)?.strip_prefix('|')).any(|line| {
                line.split_once('|').is_some_and(|(told, chain)| {
                    let mut chain = chain.split(' ');
                    told == *event && functions.iter().all(|function| chain.any(|name| name == *function))
                })
            });
        assert!(found, "{scenario}: no {event} by {functions:?} in\n{output}");
    }
}
