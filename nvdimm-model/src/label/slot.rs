//! One label: a piece of a namespace on one DIMM.

use serde::{Deserialize, Serialize};
use uuid::{Uuid, uuid};

use super::LabelVersion;
use crate::fletcher::{fletcher64, fletcher64_skipping};
use crate::{Error, le};

/// Bytes of a namespace's name in a label, its closing zero included.
pub const NAME_LEN: usize = 64;

// Offsets of the fields; those from ALIGN on exist in v1.2 only.
const NAME: usize = 16;
const FLAGS: usize = 80;
const NLABEL: usize = 84;
const POSITION: usize = 86;
const COOKIE: usize = 88;
const LBA_SIZE: usize = 96;
const DPA: usize = 104;
const RAW_SIZE: usize = 112;
const SLOT: usize = 120;
const ALIGN: usize = 124;
const TYPE: usize = 128;
const ABSTRACTION: usize = 144;
const CHECKSUM: usize = 248;

/// The address-range type that labels of persistent memory name.
const PERSISTENT: Uuid = uuid!("66f0d379-b4f3-4074-ac43-0d3318b78cdb");

/// What stands between a namespace's bytes and its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Abstraction {
    /// Nothing, or what the info block says.
    None,
    /// A block translation table of version 1.1.
    Btt,
    /// A block translation table of version 2.
    Btt2,
    /// A page map: fsdax.
    Pfn,
    /// A page map without a block device: devdax.
    Dax,
    /// One that we do not know.
    Other(Uuid),
}

impl Abstraction {
    const KNOWN: [(Self, Uuid); 5] = [
        (Self::None, Uuid::nil()),
        (Self::Btt, uuid!("8aed63a2-29a2-4c66-8b12-f05d15d3922a")),
        (Self::Btt2, uuid!("18633bfc-1735-4217-8ac9-17239282d3f8")),
        (Self::Pfn, uuid!("266400ba-fb9f-4677-bcb0-968f11d0d225")),
        (Self::Dax, uuid!("97a86d9c-3cdd-4eda-986f-5068b4f80088")),
    ];

    fn guid(self) -> Uuid {
        match self {
            Self::Other(guid) => guid,
            known => Self::KNOWN.iter().find(|k| k.0 == known).map_or(Uuid::nil(), |k| k.1),
        }
    }

    fn from_guid(guid: Uuid) -> Self {
        Self::KNOWN.iter().find(|k| k.1 == guid).map_or(Self::Other(guid), |k| k.0)
    }
}

/// The flags of a label.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelFlags(pub u32);

impl LabelFlags {
    /// The namespace may not be written.
    pub const READ_ONLY: u32 = 1;
    /// The namespace lies on this DIMM alone, not on its set.
    pub const LOCAL: u32 = 2;
    /// The label is being replaced.
    pub const UPDATING: u32 = 8;
}

/// A label of either version; what v1.1 has no field for is lost when written as v1.1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// The namespace's uuid: equal in the labels of all its DIMMs.
    pub uuid: Uuid,
    /// The namespace's name.
    pub name: String,
    /// Flags.
    pub flags: LabelFlags,
    /// Number of DIMMs that hold pieces of the namespace.
    pub nlabel: u16,
    /// Position of this DIMM among them.
    pub position: u16,
    /// The interleave set that the namespace was made on.
    pub cookie: u64,
    /// Sector size for block access; 0 stands for 512.
    pub lba_size: u64,
    /// First device address of the piece.
    pub dpa: u64,
    /// Bytes of the piece.
    pub raw_size: u64,
    /// Power of two to align to; informative. v1.2 only.
    pub align: u8,
    /// What uses the namespace. v1.2 only.
    pub abstraction: Abstraction,
}

impl Label {
    /// Reads the label in `bytes`, which has the version's label size and stands in slot `slot`.
    pub fn read(version: LabelVersion, slot: u32, bytes: &[u8]) -> Result<Self, Error> {
        let bad = |what| Err(Error::BadLabel { slot, what });
        if bytes.len() != version.label_size() {
            return bad("cut off");
        }
        if le::u32_at(bytes, SLOT) != slot {
            return bad("it names another slot");
        }
        let v1_2 = version == LabelVersion::V1_2;
        if v1_2 && fletcher64_skipping(bytes, CHECKSUM) != le::u64_at(bytes, CHECKSUM) {
            return bad("wrong checksum");
        }
        if v1_2 && Uuid::from_bytes_le(le::raw16_at(bytes, TYPE)) != PERSISTENT {
            return bad("not of persistent memory");
        }
        let (dpa, raw_size) = (le::u64_at(bytes, DPA), le::u64_at(bytes, RAW_SIZE));
        if raw_size == 0 || dpa.checked_add(raw_size).is_none() {
            return bad("no device address range");
        }
        let name = &bytes[NAME..NAME + NAME_LEN];
        let name = &name[..name.iter().position(|&b| b == 0).unwrap_or(NAME_LEN)];
        Ok(Self {
            uuid: Uuid::from_bytes(le::raw16_at(bytes, 0)),
            name: String::from_utf8_lossy(name).into_owned(),
            flags: LabelFlags(le::u32_at(bytes, FLAGS)),
            nlabel: le::u16_at(bytes, NLABEL),
            position: le::u16_at(bytes, POSITION),
            cookie: le::u64_at(bytes, COOKIE),
            lba_size: le::u64_at(bytes, LBA_SIZE),
            dpa,
            raw_size,
            align: if v1_2 { bytes[ALIGN] } else { 0 },
            abstraction: if v1_2 {
                Abstraction::from_guid(Uuid::from_bytes_le(le::raw16_at(bytes, ABSTRACTION)))
            } else {
                Abstraction::None
            },
        })
    }

    /// Writes the label for slot `slot`; `bytes` has the version's label size. A longer name is cut.
    pub fn write(&self, version: LabelVersion, slot: u32, bytes: &mut [u8]) {
        bytes.fill(0);
        le::put(bytes, 0, self.uuid.as_bytes());
        let name = self.name.as_bytes();
        le::put(bytes, NAME, &name[..name.len().min(NAME_LEN - 1)]);
        le::put_u32(bytes, FLAGS, self.flags.0);
        le::put_u16(bytes, NLABEL, self.nlabel);
        le::put_u16(bytes, POSITION, self.position);
        le::put_u64(bytes, COOKIE, self.cookie);
        le::put_u64(bytes, LBA_SIZE, self.lba_size);
        le::put_u64(bytes, DPA, self.dpa);
        le::put_u64(bytes, RAW_SIZE, self.raw_size);
        le::put_u32(bytes, SLOT, slot);
        if version == LabelVersion::V1_2 {
            bytes[ALIGN] = self.align;
            le::put(bytes, TYPE, &PERSISTENT.to_bytes_le());
            le::put(bytes, ABSTRACTION, &self.abstraction.guid().to_bytes_le());
            let sum = fletcher64(bytes);
            le::put_u64(bytes, CHECKSUM, sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label() -> Label {
        Label {
            uuid: uuid!("00112233-4455-6677-8899-aabbccddeeff"),
            name: "db".into(),
            flags: LabelFlags(LabelFlags::READ_ONLY),
            nlabel: 2,
            position: 1,
            cookie: 0x0807_0605_0403_0201,
            lba_size: 512,
            dpa: 0x20_0000,
            raw_size: 0x100_0000,
            align: 21,
            abstraction: Abstraction::Pfn,
        }
    }

    #[test]
    fn golden_v1_2_label() {
        let mut bytes = [0xee; 256];
        label().write(LabelVersion::V1_2, 5, &mut bytes);
        assert_eq!(bytes[..4], [0x00, 0x11, 0x22, 0x33]);
        assert_eq!(bytes[16..20], *b"db\0\0");
        assert_eq!(bytes[80..96], [1, 0, 0, 0, 2, 0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(
            bytes[96..120],
            [0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]
        );
        assert_eq!(bytes[120..128], [5, 0, 0, 0, 21, 0, 0, 0]);
        // GUIDs have their first three fields in little-endian order.
        assert_eq!(bytes[128..136], [0x79, 0xd3, 0xf0, 0x66, 0xf3, 0xb4, 0x74, 0x40]);
        assert_eq!(bytes[144..152], [0xba, 0x00, 0x64, 0x26, 0x9f, 0xfb, 0x77, 0x46]);
        assert_eq!(bytes[160..248], [0; 88]);
        assert_eq!(Label::read(LabelVersion::V1_2, 5, &bytes), Ok(label()));
        assert_eq!(
            Label::read(LabelVersion::V1_2, 4, &bytes),
            Err(Error::BadLabel { slot: 4, what: "it names another slot" })
        );
    }

    #[test]
    fn v1_1_keeps_what_it_has_fields_for() {
        let mut bytes = [0xee; 128];
        label().write(LabelVersion::V1_1, 0, &mut bytes);
        let read = Label::read(LabelVersion::V1_1, 0, &bytes).unwrap();
        assert_eq!(read, Label { align: 0, abstraction: Abstraction::None, ..label() });
    }

    #[test]
    fn unknown_abstraction_survives() {
        let guid = uuid!("01020304-0506-0708-090a-0b0c0d0e0f10");
        assert_eq!(Abstraction::from_guid(guid).guid(), guid);
    }
}
