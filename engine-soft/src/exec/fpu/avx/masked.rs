//! VMASKMOVPS, VMASKMOVPD, VPMASKMOVD, VPMASKMOVQ: elements whose mask has its sign bit clear are not accessed, so they do
//! not fault.

use engine::event::StoreKind;
use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::usable;
use crate::cpu::Cpu;
use crate::insn::{Exec, Insn, prefix};
use crate::trap::Step;

pub(super) fn lookup(i: &Instruction) -> Option<Exec> {
    let stores = i.op0_kind() == OpKind::Memory;
    Some(match i.mnemonic() {
        M::Vmaskmovps | M::Vpmaskmovd if stores => store::<4>,
        M::Vmaskmovpd | M::Vpmaskmovq if stores => store::<8>,
        M::Vmaskmovps | M::Vpmaskmovd => load::<4>,
        M::Vmaskmovpd | M::Vpmaskmovq => load::<8>,
        _ => return None,
    })
}

/// The bytes of a register.
pub(super) fn bytes([low, high]: [u128; 2]) -> [u8; 32] {
    std::array::from_fn(|n| (if n < 16 { low } else { high } >> (8 * (n % 16))) as u8)
}

/// A register of these bytes.
pub(super) fn register(bytes: &[u8; 32]) -> [u128; 2] {
    let half = |from: usize| u128::from_le_bytes(std::array::from_fn(|n| bytes[from + n]));
    [half(0), half(16)]
}

/// Stretches of chosen elements of `SIZE` bytes: begin and length in bytes.
fn stretches<const SIZE: usize>(insn: &Insn, mask: &[u8; 32]) -> Vec<(usize, usize)> {
    let len = if insn.prefixes & prefix::WIDE != 0 { 32 } else { 16 };
    let mut found: Vec<(usize, usize)> = Vec::new();
    for at in (0..len).step_by(SIZE).filter(|at| mask[at + SIZE - 1] >> 7 != 0) {
        match found.last_mut() {
            Some((from, len)) if *from + *len == at => *len += SIZE,
            _ => found.push((at, SIZE)),
        }
    }
    found
}

fn load<const SIZE: usize>(cpu: &mut Cpu, insn: &Insn) -> Step {
    usable(cpu)?;
    let mask = bytes(cpu.ymm(insn.r[1]));
    let mut loaded = [0; 32];
    for (from, len) in stretches::<SIZE>(insn, &mask) {
        let at = cpu.offset(insn).wrapping_add(from as u64);
        cpu.load_bytes(insn.seg, at, &mut loaded[from..from + len])?;
    }
    cpu.set_ymm(insn.r[0], register(&loaded));
    Ok(())
}

/// All or nothing.
fn store<const SIZE: usize>(cpu: &mut Cpu, insn: &Insn) -> Step {
    usable(cpu)?;
    let mask = bytes(cpu.ymm(insn.r[1]));
    let data = bytes(cpu.ymm(insn.r[2]));
    let stretches = stretches::<SIZE>(insn, &mask);
    let start = cpu.offset(insn);
    for &(from, len) in &stretches {
        cpu.probe(insn.seg, start.wrapping_add(from as u64), len, true)?;
    }
    for (from, len) in stretches {
        let at = start.wrapping_add(from as u64);
        cpu.store_bytes(insn.seg, at, &data[from..from + len], StoreKind::Cached)?;
    }
    Ok(())
}
