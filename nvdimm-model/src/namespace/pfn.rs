//! The info block of page-mapped namespaces: what makes Linux give persistent memory a `struct page` each page, without
//! which neither a file system nor a process can map it (layout and rules as libnvdimm's `nd_pfn` has them).

use uuid::Uuid;

use super::Map;
use crate::fletcher::{fletcher64, fletcher64_skipping};
use crate::geometry::{ALIGN, PAGE};
use crate::{Error, le};

/// Offset of the info block in its namespace.
pub const OFFSET: u64 = 4096;
/// Bytes of the info block.
pub const SIZE: usize = 4096;

const FSDAX: &[u8; 16] = b"NVDIMM_PFN_INFO\0";
const DEVDAX: &[u8; 16] = b"NVDIMM_DAX_INFO\0";
/// Bytes that the info block and what comes before it take.
const RESERVED: u64 = 8192;
/// Bytes that Linux reserves for a `struct page` in a map on the medium.
const PAGE_STRUCT: u64 = 64;

// Offsets of the fields.
const UUID: usize = 16;
const PARENT: usize = 32;
const MAJOR: usize = 52;
const MINOR: usize = 54;
const DATA_OFFSET: usize = 56;
const PAGES: usize = 64;
const MAP: usize = 72;
const ALIGNMENT: usize = 84;
const PAGE_SIZE: usize = 88;
const PAGE_STRUCT_SIZE: usize = 92;
const CHECKSUM: usize = 4088;

/// The info block of an fsdax or devdax namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PfnInfo {
    /// Whether there is a device file instead of a block device.
    pub devdax: bool,
    /// The uuid of the page map, shown as the namespace's.
    pub uuid: Uuid,
    /// The uuid in the namespace's labels; nil without labels.
    pub parent: Uuid,
    /// Where the page map lives.
    pub map: Map,
    /// Unit of mappings, in bytes.
    pub align: u32,
    /// Offset of the user's first byte in the namespace.
    pub data_offset: u64,
    /// Number of pages that follow.
    pub pages: u64,
}

impl PfnInfo {
    /// The block for a namespace of `raw_size` bytes (a multiple of 2 MiB) that begins on a 2 MiB boundary.
    pub fn new(
        devdax: bool,
        uuid: Uuid,
        parent: Uuid,
        map: Map,
        align: u32,
        raw_size: u64,
    ) -> Result<Self, Error> {
        if !matches!(u64::from(align), PAGE | ALIGN) {
            return Err(Error::Align { align: align.into() });
        }
        let page_map = match map {
            Map::Mem => 0,
            Map::Dev => PAGE_STRUCT * (raw_size.saturating_sub(RESERVED) / PAGE),
        };
        let data_offset = (RESERVED + page_map).next_multiple_of(ALIGN);
        if data_offset >= raw_size || !raw_size.is_multiple_of(ALIGN) {
            return Err(Error::NamespaceSize { size: raw_size, granule: ALIGN, min: data_offset + ALIGN });
        }
        Ok(Self { devdax, uuid, parent, map, align, data_offset, pages: (raw_size - data_offset) / PAGE })
    }

    /// Bytes that the user gets.
    pub fn usable(&self) -> u64 {
        self.pages * PAGE
    }

    /// The block's bytes.
    pub fn write(&self) -> Vec<u8> {
        let mut block = vec![0; SIZE];
        le::put(&mut block, 0, if self.devdax { DEVDAX } else { FSDAX });
        le::put(&mut block, UUID, self.uuid.as_bytes());
        le::put(&mut block, PARENT, self.parent.as_bytes());
        le::put_u16(&mut block, MAJOR, 1);
        le::put_u16(&mut block, MINOR, 4);
        le::put_u64(&mut block, DATA_OFFSET, self.data_offset);
        le::put_u64(&mut block, PAGES, self.pages);
        le::put_u32(&mut block, MAP, if self.map == Map::Mem { 1 } else { 2 });
        le::put_u32(&mut block, ALIGNMENT, self.align);
        le::put_u32(&mut block, PAGE_SIZE, PAGE as u32);
        le::put_u16(&mut block, PAGE_STRUCT_SIZE, PAGE_STRUCT as u16);
        let sum = fletcher64(&block);
        le::put_u64(&mut block, CHECKSUM, sum);
        block
    }

    /// Reads the block of a namespace whose labels carry `parent`; `None` when no such block stands there.
    pub fn read(block: &[u8], parent: Uuid, raw_size: u64) -> Result<Option<Self>, Error> {
        let bad = |kind, what| Err(Error::InfoBlock { kind, what });
        let Some(block) = block.get(..SIZE) else { return Ok(None) };
        let (devdax, kind) = match &block[..16] {
            sig if sig == FSDAX => (false, "fsdax"),
            sig if sig == DEVDAX => (true, "devdax"),
            _ => return Ok(None),
        };
        if fletcher64_skipping(block, CHECKSUM) != le::u64_at(block, CHECKSUM) {
            return bad(kind, "wrong checksum");
        }
        let info = Self {
            devdax,
            uuid: Uuid::from_bytes(le::raw16_at(block, UUID)),
            parent: Uuid::from_bytes(le::raw16_at(block, PARENT)),
            map: match le::u32_at(block, MAP) {
                1 => Map::Mem,
                2 => Map::Dev,
                _ => return bad(kind, "unknown place of the page map"),
            },
            align: le::u32_at(block, ALIGNMENT),
            data_offset: le::u64_at(block, DATA_OFFSET),
            pages: le::u64_at(block, PAGES),
        };
        if info.parent != parent {
            return bad(kind, "it belongs to another namespace");
        }
        let end = info.pages.checked_mul(PAGE).and_then(|len| len.checked_add(info.data_offset));
        if info.data_offset < RESERVED || end.is_none_or(|end| end > raw_size) {
            return bad(kind, "its data lie outside the namespace");
        }
        Ok(Some(info))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::uuid;

    const OWN: Uuid = uuid!("00112233-4455-6677-8899-aabbccddeeff");
    const PARENT: Uuid = uuid!("f0e1d2c3-b4a5-9687-7869-5a4b3c2d1e0f");

    #[test]
    fn golden_fsdax_block() {
        let info = PfnInfo::new(false, OWN, PARENT, Map::Mem, 2 << 20, 1 << 30).unwrap();
        let block = info.write();
        assert_eq!(block[..16], *b"NVDIMM_PFN_INFO\0");
        assert_eq!(block[16..48], [*OWN.as_bytes(), *PARENT.as_bytes()].concat());
        assert_eq!(block[48..64], [0, 0, 0, 0, 1, 0, 4, 0, 0, 0, 0x20, 0, 0, 0, 0, 0]);
        // 1 GiB less 2 MiB is 0x3fe00 pages; map in memory.
        assert_eq!(block[64..76], [0x00, 0xfe, 0x03, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(block[76..96], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0x10, 0, 0, 64, 0, 0, 0]);
        assert_eq!(block[96..4088], [0; 3992]);
        assert_eq!(PfnInfo::read(&block, PARENT, 1 << 30), Ok(Some(info)));
    }

    #[test]
    fn page_map_on_the_medium_takes_a_64th() {
        let info = PfnInfo::new(true, OWN, PARENT, Map::Dev, 2 << 20, 1 << 30).unwrap();
        // 64 bytes for each of 2^18 - 2 pages are 128 bytes below 16 MiB, and 8 KiB come before.
        assert_eq!(info.data_offset, 18 << 20);
        assert_eq!(info.usable(), 1006 << 20);
        assert_eq!(info.write()[..16], *b"NVDIMM_DAX_INFO\0");
    }

    #[test]
    fn blocks_that_are_refused() {
        let info = PfnInfo::new(false, OWN, PARENT, Map::Mem, 4096, 16 << 20).unwrap();
        let block = info.write();
        assert_eq!(PfnInfo::read(&[0; 4096], PARENT, 16 << 20), Ok(None));
        assert_eq!(PfnInfo::read(&block[..100], PARENT, 16 << 20), Ok(None));
        assert!(PfnInfo::read(&block, OWN, 16 << 20).is_err());
        assert!(PfnInfo::read(&block, PARENT, 8 << 20).is_err());
        let mut torn = block;
        torn[60] ^= 1;
        assert!(PfnInfo::read(&torn, PARENT, 16 << 20).is_err());
        assert!(PfnInfo::new(false, OWN, PARENT, Map::Mem, 1 << 30, 16 << 20).is_err());
        assert!(PfnInfo::new(false, OWN, PARENT, Map::Mem, 4096, 2 << 20).is_err());
    }
}
