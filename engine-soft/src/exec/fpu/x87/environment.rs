//! FNSTENV, FLDENV, FNSAVE, FRSTOR (SDM vol. 1, 8.1.10): the environment in its four layouts, and the registers after it.

use engine::event::StoreKind;
use iced_x86::Code;

use super::super::x87_usable;
use super::begin;
use crate::cpu::Cpu;
use crate::cpu::control::CR0_PE;
use crate::flags::bit;
use crate::fx::{FxArea, fcw};
use crate::insn::{Exec, Insn};
use crate::trap::Step;

/// Size of the register stack in memory: ten bytes each, ST(0) first.
const STACK: usize = 80;

pub fn lookup(code: Code) -> Option<Exec> {
    Some(match code {
        Code::Fnstenv_m14byte => fnstenv::<14>,
        Code::Fnstenv_m28byte => fnstenv::<28>,
        Code::Fldenv_m14byte => fldenv::<14>,
        Code::Fldenv_m28byte => fldenv::<28>,
        Code::Fnsave_m94byte => fnsave::<14>,
        Code::Fnsave_m108byte => fnsave::<28>,
        Code::Frstor_m94byte => frstor::<14>,
        Code::Frstor_m108byte => frstor::<28>,
        _ => return None,
    })
}

/// The full tag word: two bits a physical register (valid, zero, special, empty).
fn tags(fx: &FxArea) -> u16 {
    (0..8_u32).fold(0, |tags, register| {
        let st = fx.st[(register.wrapping_sub(fx.top()) & 7) as usize];
        let (exponent, significand) = ((st >> 64) as u16 & 0x7FFF, st as u64);
        let tag = if fx.ftw >> register & 1 == 0 {
            3
        } else if exponent == 0 && significand == 0 {
            1
        } else if exponent == 0 || exponent == 0x7FFF || significand >> 63 == 0 {
            2
        } else {
            0
        };
        tags | tag << (register * 2)
    })
}

/// Whether pointers are laid out as linear addresses.
fn real_layout(cpu: &Cpu) -> bool {
    cpu.cr0 & CR0_PE == 0 || cpu.flags.control & bit::VM != 0
}

/// The environment's seven fields: control, status and tag word, instruction pointer, its selector (with the opcode),
/// operand pointer, its selector. Selectors are 0.
fn fields(fx: &FxArea, real: bool) -> [u32; 7] {
    let (fip, fdp, fop) = (fx.fip as u32, fx.fdp as u32, u32::from(fx.fop));
    let words = [u32::from(fx.fcw), u32::from(fx.fsw), u32::from(tags(fx))];
    let [cw, sw, tw] = words.map(|word| word | 0xFFFF_0000);
    if real {
        let high = |pointer: u32| pointer >> 16 << 12;
        [cw, sw, tw, fip | 0xFFFF_0000, high(fip) | fop, fdp | 0xFFFF_0000, high(fdp)]
    } else {
        [cw, sw, tw, fip, fop << 16, fdp, 0xFFFF_0000]
    }
}

/// In memory, 14 or 28 bytes of the array.
fn layout<const SIZE: usize>(fields: [u32; 7]) -> [u8; SIZE] {
    let width = SIZE / 7;
    std::array::from_fn(|i| fields[i / width].to_le_bytes()[i % width])
}

fn restore<const SIZE: usize>(fx: &mut FxArea, bytes: &[u8; SIZE], real: bool) {
    let width = SIZE / 7;
    let field = |n: usize| (0..width).rev().fold(0, |value, i| value << 8 | u32::from(bytes[n * width + i]));
    let (fip, fdp) = (field(3), field(5));
    let (fip, fdp) = if real {
        (fip & 0xFFFF | field(4) >> 12 << 16, fdp & 0xFFFF | field(6) >> 12 << 16)
    } else {
        (fip, fdp)
    };
    let opcode = if real { field(4) } else { field(4) >> 16 };
    fx.rotate_to(field(1) >> 11);
    fx.fcw = field(0) as u16;
    fx.fsw = field(1) as u16;
    fx.ftw = (0..8).fold(0, |ftw, register| ftw | u8::from(field(2) >> (register * 2) & 3 != 3) << register);
    (fx.fip, fx.fdp) = (u64::from(fip), u64::from(fdp));
    fx.fop = opcode as u16 & 0x7FF;
    fx.settle();
}

/// Looks at the first field and the last byte before all others, as CPUs do: CR2 tells.
fn probe(cpu: &mut Cpu, insn: &Insn, width: usize, len: usize, write: bool) -> Step {
    let start = cpu.offset(insn);
    cpu.probe(insn.seg, start, width, write)?;
    cpu.probe(insn.seg, start.wrapping_add(len as u64 - 1), 1, write)
}

/// Loads an environment of `SIZE` bytes and what follows it.
fn load<const SIZE: usize>(cpu: &mut Cpu, insn: &Insn, bytes: &mut [u8]) -> Step {
    probe(cpu, insn, SIZE / 7, bytes.len(), false)?;
    cpu.load_bytes(insn.seg, cpu.offset(insn), bytes)
}

/// Stores an environment of `SIZE` bytes and what follows it.
fn store<const SIZE: usize>(cpu: &mut Cpu, insn: &Insn, bytes: &[u8]) -> Step {
    probe(cpu, insn, SIZE / 7, bytes.len(), true)?;
    cpu.store_bytes(insn.seg, cpu.offset(insn), bytes, StoreKind::Cached)
}

fn fnstenv<const SIZE: usize>(cpu: &mut Cpu, insn: &Insn) -> Step {
    x87_usable(cpu)?;
    let bytes = layout::<SIZE>(fields(&cpu.fx, real_layout(cpu)));
    store::<SIZE>(cpu, insn, &bytes)?;
    cpu.fx.fcw |= fcw::MASKS;
    cpu.fx.settle();
    Ok(())
}

fn fldenv<const SIZE: usize>(cpu: &mut Cpu, insn: &Insn) -> Step {
    begin(cpu)?;
    let mut bytes = [0; SIZE];
    load::<SIZE>(cpu, insn, &mut bytes)?;
    let real = real_layout(cpu);
    restore(&mut cpu.fx, &bytes, real);
    Ok(())
}

fn fnsave<const SIZE: usize>(cpu: &mut Cpu, insn: &Insn) -> Step {
    x87_usable(cpu)?;
    let mut bytes = [0; 28 + STACK];
    bytes[..SIZE].copy_from_slice(&layout::<SIZE>(fields(&cpu.fx, real_layout(cpu))));
    for (st, bytes) in cpu.fx.st.iter().zip(bytes[SIZE..].chunks_exact_mut(10)) {
        bytes.copy_from_slice(&st.to_le_bytes()[..10]);
    }
    store::<SIZE>(cpu, insn, &bytes[..SIZE + STACK])?;
    cpu.fx.init();
    Ok(())
}

fn frstor<const SIZE: usize>(cpu: &mut Cpu, insn: &Insn) -> Step {
    begin(cpu)?;
    let mut bytes = [0; 28 + STACK];
    load::<SIZE>(cpu, insn, &mut bytes[..SIZE + STACK])?;
    let real = real_layout(cpu);
    let environment: [u8; SIZE] = std::array::from_fn(|i| bytes[i]);
    restore(&mut cpu.fx, &environment, real);
    for (st, bytes) in cpu.fx.st.iter_mut().zip(bytes[SIZE..].chunks_exact(10)) {
        *st = bytes.iter().rev().fold(0, |value, byte| value << 8 | u128::from(*byte));
    }
    Ok(())
}
