//! What `nvsim explain` and `nvsim report` say of real runs: the store that was not made durable, by file and by code.

mod common;

use common::{exec, nvsim};
use tempfile::tempdir;

/// A queue that is said to need no flushes gets none, and no flush hint is written: what fsync acknowledged is in doubt.
#[test]
fn a_missing_hint_is_named_by_file_and_call_chain() {
    let folder = tempdir().unwrap();
    for (fs, image) in [("ext4", "dax"), ("xfs", "dax")] {
        let (dimm, trace) = (format!("{fs}.nvd,size=384M,fs={fs},domain=hint,hints=on"), format!("{fs}.nvt"));
        let missing = format!("hint of {fs}.nvd");
        // A new file of XFS is in its log only until the log is written back, and xfs_db does not replay a log.
        let command = "echo 'write through' > /sys/block/pmem0/queue/write_cache; echo old > /mnt/pmem0/hello; \
            umount /mnt/pmem0; mount -o dax=always /dev/pmem0 /mnt/pmem0; \
            nvsim-mark begin; printf new | dd of=/mnt/pmem0/hello conv=notrunc 2>/dev/null; sync /mnt/pmem0/hello; nvsim-mark synced; nvsim-mark end";
        let args = ["--image", image, "--nvdimm", &dimm, "--record", &trace, "--window", "begin..end"];
        exec(folder.path(), command, &args).ok();

        let told = nvsim(folder.path(), &["explain", &trace, "--at", "mark:synced", "--json"]).json();
        let causes = told["causes"].as_array().unwrap();
        assert!(!causes.is_empty(), "{fs}: {told:#}");
        let own = causes.iter().find(|cause| {
            cause["files"].as_array().is_some_and(|files| files.iter().any(|file| file == "/hello"))
        });
        let own = own.unwrap_or_else(|| panic!("{fs}: nothing of /hello is in doubt: {causes:#?}"));
        assert_eq!(own["missing"], missing.as_str(), "{fs}: {own:#}");
        let callers: Vec<&str> =
            own["callers"].as_array().unwrap().iter().filter_map(|name| name.as_str()).collect();
        for name in ["dax_iomap_rw+", "vfs_write+", "do_syscall_64+"] {
            assert!(callers.iter().any(|caller| caller.starts_with(name)), "{fs}: no {name} in {callers:?}");
        }
        assert!(callers.iter().all(|caller| !caller.starts_with('?')), "{fs}: {callers:?}");
        let line = told["lines"].as_array().unwrap().iter().find(|line| line["place"]["name"] == "/hello");
        assert_eq!(line.unwrap()["place"]["offset"], 0, "{fs}");

        let text = nvsim(folder.path(), &["explain", &trace, "--at", "mark:synced"]).ok();
        assert!(text.contains("/hello+0x0") && text.contains(&missing), "{text}");
        let shown = nvsim(folder.path(), &["trace", "grep", &trace, "--text", "dax_iomap_rw"]).ok();
        assert!(shown.contains("<- vfs_write+"), "{shown}");

        nvsim(folder.path(), &["report", &trace, "-o", "report.html"]).ok();
        let page = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
        assert!(page.contains("dax_iomap_rw") && page.contains("synced") && page.ends_with("</html>"));
    }
}

#[test]
fn a_moment_that_never_comes_and_a_file_that_is_no_trace_are_told() {
    let folder = tempdir().unwrap();
    std::fs::write(folder.path().join("no.nvt"), "a story").unwrap();
    for args in [vec!["explain", "no.nvt"], vec!["report", "no.nvt", "-o", "page.html"]] {
        let ran = nvsim(folder.path(), &args);
        assert_eq!(ran.code, 125);
        assert!(ran.stderr.contains("no.nvt") && ran.stderr.contains("no trace of nvsim"), "{}", ran.stderr);
    }
    assert!(!folder.path().join("page.html").exists());
}
