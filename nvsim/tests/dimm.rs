//! `nvsim dimm` and `--nvdimm`: what can be refused is refused, with a remedy, and nothing is lost.

mod common;

use common::nvsim;
use tempfile::tempdir;

#[test]
fn create_info_label_ls() {
    let folder = tempdir().unwrap();
    nvsim(folder.path(), &["dimm", "create", "d.nvd,size=64M,name=db,serial=7"]).ok();
    let info = nvsim(folder.path(), &["dimm", "info", "d.nvd", "--json"]).json();
    assert_eq!(info[0]["namespaces"][0]["name"], "db");
    assert_eq!(info[0]["dimms"][0]["serial"], 7);
    let before = std::fs::read(folder.path().join("d.nvd")).unwrap();
    assert!(nvsim(folder.path(), &["dimm", "label", "d.nvd"]).ok().contains("db"));
    assert!(nvsim(folder.path(), &["dimm", "ls"]).ok().contains("d.nvd"));
    assert_eq!(std::fs::read(folder.path().join("d.nvd")).unwrap(), before, "looking changes nothing");
    let anew = [
        "dimm",
        "label",
        "d.nvd",
        "--erase",
        "--namespace",
        "mode=sector,size=32M,name=log",
        "--namespace",
        "mode=fsdax",
    ];
    nvsim(folder.path(), &anew).ok();
    let info = nvsim(folder.path(), &["dimm", "info", "d.nvd", "--json"]).json();
    assert_eq!(info[0]["namespaces"].as_array().unwrap().len(), 2);
    assert_eq!(info[0]["namespaces"][0]["mode"], "sector");
}

#[test]
fn a_damaged_dimm_hides_no_other_in_a_listing() {
    let folder = tempdir().unwrap();
    nvsim(folder.path(), &["dimm", "create", "a.nvd,size=16M", "b.nvd,size=16M", "c.nvd,size=16M"]).ok();
    std::fs::File::options().write(true).open(folder.path().join("b.nvd")).unwrap().set_len(9 << 20).unwrap();
    let listing = nvsim(folder.path(), &["dimm", "ls"]).ok();
    assert!(listing.contains("a.nvd") && listing.contains("c.nvd"), "{listing}");
    assert!(listing.contains("problem: ./b.nvd is damaged"), "{listing}");
    let json = nvsim(folder.path(), &["dimm", "ls", "--json"]).json();
    assert_eq!((json[0]["size"].as_u64(), json[1]["file"].as_str()), (Some(16 << 20), Some("./b.nvd")));
    assert!(json[1]["problem"].as_str().unwrap().contains("is damaged"), "{json}");
}

#[test]
fn an_existing_file_is_never_replaced() {
    let folder = tempdir().unwrap();
    std::fs::write(folder.path().join("mine"), "precious").unwrap();
    let ran = nvsim(folder.path(), &["dimm", "create", "mine,size=64M"]);
    assert_eq!(ran.code, 125);
    assert!(ran.stderr.contains("mine"), "{}", ran.stderr);
    let ran =
        nvsim(folder.path(), &["run", "--engine", "soft", "--nvdimm", "mine,size=64M", "--exec", "true"]);
    assert_eq!(ran.code, 125);
    assert_eq!(std::fs::read(folder.path().join("mine")).unwrap(), b"precious");
}

#[test]
fn mistakes_in_a_spec_are_explained() {
    let folder = tempdir().unwrap();
    for (spec, hint) in [
        ("d.nvd,sise=1G", "size"),
        ("d.nvd,size=65M", "2 MiB"),
        ("d.nvd,size=big", "512M"),
        ("d.nvd", "size"),
        ("d.nvd,size=64M,domain=maybe", "eadr"),
        ("d.nvd,size=64M,label-size=100", "label"),
    ] {
        let ran = nvsim(folder.path(), &["run", "--engine", "soft", "--exec", "true", "--nvdimm", spec]);
        assert_ne!(ran.code, 0, "{spec}");
        assert!(ran.stderr.contains(hint), "{spec}: {}", ran.stderr);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{spec} left a file");
    }
}

#[test]
fn a_damaged_file_is_refused_and_left_alone() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("d.nvd");
    nvsim(folder.path(), &["dimm", "create", "d.nvd,size=64M"]).ok();
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..1000]).unwrap();
    let ran = nvsim(folder.path(), &["dimm", "info", "d.nvd"]);
    assert_eq!(ran.code, 125);
    assert!(ran.stderr.contains("d.nvd"), "{}", ran.stderr);
    assert_eq!(std::fs::read(&path).unwrap(), &whole[..1000]);
}

#[test]
fn a_reader_who_has_seen_enough_is_no_failure_of_ours() {
    let folder = tempdir().unwrap();
    let nvsim = env!("CARGO_BIN_EXE_nvsim");
    let line = format!("{{ sleep 0.2; {nvsim} dimm ls --json .; echo status $? >&2; }} | true");
    let ran =
        std::process::Command::new("sh").current_dir(folder.path()).args(["-c", &line]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&ran.stderr), "status 141\n");
}
