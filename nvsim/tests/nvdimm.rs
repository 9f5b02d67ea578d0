//! What a guest sees of NV-DIMMs agrees with what was asked for and with what `nvsim dimm` says.

mod common;

use common::{exec, nvsim};
use serde_json::Value;
use tempfile::tempdir;

/// The blocks that a command printed, each below a line `# NAME`.
fn sections(output: &str) -> std::collections::BTreeMap<String, String> {
    let mut found = std::collections::BTreeMap::<String, String>::new();
    let mut name = String::new();
    for line in output.lines() {
        match line.strip_prefix("# ") {
            Some(next) => next.clone_into(&mut name),
            None => {
                let text = found.entry(name.clone()).or_default();
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    found
}

#[test]
fn each_kind_of_namespace_is_there_and_ndctl_agrees_with_dimm_info() {
    let folder = tempdir().unwrap();
    let command = "echo '# list'; ndctl list -v; echo '# nodes'; ls /dev/pmem* /dev/dax* 2>/dev/null;
        echo '# cookie'; cat /sys/bus/nd/devices/region4/set_cookie;
        echo '# mounts'; grep /mnt/pmem /proc/mounts | cut -d' ' -f1-3; true";
    let output = exec(
        folder.path(),
        command,
        &[
            "--nvdimm",
            "fsdax.nvd,size=64M,fs=xfs,domain=eadr",
            "--nvdimm",
            "devdax.nvd,size=64M,mode=devdax",
            "--nvdimm",
            "sector.nvd,size=64M,mode=sector,domain=hint",
            "--nvdimm",
            "raw.nvd,size=64M,mode=raw,labels=none",
            "--nvdimm",
            "a.nvd,size=64M,set=pair,name=two",
            "--nvdimm",
            "b.nvd,size=64M,set=pair",
        ],
    )
    .ok();
    let seen = sections(&output);
    assert_eq!(seen["nodes"], "/dev/dax1.0\n/dev/pmem0\n/dev/pmem2s\n/dev/pmem3\n/dev/pmem4\n");
    assert_eq!(seen["mounts"], "/dev/pmem0 /mnt/pmem0 xfs\n/dev/pmem4 /mnt/pmem4 ext4\n");

    let guest: Vec<Value> = serde_json::from_str(&seen["list"]).unwrap();
    let files = ["fsdax.nvd", "devdax.nvd", "sector.nvd", "raw.nvd", "a.nvd", "b.nvd"];
    let host = nvsim(folder.path(), &[&["dimm", "info", "--json"][..], &files].concat()).json();
    let regions = host.as_array().unwrap();
    assert_eq!(regions.len(), 5);
    for (n, region) in regions.iter().enumerate() {
        let ours = &region["namespaces"][0];
        let device = format!("namespace{n}.0");
        let theirs = guest
            .iter()
            .find(|ns| ns["dev"] == device.as_str())
            .unwrap_or_else(|| panic!("no {device} in {guest:?}"));
        for key in ["mode", "map", "size", "uuid", "raw_uuid", "sector_size", "align", "name"] {
            assert_eq!(ours.get(key), theirs.get(key), "{key} of {device}: {ours} {theirs}");
        }
    }
    let cookie = u64::from_str_radix(seen["cookie"].trim().trim_start_matches("0x"), 16).unwrap();
    assert_eq!(regions[4]["cookie"].as_u64(), Some(cookie));
}

#[test]
fn persistence_domains_show_as_linux_has_them() {
    let folder = tempdir().unwrap();
    let command = "for n in 0 1 2 3; do r=/sys/bus/nd/devices/region$n; b=/sys/block/pmem$n;
        echo $(cat $r/persistence_domain) $(cat $b/queue/fua) $(cat $r/deep_flush) $(cat $b/dax/write_cache) $(cat $b/queue/write_cache | tr ' ' _); done";
    let output = exec(
        folder.path(),
        command,
        &[
            "--mount",
            "none",
            "--nvdimm",
            "e.nvd,size=64M,domain=eadr",
            "--nvdimm",
            "a.nvd,size=64M,domain=adr",
            "--nvdimm",
            "h.nvd,size=64M,domain=hint",
            "--nvdimm",
            "n.nvd,size=64M,domain=adr,hints=off",
        ],
    )
    .ok();
    // The NFIT has one set of platform capabilities for all DIMMs: what the weakest keeps. Of `hint` that is nothing,
    // so Linux hides persistence_domain.
    let lines: Vec<Vec<&str>> = output.lines().map(|line| line.split(' ').collect()).collect();
    assert_eq!(
        lines,
        [
            ["1", "1", "1", "write_back"],
            ["1", "1", "1", "write_back"],
            ["1", "1", "1", "write_back"],
            ["0", "0", "1", "write_back"]
        ]
    );
    for (domain, shown) in
        [("eadr", "cpu_cache 1 1 0 write_back\n"), ("adr", "memory_controller 1 1 1 write_back\n")]
    {
        let command = command.replace("0 1 2 3", "0");
        let spec = format!("{domain}.nvd,size=64M,domain={domain}");
        assert_eq!(exec(folder.path(), &command, &["--mount", "none", "--nvdimm", &spec]).ok(), shown);
    }
}

#[test]
fn a_set_of_four_keeps_its_contents_and_its_cookie() {
    let folder = tempdir().unwrap();
    let specs: Vec<String> = (0..4).map(|n| format!("d{n}.nvd,size=32M,set=four")).collect();
    let mut args = Vec::new();
    for spec in &specs {
        args.extend(["--nvdimm", spec]);
    }
    let cookie = "cat /sys/bus/nd/devices/region0/set_cookie";
    let write = format!("{cookie}; head -c 20M /dev/urandom > /mnt/pmem0/f; md5sum < /mnt/pmem0/f");
    let read = format!("{cookie}; md5sum < /mnt/pmem0/f");
    let first = exec(folder.path(), &write, &args).ok();
    let files: Vec<String> = (0..4).map(|n| format!("d{n}.nvd")).collect();
    // In another order: the files know their places.
    let mut again = Vec::new();
    for file in files.iter().rev() {
        again.extend(["--nvdimm", file]);
    }
    assert_eq!(exec(folder.path(), &read, &again).ok(), first);
}

#[test]
fn labels_that_the_guest_writes_are_seen_offline_and_by_the_next_guest() {
    let folder = tempdir().unwrap();
    let spec = ["--mount", "none", "--nvdimm", "d.nvd,size=128M"];
    let command = "ndctl destroy-namespace -f namespace0.0 2>/dev/null
        ndctl create-namespace -r region0 -m fsdax -s 48M -n first > /dev/null && ndctl create-namespace -r region0 -m sector -n second > /dev/null
        ndctl list -v";
    let made: Vec<Value> = serde_json::from_str(&exec(folder.path(), command, &spec).ok()).unwrap();
    assert_eq!(made.len(), 2, "{made:?}");
    let host = nvsim(folder.path(), &["dimm", "info", "--json", "d.nvd"]).json();
    let ours = host[0]["namespaces"].as_array().unwrap();
    for theirs in &made {
        let ours = ours
            .iter()
            .find(|ns| ns["name"] == theirs["name"])
            .unwrap_or_else(|| panic!("{theirs} not in {ours:?}"));
        for key in ["mode", "size", "uuid", "sector_size"] {
            assert_eq!(ours.get(key), theirs.get(key), "{key}");
        }
    }
    let labels = nvsim(folder.path(), &["dimm", "label", "--json", "d.nvd"]).json();
    assert_eq!(labels[0]["labels"].as_array().unwrap().len(), 2);
    let again = exec(folder.path(), "ndctl list -v", &spec).json();
    assert_eq!(again.as_array().unwrap().len(), 2);
}

/// The disk fills up while the guest runs: on a tmpfs of a mount namespace of our own.
#[test]
fn a_disk_that_fills_up_during_a_run_is_told() {
    let folder = tempdir().unwrap();
    let inside = format!(
        "mount -t tmpfs -o size=100M tmpfs {folder} && cd {folder} || exit 77; \
         (echo 'echo up-$((1 + 1))'; while ! grep -q up-2 said; do sleep 0.1; done; head -c 80M /dev/zero >filler; \
          echo 'dd if=/dev/zero of=/mnt/pmem0/file bs=1M count=50; poweroff -f') | \
         {nvsim} run --engine soft --timeout 10m --nvdimm d.nvd,size=64M >said",
        folder = folder.path().display(),
        nvsim = env!("CARGO_BIN_EXE_nvsim"),
    );
    let output = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &inside])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(125) => assert!(said.contains("disk that holds a DIMM's file is full"), "{said}"),
        // Hosts may forbid namespaces to users.
        Some(1 | 77) if said.contains("unshare") || said.contains("mount") => eprintln!("skipped: {said}"),
        other => panic!("{other:?}: {said}"),
    }
}
