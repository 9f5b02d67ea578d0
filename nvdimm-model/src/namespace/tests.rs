use proptest::prelude::*;

use super::*;
use crate::{Geometry, Identity};

fn set(ways: u32, mib: u64) -> InterleaveSet {
    let geometry = Geometry::new(mib << 20, 128 << 10).unwrap();
    let members: Vec<_> = (1..=ways).map(|n| (Identity::with_serial(n), geometry)).collect();
    InterleaveSet::new(&members).unwrap()
}

fn spec(mode: Mode, n: u128) -> NamespaceSpec {
    NamespaceSpec::new(mode, Uuid::from_u128(n), Uuid::from_u128(n << 64))
}

/// Reads a layout back the way that a guest finds it.
fn read_back(set: &InterleaveSet, layout: &Layout) -> Vec<Namespace> {
    let areas: Vec<_> = layout.label_areas.iter().map(|a| LabelArea::read(a).unwrap()).collect();
    let mut found = Namespace::from_labels(set, &areas).unwrap();
    if areas.is_empty() {
        found.push(Namespace::unlabelled(set));
    }
    for namespace in &mut found {
        let mut head = vec![0; HEAD];
        for patch in &layout.patches {
            if let Some(at) = patch.offset.checked_sub(namespace.offset).filter(|&at| at < HEAD as u64) {
                head[at as usize..][..patch.bytes.len()].copy_from_slice(&patch.bytes);
            }
        }
        namespace.identify(&head).unwrap();
    }
    found
}

#[test]
fn one_fsdax_namespace_over_two_dimms() {
    let set = set(2, 64);
    let layout = lay_out(&set, Some((LabelVersion::V1_2, 128 << 10)), &[spec(Mode::Fsdax, 1)]).unwrap();
    let namespace = &layout.namespaces[0];
    assert_eq!((namespace.raw_size, namespace.size), (128 << 20, 126 << 20));
    assert_eq!(layout.patches[0].offset, 4096);
    let second = LabelArea::read(&layout.label_areas[1]).unwrap();
    let label = &second.labels[0].1;
    assert_eq!((label.nlabel, label.position, label.dpa, label.raw_size), (2, 1, 0, 64 << 20));
    assert_eq!(label.cookie, set.cookie_v1_2());
    assert_eq!(read_back(&set, &layout), layout.namespaces);
}

#[test]
fn several_namespaces_of_all_modes() {
    let set = set(1, 128);
    let mut specs = [spec(Mode::Sector, 1), spec(Mode::Raw, 2), spec(Mode::Devdax, 3), spec(Mode::Fsdax, 4)];
    specs[0].size = Some(32 << 20);
    specs[1].size = Some(2 << 20);
    specs[2].name = "the third".into();
    let layout = lay_out(&set, Some((LabelVersion::V1_2, 128 << 10)), &specs).unwrap();
    let offsets: Vec<u64> = layout.namespaces.iter().map(|n| n.offset >> 20).collect();
    assert_eq!(offsets, [0, 32, 34, 80]);
    assert_eq!(read_back(&set, &layout), layout.namespaces);
}

#[test]
fn without_labels_there_is_one_namespace() {
    let set = set(1, 32);
    let layout = lay_out(&set, None, &[spec(Mode::Fsdax, 1)]).unwrap();
    assert!(layout.label_areas.is_empty());
    assert_eq!(layout.namespaces[0].raw_uuid, Uuid::nil());
    assert_eq!(read_back(&set, &layout), layout.namespaces);
    let two = [spec(Mode::Fsdax, 1), spec(Mode::Raw, 2)];
    assert!(matches!(lay_out(&set, None, &two), Err(Error::NeedsLabels { .. })));
}

#[test]
fn what_does_not_fit_is_refused() {
    let set = set(2, 32);
    let labels = Some((LabelVersion::V1_2, 128 << 10));
    let sized = |size| NamespaceSpec { size: Some(size), ..spec(Mode::Raw, 1) };
    assert!(
        matches!(lay_out(&set, labels, &[sized(2 << 20)]), Err(Error::NamespaceSize { granule, .. }) if granule == 4 << 20)
    );
    assert!(matches!(lay_out(&set, labels, &[sized(0)]), Err(Error::NamespaceSize { .. })));
    assert!(matches!(lay_out(&set, labels, &[sized(68 << 20)]), Err(Error::NoSpace { .. })));
    assert!(matches!(lay_out(&set, labels, &[sized(u64::MAX), sized(u64::MAX)]), Err(Error::NoSpace { .. })));
    assert!(matches!(
        lay_out(&set, labels, &[sized(64 << 20), spec(Mode::Raw, 2)]),
        Err(Error::NoSpace { .. })
    ));
    let long = NamespaceSpec { name: "x".repeat(64), ..spec(Mode::Raw, 1) };
    assert_eq!(lay_out(&set, labels, &[long]), Err(Error::NameLength { len: 64 }));
}

#[test]
fn labels_of_a_foreign_set_are_refused() {
    let layout = lay_out(&set(1, 32), Some((LabelVersion::V1_2, 4096)), &[spec(Mode::Raw, 1)]).unwrap();
    let areas = [LabelArea::read(&layout.label_areas[0]).unwrap()];
    let geometry = Geometry::new(32 << 20, 4096).unwrap();
    let other = InterleaveSet::new(&[(Identity::with_serial(99), geometry)]).unwrap();
    assert!(matches!(Namespace::from_labels(&other, &areas), Err(Error::LabelMismatch { .. })));
}

proptest! {
    #[test]
    fn any_layout_reads_back(
        ways in prop::sample::select(vec![1u32, 2, 4]),
        old in any::<bool>(),
        modes in prop::collection::vec((0usize..4, prop::option::of(5u64..9)), 1..5),
    ) {
        let set = set(ways, 512);
        let version = if old { LabelVersion::V1_1 } else { LabelVersion::V1_2 };
        let specs: Vec<_> = modes.iter().enumerate().map(|(n, &(mode, size))| NamespaceSpec {
            size: size.map(|stripes| 4 * stripes * set.stripe()),
            ..spec([Mode::Fsdax, Mode::Devdax, Mode::Sector, Mode::Raw][mode], n as u128 + 1)
        }).collect();
        let layout = lay_out(&set, Some((version, 128 << 10)), &specs).unwrap();
        prop_assert_eq!(read_back(&set, &layout), layout.namespaces);
    }

    #[test]
    fn random_heads_never_panic(head in prop::collection::vec(any::<u8>(), 0..HEAD), sig in 0usize..4) {
        let mut head = head;
        let sigs: [&[u8; 16]; 3] = [b"NVDIMM_PFN_INFO\0", b"NVDIMM_DAX_INFO\0", b"BTT_ARENA_INFO\0\0"];
        if let (Some(sig), Some(place)) = (sigs.get(sig), head.get_mut(4096..4112)) {
            place.copy_from_slice(*sig);
            if head.len() == HEAD {
                let sum = crate::fletcher::fletcher64_skipping(&head[4096..], 4088);
                head[8184..].copy_from_slice(&sum.to_le_bytes());
            }
        }
        let _ = Namespace::unlabelled(&set(1, 32)).identify(&head);
    }
}
