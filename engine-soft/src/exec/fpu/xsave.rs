//! XSAVE, XSAVEOPT, XRSTOR, XGETBV, XSETBV (SDM vol. 1, ch. 13), in the standard format.
//!
//! XSAVEOPT leaves components alone that are in their initial state; it does not follow what was modified since XRSTOR.

use engine::cpuid::xsave::{AVX, HEADER, SIZE, SSE, UPPER, X87, valid};
use engine::event::StoreKind;
use engine::state::Fpu;
use iced_x86::{Code, Instruction};

use crate::cpu::Cpu;
use crate::cpu::control::{CR0_TS, CR4_OSXSAVE};
use crate::fx::{FxArea, fcw, mxcsr};
use crate::insn::{Exec, Insn};
use crate::trap::{Step, vector};

/// The function that executes an instruction of this family.
#[must_use]
pub fn lookup(i: &Instruction) -> Option<Exec> {
    Some(match i.code() {
        Code::Xsave_mem => save::<false, false>,
        Code::Xsave64_mem => save::<true, false>,
        Code::Xsaveopt_mem => save::<false, true>,
        Code::Xsaveopt64_mem => save::<true, true>,
        Code::Xrstor_mem => restore::<false>,
        Code::Xrstor64_mem => restore::<true>,
        Code::Xgetbv => xgetbv,
        Code::Xsetbv => xsetbv,
        _ => return None,
    })
}

/// Numbers in [`Cpu::gpr`].
const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;

/// Where parts of the legacy region are.
const MXCSR: usize = 24;
const ST: usize = 32;
const XMM: usize = 160;
/// Bytes of the header.
const HEADER_LEN: usize = 64;

fn enabled(cpu: &mut Cpu) -> Step {
    if cpu.cr4 & CR4_OSXSAVE != 0 { Ok(()) } else { cpu.ud() }
}

/// EDX:EAX.
fn pair(cpu: &Cpu) -> u64 {
    u64::from(cpu.get::<u32>(RDX)) << 32 | u64::from(cpu.get::<u32>(RAX))
}

fn xgetbv(cpu: &mut Cpu, _: &Insn) -> Step {
    enabled(cpu)?;
    if cpu.get::<u32>(RCX) != 0 {
        return cpu.gp();
    }
    let xcr0 = cpu.xcr0;
    cpu.put(RAX, xcr0 as u32);
    cpu.put(RDX, (xcr0 >> 32) as u32);
    Ok(())
}

fn xsetbv(cpu: &mut Cpu, _: &Insn) -> Step {
    enabled(cpu)?;
    let value = pair(cpu);
    if cpu.cpl != 0 || cpu.get::<u32>(RCX) != 0 || !valid(value) {
        return cpu.gp();
    }
    cpu.xcr0 = value;
    Ok(())
}

/// What all of them ask first, and the components that are meant.
fn begin(cpu: &mut Cpu, insn: &Insn) -> Step<u64> {
    enabled(cpu)?;
    if cpu.cr0 & CR0_TS != 0 {
        return cpu.raise(vector::NM, None);
    }
    if cpu.linear(insn) & 63 != 0 {
        return cpu.gp();
    }
    Ok(pair(cpu) & cpu.xcr0)
}

/// Registers beyond the eighth exist in 64-bit mode only.
fn registers(cpu: &Cpu) -> usize {
    if cpu.long { 16 } else { 8 }
}

/// The components that are not in their initial state. MXCSR is of none.
fn in_use(cpu: &Cpu) -> u64 {
    let fx = &cpu.fx;
    let pointers = (fx.fop, fx.fip, fx.fdp);
    let control = (fx.fcw, fx.fsw, fx.ftw);
    let initial = control == (fcw::INITIAL, 0, 0) && pointers == (0, 0, 0) && fx.st == [0; 8];
    let mut components = if initial { 0 } else { X87 };
    if fx.xmm != [0; 16] {
        components |= SSE;
    }
    if cpu.upper != [0; 16] {
        components |= AVX;
    }
    components
}

fn save<const WIDE: bool, const OPTIMISED: bool>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let asked = begin(cpu, insn)?;
    let at = cpu.offset(insn);
    let end = if asked & AVX != 0 { UPPER + 16 * registers(cpu) } else { HEADER + HEADER_LEN };
    cpu.probe(insn.seg, at, end, true)?;
    let mut bits = [0; 8];
    cpu.load_bytes(insn.seg, at.wrapping_add(HEADER as u64), &mut bits)?;
    let live = in_use(cpu);
    let header = u64::from_le_bytes(bits) & !asked | live & asked;
    let written = if OPTIMISED { asked & live } else { asked };
    let mut image = cpu.fx.bytes();
    if !WIDE {
        // 32-bit pointers, each with a selector that is always 0.
        image[12..16].fill(0);
        image[20..24].fill(0);
    }
    let count = registers(cpu);
    let upper = cpu.upper.map(u128::to_le_bytes).concat();
    let mut put = |from: usize, bytes: &[u8]| {
        cpu.store_bytes(insn.seg, at.wrapping_add(from as u64), bytes, StoreKind::Cached)
    };
    if written & X87 != 0 {
        put(0, &image[..MXCSR])?;
        put(ST, &image[ST..XMM])?;
    }
    if asked & (SSE | AVX) != 0 {
        put(MXCSR, &image[MXCSR..ST])?;
    }
    if written & SSE != 0 {
        put(XMM, &image[XMM..XMM + 16 * count])?;
    }
    put(HEADER, &header.to_le_bytes())?;
    if written & AVX != 0 {
        put(UPPER, &upper[..16 * count])?;
    }
    Ok(())
}

fn restore<const WIDE: bool>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let asked = begin(cpu, insn)?;
    let at = cpu.offset(insn);
    let mut area = [0; SIZE];
    let len = if asked & AVX != 0 { UPPER + 16 * registers(cpu) } else { HEADER + HEADER_LEN };
    cpu.load_bytes(insn.seg, at, &mut area[..len])?;
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| area[at + n]));
    let live = word(HEADER);
    let control = word(MXCSR) as u32;
    let takes_mxcsr = asked & (SSE | AVX) != 0;
    if live & !cpu.xcr0 != 0
        || word(HEADER + 8) | word(HEADER + 16) != 0
        || takes_mxcsr && control & !mxcsr::VALID != 0
    {
        return cpu.gp();
    }
    let mut image = [0; Fpu::SIZE];
    image.copy_from_slice(&area[..Fpu::SIZE]);
    if !WIDE {
        image[12..16].fill(0);
        image[20..24].fill(0);
    }
    let new = FxArea::new(&image);
    let old = cpu.fx;
    if asked & X87 != 0 {
        let from = if live & X87 != 0 { new } else { FxArea::default() };
        cpu.fx = from;
        (cpu.fx.mxcsr, cpu.fx.xmm) = (old.mxcsr, old.xmm);
    }
    let count = registers(cpu);
    if asked & SSE != 0 {
        let from = if live & SSE != 0 { new.xmm } else { [0; 16] };
        cpu.fx.xmm[..count].copy_from_slice(&from[..count]);
    }
    if takes_mxcsr {
        cpu.fx.mxcsr = control;
    }
    if asked & AVX != 0 {
        for n in 0..count {
            let half =
                |n: usize| u128::from(word(UPPER + 16 * n)) | u128::from(word(UPPER + 16 * n + 8)) << 64;
            cpu.upper[n] = if live & AVX != 0 { half(n) } else { 0 };
        }
    }
    Ok(())
}
