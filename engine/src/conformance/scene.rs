//! What a snippet starts from: memory with descriptor tables, handlers and page tables, and the vCPU's state.
//!
//! Every vector has a handler that reports itself on [`TRAP`] and returns; no register changes. So a case sees an
//! exception or interrupt as an exit with its frame on the stack, may edit the frame, and go on.

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use vm_memory::{Bytes, GuestAddress};

use super::bench::Failure;
use crate::GuestMemory;
use crate::state::{CpuState, DescriptorTable, Segment, SystemRegisters, gpr};

/// Size of memory.
pub(super) const MEMORY: usize = 4 << 20;
/// Page tables that map the first 4 GiB to itself in 2 MiB pages, for user and kernel: PML4, PDPT, four PDs.
pub(super) const PML4: u64 = 0x1000;
pub(super) const PDPT: u64 = 0x2000;
pub(super) const PD: u64 = 0x3000;
/// Global descriptor table; see [`selector`].
pub(super) const GDT: u64 = 0x7000;
/// Task state segment, 64-bit.
pub(super) const TSS: u64 = 0x7800;
/// Interrupt descriptor table (in real mode it is at 0).
pub(super) const IDT: u64 = 0x8000;
/// 16 bytes a vector.
pub(super) const HANDLERS: u64 = 0x9000;
/// The stack grows down from here, and the one for entries from ring 3 from [`KERNEL_STACK`].
pub(super) const STACK: u64 = 0xF000;
pub(super) const KERNEL_STACK: u64 = 0xE000;
/// The program.
pub(super) const CODE: u64 = 0x1_0000;
/// Zeroed data.
pub(super) const DATA: u64 = 0x2_0000;
/// Room for page tables of a case's own, zeroed.
pub(super) const TABLES: u64 = 0x3_0000;
/// Code of application processors; a SIPI vector is this >> 12.
pub(super) const AP_CODE: u64 = 0x5_0000;
/// A hole that stands for a device.
pub(super) const DEVICE: u64 = 0x4000_0000;

/// The port that ends a program.
pub(super) const END: u8 = 0xF4;
/// The port on which handlers report.
pub(super) const TRAP: u8 = 0xE8;

/// Selectors in the GDT.
pub(super) mod selector {
    pub(in crate::conformance) const CODE64: u16 = 0x08;
    pub(in crate::conformance) const DATA: u16 = 0x10;
    pub(in crate::conformance) const USER_CODE32: u16 = 0x18 | 3;
    pub(in crate::conformance) const USER_DATA: u16 = 0x20 | 3;
    pub(in crate::conformance) const USER_CODE64: u16 = 0x28 | 3;
    pub(in crate::conformance) const TSS: u16 = 0x30;
    pub(in crate::conformance) const CODE32: u16 = 0x40;
    /// Base is [`super::CODE`].
    pub(in crate::conformance) const CODE16: u16 = 0x48;
    pub(in crate::conformance) const DATA16: u16 = 0x50;
    pub(in crate::conformance) const ABSENT: u16 = 0x58;
    /// Limit 0xFFF, byte-granular, 32-bit.
    pub(in crate::conformance) const SHORT: u16 = 0x60;
    /// Read-only data.
    pub(in crate::conformance) const CONSTANT: u16 = 0x68;
}

const DESCRIPTORS: [u64; 14] = [
    0,
    0x00AF_9B00_0000_FFFF,
    0x00CF_9300_0000_FFFF,
    0x00CF_FB00_0000_FFFF,
    0x00CF_F300_0000_FFFF,
    0x00AF_FB00_0000_FFFF,
    // Busy 64-bit TSS at 0x7800, limit 0x67; its upper half follows.
    0x0000_8B00_7800_0067,
    0,
    0x00CF_9B00_0000_FFFF,
    0x0000_9B01_0000_FFFF,
    0x0000_9300_0000_FFFF,
    0x00CF_1300_0000_FFFF,
    0x0040_9300_0000_0FFF,
    0x00CF_9100_0000_FFFF,
];

/// Processor mode of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Real,
    Protected,
    Long,
}

impl Mode {
    pub(super) fn bits(self) -> u32 {
        match self {
            Self::Real => 16,
            Self::Protected => 32,
            Self::Long => 64,
        }
    }
}

/// Memory and state at the start.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) mode: Mode,
    pub(super) memory: GuestMemory,
    pub(super) state: CpuState,
}

impl Scene {
    pub(super) fn new(
        mode: Mode,
        program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<Self, Failure> {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)])
            .map_err(|error| Failure(format!("no guest memory: {error}")))?;
        let start = if mode == Mode::Real { 0 } else { CODE };
        let code = assemble(mode.bits(), start, |a| {
            program(a)?;
            let mut here = a.create_label();
            a.out(u32::from(END), iced_x86::code_asm::al)?;
            a.set_label(&mut here)?;
            a.jmp(here)
        })?;
        put(&memory, CODE, &code)?;
        for (n, descriptor) in (0..).zip(DESCRIPTORS) {
            put(&memory, GDT + n * 8, &descriptor.to_le_bytes())?;
        }
        put(&memory, TSS + 4, &KERNEL_STACK.to_le_bytes())?;
        // No I/O permission map: it begins beyond the limit.
        put(&memory, TSS + 102, &0x68_u16.to_le_bytes())?;
        for vector in 0..=255 {
            put(&memory, HANDLERS + u64::from(vector) * 16, &handler(mode, vector))?;
            let (place, gate) = gate(mode, vector);
            put(&memory, place, &gate)?;
        }
        map_identity(&memory)?;
        Ok(Self { mode, memory, state: state(mode) })
    }
}

/// Code for an address.
pub(super) fn assemble(
    bits: u32,
    address: u64,
    program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<Vec<u8>, Failure> {
    let mut assembler = CodeAssembler::new(bits)?;
    program(&mut assembler)?;
    Ok(assembler.assemble(address)?)
}

pub(super) fn put(memory: &GuestMemory, address: u64, bytes: &[u8]) -> Result<(), Failure> {
    memory
        .write_slice(bytes, GuestAddress(address))
        .map_err(|error| Failure(format!("guest memory at {address:#x}: {error}")))
}

/// Does the processor push an error code (SDM vol. 3, table 6-1)?
pub(super) fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}

/// Push the vector, report, drop vector and error code, return.
fn handler(mode: Mode, vector: u8) -> Vec<u8> {
    let words = 1 + u8::from(has_error_code(vector) && mode != Mode::Real);
    let mut code = vec![0x6A, vector, 0xE6, TRAP];
    match mode {
        Mode::Real => code.extend([0x83, 0xC4, 2 * words, 0xCF]),
        Mode::Protected => code.extend([0x8D, 0x64, 0x24, 4 * words, 0xCF]),
        Mode::Long => code.extend([0x48, 0x8D, 0x64, 0x24, 8 * words, 0x48, 0xCF]),
    }
    code
}

/// An interrupt gate to the handler; #BP and vector 0x80 may be called from ring 3.
fn gate(mode: Mode, vector: u8) -> (u64, Vec<u8>) {
    let n = u64::from(vector);
    let handler = HANDLERS + n * 16;
    let low = (handler as u16).to_le_bytes();
    let access = if matches!(vector, 3 | 0x80) { 0xEE } else { 0x8E };
    match mode {
        Mode::Real => (n * 4, vec![low[0], low[1], 0, 0]),
        Mode::Protected => (IDT + n * 8, vec![low[0], low[1], selector::CODE32 as u8, 0, 0, access, 0, 0]),
        Mode::Long => {
            let mut gate = vec![low[0], low[1], selector::CODE64 as u8, 0, 0, access];
            gate.resize(16, 0);
            (IDT + n * 16, gate)
        }
    }
}

fn map_identity(memory: &GuestMemory) -> Result<(), Failure> {
    put(memory, PML4, &(PDPT | 7).to_le_bytes())?;
    for gib in 0..4 {
        put(memory, PDPT + gib * 8, &((PD + gib * 0x1000) | 7).to_le_bytes())?;
    }
    let pages: Vec<u8> = (0..2048_u64).flat_map(|n| (n << 21 | 0x87).to_le_bytes()).collect();
    put(memory, PD, &pages)
}

/// vCPU 0 at the start of the program; every data segment usable, interrupts off, local APIC enabled by software.
fn state(mode: Mode) -> CpuState {
    let mut state = CpuState::reset(0);
    state.lapic.set(crate::state::Lapic::SPURIOUS, 0x1FF);
    state.registers.gpr = [0; 16];
    state.registers.gpr[gpr::RSP] = STACK;
    state.registers.rip = CODE;
    let system = &mut state.system;
    let flat = |kind, selector, more| Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        attributes: kind | Segment::CODE_OR_DATA | Segment::PRESENT | Segment::GRANULARITY | more,
    };
    system.segments = [flat(3, selector::DATA, Segment::BIG); 6];
    system.gdt = DescriptorTable { base: GDT, limit: DESCRIPTORS.len() as u16 * 8 - 1 };
    system.tr =
        Segment { selector: selector::TSS, base: TSS, limit: 0x67, attributes: 0xB | Segment::PRESENT };
    system.ldt = Segment { selector: 0, base: 0, limit: 0xFFFF, attributes: 2 | Segment::PRESENT };
    system.idt = DescriptorTable { base: IDT, limit: 0xFFF };
    match mode {
        Mode::Real => {
            system.segments = [Segment::real(0, 0, 3 | Segment::CODE_OR_DATA); 6];
            system.segments[SystemRegisters::CS] = Segment::real(0x1000, CODE, 0xB | Segment::CODE_OR_DATA);
            system.segments[SystemRegisters::DS] = Segment::real(0x2000, DATA, 3 | Segment::CODE_OR_DATA);
            system.segments[SystemRegisters::ES] = system.segments[SystemRegisters::DS];
            system.idt = DescriptorTable { base: 0, limit: 0x3FF };
            system.cr0 = 0x10;
            state.registers.rip = 0;
        }
        Mode::Protected => {
            system.segments[SystemRegisters::CS] = flat(11, selector::CODE32, Segment::BIG);
            system.idt.limit = 0x7FF;
            system.cr0 = 0x1_0033;
            system.cr4 = 0x600;
        }
        Mode::Long => {
            system.segments[SystemRegisters::CS] = flat(11, selector::CODE64, Segment::LONG);
            system.cr0 = 0x8001_0033;
            system.cr3 = PML4;
            system.cr4 = 0x620;
            // SCE, LME, LMA, NXE.
            system.efer = 0xD01;
        }
    }
    state
}

/// Moves a 64-bit start to ring 3.
pub(super) fn user(state: &mut CpuState) {
    for segment in &mut state.system.segments {
        segment.selector = selector::USER_DATA;
        segment.attributes |= 3 << 5;
    }
    state.system.segments[SystemRegisters::CS].selector = selector::USER_CODE64;
}
