//! Conversions between MM and XMM registers: those of SSE2 within XMM registers compute the same.

use iced_x86::{Code, Instruction};

use super::both_usable;
use crate::cpu::Cpu;
use crate::exec::fpu::sse::{
    Cvtdq2pd, Cvtdq2ps, Cvtpd2dq, Cvtps2dq, Cvttpd2dq, Cvttps2dq, Float, Register, Source, compute, in_memory,
};
use crate::exec::fpu::sse_usable;
use crate::insn::{Exec, Insn};
use crate::trap::Step;

const LOW64: u128 = 0xFFFF_FFFF_FFFF_FFFF;

pub fn lookup(i: &Instruction) -> Option<Exec> {
    let memory = in_memory(i, 1);
    Some(match i.code() {
        Code::Cvtpi2ps_xmm_mmm64 if memory => to_xmm_from_memory::<Cvtdq2ps, LOW64>,
        Code::Cvtpi2pd_xmm_mmm64 if memory => to_xmm_from_memory::<Cvtdq2pd, { u128::MAX }>,
        Code::Cvtpi2ps_xmm_mmm64 => to_xmm::<Cvtdq2ps, LOW64>,
        Code::Cvtpi2pd_xmm_mmm64 => to_xmm::<Cvtdq2pd, { u128::MAX }>,
        Code::Cvtps2pi_mm_xmmm64 if memory => to_mm::<Cvtps2dq, u64>,
        Code::Cvttps2pi_mm_xmmm64 if memory => to_mm::<Cvttps2dq, u64>,
        Code::Cvtpd2pi_mm_xmmm128 if memory => to_mm::<Cvtpd2dq, u128>,
        Code::Cvttpd2pi_mm_xmmm128 if memory => to_mm::<Cvttpd2dq, u128>,
        Code::Cvtps2pi_mm_xmmm64 => to_mm::<Cvtps2dq, LowHalf>,
        Code::Cvttps2pi_mm_xmmm64 => to_mm::<Cvttps2dq, LowHalf>,
        Code::Cvtpd2pi_mm_xmmm128 => to_mm::<Cvtpd2dq, Register>,
        Code::Cvttpd2pi_mm_xmmm128 => to_mm::<Cvttpd2dq, Register>,
        _ => return None,
    })
}

/// The low half of the second operand, an XMM register: what is not converted must not raise anything.
enum LowHalf {}

impl Source for LowHalf {
    fn fetch(cpu: &mut Cpu, insn: &Insn) -> Step<u128> {
        Ok(cpu.fx.xmm(insn.r[1]) & LOW64)
    }
}

/// Replaces the bits in `MASK` by the conversion of two doublewords.
fn finish<O: Float, const MASK: u128>(cpu: &mut Cpu, insn: &Insn, value: u64) -> Step {
    let result = compute(cpu, |mxcsr| O::run(&0, &u128::from(value), mxcsr))?;
    let register = cpu.fx.xmm_mut(insn.r[0]);
    *register = *register & !MASK | result & MASK;
    Ok(())
}

/// From memory no MMX register is touched, and the x87 does not care.
fn to_xmm_from_memory<O: Float, const MASK: u128>(cpu: &mut Cpu, insn: &Insn) -> Step {
    sse_usable(cpu)?;
    let value = cpu.load::<u64>(insn)?;
    finish::<O, MASK>(cpu, insn, value)
}

fn to_xmm<O: Float, const MASK: u128>(cpu: &mut Cpu, insn: &Insn) -> Step {
    both_usable(cpu)?;
    cpu.fx.enter_mmx();
    let value = cpu.fx.mm(insn.r[1]);
    finish::<O, MASK>(cpu, insn, value)
}

fn to_mm<O: Float, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    both_usable(cpu)?;
    let value = S::fetch(cpu, insn)?;
    cpu.fx.enter_mmx();
    let result = compute(cpu, |mxcsr| O::run(&0, &value, mxcsr))?;
    cpu.fx.set_mm(insn.r[0], result as u64);
    Ok(())
}
