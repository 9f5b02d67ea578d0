//! The self-test guest: 64 KiB of memory, page tables for 2 MiB, and a program in long mode.
#![expect(unsafe_code, reason = "the program is assembled with this file and found by its labels")]

use std::arch::global_asm;
use std::fmt;

use engine::state::{CpuState, Segment, SystemRegisters, gpr};
use engine::{GuestMemory, cpuid};
use vm_memory::{Bytes, GuestAddress};

/// Stages are written here; a read answers [`TOKEN`].
pub(super) const PORT: u16 = 0x80;
/// A register in the hole above memory.
pub(super) const DEVICE: u64 = 0x10_0000;
/// What the device answers and gets back.
pub(super) const TOKEN: u64 = 0x0BAD_CAFE;
/// Rounds of the timed loop.
pub(super) const LOOPS: u32 = 200_000;

const MEMORY: usize = 0x1_0000;
const TABLES: u64 = 0x1000;
const CODE: u64 = 0x8000;
const DATA: u64 = 0x9000;

/// What the guest is trying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Stage {
    Entry = 0,
    Cmpxchg16b = 1,
    Fxsave = 2,
    Clwb = 3,
    Clflushopt = 4,
    Xsave = 5,
    Vex = 6,
    Mmio = 7,
    PortRead = 8,
    Loop = 9,
    Done = 10,
}

impl Stage {
    pub(super) fn numbered(number: u32) -> Option<Self> {
        use Stage::{Clflushopt, Clwb, Cmpxchg16b, Done, Entry, Fxsave, Loop, Mmio, PortRead, Vex, Xsave};
        [Entry, Cmpxchg16b, Fxsave, Clwb, Clflushopt, Xsave, Vex, Mmio, PortRead, Loop, Done]
            .into_iter()
            .find(|stage| *stage as u32 == number)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Entry => "the first instruction in long mode",
            Self::Cmpxchg16b => "lock cmpxchg16b",
            Self::Fxsave => "fxsave64 or fxrstor64",
            Self::Clwb => "clwb",
            Self::Clflushopt => "clflushopt",
            Self::Xsave => "xsave64 or xrstor64",
            Self::Vex => "shlx",
            Self::Mmio => "a memory-mapped register",
            Self::PortRead => "a port read",
            Self::Loop => "a loop",
            Self::Done => "the end",
        })
    }
}

// RSI: 4 KiB of data. RDI: the device. XSAVE and VEX are tried where CPUID shows them.
global_asm!(
    ".pushsection .rodata.nvsim_fitness, \"a\"",
    "nvsim_fitness_start:",
    // RDX:RAX equals the 16 zero bytes there, so RCX:RBX goes in.
    "mov al, {cmpxchg16b}",
    "out {port}, al",
    "xor eax, eax",
    "xor edx, edx",
    "mov ebx, 1",
    "mov ecx, 2",
    "lock cmpxchg16b [rsi]",
    "jnz 9f",
    "cmp qword ptr [rsi + 8], 2",
    "jne 9f",
    "mov al, {fxsave}",
    "out {port}, al",
    "fxsave64 [rsi + 512]",
    "fxrstor64 [rsi + 512]",
    "mov al, {clwb}",
    "out {port}, al",
    "clwb [rsi]",
    "sfence",
    "mov al, {clflushopt}",
    "out {port}, al",
    "clflushopt [rsi]",
    "sfence",
    "mov al, {xsave}",
    "out {port}, al",
    "mov eax, 1",
    "cpuid",
    "bt ecx, 26",
    "jnc 2f",
    "mov rax, cr4",
    "bts rax, 18",
    "mov cr4, rax",
    "mov eax, 3",
    "xor edx, edx",
    "xsave64 [rsi + 1024]",
    "xrstor64 [rsi + 1024]",
    "2:",
    "mov al, {vex}",
    "out {port}, al",
    "mov eax, 7",
    "xor ecx, ecx",
    "cpuid",
    "bt ebx, 8",
    "jnc 3f",
    "shlx eax, eax, ebx",
    "3:",
    "mov al, {mmio}",
    "out {port}, al",
    "mov eax, [rdi]",
    "mov [rdi], eax",
    "mov al, {port_read}",
    "out {port}, al",
    "in eax, {port}",
    "cmp eax, {token}",
    "jne 9f",
    "mov al, {looping}",
    "out {port}, al",
    "mov ecx, {loops}",
    "4: dec ecx",
    "jnz 4b",
    "mov al, {done}",
    "out {port}, al",
    "9: mov al, 0xFF",
    "out {port}, al",
    "jmp 9b",
    "nvsim_fitness_end:",
    ".popsection",
    port = const PORT,
    token = const TOKEN,
    loops = const LOOPS,
    cmpxchg16b = const Stage::Cmpxchg16b as u32,
    fxsave = const Stage::Fxsave as u32,
    clwb = const Stage::Clwb as u32,
    clflushopt = const Stage::Clflushopt as u32,
    xsave = const Stage::Xsave as u32,
    vex = const Stage::Vex as u32,
    mmio = const Stage::Mmio as u32,
    port_read = const Stage::PortRead as u32,
    looping = const Stage::Loop as u32,
    done = const Stage::Done as u32,
);

unsafe extern "C" {
    static nvsim_fitness_start: u8;
    static nvsim_fitness_end: u8;
}

fn program() -> &'static [u8] {
    let (start, end) = (&raw const nvsim_fitness_start, &raw const nvsim_fitness_end);
    // SAFETY: the labels enclose the bytes assembled above, in read-only memory.
    unsafe { std::slice::from_raw_parts(start, end as usize - start as usize) }
}

/// Memory with page tables (one 2 MiB page at 0) and the program.
pub(super) fn memory() -> Result<GuestMemory, String> {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)])
        .map_err(|error| format!("no memory for the test guest: {error}"))?;
    let entries = [(0, (TABLES + 0x1000) | 3), (0x1000, (TABLES + 0x2000) | 3), (0x2000, 0x83)];
    entries
        .into_iter()
        .try_for_each(|(offset, entry): (u64, u64)| memory.write_obj(entry, GuestAddress(TABLES + offset)))
        .and_then(|()| memory.write_slice(program(), GuestAddress(CODE)))
        .map_err(|error| format!("the test guest's memory: {error}"))?;
    Ok(memory)
}

/// Flat long mode at the program's start.
pub(super) fn entry(mut state: CpuState) -> CpuState {
    const _: () = assert!(cpuid::feature::EXT1_EDX & 1 << 29 != 0, "the model has long mode");
    let flat = |kind, selector, more| Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        attributes: kind | Segment::CODE_OR_DATA | Segment::PRESENT | Segment::GRANULARITY | more,
    };
    state.system.segments = [flat(3, 16, Segment::BIG); 6];
    state.system.segments[SystemRegisters::CS] = flat(11, 8, Segment::LONG);
    state.system.cr0 = 0x8000_0031;
    state.system.cr3 = TABLES;
    // PAE, OSFXSR, OSXMMEXCPT.
    state.system.cr4 = 0x620;
    // LME and LMA.
    state.system.efer = 0x500;
    state.registers.rip = CODE;
    state.registers.rflags = 2;
    state.registers.gpr[gpr::RSI] = DATA;
    state.registers.gpr[gpr::RDI] = DEVICE;
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_fits_and_tries_a_locked_cmpxchg16b() {
        assert!(program().len() < (DATA - CODE) as usize);
        assert!(program().windows(5).any(|bytes| bytes == [0xF0, 0x48, 0x0F, 0xC7, 0x0E]));
    }

    #[test]
    fn stages_are_numbered() {
        for number in 0..=Stage::Done as u32 {
            assert_eq!(Stage::numbered(number).map(|stage| stage as u32), Some(number));
        }
        assert_eq!(Stage::numbered(0xFF), None);
    }
}
