//! What a vmlinux tells of itself.

use std::ops::Range;

use crate::elf::Elf;
use crate::modules::Layout;
use crate::orc::Orc;
use crate::{Error, KERNEL_HALF, Table, btf, kallsyms};

/// The names and stack layouts of a kernel's own code, linked at the addresses at which it runs (`nokaslr`).
#[derive(Debug, Clone)]
pub struct Kernel {
    pub(crate) symbols: Table,
    pub(crate) orc: Option<Orc>,
    /// Where modules are told of in its memory, if BTF tells.
    pub(crate) modules: Option<Layout>,
    code: Range<u64>,
}

impl Kernel {
    /// Reads an ELF vmlinux.
    ///
    /// # Errors
    /// [`Error::Elf`] for another file, [`Error::Kallsyms`] when it has no names. A kernel without ORC or BTF is
    /// taken: its call chains, or its modules' names, are then not known.
    pub fn read(vmlinux: &[u8]) -> Result<Self, Error> {
        let elf = Elf::parse(vmlinux)?;
        let code = elf.code().ok_or_else(|| Error::Elf { why: "it has no code".into() })?;
        let symbols = kallsyms::read(&elf.segments())?;
        let orc = elf.section(".orc_unwind_ip").zip(elf.section(".orc_unwind")).and_then(|(ips, entries)| {
            Orc::of_kernel(ips, entries.data, elf.section(".orc_header").is_some())
        });
        let modules = elf
            .section(".BTF")
            .and_then(|section| btf::Btf::parse(section.data))
            .and_then(|btf| Layout::new(&btf, symbols.address("modules")?));
        Ok(Self { symbols, orc, modules, code })
    }

    /// Its symbols.
    pub fn symbols(&self) -> &Table {
        &self.symbols
    }

    /// Whether call chains can be had: it was built with the ORC unwinder.
    pub fn has_orc(&self) -> bool {
        self.orc.is_some()
    }

    /// Whether the modules of a running guest can be found: it was built with BTF.
    pub fn knows_modules(&self) -> bool {
        self.modules.is_some()
    }

    /// The symbol at or before an address of its own code or data.
    pub fn lookup(&self, address: u64) -> Option<(&str, u64)> {
        // Smaller ones are offsets of per-CPU variables.
        self.symbols.lookup(address).filter(|_| address >= KERNEL_HALF)
    }

    /// Whether this is an address of its code.
    pub fn is_code(&self, address: u64) -> bool {
        self.code.contains(&address) && address >= KERNEL_HALF
    }
}
