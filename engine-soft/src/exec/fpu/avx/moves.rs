//! Memory operands, and the moves that are nothing but one.
#![expect(unsafe_code, reason = "guest memory is reached by host address")]

use engine::event::StoreKind;
use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::usable;
use crate::cpu::Cpu;
use crate::insn::{Exec, Insn, prefix};
use crate::mem::{peek, poke};
use crate::trap::Step;

pub(super) fn lookup(i: &Instruction) -> Option<Exec> {
    let loads = i.op_count() == 2 && i.op1_kind() == OpKind::Memory;
    let stores = i.op0_kind() == OpKind::Memory;
    Some(match i.mnemonic() {
        M::Vmovups | M::Vmovupd | M::Vmovdqu | M::Vlddqu if loads => replace::<false>,
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntdqa if loads => replace::<true>,
        M::Vmovups | M::Vmovupd | M::Vmovdqu if stores => put::<false, false>,
        M::Vmovaps | M::Vmovapd | M::Vmovdqa if stores => put::<true, false>,
        M::Vmovntps | M::Vmovntpd | M::Vmovntdq => put::<true, true>,
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovups | M::Vmovupd | M::Vmovdqu => copy,
        _ => return None,
    })
}

/// #GP(0) unless the memory operand is aligned to its size.
fn aligned(cpu: &mut Cpu, insn: &Insn) -> Step {
    if cpu.linear(insn) & (u64::from(insn.op_size) - 1) == 0 { Ok(()) } else { cpu.gp() }
}

fn halves(bytes: &[u8; 32]) -> [u128; 2] {
    let half = |from: usize| u128::from_le_bytes(std::array::from_fn(|n| bytes[from + n]));
    [half(0), half(16)]
}

/// The memory operand, zero-extended.
#[inline(always)]
pub(super) fn load(cpu: &mut Cpu, insn: &Insn) -> Step<[u8; 32]> {
    let mut bytes = [0; 32];
    let value = match insn.op_size {
        1 => u128::from(cpu.load::<u8>(insn)?),
        2 => u128::from(cpu.load::<u16>(insn)?),
        4 => u128::from(cpu.load::<u32>(insn)?),
        8 => u128::from(cpu.load::<u64>(insn)?),
        16 => cpu.load::<u128>(insn)?,
        _ => return load_wide(cpu, insn),
    };
    bytes[..16].copy_from_slice(&value.to_le_bytes());
    Ok(bytes)
}

fn load_wide(cpu: &mut Cpu, insn: &Insn) -> Step<[u8; 32]> {
    let mut bytes = [0; 32];
    let va = cpu.in_limits(insn.seg, cpu.offset(insn), 32, false)?;
    if let Some(host) = cpu.tlb.load(va, 32) {
        // SAFETY: a matching read tag says that the page is guest memory and holds all of the access.
        let [low, high] = unsafe { [peek::<u128>(host), peek::<u128>(host.wrapping_add(16))] };
        bytes[..16].copy_from_slice(&low.to_le_bytes());
        bytes[16..].copy_from_slice(&high.to_le_bytes());
    } else {
        cpu.check_linear(insn.seg, va, 32, 32)?;
        cpu.load_pieces(va, &mut bytes)?;
    }
    Ok(bytes)
}

/// Stores to the memory operand.
#[inline(always)]
pub(super) fn store(cpu: &mut Cpu, insn: &Insn, bytes: &[u8; 32], kind: StoreKind) -> Step {
    let [value, _] = halves(bytes);
    match insn.op_size {
        1 => cpu.store_kind(insn, value as u8, kind),
        2 => cpu.store_kind(insn, value as u16, kind),
        4 => cpu.store_kind(insn, value as u32, kind),
        8 => cpu.store_kind(insn, value as u64, kind),
        16 => cpu.store_kind(insn, value, kind),
        _ => store_wide(cpu, insn, bytes, kind),
    }
}

fn store_wide(cpu: &mut Cpu, insn: &Insn, bytes: &[u8; 32], kind: StoreKind) -> Step {
    let va = cpu.in_limits(insn.seg, cpu.offset(insn), 32, true)?;
    let Some(host) = cpu.tlb.store(va, 32) else {
        cpu.check_linear(insn.seg, va, 32, 32)?;
        return cpu.store_pieces(va, bytes, kind);
    };
    let [low, high] = halves(bytes);
    // SAFETY: a matching write tag says that the page is guest memory and holds all of the access.
    unsafe {
        poke(host, low);
        poke(host.wrapping_add(16), high);
    }
    Ok(())
}

fn replace<const ALIGNED: bool>(cpu: &mut Cpu, insn: &Insn) -> Step {
    usable(cpu)?;
    if ALIGNED {
        aligned(cpu, insn)?;
    }
    let bytes = load(cpu, insn)?;
    cpu.set_ymm(insn.r[0], halves(&bytes));
    Ok(())
}

fn put<const ALIGNED: bool, const NON_TEMPORAL: bool>(cpu: &mut Cpu, insn: &Insn) -> Step {
    usable(cpu)?;
    if ALIGNED {
        aligned(cpu, insn)?;
    }
    let mut bytes = [0; 32];
    for (half, value) in bytes.chunks_exact_mut(16).zip(cpu.ymm(insn.r[1])) {
        half.copy_from_slice(&value.to_le_bytes());
    }
    let kind = if NON_TEMPORAL { StoreKind::NonTemporal } else { StoreKind::Cached };
    store(cpu, insn, &bytes, kind)
}

fn copy(cpu: &mut Cpu, insn: &Insn) -> Step {
    usable(cpu)?;
    let [low, high] = cpu.ymm(insn.r[1]);
    let wide = insn.prefixes & prefix::WIDE != 0;
    cpu.set_ymm(insn.r[0], [low, if wide { high } else { 0 }]);
    Ok(())
}
