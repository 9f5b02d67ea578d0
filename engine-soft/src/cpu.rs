//! One vCPU: the registers that instructions work on.

use engine::cpuid::{CpuModel, CpuidTable};
use engine::msr::Msrs;
use engine::state::{Activity, CpuState, DebugRegisters, DescriptorTable, Segment, SystemRegisters};
use engine::{ExitKind, VcpuId};

use crate::flags::{Flags, bit};
use crate::fx::FxArea;
use crate::insn::{FLAT, Insn, RIP};
use crate::lapic::Lapic;
use crate::mmu::{CodePages, Tlb};
use crate::run::Progress;
use crate::shared::Shared;
use crate::stops::Stops;
use crate::trap::{Cause, Step, Trap, vector};
use crate::width::Width;

/// Bits of the control registers that the engine itself looks at (SDM vol. 3, 2.5 and 2.2.1).
#[expect(missing_docs, reason = "the names are the bits")]
pub mod control {
    pub const CR0_PE: u64 = 1 << 0;
    pub const CR0_MP: u64 = 1 << 1;
    pub const CR0_EM: u64 = 1 << 2;
    pub const CR0_TS: u64 = 1 << 3;
    pub const CR0_ET: u64 = 1 << 4;
    pub const CR0_NE: u64 = 1 << 5;
    pub const CR0_WP: u64 = 1 << 16;
    pub const CR0_AM: u64 = 1 << 18;
    pub const CR0_NW: u64 = 1 << 29;
    pub const CR0_CD: u64 = 1 << 30;
    pub const CR0_PG: u64 = 1 << 31;
    pub const CR4_TSD: u64 = 1 << 2;
    pub const CR4_DE: u64 = 1 << 3;
    pub const CR4_PSE: u64 = 1 << 4;
    pub const CR4_PAE: u64 = 1 << 5;
    pub const CR4_MCE: u64 = 1 << 6;
    pub const CR4_PGE: u64 = 1 << 7;
    pub const CR4_PCE: u64 = 1 << 8;
    pub const CR4_OSFXSR: u64 = 1 << 9;
    pub const CR4_OSXMMEXCPT: u64 = 1 << 10;
    pub const CR4_FSGSBASE: u64 = 1 << 16;
    pub const CR4_OSXSAVE: u64 = 1 << 18;
    pub const EFER_SCE: u64 = 1 << 0;
    pub const EFER_LME: u64 = 1 << 8;
    pub const EFER_LMA: u64 = 1 << 10;
    pub const EFER_NXE: u64 = 1 << 11;
}

/// One vCPU.
#[derive(Debug)]
pub struct Cpu {
    /// General registers 0..16; [`crate::insn::ZERO`] is 0; [`RIP`] is the next instruction. The rest is never named.
    pub gpr: [u64; 32],
    /// RFLAGS.
    pub flags: Flags,
    /// Bases by [`Insn::seg`]; the two flat ones are 0.
    pub seg_base: [u64; 8],
    /// Segment registers in encoding order. Their bases are repeated in `seg_base`.
    pub segments: [Segment; 6],
    /// Local descriptor table.
    pub ldt: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdt: DescriptorTable,
    /// Interrupt descriptor table.
    pub idt: DescriptorTable,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// x87, MMX and SSE registers.
    pub fx: FxArea,
    /// Bits 128 to 255 of YMM0 to YMM15.
    pub upper: [u128; 16],
    /// XCR0: see [`engine::cpuid::xsave`].
    pub xcr0: u64,
    /// Current privilege level.
    pub cpl: u8,
    /// In 64-bit mode (EFER.LMA and CS.L).
    pub long: bool,
    /// In virtual-8086 or real mode: segments are selectors shifted by four.
    pub real: bool,
    /// Model-specific registers of the neutral state.
    pub msrs: Msrs,
    /// DR0 to DR3, DR6, DR7.
    pub debug: DebugRegisters,
    /// Local APIC.
    pub lapic: Lapic,
    /// What CPUID answers; see [`Cpu::show`].
    pub cpuid: CpuidTable,
    /// Which instructions there are.
    pub(crate) model: CpuModel,
    /// The time-stamp counter when the partition was powered on: what writes to it have added.
    pub tsc_offset: u64,
    /// An exception or interrupt whose delivery another engine has begun; delivered before anything else.
    pub injected: Option<(u8, Option<u32>)>,
    /// Executing, halted, or waiting for a start-up message.
    pub activity: Activity,
    /// STI or MOV SS hold interrupts off until after the next instruction.
    pub shadow: bool,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// An NMI is being handled; IRET ends it.
    pub nmi_blocked: bool,
    /// Set by an instruction after which [`Cpu::run`] shall give [`crate::run::Stop::Attention`]: it armed a timer, sent an
    /// interrupt, halted. Such an instruction ends its block.
    pub attention: bool,
    /// Why the last [`Trap`] was given.
    pub cause: Cause,
    /// Which one this is.
    pub id: VcpuId,
    /// Answers to the port and memory-mapped reads of the instruction at RIP, in order, and how many were used.
    pub(crate) replay: (Vec<u64>, usize),
    /// Port and memory-mapped writes of the last instruction that the machine has not seen yet.
    pub(crate) posted: std::collections::VecDeque<ExitKind>,
    /// Cached translations.
    pub(crate) tlb: Tlb,
    /// Translations of instruction fetches.
    pub(crate) code_pages: CodePages,
    /// Where in the instruction stream it is.
    pub(crate) progress: Progress,
    /// Where a debugger wants it to stop.
    pub(crate) stops: Stops,
    /// What all vCPUs have in common. It is with the one that runs; the others hold an empty one.
    pub shared: Box<Shared>,
}

impl Cpu {
    /// A vCPU after power-up.
    #[must_use]
    pub fn new(id: VcpuId) -> Self {
        let state = CpuState::reset(id);
        let system = state.system;
        let mut cpu = Self {
            gpr: [0; 32],
            flags: Flags::new(state.registers.rflags),
            seg_base: [0; 8],
            segments: system.segments,
            ldt: system.ldt,
            tr: system.tr,
            gdt: system.gdt,
            idt: system.idt,
            cr0: system.cr0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            fx: FxArea::new(&state.fpu.bytes()),
            upper: state.fpu.upper,
            xcr0: system.xcr0,
            cpl: 0,
            long: false,
            real: true,
            msrs: state.msrs,
            debug: state.debug,
            lapic: Lapic::new(id),
            cpuid: CpuidTable { entries: Vec::new() },
            model: CpuModel::default(),
            tsc_offset: 0,
            injected: None,
            activity: state.activity,
            shadow: false,
            nmi_pending: false,
            nmi_blocked: false,
            attention: false,
            cause: Cause::Restart,
            id,
            replay: (Vec::new(), 0),
            posted: std::collections::VecDeque::new(),
            tlb: Tlb::new(),
            code_pages: CodePages::default(),
            progress: Progress::default(),
            stops: Stops::default(),
            shared: Box::default(),
        };
        cpu.gpr[usize::from(RIP)] = state.registers.rip;
        cpu.mode_changed();
        cpu
    }

    /// Makes it the CPU that a table tells of. Nothing may have been decoded yet.
    pub fn show(&mut self, cpuid: CpuidTable) {
        self.model = cpuid.model();
        self.cpuid = cpuid;
    }

    /// To be called after any change of CR0, CR4.PAE, EFER, CS, SS, a segment, CPL, RFLAGS.VM, RFLAGS.AC or DR7: brings
    /// what is derived from them up to date. (TLB flushes are the caller's.)
    pub fn mode_changed(&mut self) {
        let cs = self.segments[SystemRegisters::CS].attributes;
        self.long = self.efer & control::EFER_LMA != 0 && cs & Segment::LONG != 0;
        self.real = self.cr0 & control::CR0_PE == 0 || self.flags.control & bit::VM != 0;
        for n in 0..6 {
            self.seg_base[n] = if self.long && n < 4 { 0 } else { self.segments[n].base };
        }
        let aligned = self.cr0 & control::CR0_AM != 0 && self.flags.control & bit::AC != 0 && self.cpl == 3;
        self.tlb.set_mode(self.cpl == 3, aligned || self.watches_data() || self.has_watchpoints());
        let code_base = if self.long { 0 } else { self.segments[SystemRegisters::CS].base };
        self.progress.set_mode(self.cpl == 3, self.code_bits(), code_base);
    }

    /// Any data breakpoint is enabled in DR7.
    fn watches_data(&self) -> bool {
        let dr7 = self.debug.control;
        (0..4).any(|n| dr7 >> (2 * n) & 3 != 0 && dr7 >> (16 + 4 * n) & 1 != 0)
    }

    /// Bits of an instruction address in the current code segment: 64, 32 or 16.
    #[must_use]
    pub fn code_bits(&self) -> u32 {
        if self.long {
            64
        } else if self.segments[SystemRegisters::CS].attributes & Segment::BIG != 0 {
            32
        } else {
            16
        }
    }

    /// A general register of width `W`, by its number in [`Insn::r`].
    #[inline(always)]
    #[must_use]
    pub fn get<W: Width>(&self, r: u8) -> W {
        if W::BITS == 8 {
            W::of(self.gpr[usize::from(r >> 1 & 31)] >> ((r & 1) * 8))
        } else {
            W::of(self.gpr[usize::from(r & 31)])
        }
    }

    /// Writes a general register of width `W`.
    #[inline(always)]
    pub fn put<W: Width>(&mut self, r: u8, value: W) {
        if W::BITS == 8 {
            let shift = (r & 1) * 8;
            let slot = &mut self.gpr[usize::from(r >> 1 & 31)];
            *slot = *slot & !(0xFF << shift) | value.zext() << shift;
        } else {
            let slot = &mut self.gpr[usize::from(r & 31)];
            *slot = value.merge(*slot);
        }
    }

    /// RIP; within [`crate::insn::Exec`] that of the next instruction.
    #[inline(always)]
    #[must_use]
    pub fn rip(&self) -> u64 {
        self.gpr[usize::from(RIP)]
    }

    /// Offset part of the memory operand's address, cut to the address size.
    #[inline(always)]
    #[must_use]
    pub fn offset(&self, insn: &Insn) -> u64 {
        let offset = self.gpr[usize::from(insn.base & 31)]
            .wrapping_add(self.gpr[usize::from(insn.index & 31)] << (insn.scale & 3))
            .wrapping_add(insn.disp);
        match insn.addr_size {
            8 => offset,
            4 => offset & 0xFFFF_FFFF,
            _ => offset & 0xFFFF,
        }
    }

    /// Linear address of the memory operand.
    #[inline(always)]
    #[must_use]
    pub fn linear(&self, insn: &Insn) -> u64 {
        let offset = self.offset(insn);
        if insn.seg >= FLAT { offset } else { self.in_segment(insn.seg, offset) }
    }

    /// Linear address of an offset in a segment; 32 bits wide outside 64-bit mode.
    #[inline(always)]
    #[must_use]
    pub fn in_segment(&self, seg: u8, offset: u64) -> u64 {
        let linear = self.seg_base[usize::from(seg & 7)].wrapping_add(offset);
        if self.long { linear } else { linear & 0xFFFF_FFFF }
    }

    /// Gives up the instruction for an exception.
    #[cold]
    pub fn raise<T>(&mut self, vector: u8, code: Option<u32>) -> Step<T> {
        self.cause = Cause::Exception { vector, code };
        Err(Trap)
    }

    /// #GP(0).
    #[cold]
    pub fn gp<T>(&mut self) -> Step<T> {
        self.raise(vector::GP, Some(0))
    }

    /// #UD.
    #[cold]
    pub fn ud<T>(&mut self) -> Step<T> {
        self.raise(vector::UD, None)
    }
}
