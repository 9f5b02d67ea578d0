//! The superblock of a DIMM's file: all that the file must tell of its DIMM but labels and data.
//!
//! There are two, written in turn with rising sequence numbers; a write that was cut short leaves the other one valid.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 16 | magic |
//! | 16 | 4 | format |
//! | 20 | 4 | length of the record |
//! | 24 | 8 | sequence number |
//! | 32 | 32 | BLAKE3 of everything else up to the record's end |
//! | 64 | | the record, as postcard |

use nvdimm_model::health::Health;
use nvdimm_model::poison::Poison;
use nvdimm_model::{Geometry, Identity, Persistence};
use serde::{Deserialize, Serialize};

use super::spec::Fs;

/// Bytes of one superblock.
pub const SIZE: usize = trace::STATE;
/// The format of the whole file.
pub const FORMAT: u32 = 1;
/// How a superblock begins.
pub const MAGIC: &[u8; 16] = b"nvsim NV-DIMM\r\n\x1a";

const HEADER: usize = 64;

/// What the file tells of its DIMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Who it is.
    pub identity: Identity,
    /// How large it is.
    pub geometry: Geometry,
    /// From where on its stores survive.
    pub persistence: Persistence,
    /// Whether it has a flush-hint page.
    pub hints: bool,
    /// The file system for an empty fsdax namespace.
    pub fs: Fs,
    /// Its interleave set; `None` when it is alone.
    pub set: Option<Membership>,
    /// How it is.
    pub health: Health,
    /// Which device addresses cannot be read.
    pub poison: Poison,
}

/// A DIMM's place in an interleave set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Name of the set.
    pub name: String,
    /// Its place.
    pub position: u8,
    /// All DIMMs of the set, by position.
    pub members: Vec<Identity>,
}

/// Why a superblock is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It does not begin like one.
    Magic,
    /// It has another format.
    Format(u32),
    /// It is not whole.
    Damaged(&'static str),
}

/// The bytes of a superblock.
pub fn write(sequence: u64, record: &Record) -> Result<Vec<u8>, &'static str> {
    let record = postcard::to_allocvec(record).map_err(|_| "the record cannot be encoded")?;
    let mut bytes = Vec::with_capacity(SIZE);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&(record.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(&[0; 32]);
    bytes.extend_from_slice(&record);
    if bytes.len() > SIZE {
        return Err("more poison than a superblock can hold");
    }
    let sum = blake3::hash(&bytes);
    bytes[32..64].copy_from_slice(sum.as_bytes());
    bytes.resize(SIZE, 0);
    Ok(bytes)
}

/// Reads a superblock: its sequence number and its record.
pub fn read(bytes: &[u8]) -> Result<(u64, Record), Refusal> {
    let header = bytes.get(..HEADER).ok_or(Refusal::Damaged("cut off"))?;
    if &header[..16] != MAGIC {
        return Err(Refusal::Magic);
    }
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if word(16) != FORMAT {
        return Err(Refusal::Format(word(16)));
    }
    let whole = bytes.get(..HEADER + word(20) as usize).ok_or(Refusal::Damaged("wrong length"))?;
    let mut copy = whole.to_vec();
    copy[32..64].fill(0);
    if blake3::hash(&copy).as_bytes() != &header[32..64] {
        return Err(Refusal::Damaged("wrong checksum"));
    }
    let record = postcard::from_bytes(&whole[HEADER..]).map_err(|_| Refusal::Damaged("unreadable record"))?;
    Ok((u64::from(word(24)) | u64::from(word(28)) << 32, record))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use nvdimm_model::Domain;
    use proptest::prelude::*;

    pub(crate) fn record() -> Record {
        Record {
            identity: Identity::with_serial(7),
            geometry: Geometry::new(16 << 20, 128 << 10).unwrap(),
            persistence: Persistence::honest(Domain::Adr),
            hints: true,
            fs: Fs::Ext4,
            set: None,
            health: Health::default(),
            poison: Poison::default(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = write(0x1_0000_0002, &record()).unwrap();
        assert_eq!(bytes.len(), SIZE);
        assert_eq!(read(&bytes), Ok((0x1_0000_0002, record())));
        assert_eq!(read(&[0; SIZE]), Err(Refusal::Magic));
        assert_eq!(read(&bytes[..70]), Err(Refusal::Damaged("wrong length")));
        let mut other = bytes;
        other[16] = 9;
        assert_eq!(read(&other), Err(Refusal::Format(9)));
    }

    #[test]
    fn the_largest_poison_list_fits() {
        let mut record = record();
        for n in 0..Poison::MAX_RANGES as u64 {
            let at = u64::MAX / 2 + n * 128;
            record.poison.add(at..at + 64);
        }
        assert!(write(1, &record).is_ok());
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_noticed(at in 0usize..200, flip in 1u8..=255) {
            let mut bytes = write(1, &record()).unwrap();
            let end = bytes.iter().rposition(|&b| b != 0).unwrap();
            bytes[at.min(end)] ^= flip;
            prop_assert!(read(&bytes).is_err());
        }
    }
}
