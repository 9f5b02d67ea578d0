//! What is read from ELF files: the libraries a program needs, the information section of a module.

use object::elf::{FileHeader64, SHF_ALLOC};
use object::read::elf::{Dyn, ElfFile64, FileHeader, SectionHeader};
use object::{Endianness, Object, ObjectSection};

/// What a dynamically linked program or library asks of the loader.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// PT_INTERP, the dynamic loader's path.
    pub interpreter: Option<String>,
    /// DT_NEEDED, in order.
    pub libraries: Vec<String>,
}

/// The needs of an ELF file; `None` when `data` is no ELF file.
pub(crate) fn needs(data: &[u8]) -> object::Result<Option<Needs>> {
    if !data.starts_with(b"\x7fELF") {
        return Ok(None);
    }
    let header = FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, data)?;
    let mut found = Needs::default();
    for segment in header.program_headers(endian, data)? {
        use object::read::elf::ProgramHeader;
        if let Some(path) = segment.interpreter(endian, data)? {
            found.interpreter = Some(String::from_utf8_lossy(path).into_owned());
        }
    }
    if let Some((entries, strings)) = sections.dynamic(endian, data)? {
        let strings = sections.strings(endian, data, strings)?;
        for entry in entries {
            if entry.d_tag(endian) == object::elf::DT_NEEDED {
                let name = entry.string(endian, strings)?;
                found.libraries.push(String::from_utf8_lossy(name).into_owned());
            }
        }
    }
    Ok(Some(found))
}

/// The `key=value` entries of a module's `.modinfo` section.
pub(crate) fn modinfo(data: &[u8]) -> object::Result<Vec<(String, String)>> {
    let file = ElfFile64::<Endianness>::parse(data)?;
    let Some(section) = file.section_by_name(".modinfo") else {
        return Ok(Vec::new());
    };
    Ok(parse_modinfo(section.data()?))
}

/// Splits NUL-separated `key=value` strings.
pub(crate) fn parse_modinfo(data: &[u8]) -> Vec<(String, String)> {
    data.split(|&b| b == 0)
        .filter_map(|entry| std::str::from_utf8(entry).ok()?.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Takes the name from section `.BTF` of a module and keeps it out of memory, so that the kernel neither loads
/// nor parses it. Gives whether there was one.
pub(crate) fn drop_btf(data: &mut [u8]) -> object::Result<bool> {
    let header = FileHeader64::<Endianness>::parse(&*data)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, &*data)?;
    let Some((index, section)) = sections.section_by_name(endian, b".BTF") else {
        return Ok(false);
    };
    let flags = section.sh_flags(endian) & !u64::from(SHF_ALLOC);
    let (offset, size) = (header.e_shoff(endian), u64::from(header.e_shentsize(endian)));
    // parse() proved that the table lies within the file.
    let at = (offset + index.0 as u64 * size) as usize;
    data[at..at + 4].fill(0); // sh_name 0 is the empty name
    data[at + 8..at + 16].copy_from_slice(&flags.to_le_bytes());
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_program_needs_libc() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let needs = needs(&own).unwrap().unwrap();
        assert!(needs.libraries.iter().any(|l| l.starts_with("libc.so")), "{needs:?}");
        assert!(needs.interpreter.unwrap().contains("ld-linux"));
    }

    #[test]
    fn a_script_needs_nothing_and_a_torn_elf_is_an_error() {
        assert_eq!(needs(b"#!/bin/sh\n").unwrap(), None);
        assert!(needs(b"\x7fELF\x02\x01\x01").is_err());
    }

    #[test]
    fn modinfo_is_split_at_nul() {
        let got = parse_modinfo(b"license=GPL\0depends=a,b\0\0junk\0alias=x=y\0");
        let want = [("license", "GPL"), ("depends", "a,b"), ("alias", "x=y")];
        assert_eq!(got, want.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }
}
