//! A label area that a guest or a user wrote: read, its namespaces found, and written again.
#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use nvdimm_model::fletcher::fletcher64;
use nvdimm_model::interleave::InterleaveSet;
use nvdimm_model::label::{AreaLayout, LabelArea, LabelVersion};
use nvdimm_model::namespace::Namespace;
use nvdimm_model::{Geometry, Identity};

/// Where the checksum stands in an index block and in a v1.2 label.
const INDEX_CHECKSUM: usize = 64;
const LABEL_CHECKSUM: usize = 248;

#[derive(Debug, arbitrary::Arbitrary)]
struct Input<'a> {
    pages: u8,
    old: bool,
    /// Make the checksums of both index blocks and of so many labels right, so that what they protect is looked at.
    mended: Option<u8>,
    bytes: &'a [u8],
}

fuzz_target!(|input: Input<'_>| {
    let size = 4096 * (1 + usize::from(input.pages % 32));
    let version = if input.old { LabelVersion::V1_1 } else { LabelVersion::V1_2 };
    let mut area = LabelArea::new(version, size).map_or_else(|_| vec![0; size], |area| area.write());
    for (byte, new) in area.iter_mut().zip(input.bytes) {
        *byte ^= new;
    }
    if let (Some(labels), Some(layout)) = (input.mended, AreaLayout::new(version, size)) {
        for index in 0..2 {
            seal(&mut area[index * layout.index_size..][..layout.index_size], INDEX_CHECKSUM);
        }
        for slot in 0..layout.slots.min(labels.into()) {
            if version == LabelVersion::V1_2 {
                seal(&mut area[layout.slot_offset(slot)..][..version.label_size()], LABEL_CHECKSUM);
            }
        }
    }
    let Ok(read) = LabelArea::read(&area) else { return };
    let geometry = Geometry::new(1 << 30, size as u64).unwrap();
    let set = InterleaveSet::new(&[(Identity::with_serial(1), geometry)]).unwrap();
    if let Ok(namespaces) = Namespace::from_labels(&set, std::slice::from_ref(&read)) {
        for mut namespace in namespaces {
            assert!(namespace.offset + namespace.raw_size <= set.size());
            let _ = namespace.identify(input.bytes);
        }
    }
    let again = LabelArea::read(&read.write()).expect("what we write we can read");
    assert_eq!(again.labels, read.labels);
});

fn seal(block: &mut [u8], at: usize) {
    block[at..at + 8].fill(0);
    let sum = fletcher64(block);
    block[at..at + 8].copy_from_slice(&sum.to_le_bytes());
}
