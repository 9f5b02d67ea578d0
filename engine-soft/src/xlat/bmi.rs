//! BMI1, BMI2, LZCNT, MOVBE, executed by the host's own.
//!
//! Those that leave flags undefined are the interpreter's where anybody could see these flags.

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::body::Body;
use super::emit::{Map, Op, RAX, RCX, RDX, Rm, op};
use super::memory::Way;
use super::registers::{GUEST_RDX, Place, place};
use crate::vex::{Tail, Vex};

/// Flags that an instruction leaves undefined, as the decoder has them.
fn undefined(i: &Instruction) -> u32 {
    use iced_x86::RflagsBits as F;
    match i.mnemonic() {
        M::Tzcnt | M::Lzcnt => F::OF | F::SF | F::AF | F::PF,
        M::Bextr => F::SF | F::AF | F::PF,
        M::Andn | M::Blsi | M::Blsmsk | M::Blsr | M::Bzhi => F::AF | F::PF,
        _ => 0,
    }
}

impl Body<'_> {
    /// Translates an instruction of this kind.
    pub(crate) fn bit_manipulation(&mut self, k: usize, i: &Instruction) -> Option<()> {
        let flags = undefined(i);
        if flags != 0 && self.visible(k, flags) {
            return None;
        }
        match i.mnemonic() {
            M::Tzcnt => self.count(i, 0xBC),
            M::Lzcnt => self.count(i, 0xBD),
            M::Movbe => self.movbe(i),
            M::Mulx if self.bmi2 => self.mulx(i),
            M::Andn | M::Bextr | M::Blsi | M::Blsmsk | M::Blsr => self.bits(k, i),
            M::Bzhi | M::Pdep | M::Pext | M::Rorx | M::Sarx | M::Shlx | M::Shrx if self.bmi2 => {
                self.bits(k, i)
            }
            _ => None,
        }
    }

    /// The operand that may be memory; its register may be in the frame.
    fn either(&mut self, i: &Instruction, n: u32) -> Option<Rm> {
        match i.op_kind(n) {
            OpKind::Memory => self.memory(i, Way::Read),
            _ => Some(place(i.op_register(n))?.rm()),
        }
    }

    fn count(&mut self, i: &Instruction, byte: u8) -> Option<()> {
        let (to, width) = (place(i.op0_register())?, i.op0_register().size() as u8);
        let from = self.either(i, 1)?;
        let code = Op { prefix: 0xF3, map: Map::Two, byte };
        self.on(to, width < 4, true, |asm, reg| asm.modrm(code, width, reg.0, from));
        Some(())
    }

    fn movbe(&mut self, i: &Instruction) -> Option<()> {
        let width = i.memory_size().size() as u8;
        if width < 4 {
            return None;
        }
        if i.op1_kind() == OpKind::Memory {
            let to = place(i.op0_register())?;
            let from = self.memory(i, Way::Read)?;
            self.on(to, false, true, |asm, reg| {
                asm.modrm(op(0x8B), width, reg.0, from);
                asm.bswap(width, reg);
            });
        } else {
            let from = place(i.op1_register())?;
            let to = self.memory(i, Way::Write)?;
            self.asm.modrm(op(0x8B), width, RCX.0, from.rm());
            self.asm.bswap(width, RCX);
            self.asm.modrm(op(0x89), width, RCX.0, to);
        }
        Some(())
    }

    /// Operands in VEX.vvvv and ModRM: what is in the frame of the former goes by RCX, a result there by RAX.
    fn bits(&mut self, k: usize, i: &Instruction) -> Option<()> {
        let (vex, fields, tail) = Vex::of(self.encoding(k), i)?;
        let to = place(i.op0_register())?;
        let rm = self.either(i, fields.rm as u32)?;
        let result = match to {
            Place::Host(reg) => reg,
            Place::Slot(_) => RAX,
        };
        let register = |body: &mut Self, n: usize| {
            if n == 0 {
                return Some(result);
            }
            Some(body.in_register(place(i.op_register(n as u32))?, RCX))
        };
        let vvvv = match fields.vvvv {
            Some(n) => register(self, n)?.0,
            None => 0,
        };
        let reg = match fields.reg {
            Ok(n) => register(self, n)?.0,
            Err(group) => group,
        };
        self.asm.vex(vex, reg, vvvv, rm);
        if let Tail::Byte(byte) = tail {
            self.asm.raw(&[byte]);
        }
        if let Place::Slot(_) = to {
            self.asm.store(to.rm(), RAX);
        }
        Some(())
    }

    /// The upper half is written last.
    fn mulx(&mut self, i: &Instruction) -> Option<()> {
        let width = i.op0_register().size() as u8;
        let (high, low) = (place(i.op0_register())?, place(i.op1_register())?);
        let from = self.either(i, 2)?;
        self.asm.modrm(op(0x8B), width, RCX.0, from);
        self.asm.load(RDX, GUEST_RDX);
        let mulx = Vex { map: 2, prefix: 3, w: width == 8, l: false, opcode: 0xF6 };
        self.asm.vex(mulx, RAX.0, RCX.0, Rm::Reg(RCX));
        self.asm.store(low.rm(), RCX);
        self.asm.store(high.rm(), RAX);
        Some(())
    }
}
