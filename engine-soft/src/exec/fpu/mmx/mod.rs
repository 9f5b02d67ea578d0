//! MMX, and what SSE adds to it (SDM vol. 1, ch. 9): physical x87 registers as 64-bit vectors. Every instruction but EMMS
//! makes TOP 0 and all registers valid, once memory has been accessed.

mod convert;
mod packed;

use engine::event::StoreKind;
use iced_x86::{Code, Instruction};

use super::sse::{byte_signs, in_memory};
use super::{mmx_usable, none_pending, sse_usable};
use crate::cpu::Cpu;
use crate::insn::{Exec, Insn};
use crate::trap::Step;

#[rustfmt::skip]
pub fn lookup(i: &Instruction) -> Option<Exec> {
    let from_memory = in_memory(i, 1);
    let to_memory = in_memory(i, 0);
    let plain: Option<Exec> = Some(match i.code() {
        Code::Movd_mm_rm32 => if from_memory { replace::<u32> } else { replace::<General32> },
        Code::Movq_mm_rm64 => if from_memory { replace::<u64> } else { replace::<General64> },
        Code::Movq_mm_mmm64 => if from_memory { replace::<u64> } else { replace::<Register> },
        Code::Movd_rm32_mm if to_memory => store32,
        Code::Movq_rm64_mm | Code::Movq_mmm64_mm if to_memory => store64::<false>,
        Code::Movntq_m64_mm => store64::<true>,
        Code::Movd_rm32_mm => to_general32,
        Code::Movq_rm64_mm => to_general64,
        Code::Movq_mmm64_mm => replace::<Register>,
        Code::Movq2dq_xmm_mm => to_xmm,
        Code::Movdq2q_mm_xmm => from_xmm,
        Code::Pinsrw_mm_r32m16_imm8 | Code::Pinsrw_mm_r64m16_imm8 =>
            if from_memory { insert::<u16> } else { insert::<General32> },
        Code::Pextrw_r32_mm_imm8 | Code::Pextrw_r64_mm_imm8 => extract,
        Code::Pmovmskb_r32_mm | Code::Pmovmskb_r64_mm => signs,
        Code::Emms => emms,
        _ => return packed::lookup(i).or_else(|| convert::lookup(i)),
    });
    plain
}

/// The second operand.
trait Source {
    /// Fetches it, zero-extended.
    fn fetch(cpu: &mut Cpu, insn: &Insn) -> Step<u64>;
}

macro_rules! source {
    ($($width:ty)*) => {$(
        impl Source for $width {
            #[inline(always)]
            fn fetch(cpu: &mut Cpu, insn: &Insn) -> Step<u64> {
                Ok(u64::from(cpu.load::<Self>(insn)?))
            }
        }
    )*};
}

source! { u16 u32 u64 }

/// An MM register.
enum Register {}

impl Source for Register {
    #[inline(always)]
    fn fetch(cpu: &mut Cpu, insn: &Insn) -> Step<u64> {
        Ok(cpu.fx.mm(insn.r[1]))
    }
}

/// A 32-bit general register.
enum General32 {}

impl Source for General32 {
    fn fetch(cpu: &mut Cpu, insn: &Insn) -> Step<u64> {
        Ok(u64::from(cpu.get::<u32>(insn.r[1])))
    }
}

/// A 64-bit general register.
enum General64 {}

impl Source for General64 {
    fn fetch(cpu: &mut Cpu, insn: &Insn) -> Step<u64> {
        Ok(cpu.get::<u64>(insn.r[1]))
    }
}

/// Begins an instruction `op mm, mm/m`: its second operand.
#[inline(always)]
fn begin<S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step<u64> {
    mmx_usable(cpu)?;
    let value = S::fetch(cpu, insn)?;
    cpu.fx.enter_mmx();
    Ok(value)
}

fn replace<S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value = begin::<S>(cpu, insn)?;
    cpu.fx.set_mm(insn.r[0], value);
    Ok(())
}

fn store32(cpu: &mut Cpu, insn: &Insn) -> Step {
    mmx_usable(cpu)?;
    cpu.store(insn, cpu.fx.mm(insn.r[1]) as u32)?;
    cpu.fx.enter_mmx();
    Ok(())
}

fn store64<const NON_TEMPORAL: bool>(cpu: &mut Cpu, insn: &Insn) -> Step {
    mmx_usable(cpu)?;
    let kind = if NON_TEMPORAL { StoreKind::NonTemporal } else { StoreKind::Cached };
    cpu.store_kind(insn, cpu.fx.mm(insn.r[1]), kind)?;
    cpu.fx.enter_mmx();
    Ok(())
}

fn to_general32(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value = begin::<Register>(cpu, insn)?;
    cpu.put(insn.r[0], value as u32);
    Ok(())
}

fn to_general64(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value = begin::<Register>(cpu, insn)?;
    cpu.put(insn.r[0], value);
    Ok(())
}

/// Both register sets have to be usable.
fn both_usable(cpu: &mut Cpu) -> Step {
    sse_usable(cpu)?;
    none_pending(cpu)
}

fn to_xmm(cpu: &mut Cpu, insn: &Insn) -> Step {
    both_usable(cpu)?;
    cpu.fx.enter_mmx();
    *cpu.fx.xmm_mut(insn.r[0]) = u128::from(cpu.fx.mm(insn.r[1]));
    Ok(())
}

fn from_xmm(cpu: &mut Cpu, insn: &Insn) -> Step {
    both_usable(cpu)?;
    cpu.fx.enter_mmx();
    cpu.fx.set_mm(insn.r[0], cpu.fx.xmm(insn.r[1]) as u64);
    Ok(())
}

/// Where the word is that an immediate names.
fn position(insn: &Insn) -> u32 {
    (insn.imm as u32 & 3) * 16
}

fn insert<S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value = begin::<S>(cpu, insn)?;
    let kept = cpu.fx.mm(insn.r[0]) & !(0xFFFF << position(insn));
    cpu.fx.set_mm(insn.r[0], kept | (value & 0xFFFF) << position(insn));
    Ok(())
}

fn extract(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value = begin::<Register>(cpu, insn)?;
    cpu.put(insn.r[0], value >> position(insn) & 0xFFFF);
    Ok(())
}

fn signs(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value = begin::<Register>(cpu, insn)?;
    cpu.put(insn.r[0], byte_signs(value));
    Ok(())
}

fn emms(cpu: &mut Cpu, _: &Insn) -> Step {
    mmx_usable(cpu)?;
    cpu.fx.rotate_to(0);
    cpu.fx.ftw = 0;
    Ok(())
}
