//! Instructions that leave flags undefined: shifts, multiplications, bit scans.
//!
//! What a CPU leaves there differs from vendor to vendor, so the interpreter has settled on something, and translated code
//! has to leave the same, lest a run depend on its host. Where nobody can see the undefined flags, nothing is done about
//! them; elsewhere they are put right, or the interpreter does the instruction.

use iced_x86::{Instruction, Mnemonic as M, OpKind, RflagsBits as F};

use super::body::Body;
use super::emit::{RAX, RCX, RDX, Reg, Rm, SCRATCH, op, op2};
use super::flags::{Overflow, Settling};
use super::memory::{Address, Way};
use super::registers::{GUEST_RAX, GUEST_RCX, GUEST_RDX, Place, place};

/// What a shift leaves undefined.
const SHIFT: u32 = F::OF | F::AF;
/// What a multiplication does.
const PRODUCT: u32 = F::SF | F::ZF | F::AF | F::PF;

impl Body<'_> {
    pub(crate) fn shift(&mut self, k: usize, i: &Instruction) -> Option<()> {
        let group = match i.mnemonic() {
            M::Rol => 0,
            M::Ror => 1,
            M::Shr => 5,
            M::Sar => 7,
            _ => 4,
        };
        let rotates = group < 2;
        let (register, width) = match i.op0_kind() {
            OpKind::Register => (Some(place(i.op0_register())?), i.op0_register().size() as u8),
            _ => (None, i.memory_size().size() as u8),
        };
        let by_register = i.op1_kind() == OpKind::Register;
        let count = if by_register { 0 } else { i.immediate(1) as u8 & if width == 8 { 63 } else { 31 } };
        let visible = self.visible(k, if rotates { F::OF } else { SHIFT });
        // Beyond the operand's width even CF is undefined.
        let narrow = width < 4 && (by_register || count >= width * 8);
        if visible && by_register && !rotates && !narrow {
            return self.shift_by_count(group, width, register?);
        }
        let settled = !visible || !by_register && (!rotates || register.is_some());
        if !settled || !by_register && count == 0 || narrow {
            return None;
        }
        let opcode = |byte: u8| op(byte | u8::from(width > 1));
        if by_register {
            match register {
                Some(Place::Host(reg)) => {
                    self.asm.load(RCX, GUEST_RCX);
                    self.asm.modrm(opcode(0xD2), width, group, reg);
                }
                Some(slot) => {
                    self.asm.load(RCX, GUEST_RCX);
                    self.asm.load(RAX, slot.rm());
                    self.asm.modrm(opcode(0xD2), width, group, RAX);
                    self.asm.store(slot.rm(), RAX);
                }
                None => {
                    let to = self.memory(i, Way::Write)?;
                    self.asm.load(RCX, GUEST_RCX);
                    self.asm.modrm(opcode(0xD2), width, group, to);
                }
            }
            return Some(());
        }
        let emit = |asm: &mut super::emit::Asm, rm: Rm| {
            asm.modrm(opcode(0xC0), width, group, rm);
            asm.immediate(1, count.into());
        };
        let mut result = RCX;
        match register {
            Some(place) => self.on(place, true, true, |asm, reg| {
                result = reg;
                emit(asm, reg.into());
            }),
            None => {
                let to = self.memory(i, Way::Write)?;
                emit(&mut self.asm, to);
            }
        }
        if rotates {
            if visible {
                self.settle_rotation(width, group == 0, result);
            }
            return Some(());
        }
        let overflow = match group {
            4 => Overflow::Turns,
            _ if count == 1 => Overflow::Keep,
            _ => Overflow::Clear,
        };
        self.settle_if_seen(k, SHIFT, Settling::Shift(overflow));
        Some(())
    }

    /// SHL, SHR and SAR (their opcode extension) by CL of 32 or 64 bits, with flags as the interpreter leaves them: of a count of 0
    /// all as they were.
    fn shift_by_count(&mut self, group: u8, width: u8, to: Place) -> Option<()> {
        self.asm.load(RCX, GUEST_RCX);
        match to {
            Place::Host(reg) => self.asm.modrm(op(0xD3), width, group, reg),
            Place::Slot(_) => {
                self.asm.modrm(op(0x8B), width, RDX.0, to.rm());
                self.asm.modrm(op(0xD3), width, group, RDX);
                self.asm.store(to.rm(), RDX);
            }
        }
        self.asm.save_flags();
        // and ecx, the bits that count
        self.asm.raw(&[0x83, 0xE1, if width == 8 { 63 } else { 31 }]);
        let none = self.asm.jump(0x84);
        if group == 5 {
            // dec ecx; setz dl; and al, dl: the sign that was, of a count of 1
            self.asm.raw(&[0xFF, 0xC9, 0x0F, 0x94, 0xC2, 0x20, 0xD0]);
        }
        self.put_shift_right(match group {
            4 => Overflow::Turns,
            5 => Overflow::Keep,
            _ => Overflow::Clear,
        });
        self.asm.land(none);
        self.asm.restore_flags();
        Some(())
    }

    /// OF of a rotation: to the left, whether the top bit and the bottom bit differ, to the right, the two top bits.
    fn settle_rotation(&mut self, width: u8, left: bool, result: Reg) {
        let top = i32::from(width) * 8 - 1;
        self.asm.load(RDX, result);
        self.asm.save_flags();
        if left {
            self.asm.load(RCX, RDX);
            self.asm.modrm(op(0xC1), 8, 4, RCX);
            self.asm.immediate(1, top);
        } else {
            self.asm.lea(RCX, Rm::Index(RDX, RDX, 0, 0));
        }
        self.asm.modrm(op(0x33), 8, RDX.0, RCX);
        self.asm.modrm(op(0xC1), 8, 5, RDX);
        self.asm.immediate(1, top);
        // and dl, 1; mov al, dl
        self.asm.raw(&[0x80, 0xE2, 1, 0x88, 0xD0]);
        self.asm.restore_flags();
    }

    /// DIV and IDIV, which keep flags. What would fault, and IDIV of more than a sign-extended accumulator or by -1, is the
    /// interpreter's.
    pub(crate) fn divide(&mut self, i: &Instruction) -> Option<()> {
        let signed = i.mnemonic() == M::Idiv;
        let (from, width) = match i.op0_kind() {
            OpKind::Register => (place(i.op0_register())?.rm(), i.op0_register().size() as u8),
            _ => (self.memory(i, Way::Read)?, i.memory_size().size() as u8),
        };
        if width < 4 {
            return None;
        }
        self.asm.modrm(op(0x8B), width, RCX.0, from);
        self.asm.save_flags();
        let possible = if signed {
            // The upper half is the lower one's sign, and the divisor neither 0 nor -1.
            self.asm.modrm(op(0x8B), width, RDX.0, GUEST_RAX);
            self.asm.modrm(op(0xC1), width, 7, RDX);
            self.asm.immediate(1, i32::from(width) * 8 - 1);
            self.asm.compare(width, RDX, GUEST_RDX);
            let large = self.asm.jump(0x85);
            self.asm.modrm(op(0x8D), width, RDX.0, Rm::Base(RCX, 1));
            self.asm.modrm(op(0x83), width, 7, RDX);
            self.asm.immediate(1, 1);
            let possible = self.asm.jump(0x87);
            self.asm.land(large);
            possible
        } else {
            // The quotient has room, and the divisor is not 0.
            self.asm.compare(width, GUEST_RDX, RCX);
            self.asm.jump(0x82)
        };
        self.asm.restore_flags();
        self.slow();
        self.asm.land(possible);
        self.asm.store(SCRATCH, RAX);
        self.asm.modrm(op(0x8B), width, RAX.0, GUEST_RAX);
        self.asm.modrm(op(0x8B), width, RDX.0, GUEST_RDX);
        self.asm.modrm(op(0xF7), width, if signed { 7 } else { 6 }, RCX);
        self.asm.load(GUEST_RAX, RAX);
        self.asm.load(GUEST_RDX, RDX);
        self.asm.load(RAX, SCRATCH);
        self.asm.restore_flags();
        Some(())
    }

    pub(crate) fn double_shift(&mut self, k: usize, i: &Instruction) -> Option<()> {
        let (to, from) = (place(i.op0_register()), place(i.op1_register())?);
        let (to, width) = (to?, i.op0_register().size() as u8);
        let left = i.mnemonic() == M::Shld;
        if i.op0_kind() != OpKind::Register || width < 4 || self.visible(k, SHIFT) {
            return None;
        }
        let code = if left { 0xA4 } else { 0xAC };
        if i.op2_kind() == OpKind::Register {
            let target = self.in_register(to, RAX);
            let source = self.in_register(from, RDX);
            self.asm.load(RCX, GUEST_RCX);
            self.asm.modrm(op2(code + 1), width, source.0, target);
            if let Place::Slot(_) = to {
                self.asm.store(to.rm(), target);
            }
            return Some(());
        }
        let count = i.immediate(2) as u8 & if width == 8 { 63 } else { 31 };
        if count == 0 {
            return None;
        }
        let source = self.in_register(from, RDX);
        self.on(to, true, true, |asm, reg| {
            asm.modrm(op2(code), width, source.0, reg);
            asm.immediate(1, count.into());
        });
        Some(())
    }

    pub(crate) fn multiply(&mut self, k: usize, i: &Instruction) -> Option<()> {
        if i.op_count() == 1 {
            let width = match i.op0_kind() {
                OpKind::Register => i.op0_register().size() as u8,
                _ => i.memory_size().size() as u8,
            };
            if width < 4 {
                return None;
            }
            let group = if i.mnemonic() == M::Mul { 4 } else { 5 };
            let from = match i.op0_kind() {
                OpKind::Register => place(i.op0_register())?.rm(),
                _ => {
                    let from = self.memory(i, Way::Read)?;
                    self.asm.modrm(op(0x8B), width, RCX.0, from);
                    Rm::Reg(RCX)
                }
            };
            self.asm.load(RAX, GUEST_RAX);
            self.asm.modrm(op(0xF7), width, group, from);
            self.asm.load(GUEST_RAX, RAX);
            self.asm.load(GUEST_RDX, RDX);
            self.settle_if_seen(k, PRODUCT, Settling::Product(width, Place::Host(GUEST_RAX)));
            return Some(());
        }
        let (to, width) = (place(i.op0_register())?, i.op0_register().size() as u8);
        let from = match i.op1_kind() {
            OpKind::Register => place(i.op1_register())?.rm(),
            _ => self.memory(i, Way::Read)?,
        };
        let by = (i.op_count() == 3).then(|| i.immediate(2) as i32);
        self.on(to, by.is_none() || width < 4, true, |asm, reg| match by {
            None => asm.modrm(op2(0xAF), width, reg.0, from),
            Some(value) => {
                asm.modrm(op(0x69), width, reg.0, from);
                asm.immediate(width, value);
            }
        });
        self.settle_if_seen(k, PRODUCT, Settling::Product(width, to));
        Some(())
    }

    /// BT, BTS, BTR, BTC.
    pub(crate) fn bit(&mut self, i: &Instruction) -> Option<()> {
        let group = match i.mnemonic() {
            M::Bt => 4,
            M::Bts => 5,
            M::Btr => 6,
            _ => 7,
        };
        let writes = group != 4;
        match (i.op0_kind(), i.op1_kind()) {
            (OpKind::Register, OpKind::Register) => {
                let (to, number) = (place(i.op0_register())?, place(i.op1_register())?);
                let width = i.op0_register().size() as u8;
                let number = self.in_register(number, RDX);
                self.on(to, true, writes, |asm, reg| asm.modrm(op2(0x83 | group << 3), width, number.0, reg));
            }
            (OpKind::Register, _) => {
                let (to, width) = (place(i.op0_register())?, i.op0_register().size() as u8);
                let number = i.immediate(1) as i32;
                self.on(to, true, writes, |asm, reg| {
                    asm.modrm(op2(0xBA), width, group, reg);
                    asm.immediate(1, number);
                });
            }
            (OpKind::Memory, OpKind::Register) => return self.bit_of_string(i, group),
            _ => {
                let width = i.memory_size().size() as u8;
                let number = i.immediate(1) as i32;
                let to = self.memory(i, if writes { Way::Write } else { Way::Read })?;
                self.asm.modrm(op2(0xBA), width, group, to);
                self.asm.immediate(1, number);
            }
        }
        Some(())
    }

    /// The same (by their opcode extension) where a register of 64 bits counts them from a memory operand.
    fn bit_of_string(&mut self, i: &Instruction, group: u8) -> Option<()> {
        if !self.bmi2 || !i.op1_register().is_gpr64() {
            return None;
        }
        let number = place(i.op1_register())?;
        let way = if group == 4 { Way::Read } else { Way::Write };
        let from = match self.address(i)? {
            Address::In(reg) => reg,
            Address::Known(_) => RAX,
        };
        let bits = self.in_register(number, RDX);
        self.asm.constant(RCX, 6);
        self.asm.sarx(RCX, bits, RCX);
        self.asm.lea(RAX, Rm::Index(from, RCX, 3, 0));
        let at = self.probe(Address::In(RAX), 8, way);
        if way == Way::Write {
            self.asm.lea(RAX, at);
            self.asm.load(RDX, Rm::Base(RAX, 0));
        } else {
            self.asm.load(RDX, at);
        }
        let bits = self.in_register(number, RCX);
        self.asm.modrm(op2(0x83 | group << 3), 8, bits.0, RDX);
        if way == Way::Write {
            self.asm.store(Rm::Base(RAX, 0), RDX);
        }
        Some(())
    }

    /// BSF and BSR: of 0 they leave the destination; the flags are those of the source.
    pub(crate) fn scan(&mut self, i: &Instruction, byte: u8) -> Option<()> {
        let (to, width) = (place(i.op0_register())?, i.op0_register().size() as u8);
        if width < 4 {
            return None;
        }
        let from = match i.op1_kind() {
            OpKind::Register => place(i.op1_register())?.rm(),
            _ => self.memory(i, Way::Read)?,
        };
        self.asm.modrm(op(0x8B), width, RCX.0, from);
        let none = self.asm.jump(0xE3);
        match to {
            Place::Host(reg) => self.asm.modrm(op2(byte), width, reg.0, RCX),
            Place::Slot(_) => {
                self.asm.modrm(op2(byte), width, RAX.0, RCX);
                self.asm.store(to.rm(), RAX);
            }
        }
        self.asm.land(none);
        self.asm.modrm(op(0x85), width, RCX.0, RCX);
        Some(())
    }
}
