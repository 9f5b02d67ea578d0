//! Control and debug registers (SDM vol. 3, 2.5 and 18.2; vol. 2, MOV to and from control and debug registers).

use engine::cpuid::{CpuModel, PHYSICAL_ADDRESS_BITS};
use engine::event::FenceKind;
use engine::state::{Segment, SystemRegisters};
use iced_x86::{Code, Instruction};

use crate::cpu::{Cpu, control};
use crate::insn::{Exec, Insn};
use crate::trap::{Step, vector};
use crate::width::Width;

pub(super) fn lookup(i: &Instruction, memory: bool) -> Option<Exec> {
    Some(match i.code() {
        Code::Mov_r32_cr | Code::Mov_r64_cr => from_control,
        Code::Mov_cr_r32 => to_control::<u32>,
        Code::Mov_cr_r64 => to_control::<u64>,
        Code::Mov_r32_dr | Code::Mov_r64_dr => from_debug,
        Code::Mov_dr_r32 => to_debug::<u32>,
        Code::Mov_dr_r64 => to_debug::<u64>,
        Code::Clts => clts,
        Code::Lmsw_rm16 | Code::Lmsw_r32m16 | Code::Lmsw_r64m16 if memory => lmsw_m,
        Code::Lmsw_rm16 | Code::Lmsw_r32m16 | Code::Lmsw_r64m16 => lmsw_r,
        Code::Smsw_rm16 | Code::Smsw_r32m16 | Code::Smsw_r64m16 if memory => smsw_m,
        Code::Smsw_rm16 => smsw_r::<u16>,
        Code::Smsw_r32m16 => smsw_r::<u32>,
        Code::Smsw_r64m16 => smsw_r::<u64>,
        _ => return None,
    })
}

const CR0: u64 = control::CR0_PE
    | control::CR0_MP
    | control::CR0_EM
    | control::CR0_TS
    | control::CR0_ET
    | control::CR0_NE
    | control::CR0_WP
    | control::CR0_AM
    | control::CR0_NW
    | control::CR0_CD
    | control::CR0_PG;

/// What CPUID lets software switch on.
const CR4: u64 = control::CR4_TSD
    | control::CR4_DE
    | control::CR4_PSE
    | control::CR4_PAE
    | control::CR4_MCE
    | control::CR4_PGE
    | control::CR4_PCE
    | control::CR4_OSFXSR
    | control::CR4_OSXMMEXCPT
    | control::CR4_FSGSBASE;

/// DR6 bits that are always set, and those that software writes.
const DR6_FIXED: u64 = 0xFFFF_0FF0;
const DR6: u64 = 0xE00F;
/// DR7's always-set bit, and those that software writes.
const DR7_FIXED: u64 = 0x400;
const DR7: u64 = 0xFFFF_23FF;
/// DR7.GD: any access of a debug register is #DB; DR6.BD tells of it.
const GENERAL_DETECT: u64 = 1 << 13;

/// The bits of a CR0 value exist and go together.
pub(crate) fn valid_cr0(cr0: u64) -> bool {
    let has = |bit| cr0 & bit != 0;
    cr0 & !CR0 == 0
        && (has(control::CR0_CD) || !has(control::CR0_NW))
        && (has(control::CR0_PE) || !has(control::CR0_PG))
}

/// The bits of a CR4 value exist.
pub(crate) fn valid_cr4(cr4: u64, model: CpuModel) -> bool {
    let more = if model == CpuModel::V3 { control::CR4_OSXSAVE } else { 0 };
    cr4 & !(CR4 | more) == 0
}

impl Cpu {
    /// MOV to CR0 and LMSW.
    fn write_cr0(&mut self, value: u64) -> Step {
        // Reserved bits of the lower half are ignored, those of the upper are not.
        let new = value & (CR0 | !0xFFFF_FFFF) | control::CR0_ET;
        if !valid_cr0(new) {
            return self.gp();
        }
        let changed = self.cr0 ^ new;
        let code = self.segments[SystemRegisters::CS].attributes;
        let mut efer = self.efer;
        if changed & control::CR0_PG != 0 {
            if new & control::CR0_PG == 0 {
                if self.long {
                    return self.gp();
                }
                efer &= !control::EFER_LMA;
            } else if efer & control::EFER_LME != 0 {
                let old_task = matches!(self.tr.kind(), 1 | 3);
                if self.cr4 & control::CR4_PAE == 0 || code & Segment::LONG != 0 || old_task {
                    return self.gp();
                }
                efer |= control::EFER_LMA;
            }
        }
        self.efer = efer;
        self.cr0 = new;
        if changed & (control::CR0_PG | control::CR0_WP | control::CR0_PE) != 0 {
            self.flush_tlb();
        }
        self.mode_changed();
        Ok(())
    }

    fn write_cr3(&mut self, value: u64) -> Step {
        if self.long && value >> PHYSICAL_ADDRESS_BITS != 0 {
            return self.gp();
        }
        self.cr3 = value;
        self.flush_tlb_local();
        Ok(())
    }

    fn write_cr4(&mut self, value: u64) -> Step {
        let long = self.efer & control::EFER_LMA != 0;
        if !valid_cr4(value, self.model) || long && value & control::CR4_PAE == 0 {
            return self.gp();
        }
        let changed = self.cr4 ^ value;
        self.cr4 = value;
        if changed & (control::CR4_PSE | control::CR4_PAE | control::CR4_PGE) != 0 {
            self.flush_tlb();
        }
        self.mode_changed();
        Ok(())
    }

    /// A register as wide as MOV to and from these registers is: by mode, whatever the prefixes.
    fn put_native(&mut self, r: u8, value: u64) {
        if self.long { self.put(r, value) } else { self.put(r, value as u32) }
    }

    /// Number of the debug register meant, 0 to 7, once it may be touched.
    fn debug_register(&mut self, number: u8) -> Step<u8> {
        if number > 7 || matches!(number, 4 | 5) && self.cr4 & control::CR4_DE != 0 {
            return self.ud();
        }
        self.privileged()?;
        if self.debug.control & GENERAL_DETECT != 0 {
            self.debug.status |= GENERAL_DETECT;
            return self.raise(vector::DB, None);
        }
        Ok(if matches!(number, 4 | 5) { number + 2 } else { number })
    }
}

fn from_control(cpu: &mut Cpu, insn: &Insn) -> Step {
    if !matches!(insn.r[1], 0 | 2 | 3 | 4 | 8) {
        return cpu.ud();
    }
    cpu.privileged()?;
    let value = match insn.r[1] {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        _ => cpu.lapic.cr8(),
    };
    cpu.put_native(insn.r[0], value);
    Ok(())
}

fn to_control<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Step {
    if !matches!(insn.r[0], 0 | 2 | 3 | 4 | 8) {
        return cpu.ud();
    }
    cpu.privileged()?;
    let value = cpu.get::<W>(insn.r[1]).zext();
    match insn.r[0] {
        0 => cpu.write_cr0(value)?,
        2 => cpu.cr2 = value,
        3 => cpu.write_cr3(value)?,
        4 => cpu.write_cr4(value)?,
        _ => {
            if value > 15 {
                return cpu.gp();
            }
            cpu.lapic.set_cr8(value);
            cpu.attention = true;
            return Ok(());
        }
    }
    cpu.fence(FenceKind::Serialising);
    Ok(())
}

fn from_debug(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value = match cpu.debug_register(insn.r[1])? {
        6 => cpu.debug.status,
        7 => cpu.debug.control,
        n => cpu.debug.address[usize::from(n & 3)],
    };
    cpu.put_native(insn.r[0], value);
    Ok(())
}

fn to_debug<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let register = cpu.debug_register(insn.r[0])?;
    let value = cpu.get::<W>(insn.r[1]).zext();
    match register {
        6 | 7 if value >> 32 != 0 => return cpu.gp(),
        6 => cpu.debug.status = value & DR6 | DR6_FIXED,
        7 => cpu.debug.control = value & DR7 | DR7_FIXED,
        n => cpu.debug.address[usize::from(n & 3)] = value,
    }
    cpu.mode_changed();
    // What was cached knew nothing of this breakpoint.
    cpu.flush_tlb();
    cpu.fence(FenceKind::Serialising);
    Ok(())
}

fn clts(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.privileged()?;
    cpu.cr0 &= !control::CR0_TS;
    Ok(())
}

/// PE, MP, EM, TS; PE cannot be cleared.
fn lmsw(cpu: &mut Cpu, word: u16) -> Step {
    let sticky = cpu.cr0 & control::CR0_PE;
    cpu.write_cr0(cpu.cr0 & !0xF | u64::from(word) & 0xF | sticky)?;
    cpu.fence(FenceKind::Serialising);
    Ok(())
}

fn lmsw_r(cpu: &mut Cpu, insn: &Insn) -> Step {
    cpu.privileged()?;
    let word = cpu.get::<u16>(insn.r[0]);
    lmsw(cpu, word)
}

fn lmsw_m(cpu: &mut Cpu, insn: &Insn) -> Step {
    cpu.privileged()?;
    let word = cpu.load(insn)?;
    lmsw(cpu, word)
}

fn smsw_r<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Step {
    cpu.put(insn.r[0], W::of(cpu.cr0));
    Ok(())
}

fn smsw_m(cpu: &mut Cpu, insn: &Insn) -> Step {
    cpu.store(insn, cpu.cr0 as u16)
}
