//! Interleave sets: how the bytes of a region are dealt out to its DIMMs, and the cookie by which labels know their set
//! (ACPI 5.2.25.3; UEFI NVDIMM label protocol).
//!
//! A region deals 2 MiB pieces in turn: piece p lies on DIMM p mod n. The whole of each DIMM belongs to its region, so the
//! device address of a region's first byte is 0 on each DIMM.

use std::ops::Range;

use crate::fletcher::fletcher64;
use crate::geometry::ALIGN;
use crate::{Error, Geometry, Identity};

/// The DIMMs of a region, in the order in which pieces are dealt out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterleaveSet {
    members: Vec<Identity>,
    member_size: u64,
}

/// A piece of a region that lies on one DIMM in one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Offset in the region.
    pub offset: u64,
    /// Index of the DIMM in the set.
    pub member: usize,
    /// Device address on that DIMM.
    pub dpa: u64,
    /// Length in bytes.
    pub len: u64,
}

impl InterleaveSet {
    /// A set of 1, 2 or 4 DIMMs of one size that the guest can tell apart.
    pub fn new(members: &[(Identity, Geometry)]) -> Result<Self, Error> {
        if !matches!(members.len(), 1 | 2 | 4) {
            return Err(Error::Ways { ways: members.len() });
        }
        let first = members[0].1.size;
        for (n, (identity, geometry)) in members.iter().enumerate() {
            if geometry.size != first {
                return Err(Error::SetSizes { first, other: geometry.size });
            }
            if members[..n].iter().any(|(i, _)| i.serial == identity.serial && i.vendor == identity.vendor) {
                return Err(Error::SetIdentity { vendor: identity.vendor, serial: identity.serial });
            }
        }
        Ok(Self { members: members.iter().map(|m| m.0).collect(), member_size: first })
    }

    /// Number of DIMMs.
    pub fn ways(&self) -> usize {
        self.members.len()
    }

    /// The DIMMs' identities, by position.
    pub fn members(&self) -> &[Identity] {
        &self.members
    }

    /// Bytes of data on each DIMM.
    pub fn member_size(&self) -> u64 {
        self.member_size
    }

    /// Bytes of the region.
    pub fn size(&self) -> u64 {
        self.member_size * self.members.len() as u64
    }

    /// Offset in the region of a DIMM's first byte: the ordering key of the set.
    pub fn region_offset(&self, member: usize) -> u64 {
        member as u64 * ALIGN
    }

    /// The granule of region offsets at which each DIMM holds an equal share of what lies before.
    pub fn stripe(&self) -> u64 {
        ALIGN * self.members.len() as u64
    }

    /// Which DIMM holds the byte at `offset` of the region, and at which device address. `None` beyond the region.
    pub fn locate(&self, offset: u64) -> Option<(usize, u64)> {
        if offset >= self.size() {
            return None;
        }
        let ways = self.members.len() as u64;
        let piece = offset / ALIGN;
        Some(((piece % ways) as usize, piece / ways * ALIGN + offset % ALIGN))
    }

    /// The offset in the region of a DIMM's byte: the inverse of [`InterleaveSet::locate`].
    pub fn offset_of(&self, member: usize, dpa: u64) -> Option<u64> {
        if member >= self.members.len() || dpa >= self.member_size {
            return None;
        }
        let ways = self.members.len() as u64;
        Some((dpa / ALIGN * ways + member as u64) * ALIGN + dpa % ALIGN)
    }

    /// The pieces that make up `range` of the region, in order; what lies beyond the region is left out.
    pub fn pieces(&self, range: Range<u64>) -> impl Iterator<Item = Piece> + '_ {
        let end = range.end.min(self.size());
        let unit = if self.members.len() == 1 { self.size() } else { ALIGN };
        let mut offset = range.start;
        std::iter::from_fn(move || {
            if offset >= end {
                return None;
            }
            let (member, dpa) = self.locate(offset)?;
            let len = (unit - offset % unit).min(end - offset);
            let piece = Piece { offset, member, dpa, len };
            offset += len;
            Some(piece)
        })
    }

    /// The cookie that v1.1 labels carry.
    pub fn cookie_v1_1(&self) -> u64 {
        let mut records = Vec::with_capacity(16 * self.members.len());
        for (n, m) in self.members.iter().enumerate() {
            records.extend_from_slice(&self.region_offset(n).to_le_bytes());
            records.extend_from_slice(&m.serial.to_le_bytes());
            records.extend_from_slice(&[0; 4]);
        }
        fletcher64(&records)
    }

    /// The cookie that v1.2 labels carry.
    pub fn cookie_v1_2(&self) -> u64 {
        let mut records = Vec::with_capacity(48 * self.members.len());
        for (n, m) in self.members.iter().enumerate() {
            records.extend_from_slice(&self.region_offset(n).to_le_bytes());
            records.extend_from_slice(&m.serial.to_le_bytes());
            records.extend_from_slice(&m.vendor.to_le_bytes());
            records.extend_from_slice(&m.date.to_le_bytes());
            records.push(m.location);
            records.extend_from_slice(&[0; 31]);
        }
        fletcher64(&records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(ways: u32) -> InterleaveSet {
        let geometry = Geometry::new(16 << 20, 0).unwrap();
        let members: Vec<_> = (1..=ways).map(|n| (Identity::with_serial(n), geometry)).collect();
        InterleaveSet::new(&members).unwrap()
    }

    #[test]
    fn two_ways_deal_in_turn() {
        let set = set(2);
        assert_eq!(set.locate(0), Some((0, 0)));
        assert_eq!(set.locate(ALIGN + 5), Some((1, 5)));
        assert_eq!(set.locate(2 * ALIGN), Some((0, ALIGN)));
        assert_eq!(set.locate(32 << 20), None);
        assert_eq!(set.offset_of(1, ALIGN + 1), Some(3 * ALIGN + 1));
    }

    #[test]
    fn cookies_worked_out_by_hand() {
        // One DIMM, v1.1: words 0, 0, 7, 0: lo ends at 7, hi at 14.
        let geometry = Geometry::new(16 << 20, 0).unwrap();
        let identity = Identity { vendor: 2, device: 0, revision: 0, serial: 7, location: 5, date: 3 };
        let one = InterleaveSet::new(&[(identity, geometry)]).unwrap();
        assert_eq!(one.cookie_v1_1(), 14 << 32 | 7);
        // v1.2: words 0, 0, 7, 0x0003_0002, 5 and seven zeroes. lo: 0, 0, 7, 0x30009, then 0x3000e eight times.
        assert_eq!(one.cookie_v1_2(), (7 + 0x3_0009 + 8 * 0x3_000e) << 32 | 0x3_000e);
    }

    #[test]
    fn sets_that_cannot_be() {
        let small = Geometry::new(16 << 20, 0).unwrap();
        let large = Geometry::new(32 << 20, 0).unwrap();
        let dimm = |n, g| (Identity::with_serial(n), g);
        assert_eq!(InterleaveSet::new(&[]), Err(Error::Ways { ways: 0 }));
        assert_eq!(
            InterleaveSet::new(&[dimm(1, small), dimm(2, small), dimm(3, small)]),
            Err(Error::Ways { ways: 3 })
        );
        assert!(matches!(InterleaveSet::new(&[dimm(1, small), dimm(2, large)]), Err(Error::SetSizes { .. })));
        assert!(matches!(
            InterleaveSet::new(&[dimm(1, small), dimm(1, small)]),
            Err(Error::SetIdentity { .. })
        ));
    }

    proptest! {
        #[test]
        fn locating_is_one_to_one(ways in prop::sample::select(vec![1u32, 2, 4]), at in 0u64..(64 << 20)) {
            let set = set(ways);
            match set.locate(at) {
                Some((member, dpa)) => prop_assert_eq!(set.offset_of(member, dpa), Some(at)),
                None => prop_assert!(at >= set.size()),
            }
        }

        #[test]
        fn pieces_cover_the_range(ways in prop::sample::select(vec![1u32, 2, 4]), a in 0u64..(20 << 20), len in 0u64..(20 << 20)) {
            let set = set(ways);
            let end = (a + len).min(set.size());
            let mut at = a.min(end);
            for piece in set.pieces(a..a + len) {
                prop_assert_eq!(piece.offset, at);
                prop_assert_eq!(set.locate(at), Some((piece.member, piece.dpa)));
                prop_assert_eq!(set.locate(at + piece.len - 1), Some((piece.member, piece.dpa + piece.len - 1)));
                at += piece.len;
            }
            prop_assert_eq!(at, end);
        }
    }
}
