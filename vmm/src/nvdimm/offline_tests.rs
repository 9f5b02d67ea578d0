use super::*;

fn specs(dir: &tempfile::TempDir, texts: &[&str]) -> Vec<DimmSpec> {
    texts.iter().map(|t| format!("{}/{t}", dir.path().display()).parse().unwrap()).collect()
}

fn made(dir: &tempfile::TempDir, texts: &[&str]) -> Vec<RegionInfo> {
    let specs = specs(dir, texts);
    let backings = create(&specs, &[], &Entropy::from_seed(1)).unwrap();
    let paths: Vec<_> = backings.iter().map(|b| b.path().to_owned()).collect();
    drop(backings);
    info(&paths).unwrap()
}

#[test]
fn a_new_dimm_is_one_fsdax_namespace() {
    let dir = tempfile::tempdir().unwrap();
    let regions = made(&dir, &["a,size=64M,name=db"]);
    let [region] = &regions[..] else { panic!("{regions:?}") };
    assert_eq!(region.problem, None);
    let namespace = &region.namespaces[0];
    assert_eq!((namespace.mode, namespace.map), (Mode::Fsdax, Some(Map::Mem)));
    assert_eq!((namespace.size, namespace.align), (62 << 20, Some(2 << 20)));
    assert_eq!((namespace.sector_size, namespace.name.as_str()), (Some(512), "db"));
    assert_ne!(namespace.raw_uuid, Some(namespace.uuid));
    let dimm = &region.dimms[0];
    assert_eq!((dimm.labels, dimm.domain, dimm.fs), (Some(LabelVersion::V1_2), Domain::Adr, Fs::Ext4));
    let found = ls(dir.path()).unwrap();
    assert_eq!(found, [Listed::Dimm(Box::new(dimm.clone()))]);
    let json = serde_json::to_value(namespace).unwrap();
    assert_eq!(json["mode"], "fsdax");
    assert_eq!(json["map"], "mem");
}

#[test]
fn all_modes_with_and_without_labels() {
    let dir = tempfile::tempdir().unwrap();
    for labels in ["1.2", "1.1", "none"] {
        for mode in ["fsdax", "devdax", "sector", "raw"] {
            let regions = made(&dir, &[&format!("{labels}-{mode},size=32M,labels={labels},mode={mode}")]);
            let namespace = &regions[0].namespaces[0];
            assert_eq!(regions[0].problem, None);
            assert_eq!(namespace.mode.to_string(), mode);
            assert_eq!(namespace.raw_size, 32 << 20);
            assert_eq!(namespace.raw_uuid.is_some(), labels != "none" && mode != "raw");
        }
    }
}

#[test]
fn a_set_needs_all_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let regions =
        made(&dir, &["a,size=32M,set=x", "b,size=32M,set=x", "c,size=32M,set=x", "d,size=32M,set=x"]);
    assert_eq!((regions.len(), regions[0].size, regions[0].dimms.len()), (1, 128 << 20, 4));
    assert_eq!(regions[0].namespaces[0].size, 126 << 20);
    let alone = info(&[dir.path().join("b")]).unwrap();
    assert!(alone[0].problem.as_ref().unwrap().contains("give all its files"));
    assert_eq!(alone[0].dimms[0].set, Some(SetInfo { name: "x".into(), ways: 4, position: 1 }));
}

#[test]
fn what_cannot_be_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    for texts in [
        &["a,size=3M"][..],
        &["a,size=64M,label-size=100"],
        &["a"],
        &["a,size=64M,domain=hint,hints=off"],
        &["a,size=64M,mode=sector,sector-size=1024"],
        &["a,size=64M", "b,size=32M"],
        &["a,size=32M,serial=1", "b,size=32M,serial=1"],
        &["a,size=32M", "b,size=32M", "c,size=32M"],
    ] {
        assert!(create(&specs(&dir, texts), &[], &Entropy::from_seed(1)).is_err(), "{texts:?}");
    }
    assert_eq!(dir.path().read_dir().unwrap().count(), 0);
}

#[test]
fn several_namespaces_and_again_others() {
    let dir = tempfile::tempdir().unwrap();
    let sized = |mode, n: u128, mib: Option<u64>| NamespaceSpec {
        size: mib.map(|m| m << 20),
        ..NamespaceSpec::new(mode, Uuid::from_u128(n), Uuid::from_u128(n + 100))
    };
    let first = [sized(Mode::Sector, 1, Some(32)), sized(Mode::Fsdax, 2, None)];
    let specs = specs(&dir, &["a,size=64M", "b,size=64M"]);
    let paths: Vec<_> = specs.iter().map(|s| s.path.clone()).collect();
    drop(create(&specs, &first, &Entropy::from_seed(1)).unwrap());
    let modes = |regions: &[RegionInfo]| regions[0].namespaces.iter().map(|n| n.mode).collect::<Vec<_>>();
    assert_eq!(modes(&info(&paths).unwrap()), [Mode::Sector, Mode::Fsdax]);
    let region = relabel(&paths, Some(LabelVersion::V1_2), &[sized(Mode::Raw, 3, None)]).unwrap();
    assert_eq!((region.problem.clone(), region.namespaces.len()), (None, 1));
    assert_eq!(modes(&info(&paths).unwrap()), [Mode::Raw]);
    assert!(relabel(&paths[..1], None, &[sized(Mode::Raw, 3, None)]).is_err());
}

#[test]
fn a_blank_label_area_shows_one_raw_region() {
    let dir = tempfile::tempdir().unwrap();
    let specs = specs(&dir, &["a,size=32M"]);
    let mut backings = create(&specs, &[], &Entropy::from_seed(1)).unwrap();
    backings[0].write_labels(0, &vec![0; 128 << 10]).unwrap();
    drop(backings);
    let regions = info(&[specs[0].path.clone()]).unwrap();
    // The info block names the labels that are gone.
    assert!(regions[0].problem.as_ref().unwrap().contains("belongs to another namespace"));
    assert_eq!(regions[0].namespaces[0].mode, Mode::Raw);
}
