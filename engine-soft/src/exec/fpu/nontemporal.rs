//! Non-temporal stores (SDM vol. 1, 10.4.6.2): posted past the cache until a fence of the same vCPU.

use engine::event::StoreKind;
use iced_x86::{Code, Instruction};

use super::{aligned, mmx_usable, sse_usable};
use crate::cpu::Cpu;
use crate::insn::{Exec, Insn};
use crate::trap::Step;

const RDI: usize = 7;

/// MOVNTQ is with the MMX moves.
pub fn lookup(i: &Instruction) -> Option<Exec> {
    Some(match i.code() {
        Code::Movnti_m32_r32 => movnti32,
        Code::Movnti_m64_r64 => movnti64,
        Code::Movntdq_m128_xmm | Code::Movntps_m128_xmm | Code::Movntpd_m128_xmm => movnt128,
        Code::Maskmovdqu_rDI_xmm_xmm => maskmovdqu,
        Code::Maskmovq_rDI_mm_mm => maskmovq,
        _ => return None,
    })
}

/// MOVNTI is of general registers: CR0 and CR4 do not concern it.
fn movnti32(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value = cpu.get::<u32>(insn.r[1]);
    cpu.store_kind(insn, value, StoreKind::NonTemporal)
}

fn movnti64(cpu: &mut Cpu, insn: &Insn) -> Step {
    let value = cpu.get::<u64>(insn.r[1]);
    cpu.store_kind(insn, value, StoreKind::NonTemporal)
}

fn movnt128(cpu: &mut Cpu, insn: &Insn) -> Step {
    sse_usable(cpu)?;
    aligned(cpu, insn)?;
    cpu.store_kind(insn, cpu.fx.xmm(insn.r[1]), StoreKind::NonTemporal)
}

fn maskmovdqu(cpu: &mut Cpu, insn: &Insn) -> Step {
    sse_usable(cpu)?;
    store_bytes_by_mask(cpu, insn)
}

/// MASKMOVDQU and VMASKMOVDQU, once they may.
pub fn store_bytes_by_mask(cpu: &mut Cpu, insn: &Insn) -> Step {
    let data = cpu.fx.xmm(insn.r[1]).to_le_bytes();
    let mask = cpu.fx.xmm(insn.r[2]).to_le_bytes();
    masked(cpu, insn, &data, &mask)
}

fn maskmovq(cpu: &mut Cpu, insn: &Insn) -> Step {
    mmx_usable(cpu)?;
    let data = cpu.fx.mm(insn.r[1]).to_le_bytes();
    let mask = cpu.fx.mm(insn.r[2]).to_le_bytes();
    masked(cpu, insn, &data, &mask)?;
    cpu.fx.enter_mmx();
    Ok(())
}

/// Stores the bytes whose mask has its sign bit set, in runs, at DS:rDI. The whole operand has to be writable whatever the
/// mask, its upper half first.
fn masked(cpu: &mut Cpu, insn: &Insn, data: &[u8], mask: &[u8]) -> Step {
    let chosen = |n: usize| mask.get(n).is_some_and(|byte| byte >> 7 != 0);
    let start = match insn.addr_size {
        8 => cpu.gpr[RDI],
        4 => cpu.gpr[RDI] & 0xFFFF_FFFF,
        _ => cpu.gpr[RDI] & 0xFFFF,
    };
    for half in (0..data.len()).step_by(8).rev() {
        cpu.probe(insn.seg, start.wrapping_add(half as u64), 8, true)?;
    }
    let mut from = 0;
    while from < data.len() {
        let to = (from..data.len()).find(|n| !chosen(*n)).unwrap_or(data.len());
        if to > from {
            cpu.store_bytes(
                insn.seg,
                start.wrapping_add(from as u64),
                &data[from..to],
                StoreKind::NonTemporal,
            )?;
        }
        from = to + 1;
    }
    Ok(())
}
