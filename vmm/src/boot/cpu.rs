//! The processor as the 64-bit boot protocol wants it: long mode, flat segments, the first 4 GiB mapped onto themselves.

use engine::state::{DescriptorTable, Segment, SystemRegisters, gpr};
use engine::{CpuState, GuestMemory};
use vm_memory::{Bytes, GuestAddress};

use crate::Result;
use crate::layout::{GIB, MIB, PAGE, boot};

/// Selectors that Linux names `__BOOT_CS`, `__BOOT_DS`, and a task segment.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const BOOT_TR: u16 = 0x20;

const CODE: Segment = flat(BOOT_CS, 0xB | Segment::CODE_OR_DATA | Segment::LONG | Segment::GRANULARITY);
const DATA: Segment = flat(BOOT_DS, 0x3 | Segment::CODE_OR_DATA | Segment::BIG | Segment::GRANULARITY);
const TASK: Segment = Segment { selector: BOOT_TR, base: 0, limit: 0x67, attributes: 0xB | Segment::PRESENT };

const fn flat(selector: u16, attributes: u32) -> Segment {
    Segment { selector, base: 0, limit: u32::MAX, attributes: attributes | Segment::PRESENT }
}

/// Entries of the descriptor table: two null ones, code, data, and the 16-byte task segment.
const GDT: [u64; 6] = [0, 0, descriptor(CODE), descriptor(DATA), descriptor(TASK), 0];

/// The 8 bytes of a segment descriptor with base 0 (SDM vol. 3, figure 3-8).
const fn descriptor(segment: Segment) -> u64 {
    let limit =
        if segment.attributes & Segment::GRANULARITY != 0 { segment.limit >> 12 } else { segment.limit };
    (limit & 0xFFFF) as u64 | (segment.attributes as u64 & 0xF0FF) << 40 | ((limit >> 16 & 0xF) as u64) << 48
}

/// Page-table bits.
const PRESENT_WRITABLE: u64 = 3;
const LARGE: u64 = 1 << 7;

/// Writes the descriptor table and the page tables: 2 MiB pages, as 1 GiB pages need a CPUID bit.
pub fn write_tables(memory: &GuestMemory) -> Result<()> {
    for (n, entry) in (0..).zip(GDT) {
        memory.write_obj(entry, GuestAddress(boot::GDT + n * 8))?;
    }
    let (pml4, pdpt) = (boot::PAGE_TABLES, boot::PAGE_TABLES + PAGE);
    memory.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(pml4))?;
    for gib in 0..4 {
        let directory = pdpt + PAGE * (gib + 1);
        memory.write_obj(directory | PRESENT_WRITABLE, GuestAddress(pdpt + gib * 8))?;
        for n in 0..512 {
            let page = gib * GIB + n * 2 * MIB;
            memory.write_obj(page | PRESENT_WRITABLE | LARGE, GuestAddress(directory + n * 8))?;
        }
    }
    Ok(())
}

/// The bootstrap processor at the kernel's 64-bit entry, RSI at the zero page.
pub fn state(entry: u64) -> CpuState {
    let mut state = CpuState::reset(0);
    state.registers.rip = entry;
    state.registers.gpr[gpr::RSI] = boot::ZERO_PAGE;
    state.registers.gpr[gpr::RSP] = boot::STACK;
    let system = &mut state.system;
    system.segments = [DATA; 6];
    system.segments[SystemRegisters::CS] = CODE;
    system.tr = TASK;
    system.ldt = Segment { selector: 0, base: 0, limit: 0, attributes: 0x2 | Segment::UNUSABLE };
    system.gdt = DescriptorTable { base: boot::GDT, limit: (size_of_val(&GDT) - 1) as u16 };
    system.idt = DescriptorTable { base: 0, limit: 0 };
    // PG, NE, ET, PE; PAE; LMA, LME.
    system.cr0 = 0x8000_0031;
    system.cr3 = boot::PAGE_TABLES;
    system.cr4 = 1 << 5;
    system.efer = 1 << 10 | 1 << 8;
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_say_what_the_hidden_parts_say() {
        assert_eq!(GDT[2], 0x00AF_9B00_0000_FFFF);
        assert_eq!(GDT[3], 0x00CF_9300_0000_FFFF);
        assert_eq!(GDT[4], 0x0000_8B00_0000_0067);
    }

    #[test]
    fn the_first_four_gibibytes_are_mapped_onto_themselves() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MIB as usize)]).unwrap();
        write_tables(&memory).unwrap();
        let read = |at| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        let cr3 = state(0).system.cr3;
        for address in [0, 2 * MIB, 3 * GIB + 10 * MIB, 4 * GIB - 2 * MIB] {
            let pdpt = read(cr3) & !0xFFF;
            let directory = read(pdpt + (address / GIB) * 8) & !0xFFF;
            let page = read(directory + (address % GIB / (2 * MIB)) * 8);
            assert_eq!(page, address | PRESENT_WRITABLE | LARGE);
        }
    }
}
