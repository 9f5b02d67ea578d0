//! Single lanes and masks: PINSRx, PEXTRx, INSERTPS, EXTRACTPS, MOVMSKx, PMOVMSKB, blends by XMM0.

use iced_x86::{Code, Instruction};

use super::{Register, Source, begin, in_memory};
use crate::cpu::Cpu;
use crate::exec::fpu::sse_usable;
use crate::insn::{Exec, Insn};
use crate::trap::Step;

#[rustfmt::skip]
pub fn lookup(i: &Instruction) -> Option<Exec> {
    let from_memory = in_memory(i, 1);
    let to_memory = in_memory(i, 0);
    Some(match i.code() {
        Code::Pinsrb_xmm_r32m8_imm8 | Code::Pinsrb_xmm_r64m8_imm8 if from_memory => insert_memory::<8>,
        Code::Pinsrw_xmm_r32m16_imm8 | Code::Pinsrw_xmm_r64m16_imm8 if from_memory => insert_memory::<16>,
        Code::Pinsrd_xmm_rm32_imm8 if from_memory => insert_memory::<32>,
        Code::Pinsrq_xmm_rm64_imm8 if from_memory => insert_memory::<64>,
        Code::Pinsrb_xmm_r32m8_imm8 | Code::Pinsrb_xmm_r64m8_imm8 => insert_register::<8>,
        Code::Pinsrw_xmm_r32m16_imm8 | Code::Pinsrw_xmm_r64m16_imm8 => insert_register::<16>,
        Code::Pinsrd_xmm_rm32_imm8 => insert_register::<32>,
        Code::Pinsrq_xmm_rm64_imm8 => insert_register::<64>,

        Code::Pextrb_r32m8_xmm_imm8 | Code::Pextrb_r64m8_xmm_imm8 if to_memory => extract_memory::<8>,
        Code::Pextrw_r32m16_xmm_imm8 | Code::Pextrw_r64m16_xmm_imm8 if to_memory => extract_memory::<16>,
        Code::Pextrd_rm32_xmm_imm8 | Code::Extractps_rm32_xmm_imm8 | Code::Extractps_r64m32_xmm_imm8 if to_memory => extract_memory::<32>,
        Code::Pextrq_rm64_xmm_imm8 if to_memory => extract_memory::<64>,
        Code::Pextrb_r32m8_xmm_imm8 | Code::Pextrb_r64m8_xmm_imm8 => extract_register::<8>,
        Code::Pextrw_r32m16_xmm_imm8 | Code::Pextrw_r64m16_xmm_imm8 |
        Code::Pextrw_r32_xmm_imm8 | Code::Pextrw_r64_xmm_imm8 => extract_register::<16>,
        Code::Pextrd_rm32_xmm_imm8 | Code::Extractps_rm32_xmm_imm8 | Code::Extractps_r64m32_xmm_imm8 => extract_register::<32>,
        Code::Pextrq_rm64_xmm_imm8 => extract_register::<64>,

        Code::Insertps_xmm_xmmm32_imm8 if from_memory => insertps::<u32, true>,
        Code::Insertps_xmm_xmmm32_imm8 => insertps::<Register, false>,

        Code::Pblendvb_xmm_xmmm128 => if from_memory { blend::<u128, 8> } else { blend::<Register, 8> },
        Code::Blendvps_xmm_xmmm128 => if from_memory { blend::<u128, 32> } else { blend::<Register, 32> },
        Code::Blendvpd_xmm_xmmm128 => if from_memory { blend::<u128, 64> } else { blend::<Register, 64> },
        _ => return signs_lookup(i),
    })
}

/// Of those, the ones that gather sign bits.
pub fn signs_lookup(i: &Instruction) -> Option<Exec> {
    Some(match i.code() {
        Code::Pmovmskb_r32_xmm | Code::Pmovmskb_r64_xmm => signs::<8>,
        Code::Movmskps_r32_xmm | Code::Movmskps_r64_xmm => signs::<32>,
        Code::Movmskpd_r32_xmm | Code::Movmskpd_r64_xmm => signs::<64>,
        _ => return None,
    })
}

/// The lowest lane of `BITS`.
const fn lane<const BITS: u32>() -> u128 {
    (1 << BITS) - 1
}

/// Where the lane is that an immediate names.
#[inline(always)]
fn position<const BITS: u32>(imm: u64) -> u32 {
    imm as u32 % (128 / BITS) * BITS
}

#[inline(always)]
fn insert<const BITS: u32>(cpu: &mut Cpu, insn: &Insn, value: u64) {
    let at = position::<BITS>(insn.imm);
    let register = cpu.fx.xmm_mut(insn.r[0]);
    *register = *register & !(lane::<BITS>() << at) | (u128::from(value) & lane::<BITS>()) << at;
}

fn insert_register<const BITS: u32>(cpu: &mut Cpu, insn: &Insn) -> Step {
    sse_usable(cpu)?;
    let value = cpu.get::<u64>(insn.r[1]);
    insert::<BITS>(cpu, insn, value);
    Ok(())
}

fn insert_memory<const BITS: u32>(cpu: &mut Cpu, insn: &Insn) -> Step {
    sse_usable(cpu)?;
    let value = match BITS {
        8 => u64::from(cpu.load::<u8>(insn)?),
        16 => u64::from(cpu.load::<u16>(insn)?),
        32 => u64::from(cpu.load::<u32>(insn)?),
        _ => cpu.load::<u64>(insn)?,
    };
    insert::<BITS>(cpu, insn, value);
    Ok(())
}

fn extract_register<const BITS: u32>(cpu: &mut Cpu, insn: &Insn) -> Step {
    sse_usable(cpu)?;
    let value = cpu.fx.xmm(insn.r[1]) >> position::<BITS>(insn.imm) & lane::<BITS>();
    cpu.put(insn.r[0], value as u64);
    Ok(())
}

fn extract_memory<const BITS: u32>(cpu: &mut Cpu, insn: &Insn) -> Step {
    sse_usable(cpu)?;
    let value = cpu.fx.xmm(insn.r[1]) >> position::<BITS>(insn.imm);
    match BITS {
        8 => cpu.store(insn, value as u8),
        16 => cpu.store(insn, value as u16),
        32 => cpu.store(insn, value as u32),
        _ => cpu.store(insn, value as u64),
    }
}

/// Immediate: source lane in bits 6 and 7 (a memory operand has only one), destination lane in 4 and 5, lanes to clear
/// in 0 to 3.
fn insertps<S: Source, const IN_MEMORY: bool>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let source = begin::<S>(cpu, insn)?;
    let from = if IN_MEMORY { 0 } else { insn.imm >> 6 };
    let value = (source >> position::<32>(from)) as u32;
    insert::<32>(cpu, &Insn { imm: insn.imm >> 4, ..*insn }, u64::from(value));
    let register = cpu.fx.xmm_mut(insn.r[0]);
    for zeroed in (0..4).filter(|n| insn.imm >> n & 1 != 0) {
        *register &= !(lane::<32>() << (zeroed * 32));
    }
    Ok(())
}

/// The sign bit of each lane of `BITS`, gathered.
fn signs<const BITS: u32>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let lanes = begin::<Register>(cpu, insn)?;
    let (low, high) = (lanes as u64, (lanes >> 64) as u64);
    let mask = match BITS {
        8 => byte_signs(low) | byte_signs(high) << 8,
        32 => low >> 31 & 1 | low >> 62 & 2 | (high >> 31 & 1) << 2 | (high >> 63) << 3,
        _ => low >> 63 | (high >> 63) << 1,
    };
    cpu.put(insn.r[0], mask);
    Ok(())
}

/// The sign bits of eight bytes. The product moves the one of byte `n` from bit `8 * n` to bit `56 + n`, without carries.
#[inline(always)]
pub fn byte_signs(bytes: u64) -> u64 {
    (bytes >> 7 & 0x0101_0101_0101_0101).wrapping_mul(0x0102_0408_1020_4080) >> 56
}

/// Takes the lanes of the second operand whose sign bit is set in XMM0.
fn blend<S: Source, const BITS: u32>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let b = begin::<S>(cpu, insn)?;
    let ones = u128::MAX / lane::<BITS>();
    let mask = (cpu.fx.xmm[0] >> (BITS - 1) & ones) * lane::<BITS>();
    let register = cpu.fx.xmm_mut(insn.r[0]);
    *register = *register & !mask | b & mask;
    Ok(())
}
