//! Index blocks: which label slots are free, and which of the two blocks was written last.

use super::AreaLayout;
use crate::fletcher::{fletcher64, fletcher64_skipping};
use crate::le;

const SIGNATURE: &[u8; 16] = b"NAMESPACE_INDEX\0";
const HEADER: usize = 72;
const ROUND: usize = 256;

// Offsets of the fields.
const LABEL_SIZE: usize = 19;
const SEQUENCE: usize = 20;
const MY_OFFSET: usize = 24;
const MY_SIZE: usize = 32;
const OTHER_OFFSET: usize = 40;
const LABEL_OFFSET: usize = 48;
const SLOTS: usize = 56;
const MAJOR: usize = 60;
const MINOR: usize = 62;
const CHECKSUM: usize = 64;

/// One index block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// 1, 2, 3, 1, ...: the block that follows the other in this cycle is current.
    pub sequence: u32,
    /// Number of slots that the block speaks of.
    pub slots: u32,
    /// A bit a slot; 1 is free.
    free: Vec<u8>,
}

impl Index {
    /// Bytes of an index block for a number of slots.
    pub const fn size_for(slots: usize) -> usize {
        (HEADER + slots.div_ceil(8)).next_multiple_of(ROUND)
    }

    /// A block with all slots free.
    pub fn all_free(layout: &AreaLayout) -> Self {
        let mut free = vec![0; (layout.slots as usize).div_ceil(8)];
        for slot in 0..layout.slots as usize {
            free[slot / 8] |= 1 << (slot % 8);
        }
        Self { sequence: 1, slots: layout.slots, free }
    }

    /// The sequence number before `sequence` in the cycle.
    pub const fn before(sequence: u32) -> u32 {
        if sequence <= 1 { 3 } else { sequence - 1 }
    }

    /// Whether a slot holds no label; slots beyond the block are free.
    pub fn is_free(&self, slot: u32) -> bool {
        let slot = slot as usize;
        self.free.get(slot / 8).is_none_or(|bits| bits >> (slot % 8) & 1 == 1)
    }

    /// Marks a slot as in use.
    pub fn take(&mut self, slot: u32) {
        let slot = slot as usize;
        if let Some(bits) = self.free.get_mut(slot / 8) {
            *bits &= !(1 << (slot % 8));
        }
    }

    /// Reads the block at place `which` of an area, if it is valid there.
    pub fn read(layout: &AreaLayout, which: usize, area: &[u8]) -> Option<Self> {
        let at = which * layout.index_size;
        let block = area.get(at..at + layout.index_size)?;
        let label_size = match le::u16_at(block, MINOR) {
            0 | 1 => 128,
            _ => 1usize.checked_shl(7 + u32::from(block[LABEL_SIZE]))?,
        };
        let slots = le::u32_at(block, SLOTS);
        let slots_end = u64::from(slots) * layout.version.label_size() as u64 + 2 * layout.index_size as u64;
        let size = le::u64_at(block, MY_SIZE);
        let sequence = le::u32_at(block, SEQUENCE) & 3;
        let valid = &block[..16] == SIGNATURE
            && le::u16_at(block, MAJOR) == 1
            && label_size == layout.version.label_size()
            && fletcher64_skipping(block, CHECKSUM) == le::u64_at(block, CHECKSUM)
            && sequence != 0
            && le::u64_at(block, MY_OFFSET) == at as u64
            && le::u64_at(block, OTHER_OFFSET) == ((1 - which) * layout.index_size) as u64
            && le::u64_at(block, LABEL_OFFSET) == 2 * layout.index_size as u64
            && (HEADER as u64..=layout.index_size as u64).contains(&size)
            && slots_end <= layout.area_size as u64;
        let free = block.get(HEADER..HEADER + (slots as usize).div_ceil(8))?;
        valid.then(|| Self { sequence, slots, free: free.to_vec() })
    }

    /// The block of an area that was written last, and at which of the two places it stands.
    pub fn current(layout: &AreaLayout, area: &[u8]) -> Option<(usize, Self)> {
        match (Self::read(layout, 0, area), Self::read(layout, 1, area)) {
            (Some(first), Some(second)) if Self::before(second.sequence) == first.sequence => {
                Some((1, second))
            }
            // Equal numbers do not occur in turn; Linux then takes the second.
            (Some(first), Some(second)) if second.sequence == first.sequence => Some((1, second)),
            (Some(first), _) => Some((0, first)),
            (None, Some(second)) => Some((1, second)),
            (None, None) => None,
        }
    }

    /// Writes the block for place `which`; `block` has the layout's index size.
    pub fn write(&self, layout: &AreaLayout, which: usize, block: &mut [u8]) {
        block.fill(0);
        le::put(block, 0, SIGNATURE);
        block[LABEL_SIZE] = (layout.version.label_size() >> 7).trailing_zeros() as u8;
        le::put_u32(block, SEQUENCE, self.sequence);
        le::put_u64(block, MY_OFFSET, (which * layout.index_size) as u64);
        le::put_u64(block, MY_SIZE, layout.index_size as u64);
        le::put_u64(block, OTHER_OFFSET, ((1 - which) * layout.index_size) as u64);
        le::put_u64(block, LABEL_OFFSET, 2 * layout.index_size as u64);
        le::put_u32(block, SLOTS, self.slots);
        le::put_u16(block, MAJOR, 1);
        le::put_u16(block, MINOR, layout.version.minor());
        le::put(block, HEADER, &self.free);
        let sum = fletcher64(block);
        le::put_u64(block, CHECKSUM, sum);
    }
}

#[cfg(test)]
mod tests {
    use super::super::LabelVersion;
    use super::*;

    fn layout() -> AreaLayout {
        AreaLayout::new(LabelVersion::V1_2, 4096).unwrap()
    }

    fn area(sequences: [u32; 2]) -> Vec<u8> {
        let layout = layout();
        let mut bytes = vec![0; 4096];
        for (which, sequence) in sequences.into_iter().enumerate() {
            let mut index = Index::all_free(&layout);
            index.sequence = sequence;
            index.write(&layout, which, &mut bytes[which * 256..][..256]);
        }
        bytes
    }

    #[test]
    fn golden_header() {
        let bytes = area([3, 2]);
        let second = &bytes[256..512];
        assert_eq!(&second[..16], b"NAMESPACE_INDEX\0");
        assert_eq!(second[16..24], [0, 0, 0, 1, 2, 0, 0, 0]);
        assert_eq!(second[24..32], 256u64.to_le_bytes());
        assert_eq!(second[32..40], 256u64.to_le_bytes());
        assert_eq!(second[40..48], 0u64.to_le_bytes());
        assert_eq!(second[48..56], 512u64.to_le_bytes());
        // 14 slots, version 1.2, all free.
        assert_eq!(second[56..64], [14, 0, 0, 0, 1, 0, 2, 0]);
        assert_eq!(second[72..75], [0xff, 0x3f, 0]);
    }

    #[test]
    fn the_later_of_two_blocks_is_current() {
        for (sequences, current) in [
            ([1, 2], 1),
            ([2, 3], 1),
            ([3, 1], 1),
            ([2, 1], 0),
            ([3, 2], 0),
            ([1, 3], 0),
            ([2, 2], 1),
            ([0, 2], 1),
            ([2, 0], 0),
        ] {
            let found = Index::current(&layout(), &area(sequences)).map(|(which, _)| which);
            assert_eq!(found, Some(current), "{sequences:?}");
        }
        assert_eq!(Index::current(&layout(), &area([0, 0])), None);
    }

    #[test]
    fn each_field_is_checked() {
        let good = area([0, 1]);
        for at in [0, 19, 24, 32, 40, 48, 56, 60, 64, 72] {
            let mut bytes = good.clone();
            bytes[256 + at] ^= 0x40;
            assert_eq!(Index::current(&layout(), &bytes), None, "field at {at}");
        }
    }
}
