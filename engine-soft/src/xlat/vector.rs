//! SSE instructions, executed by the host's own on XMM registers that are fetched from the vCPU and put back.
//!
//! MXCSR is the guest's while translated code runs. An instruction that computes with floating-point numbers is left to the
//! interpreter while any of its exceptions is unmasked.

use std::mem::offset_of;

use iced_x86::{Code, Instruction, OpKind, Register};

use super::body::Body;
use super::emit::{CPU, Map, Op, RAX, RCX, Reg, Rm, op2, word};
use super::memory::{Address, Way};
use super::registers::{Place, place};
use crate::cpu::Cpu;
use crate::exec::fpu::sse::{Concern, concern};
use crate::frame::Frame;
use crate::fx::FxArea;

const XMM0: u8 = 0;
const XMM1: Reg = Reg(1);

/// An instruction's encoding without its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Encoding {
    op: Op,
    /// 8 with REX.W, else 4.
    width: u8,
    /// The register field of ModRM: an opcode extension, where there is one register.
    group: u8,
}

/// Takes an SSE instruction apart.
fn encoding(bytes: &[u8]) -> Option<Encoding> {
    let mut at = 0;
    let mut prefix = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            0xF2 | 0xF3 => prefix = byte,
            0x66 if prefix == 0 => prefix = byte,
            0x66 | 0x67 | 0x2E | 0x36 | 0x3E | 0x26 | 0x64 | 0x65 => {}
            _ => break,
        }
        at += 1;
    }
    let rex = bytes.get(at).copied().filter(|byte| byte & 0xF0 == 0x40);
    at += usize::from(rex.is_some());
    let width = if rex.is_some_and(|rex| rex & 8 != 0) { 8 } else { 4 };
    if bytes.get(at) != Some(&0x0F) {
        return None;
    }
    let (map, at) = match bytes.get(at + 1)? {
        0x38 => (Map::Three38, at + 2),
        0x3A => (Map::Three3A, at + 2),
        _ => (Map::Two, at + 1),
    };
    let (byte, modrm) = (*bytes.get(at)?, *bytes.get(at + 1)?);
    Some(Encoding { op: Op { prefix, map, byte }, width, group: modrm >> 3 & 7 })
}

/// Operand 0 is the one that may be memory, or a general register, in ModRM's other field.
fn stores(code: Encoding) -> bool {
    let Op { prefix, map, byte } = code.op;
    map == Map::Two
        && (matches!(byte, 0x11 | 0x29 | 0x7F | 0xD6 | 0x13 | 0x17) || byte == 0x7E && prefix == 0x66)
}

/// 16 bytes of memory need not be aligned.
fn is_unaligned(i: &Instruction) -> bool {
    matches!(
        i.code(),
        Code::Movdqu_xmm_xmmm128
            | Code::Movdqu_xmmm128_xmm
            | Code::Movups_xmm_xmmm128
            | Code::Movups_xmmm128_xmm
            | Code::Movupd_xmm_xmmm128
            | Code::Movupd_xmmm128_xmm
            | Code::Lddqu_xmm_m128
    )
}

/// Moves 16 bytes that have to be aligned.
fn is_aligned_move(i: &Instruction) -> bool {
    matches!(
        i.code(),
        Code::Movdqa_xmm_xmmm128
            | Code::Movdqa_xmmm128_xmm
            | Code::Movaps_xmm_xmmm128
            | Code::Movaps_xmmm128_xmm
            | Code::Movapd_xmm_xmmm128
            | Code::Movapd_xmmm128_xmm
    )
}

/// The aligned move that a non-temporal store is made by: the host's own would take the data past the host's cache.
fn posted_as(i: &Instruction) -> Option<Op> {
    match i.code() {
        Code::Movntdq_m128_xmm => Some(Op { prefix: 0x66, map: Map::Two, byte: 0x7F }),
        Code::Movntps_m128_xmm => Some(op2(0x29)),
        Code::Movntpd_m128_xmm => Some(Op { prefix: 0x66, map: Map::Two, byte: 0x29 }),
        _ => None,
    }
}

/// An XMM register in the vCPU that RCX points to.
fn home(register: Register) -> Rm {
    let offset = offset_of!(Cpu, fx) + offset_of!(FxArea, xmm) + 16 * register.number();
    Rm::Base(RCX, offset as i32)
}

impl Body<'_> {
    pub(crate) fn vector(&mut self, k: usize, i: &Instruction) -> Option<()> {
        let posted = posted_as(i);
        let concern = concern(i).or(posted.map(|_| Concern::Bits))?;
        let code = encoding(self.encoding(k))?;
        let code = Encoding { op: posted.unwrap_or(code.op), ..code };
        let imm = (0..i.op_count()).find(|&n| i.op_kind(n) == OpKind::Immediate8).map(|_| i.immediate8());
        self.usable(concern);
        let xmm = |n: u32| {
            (i.op_kind(n) == OpKind::Register && i.op_register(n).is_xmm()).then(|| i.op_register(n))
        };
        let general = |n: u32| if i.op_kind(n) == OpKind::Register { place(i.op_register(n)) } else { None };
        let memory = |n: u32| i.op_kind(n) == OpKind::Memory;
        match (xmm(0), xmm(1)) {
            (Some(to), Some(from)) => {
                self.asm.load(RCX, CPU);
                if is_unaligned(i) || is_aligned_move(i) {
                    self.fetch(XMM0, from);
                    self.put_back(to);
                    return Some(());
                }
                self.fetch(XMM0, to);
                self.fetch(XMM1.0, from);
                if stores(code) {
                    self.apply(code, XMM1.0, Rm::Reg(Reg(XMM0)), imm);
                } else {
                    self.apply(code, XMM0, XMM1.into(), imm);
                }
                self.put_back(to);
            }
            (Some(to), None) if memory(1) => {
                let from = self.aligned_memory(i, Way::Read)?;
                self.asm.load(RCX, CPU);
                if !(is_unaligned(i) || is_aligned_move(i)) {
                    self.fetch(XMM0, to);
                }
                self.apply(code, XMM0, from, imm);
                self.put_back(to);
            }
            (Some(to), None) if i.op_kind(1) == OpKind::Immediate8 && i.op_count() == 2 => {
                self.asm.load(RCX, CPU);
                self.fetch(XMM0, to);
                self.apply(code, code.group, Rm::Reg(Reg(XMM0)), imm);
                self.put_back(to);
            }
            (Some(to), None) => {
                let from = general(1)?;
                self.asm.load(RCX, CPU);
                self.fetch(XMM0, to);
                self.apply(code, XMM0, from.rm(), imm);
                self.put_back(to);
            }
            (None, Some(from)) if memory(0) => {
                let to = self.aligned_memory(i, Way::Write)?;
                self.asm.load(RCX, CPU);
                self.fetch(XMM0, from);
                self.apply(code, XMM0, to, imm);
            }
            (None, Some(from)) => {
                let to = general(0)?;
                self.asm.load(RCX, CPU);
                self.fetch(XMM0, from);
                let reg = self.target(to);
                if stores(code) {
                    self.apply(code, XMM0, reg.into(), imm);
                } else {
                    self.apply(code, reg.0, Rm::Reg(Reg(XMM0)), imm);
                }
                self.keep(to, reg);
            }
            (None, None) if memory(1) => {
                let to = general(0)?;
                let from = self.aligned_memory(i, Way::Read)?;
                let reg = self.target(to);
                self.apply(code, reg.0, from, imm);
                self.keep(to, reg);
            }
            _ => return None,
        }
        Some(())
    }

    /// Leaves the instruction to the interpreter if it would fault or trap. Once one of a block may move vectors, all that
    /// follow may: what takes that away ends a block.
    fn usable(&mut self, concern: Concern) {
        let refused = match concern {
            Concern::Bits if self.vectors_usable => return,
            Concern::Bits => offset_of!(Frame, no_vectors),
            Concern::Floats => offset_of!(Frame, no_floats),
        };
        self.asm.load(RCX, word(refused));
        let usable = self.asm.jump(0xE3);
        self.slow();
        self.asm.land(usable);
        self.vectors_usable = true;
    }

    fn apply(&mut self, code: Encoding, reg: u8, rm: Rm, imm: Option<u8>) {
        self.asm.modrm(code.op, code.width, reg, rm);
        if let Some(imm) = imm {
            self.asm.immediate(1, imm.into());
        }
    }

    /// `movaps xmm, home`.
    fn fetch(&mut self, xmm: u8, register: Register) {
        self.asm.modrm(op2(0x28), 4, xmm, home(register));
    }

    /// `movaps home, xmm0`.
    fn put_back(&mut self, register: Register) {
        self.asm.modrm(op2(0x29), 4, XMM0, home(register));
    }

    /// Where a general register's new value is made.
    pub(crate) fn target(&self, to: Place) -> Reg {
        match to {
            Place::Host(reg) => reg,
            Place::Slot(_) => RCX,
        }
    }

    pub(crate) fn keep(&mut self, to: Place, reg: Reg) {
        if let Place::Slot(_) = to {
            self.asm.store(to.rm(), reg);
        }
    }

    /// The memory operand, which has to be aligned if it is of 16 bytes and the instruction is not one that says otherwise.
    fn aligned_memory(&mut self, i: &Instruction, way: Way) -> Option<Rm> {
        let size = i.memory_size().size();
        let at = self.address(i)?;
        if size == 16 && !is_unaligned(i) {
            self.check_alignment(at, 60);
        }
        Some(self.probe(at, size, way))
    }

    /// Leaves the instruction to the interpreter unless an address, shifted left by so much, is 0.
    pub(crate) fn check_alignment(&mut self, at: Address, shift: i32) {
        let va = match at {
            Address::In(reg) => reg,
            Address::Known(_) => RAX,
        };
        let vector = |byte| Op { prefix: 0x66, map: Map::Two, byte };
        // movq xmm1, va; psllq xmm1, shift; movq rcx, xmm1
        self.asm.modrm(vector(0x6E), 8, XMM1.0, va);
        self.asm.modrm(vector(0x73), 4, 6, XMM1);
        self.asm.immediate(1, shift);
        self.asm.modrm(vector(0x7E), 8, XMM1.0, RCX);
        let aligned = self.asm.jump(0xE3);
        self.slow();
        self.asm.land(aligned);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoding_is_taken_apart() {
        // addsd xmm9, [rax]
        let code = encoding(&[0xF2, 0x44, 0x0F, 0x58, 0x08]).expect("it is one");
        assert_eq!(code.op, Op { prefix: 0xF2, map: Map::Two, byte: 0x58 });
        assert_eq!((code.width, code.group), (4, 1));
        // pinsrq xmm0, rax, 1
        let code = encoding(&[0x66, 0x48, 0x0F, 0x3A, 0x22, 0xC0, 1]).expect("it is one");
        assert_eq!((code.op.map, code.width), (Map::Three3A, 8));
        assert_eq!(encoding(&[0x90]), None);
    }
}
