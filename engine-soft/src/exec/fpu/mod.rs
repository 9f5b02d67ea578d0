//! x87, MMX and SSE to SSE4.2 (SDM vol. 1, ch. 8 to 12): what x86-64-v2 shows, without AES and PCLMULQDQ. Below, what
//! x86-64-v3 adds: AVX, AVX2, FMA, F16C ([`avx`]) and XSAVE ([`xsave`]).
//!
//! Moves and what touches general registers or memory in its own way is written out; what computes is done by the host's
//! own instruction ([`native`]), its operands fetched and its faults raised here. So every result, NaN payload and
//! exception flag is a CPU's.
//!
//! The order of faults is the architecture's: #UD and #NM by CR0 and CR4, a pending x87 exception (#MF), the memory
//! operand's, then #XM.

pub mod avx;
mod image;
mod mmx;
pub mod native;
mod nontemporal;
pub(crate) mod sse;
#[cfg(test)]
mod tests;
pub(crate) mod x87;
pub mod xsave;

use iced_x86::{Code, Instruction};

use crate::cpu::Cpu;
use crate::cpu::control::{CR0_EM, CR0_TS, CR4_OSFXSR, CR4_OSXMMEXCPT};
use crate::fx::{fsw, mxcsr};
use crate::insn::{Exec, Insn};
use crate::trap::{Step, vector};

/// The function that executes an instruction of this family.
#[must_use]
pub fn lookup(i: &Instruction) -> Option<Exec> {
    match i.code() {
        Code::Prefetch_m8
        | Code::Prefetchw_m8
        | Code::Prefetchwt1_m8
        | Code::Prefetchnta_m8
        | Code::Prefetcht0_m8
        | Code::Prefetcht1_m8
        | Code::Prefetcht2_m8 => Some(nothing),
        _ => x87::lookup(i)
            .or_else(|| sse::lookup(i))
            .or_else(|| mmx::lookup(i))
            .or_else(|| image::lookup(i))
            .or_else(|| nontemporal::lookup(i)),
    }
}

/// A prefetch: no memory is accessed, so nothing faults.
fn nothing(_: &mut Cpu, _: &Insn) -> Step {
    Ok(())
}

/// What every SSE instruction asks first.
#[inline(always)]
fn sse_usable(cpu: &mut Cpu) -> Step {
    if cpu.cr0 & (CR0_EM | CR0_TS) == 0 && cpu.cr4 & CR4_OSFXSR != 0 { Ok(()) } else { sse_unusable(cpu) }
}

#[cold]
fn sse_unusable(cpu: &mut Cpu) -> Step {
    if cpu.cr0 & CR0_EM != 0 || cpu.cr4 & CR4_OSFXSR == 0 { cpu.ud() } else { cpu.raise(vector::NM, None) }
}

/// What every x87 instruction asks first.
#[inline(always)]
fn x87_usable(cpu: &mut Cpu) -> Step {
    if cpu.cr0 & (CR0_EM | CR0_TS) == 0 { Ok(()) } else { cpu.raise(vector::NM, None) }
}

/// What a waiting x87 instruction asks next. CR0.NE counts as set: VMX holds it so, the machine has no FERR# pin, and
/// Linux sets it.
#[inline(always)]
fn none_pending(cpu: &mut Cpu) -> Step {
    if cpu.fx.fsw & fsw::ES == 0 { Ok(()) } else { cpu.raise(vector::MF, None) }
}

/// What every MMX instruction asks first.
#[inline(always)]
fn mmx_usable(cpu: &mut Cpu) -> Step {
    if cpu.cr0 & CR0_EM != 0 {
        return cpu.ud();
    }
    x87_usable(cpu)?;
    none_pending(cpu)
}

/// #GP(0) unless the memory operand is aligned to 16 bytes.
#[inline(always)]
fn aligned(cpu: &mut Cpu, insn: &Insn) -> Step {
    if cpu.linear(insn) & 15 == 0 { Ok(()) } else { cpu.gp() }
}

/// Ends an SSE instruction that found the exceptions `raised` (MXCSR flags): either all of them are masked and their
/// flags are set, or the instruction has no effect but flags and #XM. `refine` tells, from MXCSR, the flags that are then
/// set, where it is not simply [`mxcsr::reported`].
#[inline(always)]
fn settle(cpu: &mut Cpu, raised: u32, refine: impl FnOnce(u32) -> Option<u32>) -> Step {
    if mxcsr::unmasked(raised, cpu.fx.mxcsr) == 0 {
        cpu.fx.mxcsr |= raised;
        return Ok(());
    }
    let raised = refine(cpu.fx.mxcsr).unwrap_or_else(|| mxcsr::reported(raised, cpu.fx.mxcsr));
    refuse(cpu, raised)
}

#[cold]
fn refuse(cpu: &mut Cpu, raised: u32) -> Step {
    cpu.fx.mxcsr |= raised;
    if cpu.cr4 & CR4_OSXMMEXCPT != 0 { cpu.raise(vector::XM, None) } else { cpu.ud() }
}
