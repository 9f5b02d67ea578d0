//! AVX instructions, executed by the host's own as SSE's are (see [`super::vector`]): operand `n` in register `n`.
//!
//! The two halves of a YMM register are in two places of the vCPU. No instruction leaves anything in an upper half of the
//! host's registers, so SSE instructions, translated or Rust's, are as fast beside them as alone. While any floating-point
//! exception is unmasked, all of them are the interpreter's.

use std::mem::offset_of;

use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Mnemonic as M, OpKind, Register};

use super::body::Body;
use super::emit::{CPU, RCX, Reg, Rm, word};
use super::memory::Way;
use super::registers::place;
use crate::cpu::Cpu;
use crate::exec::fpu::avx::is_avx;
use crate::frame::Frame;
use crate::fx::FxArea;
use crate::vex::{Tail, Vex};

/// The lower and the upper half of a YMM register in the vCPU that RCX points to.
fn halves(number: usize) -> [Rm; 2] {
    let lower = offset_of!(Cpu, fx) + offset_of!(FxArea, xmm);
    let upper = offset_of!(Cpu, upper);
    [lower, upper].map(|offset| Rm::Base(RCX, (offset + 16 * number) as i32))
}

/// An instruction of the first map with a 66 prefix.
const fn packed(opcode: u8) -> Vex {
    Vex { map: 1, prefix: 1, w: false, l: false, opcode }
}

/// VMOVDQA in both directions.
const LOAD: Vex = packed(0x6F);
const STORE: Vex = packed(0x7F);
const XOR: Vex = packed(0xEF);
/// VINSERTF128, VEXTRACTF128.
const INSERT: Vex = Vex { map: 3, l: true, ..packed(0x18) };
const EXTRACT: Vex = Vex { map: 3, l: true, ..packed(0x19) };
const ZEROUPPER: [u8; 3] = [0xC5, 0xF8, 0x77];

/// Those that are not the host's own with other operands.
fn is_special(i: &Instruction) -> bool {
    i.memory_index().is_vector_register()
        || matches!(
            i.mnemonic(),
            M::Vzeroall
                | M::Vldmxcsr
                | M::Vstmxcsr
                | M::Vmaskmovps
                | M::Vmaskmovpd
                | M::Vpmaskmovd
                | M::Vpmaskmovq
                | M::Vmaskmovdqu
                | M::Vpcmpestri
                | M::Vpcmpestrm
                | M::Vpcmpestri64
                | M::Vpcmpestrm64
                | M::Vpcmpistri
                | M::Vpcmpistrm
        )
}

/// The memory operand has to be aligned.
fn is_aligned(i: &Instruction) -> bool {
    matches!(
        i.mnemonic(),
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa
    )
}

/// Operand 0 is read and written.
fn accumulates(i: &Instruction) -> bool {
    i.cpuid_features().contains(&CpuidFeature::FMA)
}

/// Operand 0 is only read: flags are all that is written.
fn compares(i: &Instruction) -> bool {
    matches!(
        i.mnemonic(),
        M::Vptest | M::Vtestps | M::Vtestpd | M::Vcomiss | M::Vcomisd | M::Vucomiss | M::Vucomisd
    )
}

impl Body<'_> {
    /// Translates an AVX instruction.
    pub(crate) fn wide(&mut self, k: usize, i: &Instruction) -> Option<()> {
        if !is_avx(i) || is_special(i) {
            return None;
        }
        self.asm.load(RCX, word(offset_of!(Frame, no_wide)));
        let usable = self.asm.jump(0xE3);
        self.slow();
        self.asm.land(usable);
        if i.code() == Code::VEX_Vzeroupper {
            self.zero_upper();
            return Some(());
        }
        let (mut vex, fields, tail) = Vex::of(self.encoding(k), i)?;
        // See [`super::vector`].
        match i.mnemonic() {
            M::Vmovntdq => vex.opcode = STORE.opcode,
            M::Vmovntps | M::Vmovntpd => vex.opcode = 0x29,
            _ => {}
        }
        let vector = |n: u32| {
            let register = if i.op_kind(n) == OpKind::Register { i.op_register(n) } else { Register::None };
            register.is_vector_register().then_some(register)
        };
        let rm = fields.rm as u32;
        let memory = if i.op_kind(rm) == OpKind::Memory {
            let way = if rm == 0 { Way::Write } else { Way::Read };
            let (size, at) = (i.memory_size().size(), self.address(i)?);
            if is_aligned(i) {
                self.check_alignment(at, if size == 32 { 59 } else { 60 });
            }
            Some(self.probe(at, size, way))
        } else {
            None
        };
        self.asm.load(RCX, CPU);
        for n in (0..i.op_count()).filter(|&n| n > 0 || accumulates(i) || compares(i)) {
            if let Some(register) = vector(n) {
                self.fetch_wide(n as u8, register);
            }
        }
        // A general register is the first operand, to be written, or the last one, to be read from its place.
        let general = |n: u32| if vector(n).is_none() { place(i.op_register(n)) } else { None };
        let to = if memory.is_some() && rm == 0 { None } else { general(0) };
        let rm = match (memory, to) {
            (Some(memory), _) => memory,
            (None, Some(to)) if rm == 0 => self.target(to).into(),
            (None, _) => general(rm).map_or(Rm::Reg(Reg(rm as u8)), |from| from.rm()),
        };
        let reg = match (fields.reg, to) {
            (Ok(0), Some(to)) => self.target(to).0,
            (reg, _) => reg.map_or_else(|group| group, |n| n as u8),
        };
        self.asm.vex(vex, reg, fields.vvvv.map_or(0, |n| n as u8), rm);
        match tail {
            Tail::Nothing => {}
            Tail::Byte(byte) => self.asm.raw(&[byte]),
            Tail::Register => self.asm.raw(&[3 << 4]),
        }
        if let Some(to) = to {
            let reg = self.target(to);
            self.keep(to, reg);
        } else if let (Some(register), false) = (vector(0), compares(i)) {
            self.put_back_wide(register);
        }
        if vex.l {
            self.asm.raw(&ZEROUPPER);
        }
        Some(())
    }

    fn fetch_wide(&mut self, xmm: u8, register: Register) {
        let [lower, upper] = halves(register.number());
        self.asm.vex(LOAD, xmm, 0, lower);
        if register.is_ymm() {
            self.asm.vex(INSERT, xmm, xmm, upper);
            self.asm.raw(&[1]);
        }
    }

    /// From register 0, which is lost. The upper half of what is written as an XMM register becomes 0.
    fn put_back_wide(&mut self, register: Register) {
        let [lower, upper] = halves(register.number());
        self.asm.vex(STORE, 0, 0, lower);
        if register.is_ymm() {
            self.asm.vex(EXTRACT, 0, 0, upper);
            self.asm.raw(&[1]);
        } else {
            self.asm.vex(XOR, 0, 0, Rm::Reg(Reg(0)));
            self.asm.vex(STORE, 0, 0, upper);
        }
    }

    fn zero_upper(&mut self) {
        self.asm.load(RCX, CPU);
        self.asm.vex(XOR, 0, 0, Rm::Reg(Reg(0)));
        for number in 0..16 {
            let [_, upper] = halves(number);
            self.asm.vex(STORE, 0, 0, upper);
        }
    }

    /// An instruction that the smaller model does not have, or has as another.
    pub(crate) fn is_of_v3(&self, i: &Instruction) -> bool {
        i.encoding() == EncodingKind::VEX || matches!(i.mnemonic(), M::Tzcnt | M::Lzcnt | M::Movbe)
    }
}
