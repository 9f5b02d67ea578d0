//! The modules that a guest has loaded, found in its memory as the kernel itself finds them: from the list `modules` on
//! (Linux include/linux/module.h), with the offsets that BTF gives.

use std::ops::Range;

use crate::btf::Btf;
use crate::elf::{Section, u32_at, u64_at};
use crate::orc::{self, Format, Orc};
use crate::{KERNEL_HALF, Memory, Table};

/// No more modules than this, and of each no more symbols, bytes of names, and ORC entries.
const MODULES: usize = 2048;
const SYMBOLS: usize = 1 << 17;
const NAMES: usize = 8 << 20;
const ORCS: usize = 1 << 20;
/// `MODULE_NAME_LEN`, and the largest text.
const NAME: usize = 56;
const TEXT: u64 = 256 << 20;
/// `MODULE_STATE_LIVE`.
const LIVE: u32 = 0;
/// Bytes of an `Elf64_Sym`.
const SYM: usize = 24;

/// Offsets in `struct module`.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Address of the list's head.
    head: u64,
    list: u64,
    name: u64,
    state: u64,
    /// Address and size of the text.
    base: u64,
    size: u64,
    kallsyms: u64,
    /// In `struct mod_kallsyms`.
    symtab: u64,
    num_symtab: u64,
    strtab: u64,
    /// Number of ORC entries, their addresses, and themselves.
    orc: Option<[u64; 3]>,
}

impl Layout {
    pub fn new(btf: &Btf<'_>, head: u64) -> Option<Self> {
        let module = btf.structure("module")?;
        let own = |name: &str| btf.member(module, name);
        // Since Linux 6.4 a module has an array of memories, of which the text is the first.
        let memory = own("mem").or_else(|| own("core_layout"))?;
        let in_memory = |name: &str| Some(memory.offset + btf.member(btf.struct_of(memory)?, name)?.offset);
        let names = btf.structure("mod_kallsyms")?;
        let in_names = |name: &str| btf.member(names, name).map(|member| member.offset);
        let arch = own("arch").and_then(|arch| Some((arch.offset, btf.struct_of(arch)?)));
        let in_arch = |name: &str| arch.and_then(|(at, own)| Some(at + btf.member(own, name)?.offset));
        let orc = || Some([in_arch("num_orcs")?, in_arch("orc_unwind_ip")?, in_arch("orc_unwind")?]);
        Some(Self {
            head,
            list: own("list")?.offset,
            name: own("name")?.offset,
            state: own("state")?.offset,
            base: in_memory("base")?,
            size: in_memory("text_size").or_else(|| in_memory("size"))?,
            kallsyms: own("kallsyms")?.offset,
            symtab: in_names("symtab")?,
            num_symtab: in_names("num_symtab")?,
            strtab: in_names("strtab")?,
            orc: orc(),
        })
    }

    /// The modules that are loaded now.
    pub fn read(&self, memory: &mut dyn Memory, format: Option<Format>) -> Vec<Module> {
        let mut modules: Vec<Module> = Vec::new();
        let mut next = memory.word(self.head);
        for _ in 0..MODULES {
            let Some(list) = next.filter(|&list| list != self.head && list >= KERNEL_HALF) else { break };
            let found = self.module(list.wrapping_sub(self.list), memory, format);
            modules.extend(found);
            next = memory.word(list);
        }
        modules
    }

    fn module(&self, at: u64, memory: &mut dyn Memory, format: Option<Format>) -> Option<Module> {
        let place = |offset: u64| at.wrapping_add(offset);
        // One that is just coming or going is not whole.
        if number(memory, place(self.state))? != LIVE {
            return None;
        }
        let mut name = [0; NAME];
        memory.read(place(self.name), &mut name).then_some(())?;
        let name = printable(name.split(|&byte| byte == 0).next()?);
        let start = memory.word(place(self.base))?;
        let size = u64::from(number(memory, place(self.size))?);
        let end = start.checked_add(size).filter(|_| start >= KERNEL_HALF && size <= TEXT)?;
        let text = start..end;
        let symbols = self.symbols(memory.word(place(self.kallsyms))?, memory, &text).unwrap_or_default();
        let orc = format.zip(self.orc).and_then(|(format, [count, ips, entries])| {
            let count = number(memory, place(count))? as usize;
            let ips = memory.word(place(ips))?;
            let entries = memory.word(place(entries))?;
            let data = bytes(memory, ips, count.min(ORCS) * orc::IP)?;
            let entries = bytes(memory, entries, count.min(ORCS) * orc::ENTRY)?;
            Orc::new(Section { address: ips, data: &data }, &entries, format)
        });
        Some(Module { name, text, symbols, orc })
    }

    fn symbols(&self, kallsyms: u64, memory: &mut dyn Memory, text: &Range<u64>) -> Option<Table> {
        let symtab = memory.word(kallsyms.wrapping_add(self.symtab))?;
        let count = number(memory, kallsyms.wrapping_add(self.num_symtab))? as usize;
        let strtab = memory.word(kallsyms.wrapping_add(self.strtab))?;
        let entries = bytes(memory, symtab, count.min(SYMBOLS) * SYM)?;
        let symbols: Vec<(u64, usize)> = entries
            .chunks_exact(SYM)
            .filter_map(|entry| Some((u64_at(entry, 8)?, u32_at(entry, 0)? as usize)))
            .filter(|(address, _)| text.contains(address))
            .collect();
        let last = symbols.iter().map(|symbol| symbol.1).max()?.min(NAMES);
        let mut names = bytes(memory, strtab, last)?;
        // The last name's own bytes, up to wherever the memory ends.
        let mut byte = [0];
        for at in (strtab.wrapping_add(last as u64)..).take(512) {
            if !memory.read(at, &mut byte) || byte[0] == 0 {
                break;
            }
            names.push(byte[0]);
        }
        let name = |at: usize| {
            let name = names.get(at..)?.split(|&byte| byte == 0).next()?;
            Some(printable(&name[..name.len().min(512)])).filter(|name| !name.is_empty())
        };
        Some(Table::new(symbols.into_iter().filter_map(|(address, at)| Some((address, name(at)?))).collect()))
    }
}

fn number(memory: &mut dyn Memory, address: u64) -> Option<u32> {
    let mut bytes = [0; 4];
    memory.read(address, &mut bytes).then(|| u32::from_le_bytes(bytes))
}

fn bytes(memory: &mut dyn Memory, address: u64, len: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len];
    memory.read(address, &mut bytes).then_some(bytes)
}

/// A guest's text, fit for a terminal.
fn printable(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| if byte.is_ascii_graphic() { char::from(byte) } else { '?' }).collect()
}

/// A module that a guest has loaded.
#[derive(Debug, Clone)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// The addresses of its code.
    pub text: Range<u64>,
    /// The symbols in its code.
    pub symbols: Table,
    pub(crate) orc: Option<Orc>,
}
