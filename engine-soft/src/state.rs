//! A vCPU's neutral state: taken from a [`Cpu`] and put back, checked first.

use engine::CpuState;
use engine::cpuid::{CpuModel, PHYSICAL_ADDRESS_BITS, xsave};
use engine::state::{Fpu, PendingEvents, Registers, Segment, SystemRegisters};

use crate::cpu::{Cpu, control};
use crate::exec::system::control::{valid_cr0, valid_cr4};
use crate::flags::{Flags, bit};
use crate::fx::FxArea;
use crate::insn::RIP;
use crate::lapic::Lapic;
use crate::mmu::canonical;
use crate::msr;

/// RFLAGS bits that exist.
const RFLAGS: u64 = bit::STATUS | bit::FIXED | bit::CONTROL;
const EFER: u64 = control::EFER_SCE | control::EFER_LME | control::EFER_LMA | control::EFER_NXE;
/// Attribute bits of a segment that mean something.
const ATTRIBUTES: u32 = 0xF0FF | Segment::UNUSABLE;
/// Vectors of exceptions that push an error code.
const WITH_CODE: u32 = 1 << 8 | 0x1F << 10 | 1 << 17 | 1 << 21;

/// Gives the complaint unless the condition holds.
macro_rules! demand {
    ($holds:expr, $($complaint:tt)*) => {
        if !$holds {
            return Err(format!($($complaint)*));
        }
    };
}

impl Cpu {
    /// The neutral state, between instructions. The TSC and what hangs on it are those of this moment.
    pub fn save(&mut self) -> CpuState {
        let tsc = self.tsc();
        let lapic = self.lapic.save(tsc);
        let mut msrs = self.msrs.clone();
        msrs.tsc = tsc;
        msrs.tsc_deadline = self.lapic.deadline(tsc);
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&self.gpr[..16]);
        let mut segments = self.segments;
        if !self.real {
            let stack = &mut segments[SystemRegisters::SS];
            stack.attributes = stack.attributes & !(3 << 5) | u32::from(self.cpl) << 5;
        }
        CpuState {
            registers: Registers { gpr, rip: self.rip(), rflags: self.flags.get() },
            system: SystemRegisters {
                segments,
                ldt: self.ldt,
                tr: self.tr,
                gdt: self.gdt,
                idt: self.idt,
                cr0: self.cr0,
                cr2: self.cr2,
                cr3: self.cr3,
                cr4: self.cr4,
                cr8: self.lapic.cr8(),
                xcr0: self.xcr0,
                efer: self.efer,
                apic_base: self.lapic.base(),
            },
            msrs,
            fpu: Fpu::new(&self.fx.bytes()).with_upper(self.upper),
            debug: self.debug.clone(),
            lapic,
            events: PendingEvents {
                injected: self.injected,
                interrupt_shadow: self.shadow,
                nmi_pending: self.nmi_pending,
                nmi_blocked: self.nmi_blocked,
            },
            activity: self.activity,
        }
    }

    /// Takes over a neutral state, or says in words why not and changes nothing.
    ///
    /// # Errors
    /// The first contradiction found.
    pub fn restore(&mut self, state: &CpuState) -> Result<(), String> {
        check(state, self.model)?;
        let CpuState { registers, system, msrs, .. } = state;
        let lapic = Lapic::load(self.id, &state.lapic, system.apic_base, msrs.tsc_deadline, msrs.tsc)?;
        demand!(
            lapic.cr8() == system.cr8,
            "CR8 {:#x} is not the local APIC's {:#x}",
            system.cr8,
            lapic.cr8()
        );
        self.lapic = lapic;
        self.tsc_offset = 0;
        self.tsc_offset = msrs.tsc.wrapping_sub(self.tsc());
        self.gpr[..16].copy_from_slice(&registers.gpr);
        self.gpr[usize::from(RIP)] = registers.rip;
        self.flags = Flags::new(registers.rflags);
        self.segments = system.segments;
        self.ldt = system.ldt;
        self.tr = system.tr;
        self.gdt = system.gdt;
        self.idt = system.idt;
        self.cr0 = system.cr0;
        self.cr2 = system.cr2;
        self.cr3 = system.cr3;
        self.cr4 = system.cr4;
        self.efer = system.efer;
        self.cpl = privilege(state);
        self.msrs = msrs.clone();
        // These two live elsewhere.
        self.msrs.tsc = 0;
        self.msrs.tsc_deadline = 0;
        self.fx = FxArea::new(&state.fpu.bytes());
        self.upper = state.fpu.upper;
        self.xcr0 = system.xcr0;
        self.debug = state.debug.clone();
        self.injected = state.events.injected;
        self.shadow = state.events.interrupt_shadow;
        self.nmi_pending = state.events.nmi_pending;
        self.nmi_blocked = state.events.nmi_blocked;
        self.activity = state.activity;
        self.replay = (Vec::new(), 0);
        self.posted.clear();
        self.mode_changed();
        self.flush_tlb();
        Ok(())
    }
}

/// Current privilege level: that of the stack segment, as on entry to a virtual machine (SDM vol. 3, 26.3.1.2).
fn privilege(state: &CpuState) -> u8 {
    if state.system.cr0 & control::CR0_PE == 0 {
        0
    } else if state.registers.rflags & bit::VM != 0 {
        3
    } else {
        state.system.segments[SystemRegisters::SS].dpl()
    }
}

fn check(state: &CpuState, model: CpuModel) -> Result<(), String> {
    let CpuState { registers, system, events, .. } = state;
    let rflags = registers.rflags;
    demand!(rflags & !RFLAGS == 0 && rflags & bit::FIXED != 0, "RFLAGS {rflags:#x} has reserved bits");
    check_control(system, model)?;
    let long = system.efer & control::EFER_LMA != 0;
    demand!(!(long && rflags & bit::VM != 0), "virtual-8086 mode within long mode");
    check_segments(system, long, privilege(state), rflags)?;
    if long {
        let code = system.segments[SystemRegisters::CS].attributes & Segment::LONG != 0;
        let rip = registers.rip;
        demand!(canonical(rip) && (code || rip >> 32 == 0), "RIP {rip:#x} is beyond the mode's width");
    } else {
        demand!(registers.rip >> 32 == 0, "RIP {:#x} is beyond the mode's width", registers.rip);
    }
    msr::check(&state.msrs)?;
    let debug = &state.debug;
    demand!(
        debug.status >> 32 == 0 && debug.control >> 32 == 0,
        "DR6 {:#x}, DR7 {:#x}: reserved bits",
        debug.status,
        debug.control
    );
    let image = state.fpu.bytes();
    let mxcsr = u32::from_le_bytes([image[24], image[25], image[26], image[27]]);
    demand!(mxcsr >> 16 == 0, "MXCSR {mxcsr:#x} has reserved bits");
    demand!(
        model == CpuModel::V3 || state.fpu.upper == [0; 16],
        "upper halves of YMM registers, which this CPU does not have"
    );
    if let Some((vector, Some(_))) = events.injected {
        demand!(vector < 32 && WITH_CODE >> vector & 1 != 0, "vector {vector} has no error code");
    }
    Ok(())
}

fn check_control(system: &SystemRegisters, model: CpuModel) -> Result<(), String> {
    let SystemRegisters { cr0, cr3, cr4, efer, xcr0, .. } = *system;
    demand!(valid_cr0(cr0), "CR0 {cr0:#x} is invalid");
    demand!(valid_cr4(cr4, model), "CR4 {cr4:#x} is invalid");
    let extended = model == CpuModel::V3 || xcr0 == xsave::X87;
    demand!(xsave::valid(xcr0) && extended, "XCR0 {xcr0:#x} is invalid");
    demand!(cr3 >> PHYSICAL_ADDRESS_BITS == 0, "CR3 {cr3:#x} is beyond physical addresses");
    demand!(system.cr8 < 16, "CR8 {:#x} is invalid", system.cr8);
    demand!(efer & !EFER == 0, "EFER {efer:#x} has reserved bits");
    let active = efer & control::EFER_LME != 0 && cr0 & control::CR0_PG != 0;
    demand!(
        active == (efer & control::EFER_LMA != 0),
        "EFER {efer:#x} and CR0 {cr0:#x} disagree about long mode"
    );
    demand!(!active || cr4 & control::CR4_PAE != 0, "long mode without CR4.PAE");
    Ok(())
}

fn check_segments(system: &SystemRegisters, long: bool, cpl: u8, rflags: u64) -> Result<(), String> {
    for (name, segment) in ["ES", "CS", "SS", "DS", "FS", "GS"].iter().zip(&system.segments) {
        let attributes = segment.attributes;
        demand!(attributes & !ATTRIBUTES == 0, "{name} has attributes {attributes:#x}");
        let wide = long && matches!(*name, "FS" | "GS");
        let base = segment.base;
        demand!(if wide { canonical(base) } else { base >> 32 == 0 }, "{name} has base {base:#x}");
    }
    let code = &system.segments[SystemRegisters::CS];
    if long {
        let both = Segment::LONG | Segment::BIG;
        demand!(code.attributes & both != both, "CS is both 64 and 32 bits wide");
    }
    let ordinary = system.cr0 & control::CR0_PE != 0 && rflags & bit::VM == 0;
    if ordinary && code.kind() & 0xC == 8 {
        demand!(code.dpl() == cpl, "CS has privilege {}, SS {cpl}", code.dpl());
    }
    for (name, base) in [
        ("LDTR", system.ldt.base),
        ("TR", system.tr.base),
        ("GDTR", system.gdt.base),
        ("IDTR", system.idt.base),
    ] {
        demand!(canonical(base), "{name} has base {base:#x}");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
