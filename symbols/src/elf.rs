//! An ELF file by sections and by addresses (System V ABI, chapter 4).

use object::elf::{EM_X86_64, FileHeader64, PT_LOAD, SHT_NOBITS};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use object::{LittleEndian, elf::SHF_EXECINSTR};
use std::ops::Range;

use crate::Error;

const E: LittleEndian = LittleEndian;

/// An ELF file.
pub struct Elf<'d> {
    data: &'d [u8],
    header: &'d FileHeader64<LittleEndian>,
}

/// A section's bytes and the address at which they are loaded.
#[derive(Debug, Clone, Copy)]
pub struct Section<'d> {
    pub address: u64,
    pub data: &'d [u8],
}

impl<'d> Elf<'d> {
    pub fn parse(data: &'d [u8]) -> Result<Self, Error> {
        let bad = |why: &str| Error::Elf { why: why.to_owned() };
        let header = FileHeader64::<LittleEndian>::parse(data).map_err(|e| bad(&e.to_string()))?;
        if header.e_machine(E) != EM_X86_64 {
            return Err(bad("it is for another processor"));
        }
        header.program_headers(E, data).map_err(|e| bad(&e.to_string()))?;
        Ok(Self { data, header })
    }

    /// The bytes of a section that has some.
    pub fn section(&self, name: &str) -> Option<Section<'d>> {
        let sections = self.header.sections(E, self.data).ok()?;
        let (_, found) = sections.section_by_name(E, name.as_bytes())?;
        let data = (found.sh_type(E) != SHT_NOBITS).then(|| found.data(E, self.data).ok())??;
        Some(Section { address: found.sh_addr(E), data })
    }

    /// The addresses of code, from the first executable section to the end of the last.
    pub fn code(&self) -> Option<Range<u64>> {
        let sections = self.header.sections(E, self.data).ok()?;
        let ranges = sections
            .iter()
            .filter(|s| s.sh_flags(E) & u64::from(SHF_EXECINSTR) != 0)
            .map(|s| s.sh_addr(E)..s.sh_addr(E).saturating_add(s.sh_size(E)));
        ranges.reduce(|all, next| all.start.min(next.start)..all.end.max(next.end))
    }

    /// The contents of the loaded segments, as far as they are in the file.
    pub fn segments(&self) -> Vec<Section<'d>> {
        let headers = self.header.program_headers(E, self.data).unwrap_or_default();
        let loads = headers.iter().filter(|h| h.p_type(E) == PT_LOAD);
        loads
            .filter_map(|h| Some(Section { address: h.p_vaddr(E), data: h.data(E, self.data).ok()? }))
            .collect()
    }
}

/// A little-endian number at an offset of some bytes.
pub fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*data.get(at..)?.first_chunk()?))
}

pub fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*data.get(at..)?.first_chunk()?))
}

pub fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*data.get(at..)?.first_chunk()?))
}
