//! The label area: what divides a DIMM into namespaces (UEFI 2.7, 13.19; the v1.1 layout came before it).
//!
//! Two index blocks stand at its start and are written in turn, so that one of them is whole at any time; label slots
//! follow. [`LabelArea::read`] accepts what Linux accepts, and answers an error for anything else.

mod index;
mod slot;

use serde::{Deserialize, Serialize};

pub use index::Index;
pub use slot::{Abstraction, Label, LabelFlags, NAME_LEN};

use crate::Error;

/// Layout of labels and of what they say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LabelVersion {
    /// 128-byte labels, no checksum.
    #[serde(rename = "1.1")]
    V1_1,
    /// 256-byte labels with type, abstraction and checksum.
    #[serde(rename = "1.2")]
    V1_2,
}

impl LabelVersion {
    /// Bytes of a slot.
    pub const fn label_size(self) -> usize {
        match self {
            Self::V1_1 => 128,
            Self::V1_2 => 256,
        }
    }

    const fn minor(self) -> u16 {
        match self {
            Self::V1_1 => 1,
            Self::V1_2 => 2,
        }
    }
}

impl std::fmt::Display for LabelVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "v1.{}", self.minor())
    }
}

/// Where things stand in a label area of a size and version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AreaLayout {
    /// Version of the labels.
    pub version: LabelVersion,
    /// Bytes of the area.
    pub area_size: usize,
    /// Bytes of each of the two index blocks.
    pub index_size: usize,
    /// Number of label slots.
    pub slots: u32,
}

impl AreaLayout {
    /// The layout that Linux computes for an area of `area_size` bytes; `None` if fewer than two labels fit.
    pub fn new(version: LabelVersion, area_size: usize) -> Option<Self> {
        let label = version.label_size();
        let guess = Index::size_for(area_size / label);
        let slots = area_size.checked_sub(2 * guess)? / label;
        let index_size = Index::size_for(slots);
        let fits = slots >= 2 && 2 * index_size <= area_size - slots * label;
        fits.then_some(Self { version, area_size, index_size, slots: slots as u32 })
    }

    /// Offset of a slot in the area.
    pub fn slot_offset(&self, slot: u32) -> usize {
        2 * self.index_size + slot as usize * self.version.label_size()
    }
}

/// What a label area says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelArea {
    /// Where things stand in it.
    pub layout: AreaLayout,
    /// Which of the two index blocks is current.
    pub current: usize,
    /// Sequence number of the current index block: 1, 2, 3, 1, ...
    pub sequence: u32,
    /// The labels in use that can be trusted, by slot.
    pub labels: Vec<(u32, Label)>,
    /// The slots that are marked as in use, but hold no label. Linux passes over them.
    pub rejected: Vec<Error>,
}

impl LabelArea {
    /// A new area without labels.
    pub fn new(version: LabelVersion, area_size: usize) -> Result<Self, Error> {
        let layout = AreaLayout::new(version, area_size).ok_or(Error::NoIndex { size: area_size })?;
        Ok(Self { layout, current: 0, sequence: 3, labels: Vec::new(), rejected: Vec::new() })
    }

    /// Reads an area: the layout is the one for which an index block is valid, the newer version first.
    pub fn read(bytes: &[u8]) -> Result<Self, Error> {
        [LabelVersion::V1_2, LabelVersion::V1_1]
            .into_iter()
            .filter_map(|version| AreaLayout::new(version, bytes.len()))
            .find_map(|layout| Self::read_as(layout, bytes))
            .ok_or(Error::NoIndex { size: bytes.len() })
    }

    fn read_as(layout: AreaLayout, bytes: &[u8]) -> Option<Self> {
        let (current, index) = Index::current(&layout, bytes)?;
        let (mut labels, mut rejected) = (Vec::new(), Vec::new());
        for slot in (0..index.slots).filter(|&slot| !index.is_free(slot)) {
            let at = layout.slot_offset(slot);
            match Label::read(layout.version, slot, &bytes[at..at + layout.version.label_size()]) {
                Ok(label) => labels.push((slot, label)),
                Err(error) => rejected.push(error),
            }
        }
        Some(Self { layout, current, sequence: index.sequence, labels, rejected })
    }

    /// Puts a label into the first free slot and answers its number.
    pub fn insert(&mut self, label: Label) -> Result<u32, Error> {
        let slot = (0..self.layout.slots)
            .find(|slot| self.labels.iter().all(|(used, _)| used != slot))
            .ok_or(Error::LabelsFull { slots: self.layout.slots })?;
        self.labels.push((slot, label));
        self.labels.sort_by_key(|&(slot, _)| slot);
        Ok(slot)
    }

    /// The whole area: both index blocks agree on the labels, and the current one is the first in a new area.
    pub fn write(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.layout.area_size];
        let mut index = Index::all_free(&self.layout);
        for (slot, label) in &self.labels {
            index.take(*slot);
            let at = self.layout.slot_offset(*slot);
            label.write(self.layout.version, *slot, &mut bytes[at..at + self.layout.version.label_size()]);
        }
        for which in 0..2 {
            index.sequence = if which == self.current { self.sequence } else { Index::before(self.sequence) };
            let at = which * self.layout.index_size;
            index.write(&self.layout, which, &mut bytes[at..at + self.layout.index_size]);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn label(n: u8) -> Label {
        Label {
            uuid: Uuid::from_bytes([n; 16]),
            name: format!("ns{n}"),
            flags: LabelFlags::default(),
            nlabel: 1,
            position: 0,
            cookie: 0x1122_3344_5566_7788,
            lba_size: 512,
            dpa: u64::from(n) << 21,
            raw_size: 1 << 21,
            align: 0,
            abstraction: Abstraction::Pfn,
        }
    }

    #[test]
    fn layouts_that_linux_computes() {
        let layout = AreaLayout::new(LabelVersion::V1_2, 128 << 10).unwrap();
        assert_eq!((layout.index_size, layout.slots), (256, 510));
        assert_eq!(layout.slot_offset(0), 512);
        let old = AreaLayout::new(LabelVersion::V1_1, 128 << 10).unwrap();
        assert_eq!((old.index_size, old.slots), (256, 1020));
        assert_eq!(AreaLayout::new(LabelVersion::V1_2, 512), None);
        assert_eq!(AreaLayout::new(LabelVersion::V1_2, 0), None);
        assert_eq!(AreaLayout::new(LabelVersion::V1_2, 1024).unwrap().slots, 2);
    }

    #[test]
    fn blank_area_has_no_index() {
        assert_eq!(LabelArea::read(&[0; 4096]), Err(Error::NoIndex { size: 4096 }));
        assert_eq!(LabelArea::read(&[]), Err(Error::NoIndex { size: 0 }));
    }

    #[test]
    fn damaged_label_is_passed_over_and_named() {
        let mut area = LabelArea::new(LabelVersion::V1_2, 4096).unwrap();
        area.insert(label(1)).unwrap();
        area.insert(label(2)).unwrap();
        let mut bytes = area.write();
        bytes[area.layout.slot_offset(1) + 20] ^= 1;
        let read = LabelArea::read(&bytes).unwrap();
        assert_eq!(read.labels, vec![(0, label(1))]);
        assert_eq!(read.rejected, vec![Error::BadLabel { slot: 1, what: "wrong checksum" }]);
    }

    #[test]
    fn full_area_says_so() {
        let mut area = LabelArea::new(LabelVersion::V1_2, 1024).unwrap();
        area.insert(label(1)).unwrap();
        area.insert(label(2)).unwrap();
        assert_eq!(area.insert(label(3)), Err(Error::LabelsFull { slots: 2 }));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(old in any::<bool>(), pages in 1usize..40, count in 0u8..10, current in 0usize..2, sequence in 1u32..4) {
            let version = if old { LabelVersion::V1_1 } else { LabelVersion::V1_2 };
            let mut area = LabelArea::new(version, pages * 4096).unwrap();
            (area.current, area.sequence) = (current, sequence);
            for n in 1..=count {
                let mut label = label(n);
                if old {
                    label.abstraction = Abstraction::None;
                }
                area.insert(label).unwrap();
            }
            prop_assert_eq!(LabelArea::read(&area.write()), Ok(area));
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
            let _ = LabelArea::read(&bytes);
        }

        #[test]
        fn mutated_areas_never_panic(at in prop::collection::vec((0usize..4096, any::<u8>()), 1..6), fix in any::<bool>()) {
            let mut area = LabelArea::new(LabelVersion::V1_2, 4096).unwrap();
            area.insert(label(1)).unwrap();
            let mut bytes = area.write();
            for (at, value) in at {
                bytes[if fix { at % 512 } else { at }] = value;
            }
            if fix {
                for which in 0..2 {
                    let block = &mut bytes[which * 256..][..256];
                    let sum = crate::fletcher::fletcher64_skipping(block, 64);
                    block[64..72].copy_from_slice(&sum.to_le_bytes());
                }
            }
            let _ = LabelArea::read(&bytes);
        }
    }
}
