//! How large a DIMM and its label area are.

use serde::{Deserialize, Serialize};

use crate::Error;

/// Unit of cache write-back, and of poison: a cache line.
pub const LINE: u64 = 64;
/// Unit of power-fail atomicity.
pub const CHUNK: u64 = 8;
/// A page.
pub const PAGE: u64 = 4096;
/// Unit of DIMM sizes, of interleaving and of host mappings: a large page, and a memory subsection of Linux.
pub const ALIGN: u64 = 2 << 20;

/// The sizes of a DIMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Geometry {
    /// Bytes of byte-addressable data.
    pub size: u64,
    /// Bytes of the label area; 0 when there is none.
    pub label_size: u32,
}

impl Geometry {
    /// The smallest DIMM: one BTT arena and its alignment.
    pub const MIN_SIZE: u64 = 16 << 20;
    /// The largest DIMM: eight of them stay below a guest's 46-bit direct map.
    pub const MAX_SIZE: u64 = 4 << 40;
    /// The smallest label area in which Linux finds room for two slots and two indexes, in whole pages.
    pub const MIN_LABEL_SIZE: u32 = 4096;
    /// The largest label area.
    pub const MAX_LABEL_SIZE: u32 = 1 << 20;
    /// The usual label area.
    pub const DEFAULT_LABEL_SIZE: u32 = 128 << 10;

    /// Sizes that a DIMM can have, or why not.
    pub fn new(size: u64, label_size: u64) -> Result<Self, Error> {
        if !(Self::MIN_SIZE..=Self::MAX_SIZE).contains(&size) {
            return Err(Error::SizeRange { size, min: Self::MIN_SIZE, max: Self::MAX_SIZE });
        }
        if !size.is_multiple_of(ALIGN) {
            return Err(Error::SizeAlignment { size });
        }
        let (min, max) = (u64::from(Self::MIN_LABEL_SIZE), u64::from(Self::MAX_LABEL_SIZE));
        if label_size != 0 && (!(min..=max).contains(&label_size) || !label_size.is_multiple_of(PAGE)) {
            return Err(Error::LabelAreaSize { size: label_size, min, max });
        }
        Ok(Self { size, label_size: label_size as u32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_checked() {
        assert!(Geometry::new(1 << 30, 128 << 10).is_ok());
        assert!(Geometry::new(16 << 20, 0).is_ok());
        assert_eq!(Geometry::new((1 << 30) + 4096, 0), Err(Error::SizeAlignment { size: (1 << 30) + 4096 }));
        assert!(matches!(Geometry::new(2 << 20, 0), Err(Error::SizeRange { .. })));
        assert!(matches!(Geometry::new(u64::MAX, 0), Err(Error::SizeRange { .. })));
        assert!(matches!(Geometry::new(1 << 30, 1000), Err(Error::LabelAreaSize { .. })));
        assert!(matches!(Geometry::new(1 << 30, u64::MAX), Err(Error::LabelAreaSize { .. })));
    }
}
