//! The ACPI tables of a hardware-reduced platform without firmware (ACPI 6.5, ch. 5.2): RSDP, XSDT, FADT, MADT, DSDT,
//! and NFIT where there are NV-DIMMs. No FACS: a reduced platform has no use for it.

mod fadt;
mod madt;

use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};

use crate::layout::ACPI_TABLES;
use crate::{Error, Result};

/// Who made the tables.
pub const OEM_ID: [u8; 6] = *b"NVSIM ";
/// Which tables.
pub const OEM_TABLE_ID: [u8; 8] = *b"NVSIMMCH";
/// Their revision.
pub const OEM_REVISION: u32 = 1;

/// Alignment of a table in memory.
const ALIGNMENT: usize = 64;

/// What the tables describe.
#[derive(Debug)]
pub struct AcpiSpec<'a> {
    /// Number of processors.
    pub vcpus: u8,
    /// AML of what stands at the root of the name space, such as `\_S5`.
    pub root: &'a [u8],
    /// AML of what stands in `\_SB`.
    pub system_bus: &'a [u8],
    /// Finished tables to add: the NFIT.
    pub tables: Vec<Vec<u8>>,
}

/// All tables as one image for [`ACPI_TABLES`], the RSDP at its start.
///
/// # Errors
/// [`Error::AcpiTables`] if they do not fit there.
pub fn build(spec: &AcpiSpec<'_>) -> Result<Vec<u8>> {
    let mut image = Image { bytes: vec![0; Rsdp::len()] };
    let dsdt = image.add(&dsdt(spec));
    let mut tables = vec![image.add(&fadt::build(dsdt)), image.add(&madt::build(spec.vcpus))];
    tables.extend(spec.tables.iter().map(|table| image.add(table)));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for table in tables {
        xsdt.add_entry(table);
    }
    let xsdt = image.add(&bytes(&xsdt));
    image.bytes[..Rsdp::len()].copy_from_slice(&bytes(&Rsdp::new(OEM_ID, xsdt)));
    let (need, have) = (image.bytes.len() as u64, ACPI_TABLES.end - ACPI_TABLES.start);
    if need > have { Err(Error::AcpiTables { need, have }) } else { Ok(image.bytes) }
}

/// A table with our identity, its length and checksum filled in.
#[must_use]
pub fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(signature, 36, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(body);
    table.as_slice().to_vec()
}

/// Revision 2: AML integers are 64 bits wide.
fn dsdt(spec: &AcpiSpec<'_>) -> Vec<u8> {
    let mut body = spec.root.to_vec();
    body.extend(aml::Scope::raw("_SB_".into(), spec.system_bus.to_vec()));
    table(*b"DSDT", 2, &body)
}

/// The tables under construction, at [`ACPI_TABLES`].
struct Image {
    bytes: Vec<u8>,
}

impl Image {
    /// Appends a table and gives its guest-physical address.
    fn add(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        let address = ACPI_TABLES.start + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        address
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn le(bytes: &[u8]) -> u64 {
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// The tables that a guest finds from the RSDP on, by signature.
    fn walk(image: &[u8]) -> Vec<(String, Vec<u8>)> {
        let at = |address: u64| {
            let start = (address - ACPI_TABLES.start) as usize;
            let length = le(&image[start + 4..start + 8]) as usize;
            image[start..start + length].to_vec()
        };
        let xsdt = at(le(&image[24..32]));
        let mut found: Vec<_> = xsdt[36..].chunks(8).map(|entry| at(le(entry))).collect();
        let fadt = found.iter().find(|t| t.starts_with(b"FACP")).unwrap();
        found.push(at(le(&fadt[140..148])));
        found.push(xsdt);
        found.into_iter().map(|t| (String::from_utf8_lossy(&t[..4]).into_owned(), t)).collect()
    }

    fn sample() -> Vec<u8> {
        let tables = vec![table(*b"NFIT", 1, &[0; 4])];
        build(&AcpiSpec { vcpus: 2, root: &[], system_bus: &[], tables }).unwrap()
    }

    #[test]
    fn every_table_is_reached_and_sums_to_zero() {
        let image = sample();
        let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!((sum(&image[..20]), sum(&image[..36])), (0, 0));
        let found = walk(&image);
        let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["FACP", "APIC", "NFIT", "DSDT", "XSDT"]);
        for (name, bytes) in &found {
            assert_eq!(sum(bytes), 0, "{name}");
        }
    }

    #[test]
    fn fixed_tables_are_as_reviewed() {
        let mut dump = String::new();
        for (name, bytes) in walk(&sample()).iter().filter(|(name, _)| name == "FACP" || name == "APIC") {
            dump += &format!("{name}\n");
            for (n, row) in bytes.chunks(16).enumerate() {
                let hex: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
                dump += &format!("{:04x}: {}\n", n * 16, hex.join(" "));
            }
        }
        insta::assert_snapshot!(dump);
    }

    #[test]
    fn tables_that_do_not_fit_are_refused() {
        let huge = vec![0; (ACPI_TABLES.end - ACPI_TABLES.start) as usize];
        let spec = AcpiSpec { vcpus: 1, root: &[], system_bus: &huge, tables: Vec::new() };
        assert!(matches!(build(&spec), Err(Error::AcpiTables { .. })));
    }
}
