//! The block translation table: sectors that never tear, by writing elsewhere and then switching a map entry (UEFI 2.7,
//! 6.2). A namespace is cut into arenas; each has an info block and its copy, data blocks, a map, and a log with a group
//! for each lane.
//!
//! A map of zeroes is a new map: entry n stands for block n.

use uuid::Uuid;

use crate::fletcher::{fletcher64, fletcher64_skipping};
use crate::geometry::PAGE;
use crate::{Error, Patch, le};

/// Bytes of an info block.
pub const SIZE: usize = 4096;
/// The smallest arena, and the smallest sector namespace.
pub const MIN_ARENA: u64 = 16 << 20;
const MAX_ARENA: u64 = 512 << 30;

const SIGNATURE: &[u8; 16] = b"BTT_ARENA_INFO\0\0";
/// Blocks beyond those that the user sees: one for each lane.
const FREE_BLOCKS: u32 = 256;
const MAP_ENTRY: u64 = 4;
/// Four entries of 16 bytes, of which the first two are used in turn.
const LOG_GROUP: u64 = 64;
const LOG_SIZE: u64 = FREE_BLOCKS as u64 * LOG_GROUP;

// Offsets of the info block's fields.
const UUID: usize = 16;
const PARENT: usize = 32;
const FLAGS: usize = 48;
const MAJOR: usize = 52;
const MINOR: usize = 54;
const EXTERNAL_SIZE: usize = 56;
const EXTERNAL_COUNT: usize = 60;
const INTERNAL_SIZE: usize = 64;
const INTERNAL_COUNT: usize = 68;
const FREE_COUNT: usize = 72;
const INFO_SIZE: usize = 76;
const NEXT: usize = 80;
const DATA: usize = 88;
const MAP: usize = 96;
const LOG: usize = 104;
const COPY: usize = 112;
const CHECKSUM: usize = 4088;

/// Version of the format: it says where in the namespace the first arena begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BttVersion {
    /// For namespaces without labels or with v1.1 labels; leaves the first page alone.
    V1_1,
    /// For namespaces with v1.2 labels; begins with the namespace.
    V2_0,
}

impl BttVersion {
    /// Offset of the first arena in the namespace.
    pub const fn start(self) -> u64 {
        match self {
            Self::V1_1 => PAGE,
            Self::V2_0 => 0,
        }
    }

    const fn number(self) -> (u16, u16) {
        match self {
            Self::V1_1 => (1, 1),
            Self::V2_0 => (2, 0),
        }
    }
}

/// The info block of one arena; offsets count from the arena's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arena {
    /// Version of the format.
    pub version: BttVersion,
    /// The uuid of the table, equal in all its arenas, shown as the namespace's.
    pub uuid: Uuid,
    /// The uuid in the namespace's labels; nil without labels.
    pub parent: Uuid,
    /// Bytes of a sector.
    pub sector_size: u32,
    /// Sectors that the user sees.
    pub sectors: u32,
    /// Blocks that there are.
    pub blocks: u32,
    /// Offset of the next arena, 0 in the last.
    pub next: u64,
    /// Offset of the blocks.
    pub data: u64,
    /// Offset of the map.
    pub map: u64,
    /// Offset of the log.
    pub log: u64,
    /// Offset of the info block's copy.
    pub copy: u64,
}

impl Arena {
    fn new(version: BttVersion, uuid: Uuid, parent: Uuid, sector_size: u32, size: u64, last: bool) -> Self {
        // Two info blocks and the log are taken off; blocks and map share the rest.
        let available = (size & !(PAGE - 1)) - 2 * PAGE - LOG_SIZE;
        let block = u64::from(sector_size).next_multiple_of(64);
        let blocks = (available - PAGE) / (block + MAP_ENTRY);
        let sectors = blocks - u64::from(FREE_BLOCKS);
        let map_size = (sectors * MAP_ENTRY).next_multiple_of(PAGE);
        let map = PAGE + available - map_size;
        let log = map + map_size;
        Self {
            version,
            uuid,
            parent,
            sector_size,
            sectors: sectors as u32,
            blocks: blocks as u32,
            next: if last { 0 } else { size },
            data: PAGE,
            map,
            log,
            copy: log + LOG_SIZE,
        }
    }

    /// The info block's bytes.
    pub fn write(&self) -> Vec<u8> {
        let mut block = vec![0; SIZE];
        le::put(&mut block, 0, SIGNATURE);
        le::put(&mut block, UUID, self.uuid.as_bytes());
        le::put(&mut block, PARENT, self.parent.as_bytes());
        let (major, minor) = self.version.number();
        le::put_u16(&mut block, MAJOR, major);
        le::put_u16(&mut block, MINOR, minor);
        le::put_u32(&mut block, EXTERNAL_SIZE, self.sector_size);
        le::put_u32(&mut block, EXTERNAL_COUNT, self.sectors);
        le::put_u32(&mut block, INTERNAL_SIZE, self.sector_size.next_multiple_of(64));
        le::put_u32(&mut block, INTERNAL_COUNT, self.blocks);
        le::put_u32(&mut block, FREE_COUNT, FREE_BLOCKS);
        le::put_u32(&mut block, INFO_SIZE, SIZE as u32);
        le::put_u64(&mut block, NEXT, self.next);
        le::put_u64(&mut block, DATA, self.data);
        le::put_u64(&mut block, MAP, self.map);
        le::put_u64(&mut block, LOG, self.log);
        le::put_u64(&mut block, COPY, self.copy);
        let sum = fletcher64(&block);
        le::put_u64(&mut block, CHECKSUM, sum);
        block
    }

    /// Reads an info block of a namespace whose labels carry `parent`; `None` when no such block stands there.
    pub fn read(block: &[u8], parent: Uuid) -> Result<Option<Self>, Error> {
        let bad = |what| Err(Error::InfoBlock { kind: "sector", what });
        let Some(block) = block.get(..SIZE).filter(|b| &b[..16] == SIGNATURE) else { return Ok(None) };
        if fletcher64_skipping(block, CHECKSUM) != le::u64_at(block, CHECKSUM) {
            return bad("wrong checksum");
        }
        if le::u32_at(block, FLAGS) & 1 != 0 {
            return bad("the arena is marked as broken");
        }
        let arena = Self {
            version: match (le::u16_at(block, MAJOR), le::u16_at(block, MINOR)) {
                (1, 1) => BttVersion::V1_1,
                (2, 0) => BttVersion::V2_0,
                _ => return bad("unknown version"),
            },
            uuid: Uuid::from_bytes(le::raw16_at(block, UUID)),
            parent: Uuid::from_bytes(le::raw16_at(block, PARENT)),
            sector_size: le::u32_at(block, EXTERNAL_SIZE),
            sectors: le::u32_at(block, EXTERNAL_COUNT),
            blocks: le::u32_at(block, INTERNAL_COUNT),
            next: le::u64_at(block, NEXT),
            data: le::u64_at(block, DATA),
            map: le::u64_at(block, MAP),
            log: le::u64_at(block, LOG),
            copy: le::u64_at(block, COPY),
        };
        if !arena.parent.is_nil() && arena.parent != parent {
            return bad("it belongs to another namespace");
        }
        Ok(Some(arena))
    }

    /// Bytes that the user gets from this arena.
    pub fn usable(&self) -> u64 {
        u64::from(self.sectors) * u64::from(self.sector_size)
    }

    fn log_bytes(&self) -> Vec<u8> {
        let mut log = vec![0; LOG_SIZE as usize];
        for lane in 0..FREE_BLOCKS {
            let entry = &mut log[lane as usize * LOG_GROUP as usize..][..16];
            let free_block = self.sectors + lane;
            for (at, value) in [lane, free_block, free_block, 1].into_iter().enumerate() {
                le::put_u32(entry, 4 * at, value);
            }
        }
        log
    }
}

/// The arenas of a namespace of `raw_size` bytes, each with its offset in the namespace.
pub fn arenas(
    version: BttVersion,
    uuid: Uuid,
    parent: Uuid,
    sector_size: u32,
    raw_size: u64,
) -> Result<Vec<(u64, Arena)>, Error> {
    if !matches!(sector_size, 512 | 4096) {
        return Err(Error::SectorSize { size: sector_size });
    }
    if raw_size < MIN_ARENA + version.start() {
        let min = MIN_ARENA + version.start();
        return Err(Error::NamespaceSize { size: raw_size, granule: crate::geometry::ALIGN, min });
    }
    let (mut at, mut remaining, mut arenas) = (version.start(), raw_size - version.start(), Vec::new());
    while remaining >= MIN_ARENA {
        let size = remaining.min(MAX_ARENA);
        remaining -= size;
        arenas.push((at, Arena::new(version, uuid, parent, sector_size, size, remaining < MIN_ARENA)));
        at += size;
    }
    Ok(arenas)
}

/// What must be written into a namespace of zeroes to lay the arena at `at` down.
pub fn patches(at: u64, arena: &Arena) -> Vec<Patch> {
    let info = arena.write();
    vec![
        Patch { offset: at + arena.log, bytes: arena.log_bytes() },
        Patch { offset: at + arena.copy, bytes: info.clone() },
        Patch { offset: at, bytes: info },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::uuid;

    const OWN: Uuid = uuid!("00112233-4455-6677-8899-aabbccddeeff");

    #[test]
    fn golden_arena() {
        let arenas = arenas(BttVersion::V2_0, OWN, Uuid::nil(), 4096, 16 << 20).unwrap();
        let [(0, arena)] = &arenas[..] else { panic!("one arena at 0: {arenas:?}") };
        // 16 MiB less 8 KiB of info and 16 KiB of log leave 16752640; (that - 4096) / 4100 = 4085 blocks,
        // 3829 sectors, a map of 15316 bytes in four pages.
        assert_eq!((arena.blocks, arena.sectors), (4085, 3829));
        assert_eq!(arena.copy, (16 << 20) - 4096);
        assert_eq!(arena.log, (16 << 20) - 4096 - 16384);
        assert_eq!(arena.map, (16 << 20) - 4096 - 16384 - 16384);
        assert!(arena.data + u64::from(arena.blocks) * 4096 <= arena.map);
        let block = arena.write();
        assert_eq!(block[..16], *b"BTT_ARENA_INFO\0\0");
        assert_eq!(block[48..60], [0, 0, 0, 0, 2, 0, 0, 0, 0, 0x10, 0, 0]);
        assert_eq!(
            block[60..80],
            [0xf5, 0x0e, 0, 0, 0, 0x10, 0, 0, 0xf5, 0x0f, 0, 0, 0, 1, 0, 0, 0, 0x10, 0, 0]
        );
        assert_eq!(Arena::read(&block, OWN), Ok(Some(arena.clone())));

        let patches = patches(0, arena);
        assert_eq!(patches[0].bytes[..16], [0, 0, 0, 0, 0xf5, 0x0e, 0, 0, 0xf5, 0x0e, 0, 0, 1, 0, 0, 0]);
        assert_eq!(patches[0].bytes[64..80], [1, 0, 0, 0, 0xf6, 0x0e, 0, 0, 0xf6, 0x0e, 0, 0, 1, 0, 0, 0]);
        assert_eq!(patches.last().unwrap().offset, 0);
    }

    #[test]
    fn arenas_of_large_namespaces() {
        let arenas = arenas(BttVersion::V1_1, OWN, OWN, 512, (1 << 40) + (64 << 20)).unwrap();
        let at: Vec<u64> = arenas.iter().map(|a| a.0).collect();
        assert_eq!(at, [4096, 4096 + (512 << 30), 4096 + (1 << 40)]);
        assert_eq!(arenas[0].1.next, 512 << 30);
        assert_eq!(arenas[2].1.next, 0);
    }

    #[test]
    fn sizes_that_do_not_work() {
        assert!(arenas(BttVersion::V1_1, OWN, OWN, 4096, 16 << 20).is_err());
        assert!(arenas(BttVersion::V2_0, OWN, OWN, 520, 16 << 20).is_err());
        assert_eq!(Arena::read(&[0; 4096], OWN), Ok(None));
    }
}
