//! Moves between XMM registers, memory and general registers.

use engine::event::StoreKind;
use iced_x86::{Code, Instruction};

use super::{Register, Source, Unaligned, begin, in_memory};
use crate::cpu::Cpu;
use crate::exec::fpu::{aligned, sse_usable};
use crate::insn::{Exec, Insn};
use crate::trap::Step;

const LOW32: u128 = 0xFFFF_FFFF;
const LOW64: u128 = 0xFFFF_FFFF_FFFF_FFFF;

#[rustfmt::skip]
pub fn lookup(i: &Instruction) -> Option<Exec> {
    let from_memory = in_memory(i, 1);
    let to_memory = in_memory(i, 0);
    Some(match i.code() {
        Code::Movdqu_xmm_xmmm128 | Code::Movups_xmm_xmmm128 | Code::Movupd_xmm_xmmm128 if from_memory => replace::<Unaligned>,
        Code::Lddqu_xmm_m128 => replace::<Unaligned>,
        Code::Movdqa_xmm_xmmm128 | Code::Movaps_xmm_xmmm128 | Code::Movapd_xmm_xmmm128 if from_memory => replace::<u128>,
        Code::Movntdqa_xmm_m128 => replace::<u128>,
        Code::Movdqu_xmm_xmmm128 | Code::Movups_xmm_xmmm128 | Code::Movupd_xmm_xmmm128 |
        Code::Movdqa_xmm_xmmm128 | Code::Movaps_xmm_xmmm128 | Code::Movapd_xmm_xmmm128 => replace::<Register>,
        Code::Movdqu_xmmm128_xmm | Code::Movups_xmmm128_xmm | Code::Movupd_xmmm128_xmm if to_memory => store128::<false>,
        Code::Movdqa_xmmm128_xmm | Code::Movaps_xmmm128_xmm | Code::Movapd_xmmm128_xmm if to_memory => store128::<true>,
        Code::Movdqu_xmmm128_xmm | Code::Movups_xmmm128_xmm | Code::Movupd_xmmm128_xmm |
        Code::Movdqa_xmmm128_xmm | Code::Movaps_xmmm128_xmm | Code::Movapd_xmmm128_xmm => replace::<Register>,

        Code::Movss_xmm_xmmm32 if from_memory => replace::<u32>,
        Code::Movsd_xmm_xmmm64 | Code::Movq_xmm_xmmm64 if from_memory => replace::<u64>,
        Code::Movss_xmm_xmmm32 => merge::<Register, LOW32, 0>,
        Code::Movsd_xmm_xmmm64 => merge::<Register, LOW64, 0>,
        Code::Movq_xmm_xmmm64 => zero_high,
        Code::Movss_xmmm32_xmm if to_memory => store32,
        Code::Movsd_xmmm64_xmm | Code::Movq_xmmm64_xmm if to_memory => store64::<0>,
        Code::Movss_xmmm32_xmm => merge::<Register, LOW32, 0>,
        Code::Movsd_xmmm64_xmm => merge::<Register, LOW64, 0>,
        Code::Movq_xmmm64_xmm => zero_high,

        Code::Movlps_xmm_m64 | Code::Movlpd_xmm_m64 => merge::<u64, LOW64, 0>,
        Code::Movhps_xmm_m64 | Code::Movhpd_xmm_m64 | Code::Movlhps_xmm_xmm if from_memory => merge::<u64, { LOW64 << 64 }, 64>,
        Code::Movlhps_xmm_xmm => merge::<Register, { LOW64 << 64 }, 64>,
        Code::Movhlps_xmm_xmm => high_to_low,
        Code::Movlps_m64_xmm | Code::Movlpd_m64_xmm => store64::<0>,
        Code::Movhps_m64_xmm | Code::Movhpd_m64_xmm => store64::<64>,

        Code::Movd_xmm_rm32 if from_memory => replace::<u32>,
        Code::Movq_xmm_rm64 if from_memory => replace::<u64>,
        Code::Movd_xmm_rm32 => replace::<General32>,
        Code::Movq_xmm_rm64 => replace::<General64>,
        Code::Movd_rm32_xmm if to_memory => store32,
        Code::Movq_rm64_xmm if to_memory => store64::<0>,
        Code::Movd_rm32_xmm => to_general32,
        Code::Movq_rm64_xmm => to_general64,
        _ => return None,
    })
}

/// The second operand, a 32-bit general register.
enum General32 {}

impl Source for General32 {
    #[inline(always)]
    fn fetch(cpu: &mut Cpu, insn: &Insn) -> Step<u128> {
        Ok(u128::from(cpu.get::<u32>(insn.r[1])))
    }
}

/// The second operand, a 64-bit general register.
enum General64 {}

impl Source for General64 {
    #[inline(always)]
    fn fetch(cpu: &mut Cpu, insn: &Insn) -> Step<u128> {
        Ok(u128::from(cpu.get::<u64>(insn.r[1])))
    }
}

fn replace<S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    *cpu.fx.xmm_mut(insn.r[0]) = begin::<S>(cpu, insn)?;
    Ok(())
}

/// Replaces the bits in `MASK` by those of the second operand, shifted to them.
fn merge<S: Source, const MASK: u128, const SHIFT: u32>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value = begin::<S>(cpu, insn)?;
    let register = cpu.fx.xmm_mut(insn.r[0]);
    *register = *register & !MASK | value << SHIFT & MASK;
    Ok(())
}

fn zero_high(cpu: &mut Cpu, insn: &Insn) -> Step {
    *cpu.fx.xmm_mut(insn.r[0]) = begin::<Register>(cpu, insn)? & LOW64;
    Ok(())
}

fn high_to_low(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value = begin::<Register>(cpu, insn)?;
    let register = cpu.fx.xmm_mut(insn.r[0]);
    *register = *register & !LOW64 | value >> 64;
    Ok(())
}

fn store128<const ALIGNED: bool>(cpu: &mut Cpu, insn: &Insn) -> Step {
    sse_usable(cpu)?;
    if ALIGNED {
        aligned(cpu, insn)?;
    }
    cpu.store_kind(insn, cpu.fx.xmm(insn.r[1]), StoreKind::Cached)
}

fn store64<const SHIFT: u32>(cpu: &mut Cpu, insn: &Insn) -> Step {
    sse_usable(cpu)?;
    cpu.store(insn, (cpu.fx.xmm(insn.r[1]) >> SHIFT) as u64)
}

fn store32(cpu: &mut Cpu, insn: &Insn) -> Step {
    sse_usable(cpu)?;
    cpu.store(insn, cpu.fx.xmm(insn.r[1]) as u32)
}

fn to_general32(cpu: &mut Cpu, insn: &Insn) -> Step {
    sse_usable(cpu)?;
    cpu.put(insn.r[0], cpu.fx.xmm(insn.r[1]) as u32);
    Ok(())
}

fn to_general64(cpu: &mut Cpu, insn: &Insn) -> Step {
    sse_usable(cpu)?;
    cpu.put(insn.r[0], cpu.fx.xmm(insn.r[1]) as u64);
    Ok(())
}
