//! Memory operands: the address, and the probe of the translation cache that makes a host address of it.
//!
//! Nothing of this touches flags: they are the guest's, and a fault would show them. So shifts are SHRX (or, on hosts
//! without BMI2, done in a vector register), sums are LEA, and the one branch is JRCXZ.

use std::mem::offset_of;

use iced_x86::{Instruction, Register};

use super::body::Body;
use super::emit::{CPU, Map, Op, RAX, RCX, RDX, RSP, Reg, Rm, entry, op2, word};
use super::groups::Which;
use super::registers::{Place, place};
use crate::cpu::Cpu;
use crate::frame::{Frame, Half, SLOTS};

/// A linear address in translated code.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Address {
    /// In this register.
    In(Reg),
    /// In RAX, and known beforehand.
    Known(u64),
}

/// What an access wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Read,
    Write,
}

impl Body<'_> {
    /// Computes the address of the memory operand; RCX is lost.
    pub(crate) fn address(&mut self, i: &Instruction) -> Option<Address> {
        let base = i.memory_base();
        let based = match i.segment_prefix() {
            Register::FS | Register::GS => Some(i.segment_prefix().number()),
            _ => None,
        };
        let mut at = if i.is_ip_rel_memory_operand() {
            if base != Register::RIP {
                return None;
            }
            let target = i.ip_rel_memory_address();
            self.asm.constant(RAX, target);
            Address::Known(target)
        } else {
            self.effective(i)?
        };
        if let Some(segment) = based {
            let from = match at {
                Address::In(reg) => reg,
                Address::Known(_) => RAX,
            };
            self.asm.load(RCX, CPU);
            let base = offset_of!(Cpu, seg_base) + 8 * segment;
            self.asm.load(RCX, Rm::Base(RCX, base as i32));
            self.asm.lea(RAX, Rm::Index(from, RCX, 0, 0));
            at = Address::In(RAX);
        }
        Some(at)
    }

    /// Offset of a memory operand that is not relative to RIP.
    fn effective(&mut self, i: &Instruction) -> Option<Address> {
        let (base, index) = (i.memory_base(), i.memory_index());
        let disp = i.memory_displacement64();
        let narrow = |r: Register| r.is_gpr32();
        let width = if narrow(base) || narrow(index) { 4 } else { 8 };
        if base == Register::None && index == Register::None {
            self.asm.constant(RAX, disp);
            return Some(Address::Known(disp));
        }
        let disp = if width == 4 { disp as i32 } else { i32::try_from(disp as i64).ok()? };
        let base = self.part(base, RAX)?;
        let index = self.part(index, RCX)?;
        let scale = i.memory_index_scale().trailing_zeros() as u8;
        if let (Some(base), None, 0, 8) = (base, index, disp, width) {
            return Some(Address::In(base));
        }
        let from = sum(base, index, scale, disp)?;
        self.asm.modrm(super::emit::op(0x8D), width, RAX.0, from);
        Some(Address::In(RAX))
    }

    /// The operand of a LEA that computes nothing but 64-bit sums of registers.
    pub(crate) fn sum(&mut self, i: &Instruction) -> Option<Rm> {
        let (base, index) = (i.memory_base(), i.memory_index());
        let wide = |r: Register| r == Register::None || r.is_gpr64();
        if !wide(base) || !wide(index) || base == index && base == Register::None {
            return None;
        }
        let disp = i32::try_from(i.memory_displacement64() as i64).ok()?;
        let base = self.part(base, RAX)?;
        let index = self.part(index, RCX)?;
        sum(base, index, i.memory_index_scale().trailing_zeros() as u8, disp)
    }

    /// A register that an address is computed from, in a host register.
    fn part(&mut self, register: Register, scratch: Reg) -> Option<Option<Reg>> {
        if register == Register::None {
            return Some(None);
        }
        Some(Some(self.in_register(place(register)?, scratch)))
    }

    /// Makes the host address of an access, or does the instruction by the interpreter. RCX and RDX are lost, RAX stays.
    pub(crate) fn probe(&mut self, at: Address, size: usize, way: Way) -> Rm {
        let va = match at {
            Address::Known(_) => RAX,
            Address::In(va) => va,
        };
        self.known(at, Rm::Index(RCX, va, 0, size as i32 - 1), way);
        if way == Way::Write {
            self.goes_on_watched(va);
        }
        Rm::Index(va, RDX, 0, 0)
    }

    /// The same of an access to all bytes up to a last one: to its address `last` adds RCX. What makes host addresses is
    /// in RDX then.
    pub(crate) fn known(&mut self, at: Address, last: Rm, way: Way) {
        if self.happens(4) {
            self.slow();
        }
        let half = offset_of!(Frame, halves) + usize::from(self.user) * size_of::<Half>();
        let tags = half
            + match way {
                Way::Read => offset_of!(Half, read),
                Way::Write => offset_of!(Half, write),
            };
        let addends = half + offset_of!(Half, addend);
        let (tag, addend) = match at {
            Address::Known(va) => {
                let slot = (va >> 12) as usize % SLOTS;
                (word(tags + 8 * slot), word(addends + 8 * slot))
            }
            Address::In(va) => {
                self.shift_12(4, RDX, va);
                self.asm.modrm(op2(0xB7), 4, RDX.0, RDX);
                (entry(tags, RDX), entry(addends, RDX))
            }
        };
        self.asm.load(RCX, tag);
        self.asm.lea(RCX, last);
        self.shift_12(8, RCX, RCX);
        let known = self.asm.jump(0xE3);
        self.slow();
        self.asm.land(known);
        self.asm.load(RDX, addend);
        if way == Way::Write {
            self.changes();
        }
    }

    /// A store to memory that is not watched.
    pub(crate) fn changes(&mut self) {
        if self.watching {
            self.asm.modrm(super::emit::op(0xC7), 8, 0, word(offset_of!(Frame, unchanged)));
            self.asm.immediate(8, 0);
        }
    }

    /// Address and probe of the memory operand.
    pub(crate) fn memory(&mut self, i: &Instruction, way: Way) -> Option<Rm> {
        let size = i.memory_size().size();
        if let Some(rm) = self.grouped(Which::Operand, size, way) {
            return Some(rm);
        }
        let at = self.address(i)?;
        Some(self.probe(at, size, way))
    }

    /// `to = from >> 12`, flags untouched.
    pub(crate) fn shift_12(&mut self, width: u8, to: Reg, from: Reg) {
        if self.bmi2 {
            self.asm.shrx(width, to, from, RSP);
        } else {
            self.shift_in_vector(width, to, from, 12);
        }
    }

    /// `to = from >> by`, flags untouched; RDX is lost.
    pub(crate) fn shift_right(&mut self, width: u8, to: Reg, from: Reg, by: u8) {
        if self.bmi2 {
            self.asm.constant(RDX, by.into());
            self.asm.shrx(width, to, from, RDX);
        } else {
            self.shift_in_vector(width, to, from, by);
        }
    }

    fn shift_in_vector(&mut self, width: u8, to: Reg, from: Reg, by: u8) {
        let vector = |byte| Op { prefix: 0x66, map: Map::Two, byte };
        self.asm.modrm(vector(0x6E), width, 0, from);
        self.asm.modrm(vector(0x73), 4, 2, Reg(0));
        self.asm.immediate(1, by.into());
        self.asm.modrm(vector(0x7E), width, 0, to);
    }

    /// A guest register's value in a host register: its own, or the scratch register.
    pub(crate) fn in_register(&mut self, place: Place, scratch: Reg) -> Reg {
        match place {
            Place::Host(reg) => reg,
            Place::Slot(_) => {
                self.asm.load(scratch, place.rm());
                scratch
            }
        }
    }
}

fn sum(base: Option<Reg>, index: Option<Reg>, scale: u8, disp: i32) -> Option<Rm> {
    match (base, index) {
        (Some(base), Some(index)) => Some(Rm::Index(base, index, scale, disp)),
        (Some(base), None) => Some(Rm::Base(base, disp)),
        (None, Some(index)) => Some(Rm::Scaled(index, scale, disp)),
        (None, None) => None,
    }
}
