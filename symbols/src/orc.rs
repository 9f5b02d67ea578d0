//! ORC tables: for each stretch of code, where the caller's stack begins (Linux arch/x86/include/asm/orc_types.h,
//! Documentation/arch/x86/orc-unwinder.rst).

use crate::elf::{Section, u16_at, u32_at};

/// Bytes of an entry, and of the address that belongs to it.
pub const ENTRY: usize = 6;
pub const IP: usize = 4;

/// A register, or a place on the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    Undefined,
    PreviousSp,
    Dx,
    Di,
    Bp,
    Sp,
    R10,
    R13,
    BpIndirect,
    SpIndirect,
}

impl Base {
    fn of(bits: u16) -> Option<Self> {
        Some(match bits & 15 {
            0 => Self::Undefined,
            1 => Self::PreviousSp,
            2 => Self::Dx,
            3 => Self::Di,
            4 => Self::Bp,
            5 => Self::Sp,
            6 => Self::R10,
            7 => Self::R13,
            8 => Self::BpIndirect,
            9 => Self::SpIndirect,
            _ => return None,
        })
    }
}

/// What lies at the border to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nobody knows.
    Undefined,
    /// Nothing: this is the outermost function.
    End,
    /// A return address.
    Call,
    /// All registers, as an exception's entry saves them.
    Registers,
    /// What the processor pushes for an exception.
    Interrupt,
}

/// What holds for a stretch of code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub sp: Base,
    pub sp_offset: i16,
    pub bp: Base,
    pub bp_offset: i16,
    pub kind: Kind,
}

/// How an entry is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Up to Linux 6.2: type (2 bits), end.
    End10,
    /// Linux 6.3: type (2 bits), signal, end.
    End11,
    /// Since Linux 6.4: type (3 bits), signal; the end is a type.
    Typed,
}

impl Format {
    /// The format of a kernel's table. A header tells of the newest; the others differ in a bit that only one of them has.
    fn of(entries: &[u8], has_header: bool) -> Self {
        let sets_11 = |entry: &[u8]| u16_at(entry, 4).is_some_and(|bits| bits >> 11 & 1 == 1);
        match has_header {
            true => Self::Typed,
            false if entries.chunks_exact(ENTRY).any(sets_11) => Self::End11,
            false => Self::End10,
        }
    }

    fn unpack(self, entry: [u8; ENTRY]) -> Option<Entry> {
        let [sp_low, sp_high, bp_low, bp_high, low, high] = entry;
        let bits = u16::from_le_bytes([low, high]);
        let (kind, end) = match self {
            Self::Typed => (bits >> 8 & 7, false),
            Self::End10 => ((bits >> 8 & 3) + 2, bits >> 10 & 1 == 1),
            Self::End11 => ((bits >> 8 & 3) + 2, bits >> 11 & 1 == 1),
        };
        let (sp, bp) = (Base::of(bits)?, Base::of(bits >> 4)?);
        let kind = match kind {
            0 => Kind::Undefined,
            // The older formats have no other way to say that nobody knows.
            _ if self != Self::Typed && sp == Base::Undefined && !end => Kind::Undefined,
            _ if end => Kind::End,
            1 => Kind::End,
            2 => Kind::Call,
            3 => Kind::Registers,
            4 => Kind::Interrupt,
            _ => return None,
        };
        let sp_offset = i16::from_le_bytes([sp_low, sp_high]);
        Some(Entry { sp, sp_offset, bp, bp_offset: i16::from_le_bytes([bp_low, bp_high]), kind })
    }
}

/// The ORC table of a kernel or of a module.
#[derive(Debug, Clone)]
pub struct Orc {
    format: Format,
    /// Where each entry's stretch begins; sorted.
    ips: Vec<u64>,
    entries: Vec<[u8; ENTRY]>,
    /// For each block of code from the first entry on, how many entries begin before it.
    blocks: Vec<u32>,
}

/// Bytes of code in a block, as in the kernel's own table for quick finding; and the most blocks, for 1 GiB.
const BLOCK: u64 = 256;
const BLOCKS: u64 = 1 << 22;

impl Orc {
    /// The table of a vmlinux.
    pub fn of_kernel(ips: Section<'_>, entries: &[u8], has_header: bool) -> Option<Self> {
        Self::new(ips, entries, Format::of(entries, has_header))
    }

    /// A table in a format that is known.
    pub fn new(ips: Section<'_>, entries: &[u8], format: Format) -> Option<Self> {
        let address = |n: usize| {
            let place = ips.address.wrapping_add((n * IP) as u64);
            Some(place.wrapping_add_signed(i64::from(u32_at(ips.data, n * IP)? as i32)))
        };
        let count = (ips.data.len() / IP).min(entries.len() / ENTRY);
        let addresses: Vec<u64> = (0..count).map_while(address).collect();
        let (packed, _) = entries.as_chunks::<ENTRY>();
        let (&first, &last) = addresses.first().zip(addresses.last())?;
        if !addresses.is_sorted() || addresses.len() != count || (last - first) / BLOCK >= BLOCKS {
            return None;
        }
        let mut before = 0;
        let block = |n| {
            let start = first + n * BLOCK;
            before += addresses[before..].iter().take_while(|&&ip| ip < start).count();
            before as u32
        };
        let blocks = (0..=(last - first) / BLOCK + 1).map(block).collect();
        Some(Self { format, ips: addresses, entries: packed[..count].to_vec(), blocks })
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// What holds at an address; of several entries for one, the last.
    pub fn find(&self, ip: u64) -> Option<Entry> {
        let block = (ip.checked_sub(*self.ips.first()?)? / BLOCK) as usize;
        // An address behind the last block belongs to the last entry.
        let bound = |n: usize| self.blocks.get(n).map_or(self.ips.len(), |&n| n as usize);
        let (low, high) = (bound(block), bound(block.saturating_add(1)));
        let after = low + self.ips.get(low..high)?.partition_point(|&start| start <= ip);
        self.format.unpack(*self.entries.get(after.checked_sub(1)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(sp: i16, bp: i16, bits: u16) -> [u8; 6] {
        let mut bytes = [0; 6];
        bytes[..2].copy_from_slice(&sp.to_le_bytes());
        bytes[2..4].copy_from_slice(&bp.to_le_bytes());
        bytes[4..].copy_from_slice(&bits.to_le_bytes());
        bytes
    }

    #[test]
    fn the_formats_differ_in_where_they_say_the_end() {
        let kind = |format: Format, bits| format.unpack(packed(8, -16, bits)).map(|entry| entry.kind);
        assert_eq!(kind(Format::End10, 5), Some(Kind::Call));
        assert_eq!(kind(Format::End10, 5 | 1 << 10), Some(Kind::End));
        assert_eq!(kind(Format::End11, 5 | 1 << 10), Some(Kind::Call));
        assert_eq!(kind(Format::End11, 5 | 1 << 11), Some(Kind::End));
        assert_eq!(kind(Format::End10, 5 | 1 << 8), Some(Kind::Registers));
        assert_eq!(kind(Format::Typed, 5 | 2 << 8), Some(Kind::Call));
        assert_eq!(kind(Format::Typed, 5 | 4 << 8 | 1 << 11), Some(Kind::Interrupt));
        assert_eq!(kind(Format::Typed, 0), Some(Kind::Undefined));
        assert_eq!(kind(Format::End10, 0), Some(Kind::Undefined));
        assert_eq!(kind(Format::Typed, 5 | 7 << 8), None);
        assert_eq!(kind(Format::Typed, 12 | 2 << 8), None);
    }

    #[test]
    fn an_address_belongs_to_the_stretch_that_begins_before_it() {
        // Relative to their own places at 0x1000 and 0x1004: 0x1100 and 0x1200.
        let ips = [0x100u32.to_le_bytes(), 0x1fcu32.to_le_bytes()].concat();
        let entries = [packed(8, 0, 5 | 2 << 8), packed(16, -16, 0x15 | 2 << 8)].concat();
        let orc = Orc::new(Section { address: 0x1000, data: &ips }, &entries, Format::Typed).unwrap();
        assert_eq!(orc.find(0x10ff), None);
        assert_eq!(orc.find(0x1100).map(|e| e.sp_offset), Some(8));
        let second = orc.find(0x1fff).unwrap();
        assert_eq!((second.sp, second.sp_offset), (Base::Sp, 16));
        assert_eq!((second.bp, second.bp_offset), (Base::PreviousSp, -16));
    }
}
