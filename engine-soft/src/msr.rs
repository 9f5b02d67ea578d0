//! RDMSR and WRMSR: the registers of the CPU that CPUID shows, an Intel family 6 model 0x1C (SDM vol. 4).
//!
//! A register that is not here is #GP, as is a reserved bit. The MTRRs are kept and have no effect: memory is write-back.

use engine::cpuid::PHYSICAL_ADDRESS_BITS;
use engine::msr;
use engine::state::SystemRegisters;

use crate::cpu::{Cpu, control};
use crate::mmu::canonical;
use crate::trap::Step;

/// Registers that hold a constant, or nothing.
mod index {
    /// Which platform the microcode is for.
    pub const PLATFORM_ID: u32 = 0x17;
    /// Starts a microcode update.
    pub const MICROCODE_UPDATE: u32 = 0x79;
    /// Revision of the microcode, in the upper half after CPUID.
    pub const MICROCODE_REVISION: u32 = 0x8B;
    /// Ratios, CPUID faulting.
    pub const PLATFORM_INFO: u32 = 0xCE;
    /// Which MTRRs there are.
    pub const MTRR_CAP: u32 = 0xFE;
    /// Machine-check banks: none.
    pub const MACHINE_CHECK_CAP: u32 = 0x179;
    /// A machine check in progress: never.
    pub const MACHINE_CHECK_STATUS: u32 = 0x17A;
    /// Branch tracing.
    pub const DEBUG_CONTROL: u32 = 0x1D9;
}

/// Write combining, the fixed ranges, and eight variable ones.
const MTRR_CAP: u64 = 1 << 10 | 1 << 8 | 8;
const MICROCODE_REVISION: u64 = 1 << 32;
/// Fast strings; the rest of `IA32_MISC_ENABLE` is fixed.
const MISC_ENABLE_WRITABLE: u64 = 1;
const PHYSICAL: u64 = (1 << PHYSICAL_ADDRESS_BITS) - 1;

/// A memory type that MTRRs know: UC, WC, WT, WP, WB.
fn memory_type(value: u8) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6)
}

/// All eight types of a fixed-range MTRR, or of the PAT with its UC-.
fn memory_types(value: u64, uncached_minus: bool) -> bool {
    value.to_le_bytes().into_iter().all(|byte| memory_type(byte) || uncached_minus && byte == 7)
}

/// A register that is no more than its value takes this one. `None` if it is no such register.
fn plain(index: u32, value: u64, old: u64) -> Option<bool> {
    Some(match index {
        msr::STAR => true,
        msr::LSTAR | msr::CSTAR | msr::KERNEL_GS_BASE | msr::SYSENTER_ESP | msr::SYSENTER_EIP => {
            canonical(value)
        }
        msr::FMASK | msr::TSC_AUX | msr::SYSENTER_CS => value >> 32 == 0,
        msr::PAT => memory_types(value, true),
        msr::MISC_ENABLE => (value ^ old) & !MISC_ENABLE_WRITABLE == 0,
        msr::MTRR_DEF_TYPE => memory_type(value as u8) && value & !0xCFF == 0,
        msr::MTRR_PHYS_BASE0..=msr::MTRR_PHYS_MASK7 if index & 1 == 0 => {
            memory_type(value as u8) && value & !(PHYSICAL & !0xF00) == 0
        }
        msr::MTRR_PHYS_BASE0..=msr::MTRR_PHYS_MASK7 => value & !(PHYSICAL & !0x7FF) == 0,
        msr::MTRR_FIX_64K_00000
        | msr::MTRR_FIX_16K_80000
        | msr::MTRR_FIX_16K_A0000
        | msr::MTRR_FIX_4K_C0000..=msr::MTRR_FIX_4K_F8000 => memory_types(value, false),
        _ => return None,
    })
}

/// Says what is wrong with the registers of a neutral state, by index and value.
pub(crate) fn check(msrs: &msr::Msrs) -> Result<(), String> {
    for (index, value) in msrs.iter() {
        // What another engine leaves in the fixed bits of MISC_ENABLE is taken over.
        if plain(index, value, value) == Some(false) {
            return Err(format!("MSR {index:#x} cannot hold {value:#x}"));
        }
    }
    Ok(())
}

impl Cpu {
    /// RDMSR, privilege already checked.
    pub(crate) fn read_msr(&mut self, index: u32) -> Step<u64> {
        Ok(match index {
            msr::TSC => self.tsc(),
            msr::TSC_DEADLINE => {
                let tsc = self.tsc();
                self.lapic.deadline(tsc)
            }
            msr::APIC_BASE => self.lapic.base(),
            msr::EFER => self.efer,
            msr::FS_BASE => self.segments[SystemRegisters::FS].base,
            msr::GS_BASE => self.segments[SystemRegisters::GS].base,
            0x800..0x900 => {
                let tsc = self.tsc();
                return self.lapic.read_msr(index, tsc).or_else(|_| self.gp());
            }
            index::MTRR_CAP => MTRR_CAP,
            index::MICROCODE_REVISION => MICROCODE_REVISION,
            index::PLATFORM_ID
            | index::PLATFORM_INFO
            | index::MACHINE_CHECK_CAP
            | index::MACHINE_CHECK_STATUS
            | index::DEBUG_CONTROL => 0,
            _ => match self.msrs.get_mut(index) {
                Some(value) => *value,
                None => return self.gp(),
            },
        })
    }

    /// WRMSR, privilege already checked. It ends its block.
    pub(crate) fn write_msr(&mut self, index: u32, value: u64) -> Step {
        match index {
            msr::TSC => self.set_tsc(value),
            msr::TSC_DEADLINE => {
                let tsc = self.tsc();
                self.lapic.set_deadline(value, tsc);
                self.attention = true;
            }
            msr::APIC_BASE => {
                if self.lapic.set_base(value).is_err() {
                    return self.gp();
                }
                self.attention = true;
            }
            msr::EFER => return self.write_efer(value),
            msr::FS_BASE | msr::GS_BASE => {
                if !canonical(value) {
                    return self.gp();
                }
                let segment = if index == msr::FS_BASE { SystemRegisters::FS } else { SystemRegisters::GS };
                self.set_segment_base(segment, value);
            }
            0x800..0x900 => {
                let tsc = self.tsc();
                match self.lapic.write_msr(index, value, tsc) {
                    Ok(message) => self.send(message),
                    Err(_) => return self.gp(),
                }
            }
            // An update that is not for this CPU is ignored.
            index::MICROCODE_UPDATE | index::MICROCODE_REVISION => {}
            index::MACHINE_CHECK_STATUS | index::DEBUG_CONTROL if value == 0 => {}
            _ => {
                let Some(register) = self.msrs.get_mut(index) else { return self.gp() };
                if plain(index, value, *register) != Some(true) {
                    return self.gp();
                }
                *register = value;
            }
        }
        Ok(())
    }

    /// Base of FS or GS, with its copy for address formation.
    pub(crate) fn set_segment_base(&mut self, segment: usize, base: u64) {
        self.segments[segment].base = base;
        self.seg_base[segment] = base;
    }

    /// EFER: SCE, LME and NXE; LMA follows CR0.PG.
    fn write_efer(&mut self, value: u64) -> Step {
        const WRITABLE: u64 = control::EFER_SCE | control::EFER_LME | control::EFER_NXE;
        if value & !(WRITABLE | control::EFER_LMA) != 0 {
            return self.gp();
        }
        let changed = (self.efer ^ value) & WRITABLE;
        if changed & control::EFER_LME != 0 && self.cr0 & control::CR0_PG != 0 {
            return self.gp();
        }
        self.efer ^= changed;
        if changed & control::EFER_NXE != 0 {
            self.flush_tlb();
        }
        self.mode_changed();
        Ok(())
    }
}
