//! x87, MMX and SSE: the whole FXSAVE image, MXCSR and control words with random masks and modes.

use iced_x86::{Instruction, MemorySize, Mnemonic};

use super::campaign::Campaign;
use super::draw::Draw;
use engine_soft::xlat::Haste;

use super::interpreter::Interpreter;
use super::machine::{Mode, Outcome, SCRATCH_LEN, State};
use super::native::Native;

/// Of FXSAVE64.
pub mod at {
    pub const FCW: usize = 0;
    pub const FSW: usize = 2;
    pub const FTW: usize = 4;
    pub const FOP: usize = 6;
    pub const FIP: usize = 8;
    pub const FDP: usize = 16;
    pub const MXCSR: usize = 24;
    pub const MXCSR_MASK: usize = 28;
    pub const ST: usize = 32;
    pub const XMM: usize = 160;
    pub const END: usize = 416;
}

/// A double or a pair of singles that is a special case of something.
fn float64(draw: &mut Draw) -> u64 {
    let sign = draw.bits() & 1 << 63;
    let value = match draw.below(12) {
        0 => 0.0_f64.to_bits(),
        1 => f64::INFINITY.to_bits(),
        2 => 0x7FF8 << 48 | draw.bits() >> 13,
        3 => 0x7FF0 << 48 | draw.bits() >> 14 | 1,
        4 => draw.bits() >> 12 >> draw.below(52),
        5 => f64::MAX.to_bits() - draw.below(3),
        6 => f64::MIN_POSITIVE.to_bits() + draw.below(3),
        7 => (draw.below(20) as f64).to_bits(),
        8 => (draw.value() as i64 as f64).abs().to_bits(),
        9 => (0x3FF + draw.below(5)) << 52 | draw.bits() >> 12,
        10 => 1.5_f64.to_bits() + draw.below(2),
        _ => draw.bits() >> 1,
    };
    value | sign
}

/// A single of the same kind.
fn float32(draw: &mut Draw) -> u32 {
    let sign = (draw.bits() as u32) & 1 << 31;
    let value = match draw.below(12) {
        0 => 0,
        1 => f32::INFINITY.to_bits(),
        2 => 0x7FC0_0000 | draw.bits() as u32 >> 10,
        3 => 0x7F80_0001 | draw.bits() as u32 >> 11,
        4 => draw.bits() as u32 >> 9 >> draw.below(23),
        5 => f32::MAX.to_bits() - draw.below(3) as u32,
        6 => f32::MIN_POSITIVE.to_bits() + draw.below(3) as u32,
        7 => (draw.below(20) as f32).to_bits(),
        8 => (draw.value() as i64 as f32).abs().to_bits(),
        9 => (0x7F + draw.below(5) as u32) << 23 | draw.bits() as u32 >> 9,
        10 => 1.5_f32.to_bits() + draw.below(2) as u32,
        _ => draw.bits() as u32 >> 1,
    };
    value | sign
}

/// An extended-precision number, at times unnormal, pseudo-denormal or otherwise odd.
fn float80(draw: &mut Draw) -> [u8; 10] {
    let sign = (draw.bits() as u16) & 0x8000;
    let integer = 1 << 63;
    let (exponent, significand) = match draw.below(16) {
        0 => (0, 0),
        1 => (0x7FFF, integer),
        2 => (0x7FFF, 3 << 62 | draw.bits() >> 3),
        3 => (0x7FFF, integer | draw.bits() >> 2 | 1),
        4 => (0, draw.bits() >> 1 >> draw.below(63)),
        5 => (0, integer | draw.bits() >> 1),
        6 => (draw.bits() as u16, draw.bits()),
        7 => (0x7FFE - draw.below(3) as u16, !draw.below(3)),
        8 => (1 + draw.below(3) as u16, integer | draw.below(3)),
        9 => {
            let n = draw.value() | 1;
            let shift = n.leading_zeros();
            (0x3FFF + 63 - shift as u16, n << shift)
        }
        10 => (0x3FFF - 1023 - draw.below(80) as u16, integer | draw.bits()),
        11 => (0x3FFF + 1020 + draw.below(8) as u16, integer | draw.bits()),
        12 => (0x3FFF - 126 - draw.below(40) as u16, integer | draw.bits()),
        13 => (0x3FFF + 124 + draw.below(8) as u16, integer | draw.bits()),
        14 => (0x3FFF + draw.below(70) as u16, integer | draw.bits()),
        _ => (0x3FF0 + draw.below(32) as u16, integer | draw.bits()),
    };
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&significand.to_le_bytes());
    bytes[8..].copy_from_slice(&(exponent & 0x7FFF | sign).to_le_bytes());
    bytes
}

pub fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// 16 bytes of integers, singles or doubles.
pub fn vector(draw: &mut Draw) -> [u8; 16] {
    let mut bytes = [0; 16];
    match draw.below(5) {
        0 => bytes.fill_with(|| draw.of(&[0, 1, 0x7F, 0x80, 0xFF, b'a', b'z', 3])),
        1 => (0..4).for_each(|n| put(&mut bytes, n * 4, &float32(draw).to_le_bytes())),
        2 => (0..2).for_each(|n| put(&mut bytes, n * 8, &float64(draw).to_le_bytes())),
        3 => (0..2).for_each(|n| put(&mut bytes, n * 8, &draw.value().to_le_bytes())),
        _ => (0..2).for_each(|n| put(&mut bytes, n * 8, &draw.bits().to_le_bytes())),
    }
    bytes
}

/// Whether the host is the vendor's that the engine follows.
fn is_intel() -> bool {
    std::arch::x86_64::__cpuid(0).ecx == u32::from_le_bytes(*b"ntel")
}

/// Whether the instruction is of the x87 register stack.
fn is_x87(i: &Instruction) -> bool {
    let mnemonic = format!("{:?}", i.mnemonic());
    mnemonic.starts_with('F') && !mnemonic.starts_with("Fx")
        || i.mnemonic() == Mnemonic::Fxch
        || i.mnemonic() == Mnemonic::Fxam
        || i.mnemonic() == Mnemonic::Fxtract
}

/// Masks: mostly all, at times some.
fn masks(draw: &mut Draw) -> u64 {
    if draw.once_in(3) { draw.bits() & 0x3F } else { 0x3F }
}

pub fn prepare(i: &Instruction, state: &mut State, memory: &mut [u8; SCRATCH_LEN], draw: &mut Draw) {
    let fx = &mut state.fx;
    let fcw = 0x40 | masks(draw) | draw.bits() & 0x1F00;
    let mut flags = draw.bits() & draw.bits() & 0x3F;
    if !draw.once_in(16) {
        flags &= fcw;
    }
    let mut fsw = flags | draw.bits() & 0x4700;
    if !is_x87(i) || draw.once_in(2) {
        fsw |= draw.below(8) << 11;
    }
    put(fx, at::FCW, &(fcw as u16).to_le_bytes());
    put(fx, at::FSW, &(fsw as u16).to_le_bytes());
    fx[at::FTW] = if draw.once_in(2) { 0xFF } else { draw.bits() as u8 };
    put(fx, at::FOP, &(draw.bits() as u16 & 0x7FF).to_le_bytes());
    put(fx, at::FIP, &(draw.bits() & 0x7FFF_FFFF_FFFF).to_le_bytes());
    put(fx, at::FDP, &(draw.bits() & 0x7FFF_FFFF_FFFF).to_le_bytes());
    let modes = if draw.once_in(2) { 0 } else { draw.bits() & 0xE040 };
    let mxcsr = draw.bits() & draw.bits() & 0x3F | masks(draw) << 7 | modes;
    put(fx, at::MXCSR, &(mxcsr as u32).to_le_bytes());
    put(fx, at::MXCSR_MASK, &0xFFFF_u32.to_le_bytes());
    for n in 0..8 {
        put(fx, at::ST + 16 * n, &float80(draw));
    }
    for n in 0..16 {
        put(fx, at::XMM + 16 * n, &vector(draw));
    }
    for n in 0..64 {
        let value = match i.memory_size() {
            MemorySize::Float80 => {
                let mut value = [0; 16];
                value[..10].copy_from_slice(&float80(draw));
                value
            }
            _ => vector(draw),
        };
        let slot = draw.below(SCRATCH_LEN as u64 / 16) as usize;
        put(memory, (slot + n) % (SCRATCH_LEN / 16) * 16, &value);
    }
}

/// Clears what CPUs differ in: the data pointer that newer ones keep only at exceptions, the bits of the instruction pointer
/// that only those with five-level paging keep, whether an MMX store has touched the tags when it faults; and on those of other vendors all x87 pointers, the fault's address in an operand of several
/// parts, and approximations.
pub fn settle(i: &Instruction, before: &State, outcome: &mut Outcome) {
    let fx = &mut outcome.state.fx;
    fx[at::FDP..at::MXCSR].copy_from_slice(&before.fx[at::FDP..at::MXCSR]);
    fx[at::FIP + 6..at::FDP].fill(0);
    fx[at::MXCSR_MASK..at::ST].copy_from_slice(&0xFFFF_u32.to_le_bytes());
    fx[at::END..].fill(0);
    if outcome.fault.is_some_and(|fault| matches!(fault.vector, 12..=14)) && !is_x87(i) {
        fx[at::FSW..at::FTW + 1].fill(0);
        fx[at::ST..at::XMM].fill(0);
    }
    if !is_intel() {
        fx[at::FOP..at::FDP].fill(0);
        if let Some(address) = outcome.fault.as_mut().and_then(|fault| fault.address.as_mut()) {
            *address &= !0xFFF;
        }
    }
}

fn agrees(subject: &mut Interpreter) {
    let campaign = Campaign {
        modes: &[Mode::Long, Mode::Protected32],
        accepts: |i| engine_soft::exec::fpu::lookup(i).is_some(),
        excluded: &[],
        prepare,
        settle,
    };
    let mut native = Native::take();
    let report = campaign.run(&mut native, subject);
    println!("{} forms, {} cases", report.forms, report.cases);
}

#[test]
fn every_form_agrees_with_the_host() {
    agrees(&mut Interpreter::new());
}

#[test]
fn so_does_every_form_translated() {
    agrees(&mut Interpreter::translating(Haste::AtOnce));
}
