//! The NVDIMM Firmware Interface Table (ACPI 6.5, ch. 5.2.25), as Linux accepts it: lengths are exact, each DIMM has a
//! control region, and no region has a location cookie.

use nvdimm_model::Domain;
use nvdimm_model::geometry::ALIGN;
use uuid::{Uuid, uuid};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::plan::Plan;
use crate::acpi;

const PERSISTENT_MEMORY: Uuid = uuid!("66f0d379-b4f3-4074-ac43-0d3318b78cdb");
/// EFI memory attributes: write-back, non-volatile.
const WRITE_BACK_NON_VOLATILE: u64 = 0x8008;
/// Region format interface: byte-addressable, energy-backed.
const BYTE_ADDRESSABLE: u16 = 0x0301;

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct SpaRange {
    kind: U16,
    length: U16,
    index: U16,
    flags: U16,
    reserved: U32,
    proximity: U32,
    guid: [u8; 16],
    base: U64,
    size: U64,
    attributes: U64,
}
const _: () = assert!(size_of::<SpaRange>() == 56);

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct RegionMapping {
    kind: U16,
    length: U16,
    handle: U32,
    physical_id: U16,
    region_id: U16,
    spa_index: U16,
    control_index: U16,
    size: U64,
    region_offset: U64,
    dpa: U64,
    interleave_index: U16,
    ways: U16,
    flags: U16,
    reserved: U16,
}
const _: () = assert!(size_of::<RegionMapping>() == 48);

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Interleave {
    kind: U16,
    length: U16,
    index: U16,
    reserved: U16,
    lines: U32,
    line_size: U32,
    line_offset: U32,
}
const _: () = assert!(size_of::<Interleave>() == 20);

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct ControlRegion {
    kind: U16,
    length: U16,
    index: U16,
    vendor: U16,
    device: U16,
    revision: U16,
    subsystem_vendor: U16,
    subsystem_device: U16,
    subsystem_revision: U16,
    valid: u8,
    location: u8,
    date: U16,
    reserved: U16,
    serial: U32,
    format: U16,
    windows: U16,
}
const _: () = assert!(size_of::<ControlRegion>() == 32);

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct FlushHint {
    kind: U16,
    length: U16,
    handle: U32,
    count: U16,
    reserved: [u8; 6],
    address: U64,
}
const _: () = assert!(size_of::<FlushHint>() == 24);

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Capabilities {
    kind: U16,
    length: U16,
    highest: u8,
    reserved: [u8; 3],
    bits: U32,
    reserved2: U32,
}
const _: () = assert!(size_of::<Capabilities>() == 16);

fn length<T>() -> U16 {
    U16::new(size_of::<T>() as u16)
}

/// The whole table.
#[must_use]
pub fn build(plan: &Plan) -> Vec<u8> {
    // Reserved by the table's header.
    let mut body = vec![0; 4];
    for (index, region) in (1..).zip(&plan.regions) {
        let interleaved = region.set.ways() > 1;
        let range = SpaRange {
            kind: U16::new(0),
            length: length::<SpaRange>(),
            index: U16::new(index),
            flags: U16::new(0),
            reserved: U32::new(0),
            proximity: U32::new(0),
            guid: PERSISTENT_MEMORY.to_bytes_le(),
            base: U64::new(region.base),
            size: U64::new(region.set.size()),
            attributes: U64::new(WRITE_BACK_NON_VOLATILE),
        };
        body.extend_from_slice(range.as_bytes());
        for (position, &dimm) in region.members.iter().enumerate() {
            let mapping = RegionMapping {
                kind: U16::new(1),
                length: length::<RegionMapping>(),
                handle: U32::new(plan.dimms[dimm].handle.0),
                physical_id: U16::new(dimm as u16),
                region_id: U16::new(index),
                spa_index: U16::new(index),
                control_index: U16::new(dimm as u16 + 1),
                size: U64::new(region.set.member_size()),
                region_offset: U64::new(region.set.region_offset(position)),
                dpa: U64::new(0),
                interleave_index: U16::new(if interleaved { index } else { 0 }),
                ways: U16::new(region.set.ways() as u16),
                flags: U16::new(0),
                reserved: U16::new(0),
            };
            body.extend_from_slice(mapping.as_bytes());
        }
        if interleaved {
            // One line a turn; the lines of the others stand between this one and its next.
            let interleave = Interleave {
                kind: U16::new(2),
                length: length::<Interleave>(),
                index: U16::new(index),
                reserved: U16::new(0),
                lines: U32::new(1),
                line_size: U32::new(ALIGN as u32),
                line_offset: U32::new(0),
            };
            body.extend_from_slice(interleave.as_bytes());
        }
    }
    for (index, dimm) in (1..).zip(&plan.dimms) {
        let id = &dimm.identity;
        let control = ControlRegion {
            kind: U16::new(4),
            length: length::<ControlRegion>(),
            index: U16::new(index),
            vendor: U16::new(id.vendor),
            device: U16::new(id.device),
            revision: U16::new(id.revision),
            subsystem_vendor: U16::new(id.vendor),
            subsystem_device: U16::new(id.device),
            subsystem_revision: U16::new(id.revision),
            // Location and date count.
            valid: 1,
            location: id.location,
            date: U16::new(id.date),
            reserved: U16::new(0),
            serial: U32::new(id.serial),
            format: U16::new(BYTE_ADDRESSABLE),
            windows: U16::new(0),
        };
        body.extend_from_slice(control.as_bytes());
        if let Some(address) = dimm.hint {
            let hint = FlushHint {
                kind: U16::new(6),
                length: length::<FlushHint>(),
                handle: U32::new(dimm.handle.0),
                count: U16::new(1),
                reserved: [0; 6],
                address: U64::new(address),
            };
            body.extend_from_slice(hint.as_bytes());
        }
    }
    if let Some(domain) = Domain::of_platform(plan.dimms.iter().map(|d| d.persistence.shown)) {
        let capabilities = Capabilities {
            kind: U16::new(7),
            length: length::<Capabilities>(),
            // Both bits are meant, set or not.
            highest: 1,
            reserved: [0; 3],
            bits: U32::new(domain.capabilities()),
            reserved2: U32::new(0),
        };
        body.extend_from_slice(capabilities.as_bytes());
    }
    acpi::table(*b"NFIT", 1, &body)
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::{plan, records};
    use super::*;
    use nvdimm_model::Persistence;

    fn dump(table: &[u8]) -> String {
        let mut out = String::new();
        let mut line = |name: &str, bytes: &[u8]| {
            for (n, row) in bytes.chunks(16).enumerate() {
                let hex: Vec<String> = row.iter().map(|b| format!("{b:02x}")).collect();
                let name = if n == 0 { name } else { "" };
                out += &format!("{name:12}{:02x}: {}\n", n * 16, hex.join(" "));
            }
        };
        line("header", &table[..8]);
        let mut rest = &table[40..];
        while let [kind, _, length, _, ..] = rest {
            let name = ["range", "mapping", "interleave", "", "control", "", "hint", "capability"];
            line(name[usize::from(*kind)], &rest[..usize::from(*length)]);
            rest = &rest[usize::from(*length)..];
        }
        out
    }

    #[test]
    fn one_dimm() {
        let table = build(&plan(&records(&[1])));
        assert_eq!(table.len(), 40 + 56 + 48 + 32 + 24 + 16);
        assert_eq!(table.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
        insta::assert_snapshot!(dump(&table));
    }

    #[test]
    fn a_set_of_two_and_a_dimm_without_hint() {
        let mut records = records(&[2, 1]);
        records[2].hints = false;
        records[2].persistence = Persistence::honest(Domain::Eadr);
        insta::assert_snapshot!(dump(&build(&plan(&records))));
    }

    #[test]
    fn the_table_says_what_the_platform_claims() {
        for (shown, bits) in [(Domain::Hint, 0), (Domain::Adr, 2), (Domain::Eadr, 3)] {
            let mut records = records(&[1]);
            records[0].persistence = Persistence { shown, kept: Domain::Hint };
            let table = build(&plan(&records));
            assert_eq!(table[table.len() - 8], bits);
        }
    }
}
