//! FXSAVE, FXRSTOR, LDMXCSR, STMXCSR (SDM vol. 1, 10.5).

use engine::event::StoreKind;
use engine::state::Fpu;
use iced_x86::{Code, Instruction};

use super::{aligned, sse_usable, x87_usable};
use crate::cpu::Cpu;
use crate::fx::{FxArea, mxcsr};
use crate::insn::{Exec, Insn};
use crate::trap::Step;

pub fn lookup(i: &Instruction) -> Option<Exec> {
    Some(match i.code() {
        Code::Fxsave_m512byte => fxsave::<false>,
        Code::Fxsave64_m512byte => fxsave::<true>,
        Code::Fxrstor_m512byte => fxrstor::<false>,
        Code::Fxrstor64_m512byte => fxrstor::<true>,
        Code::Ldmxcsr_m32 => ldmxcsr,
        Code::Stmxcsr_m32 => stmxcsr,
        _ => return None,
    })
}

/// Where XMM0 is in the image.
const XMM: usize = 160;

/// Bytes of the image that are written: what is beyond XMM15 (XMM7 outside 64-bit mode) stays as it is in memory.
fn written(cpu: &Cpu) -> usize {
    if cpu.long { XMM + 16 * 16 } else { XMM + 8 * 16 }
}

/// Looks at the image's last byte first, as CPUs do: CR2 tells.
fn probe_end(cpu: &mut Cpu, insn: &Insn, write: bool) -> Step {
    cpu.probe(insn.seg, cpu.offset(insn).wrapping_add(Fpu::SIZE as u64 - 1), 1, write)
}

fn fxsave<const WIDE: bool>(cpu: &mut Cpu, insn: &Insn) -> Step {
    x87_usable(cpu)?;
    aligned(cpu, insn)?;
    let mut bytes = cpu.fx.bytes();
    if !WIDE {
        // 32-bit pointers, each with a selector that is always 0.
        bytes[12..16].fill(0);
        bytes[20..24].fill(0);
    }
    let written = written(cpu);
    probe_end(cpu, insn, true)?;
    cpu.store_bytes(insn.seg, cpu.offset(insn), &bytes[..written], StoreKind::Cached)
}

fn fxrstor<const WIDE: bool>(cpu: &mut Cpu, insn: &Insn) -> Step {
    x87_usable(cpu)?;
    aligned(cpu, insn)?;
    let mut bytes = [0; Fpu::SIZE];
    probe_end(cpu, insn, false)?;
    cpu.load_bytes(insn.seg, cpu.offset(insn), &mut bytes)?;
    if u32::from_le_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]) & !mxcsr::VALID != 0 {
        return cpu.gp();
    }
    if !WIDE {
        bytes[12..16].fill(0);
        bytes[20..24].fill(0);
    }
    let high = cpu.fx.xmm;
    cpu.fx = FxArea::new(&bytes);
    if !cpu.long {
        cpu.fx.xmm[8..].copy_from_slice(&high[8..]);
    }
    Ok(())
}

fn ldmxcsr(cpu: &mut Cpu, insn: &Insn) -> Step {
    sse_usable(cpu)?;
    load_mxcsr(cpu, insn)
}

/// LDMXCSR and VLDMXCSR, once they may.
pub fn load_mxcsr(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value = cpu.load::<u32>(insn)?;
    if value & !mxcsr::VALID != 0 {
        return cpu.gp();
    }
    cpu.fx.mxcsr = value;
    Ok(())
}

fn stmxcsr(cpu: &mut Cpu, insn: &Insn) -> Step {
    sse_usable(cpu)?;
    cpu.store(insn, cpu.fx.mxcsr)
}
