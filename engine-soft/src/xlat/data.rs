//! Instructions that move and compute, executed by the host's own.
//!
//! Each is the guest's instruction with its operands where they are on the host. What is not known here is `None`, and
//! the interpreter does it.

use engine::cpuid::CpuModel;
use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

use super::body::Body;
use super::emit::{Asm, Map, Op, RAX, RCX, RDX, Reg, Rm, op, op2};
use super::groups::Which;
use super::memory::{Address, Way};
use super::registers::{GUEST_RAX, GUEST_RDX, GUEST_RSP, Place, place};

/// The forms of a two-operand instruction: `rm, reg` (its 8-bit opcode), `reg, rm`, and the group of `rm, imm`.
struct Forms {
    to_rm: u8,
    to_reg: u8,
    group: u8,
    /// Operand 0 is written, read.
    writes: bool,
    reads: bool,
}

fn forms(m: M) -> Option<Forms> {
    let alu = |n: u8| Forms { to_rm: n * 8, to_reg: n * 8 + 2, group: n, writes: n != 7, reads: true };
    Some(match m {
        M::Add => alu(0),
        M::Or => alu(1),
        M::Adc => alu(2),
        M::Sbb => alu(3),
        M::And => alu(4),
        M::Sub => alu(5),
        M::Xor => alu(6),
        M::Cmp => alu(7),
        M::Test => Forms { to_rm: 0x84, to_reg: 0x84, group: 0, writes: false, reads: true },
        // Past the cache or not is all the same to the host's own stores.
        M::Mov | M::Movnti => Forms { to_rm: 0x88, to_reg: 0x8A, group: 0, writes: true, reads: false },
        _ => return None,
    })
}

/// The 8-bit opcode, or the one of other widths behind it.
fn sized(byte: u8, width: u8) -> Op {
    op(byte | u8::from(width > 1))
}

impl Body<'_> {
    /// Translates an instruction of this kind.
    pub(crate) fn data(&mut self, k: usize, i: &Instruction) -> Option<()> {
        if i.has_lock_prefix() && self.watching {
            return None;
        }
        if self.model == CpuModel::V3 && self.is_of_v3(i) {
            return self.bit_manipulation(k, i).or_else(|| self.wide(k, i));
        }
        match i.mnemonic() {
            M::Mov if i.op1_register().is_segment_register() => self.system(i),
            M::Mov
            | M::Movnti
            | M::Add
            | M::Or
            | M::Adc
            | M::Sbb
            | M::And
            | M::Sub
            | M::Xor
            | M::Cmp
            | M::Test => self.two(i),
            M::Inc => self.one(i, 0xFE, 0),
            M::Dec => self.one(i, 0xFE, 1),
            M::Not => self.one(i, 0xF6, 2),
            M::Neg => self.one(i, 0xF6, 3),
            M::Lea => self.lea(i),
            M::Movzx => self.extend(i, 0xB6),
            M::Movsx => self.extend(i, 0xBE),
            M::Movsxd => self.extend(i, 0x63),
            M::Xchg => self.xchg(i),
            M::Bswap => self.bswap(i),
            M::Cwde => self.widen(op2(0xBF), 4),
            M::Cdqe => self.widen(op(0x63), 8),
            M::Cdq => self.spread(4),
            M::Cqo => self.spread(8),
            M::Push => self.push(i),
            M::Pop => self.pop(i),
            M::Leave => self.leave(i),
            M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror => self.shift(k, i),
            M::Shld | M::Shrd => self.double_shift(k, i),
            M::Imul | M::Mul => self.multiply(k, i),
            M::Div | M::Idiv => self.divide(i),
            M::Bt | M::Bts | M::Btr | M::Btc => self.bit(i),
            M::Bsf | M::Tzcnt => self.scan(i, 0xBC),
            M::Bsr | M::Lzcnt => self.scan(i, 0xBD),
            M::Popcnt => self.popcnt(i),
            M::Cmpxchg => self.cmpxchg(i),
            M::Xadd => self.xadd(i),
            M::Nop | M::Endbr64 | M::Endbr32 => Some(()),
            M::Clflush | M::Clflushopt | M::Clwb if self.watching => self.flushes(i),
            M::Sfence | M::Lfence | M::Mfence if !self.watching => Some(()),
            _ => (self.conditional(i))
                .or_else(|| self.system(i))
                .or_else(|| self.vector(k, i))
                .or_else(|| self.x87(k, i)),
        }
    }

    /// Runs code on a register operand: in its host register, or in RCX with the frame's word around it.
    pub(crate) fn on(&mut self, place: Place, reads: bool, writes: bool, f: impl FnOnce(&mut Asm, Reg)) {
        match place {
            Place::Host(reg) => f(&mut self.asm, reg),
            Place::Slot(_) => {
                if reads {
                    self.asm.load(RCX, place.rm());
                }
                f(&mut self.asm, RCX);
                if writes {
                    self.asm.store(place.rm(), RCX);
                }
            }
        }
    }

    /// A register or (after its probe) memory source. AH and its like come in DL.
    fn source(&mut self, i: &Instruction, n: u32) -> Option<Rm> {
        match i.op_kind(n) {
            OpKind::Register => match high(i.op_register(n)) {
                Some(whole) => {
                    self.asm.load(RDX, whole.rm());
                    // movzx edx, dh
                    self.asm.raw(&[0x0F, 0xB6, 0xD6]);
                    Some(Rm::Reg(RDX))
                }
                None => place(i.op_register(n)).map(Place::rm),
            },
            OpKind::Memory => self.memory(i, Way::Read),
            _ => None,
        }
    }

    fn two(&mut self, i: &Instruction) -> Option<()> {
        let Forms { to_rm, to_reg, group, writes, reads } = forms(i.mnemonic())?;
        let is_move = i.mnemonic() == M::Mov;
        if let Some(whole) = high(i.op0_register()) {
            return self.two_high(i, whole);
        }
        match (i.op0_kind(), i.op1_kind()) {
            (OpKind::Register, OpKind::Register | OpKind::Memory) => {
                let (to, width) = (place(i.op0_register())?, i.op0_register().size() as u8);
                let from = self.source(i, 1)?;
                // A narrow write keeps the rest of the register.
                let reads = reads || width < 4;
                self.on(to, reads, writes, |asm, reg| asm.modrm(sized(to_reg, width), width, reg.0, from));
            }
            (OpKind::Register, _) => {
                let (to, width) = (place(i.op0_register())?, i.op0_register().size() as u8);
                let value = i.immediate(1);
                if is_move && width >= 4 {
                    let value = if width == 4 { value & 0xFFFF_FFFF } else { value };
                    self.on(to, false, true, |asm, reg| asm.constant(reg, value));
                } else {
                    let reads = reads || width < 4;
                    self.on(to, reads, writes, |asm, reg| {
                        immediate_form(asm, i.mnemonic(), group, width, reg.into(), value);
                    });
                }
            }
            (OpKind::Memory, OpKind::Register) => {
                let (whole, width) = (high(i.op1_register()), i.op1_register().size() as u8);
                let from = whole.or_else(|| place(i.op1_register()))?;
                let way = if writes { Way::Write } else { Way::Read };
                let to = self.memory(i, way)?;
                let mut from = self.in_register(from, RCX);
                if whole.is_some() {
                    self.asm.load(RCX, from);
                    // movzx ecx, ch
                    self.asm.raw(&[0x0F, 0xB6, 0xCD]);
                    from = RCX;
                }
                self.asm.modrm(sized(to_rm, width), width, from.0, to);
            }
            (OpKind::Memory, _) => {
                let width = i.memory_size().size() as u8;
                let way = if writes { Way::Write } else { Way::Read };
                let to = self.memory(i, way)?;
                immediate_form(&mut self.asm, i.mnemonic(), group, width, to, i.immediate(1));
            }
            _ => return None,
        }
        Some(())
    }

    /// As [`Body::two`], where operand 0 is AH or its like: it is CH of the host meanwhile.
    fn two_high(&mut self, i: &Instruction, whole: Place) -> Option<()> {
        const CH: u8 = 5;
        let Forms { to_reg, group, writes, .. } = forms(i.mnemonic())?;
        match i.op1_kind() {
            OpKind::Register => {
                let from = self.source(i, 1)?;
                self.asm.modrm(op(0x8B), 4, RDX.0, from);
                self.asm.load(RCX, whole.rm());
                self.asm.legacy_byte(op(to_reg), CH, Rm::Reg(RDX));
            }
            OpKind::Memory => return None,
            _ => {
                self.asm.load(RCX, whole.rm());
                let byte = match i.mnemonic() {
                    M::Mov => 0xC6,
                    M::Test => 0xF6,
                    _ => 0x80,
                };
                self.asm.legacy_byte(op(byte), group, Rm::Reg(Reg(CH)));
                self.asm.immediate(1, i.immediate(1) as i32);
            }
        }
        if writes {
            self.asm.store(whole.rm(), RCX);
        }
        Some(())
    }

    fn one(&mut self, i: &Instruction, byte: u8, group: u8) -> Option<()> {
        if i.op0_kind() == OpKind::Register {
            let (to, width) = (place(i.op0_register())?, i.op0_register().size() as u8);
            self.on(to, true, true, |asm, reg| asm.modrm(sized(byte, width), width, group, reg));
        } else {
            let width = i.memory_size().size() as u8;
            let to = self.memory(i, Way::Write)?;
            self.asm.modrm(sized(byte, width), width, group, to);
        }
        Some(())
    }

    fn lea(&mut self, i: &Instruction) -> Option<()> {
        let to = place(i.op0_register())?;
        let width = i.op0_register().size() as u8;
        let plain = matches!(i.segment_prefix(), Register::None);
        if width < 4 || !plain {
            return None;
        }
        let mark = self.asm.here();
        if let Some(from) = self.sum(i) {
            self.on(to, false, true, |asm, reg| asm.modrm(op(0x8D), width, reg.0, from));
            return Some(());
        }
        self.asm.cut(mark);
        let at = self.address(i)?;
        let from = match at {
            Address::In(reg) => reg,
            Address::Known(_) => RAX,
        };
        match to {
            Place::Host(reg) => self.asm.modrm(op(0x8B), width, reg.0, from),
            Place::Slot(_) => {
                self.asm.modrm(op(0x8B), width, RCX.0, from);
                self.asm.store(to.rm(), RCX);
            }
        }
        Some(())
    }

    /// MOVZX, MOVSX (by the opcode of their 8-bit form) and MOVSXD.
    fn extend(&mut self, i: &Instruction, byte: u8) -> Option<()> {
        let (to, width) = (place(i.op0_register())?, i.op0_register().size() as u8);
        let from_size = match i.op1_kind() {
            OpKind::Register => i.op1_register().size(),
            _ => i.memory_size().size(),
        };
        let code = match (byte, from_size) {
            (0x63, 4) if width > 2 => op(0x63),
            (0x63, _) | (_, 4) => return None,
            (_, 1) => op2(byte),
            _ => op2(byte + 1),
        };
        let from = self.source(i, 1)?;
        let narrow_register = from_size == 1 && i.op1_kind() == OpKind::Register;
        self.on(to, width < 4, true, |asm, reg| {
            if narrow_register {
                asm.modrm_byte(code, width, reg.0, from)
            } else {
                asm.modrm(code, width, reg.0, from)
            }
        });
        Some(())
    }

    fn xchg(&mut self, i: &Instruction) -> Option<()> {
        let (b, width) = (place(i.op1_register())?, i.op1_register().size() as u8);
        if i.op0_kind() == OpKind::Register {
            let a = place(i.op0_register())?;
            let a_value = self.in_register(a, RAX);
            let b_value = self.in_register(b, RCX);
            self.asm.modrm(sized(0x86, width), width, a_value.0, b_value);
            for (place, value) in [(a, a_value), (b, b_value)] {
                if let Place::Slot(_) = place {
                    self.asm.store(place.rm(), value);
                }
            }
            return Some(());
        }
        if self.watching {
            return None;
        }
        let to = self.memory(i, Way::Write)?;
        // Two moves: the exchange itself would lock the bus, and nobody else is on it.
        let value = self.in_register(b, RCX);
        match b {
            Place::Host(_) if width >= 4 => {
                self.asm.modrm(op(0x8B), width, RCX.0, to);
                self.asm.modrm(op(0x89), width, value.0, to);
                self.asm.modrm(op(0x8B), width, value.0, RCX);
            }
            _ => {
                self.asm.modrm(sized(0x86, width), width, value.0, to);
                if let Place::Slot(_) = b {
                    self.asm.store(b.rm(), value);
                }
            }
        }
        Some(())
    }

    fn bswap(&mut self, i: &Instruction) -> Option<()> {
        let (to, width) = (place(i.op0_register())?, i.op0_register().size() as u8);
        if width < 4 {
            return None;
        }
        self.on(to, true, true, |asm, reg| asm.bswap(width, reg));
        Some(())
    }

    /// CWDE, CDQE.
    fn widen(&mut self, code: Op, width: u8) -> Option<()> {
        self.asm.modrm(code, width, GUEST_RAX.0, GUEST_RAX);
        Some(())
    }

    /// CDQ, CQO.
    fn spread(&mut self, width: u8) -> Option<()> {
        self.asm.load(RAX, GUEST_RAX);
        self.asm.raw(if width == 8 { &[0x48, 0x99] } else { &[0x99] });
        self.asm.load(GUEST_RDX, RDX);
        Some(())
    }

    fn push(&mut self, i: &Instruction) -> Option<()> {
        if i.stack_pointer_increment() != -8 {
            return None;
        }
        match i.op0_kind() {
            OpKind::Register => {
                let from = place(i.op0_register())?;
                let to = self.below_stack();
                let value = self.in_register(from, RCX);
                self.asm.store(to, value);
            }
            OpKind::Memory => {
                let from = self.memory(i, Way::Read)?;
                self.asm.load(RCX, from);
                self.asm.store(super::emit::SCRATCH, RCX);
                let to = self.below_stack();
                self.asm.load(RCX, super::emit::SCRATCH);
                self.asm.store(to, RCX);
            }
            _ => {
                let value = i32::try_from(i.immediate(0) as i64).ok()?;
                let to = self.below_stack();
                self.asm.modrm(op(0xC7), 8, 0, to);
                self.asm.immediate(8, value);
            }
        }
        self.asm.lea(GUEST_RSP, Rm::Base(GUEST_RSP, -8));
        Some(())
    }

    /// Memory for the next push.
    pub(crate) fn below_stack(&mut self) -> Rm {
        self.grouped(Which::Stack, 8, Way::Write).unwrap_or_else(|| {
            self.asm.lea(RAX, Rm::Base(GUEST_RSP, -8));
            self.probe(Address::In(RAX), 8, Way::Write)
        })
    }

    /// The word that a register points to, for what takes it off the stack.
    pub(crate) fn on_stack(&mut self, pointer: Reg) -> Rm {
        self.grouped(Which::Stack, 8, Way::Read)
            .unwrap_or_else(|| self.probe(Address::In(pointer), 8, Way::Read))
    }

    fn pop(&mut self, i: &Instruction) -> Option<()> {
        if i.stack_pointer_increment() != 8 || i.op0_kind() != OpKind::Register {
            return None;
        }
        let to = place(i.op0_register())?;
        let from = self.on_stack(GUEST_RSP);
        self.on(to, false, true, |asm, reg| asm.load(reg, from));
        if to != Place::Host(GUEST_RSP) {
            self.asm.lea(GUEST_RSP, Rm::Base(GUEST_RSP, 8));
        }
        Some(())
    }

    fn leave(&mut self, i: &Instruction) -> Option<()> {
        let Place::Host(frame) = place(Register::RBP)? else { return None };
        if i.code() != iced_x86::Code::Leaveq {
            return None;
        }
        let from = self.on_stack(frame);
        self.asm.load(RCX, from);
        self.asm.lea(GUEST_RSP, Rm::Base(frame, 8));
        self.asm.load(frame, RCX);
        Some(())
    }

    /// SETcc, CMOVcc.
    fn conditional(&mut self, i: &Instruction) -> Option<()> {
        let condition = (i.condition_code() as u8).checked_sub(1)?;
        let byte_operand = i.op_count() == 1 && !i.is_jcc_short_or_near();
        if byte_operand {
            let code = op2(0x90 | condition);
            if i.op0_kind() == OpKind::Register {
                let to = place(i.op0_register())?;
                self.on(to, true, true, |asm, reg| asm.modrm(code, 1, 0, reg));
            } else if i.op0_kind() == OpKind::Memory && i.memory_size().size() == 1 {
                let to = self.memory(i, Way::Write)?;
                self.asm.modrm(code, 1, 0, to);
            } else {
                return None;
            }
            return Some(());
        }
        if i.op_count() != 2 || !i.op0_register().is_gpr() {
            return None;
        }
        let (to, width) = (place(i.op0_register())?, i.op0_register().size() as u8);
        let from = self.source(i, 1)?;
        self.on(to, true, true, |asm, reg| asm.modrm(op2(0x40 | condition), width, reg.0, from));
        Some(())
    }

    fn popcnt(&mut self, i: &Instruction) -> Option<()> {
        let (to, width) = (place(i.op0_register())?, i.op0_register().size() as u8);
        let from = self.source(i, 1)?;
        let code = Op { prefix: 0xF3, map: Map::Two, byte: 0xB8 };
        self.on(to, width < 4, true, |asm, reg| asm.modrm(code, width, reg.0, from));
        Some(())
    }

    /// All vCPUs take turns on one host thread, so no host instruction needs to be locked.
    fn cmpxchg(&mut self, i: &Instruction) -> Option<()> {
        if i.op0_kind() != OpKind::Memory {
            return None;
        }
        let (new, width) = (place(i.op1_register())?, i.op1_register().size() as u8);
        let at = self.memory(i, Way::Write)?;
        self.asm.lea(RDX, at);
        let new = self.in_register(new, RCX);
        self.asm.load(RAX, GUEST_RAX);
        self.asm.modrm(Op { byte: 0xB0 | u8::from(width > 1), ..op2(0) }, width, new.0, Rm::Base(RDX, 0));
        // If it was equal the accumulator keeps its upper half.
        self.asm.modrm(op2(0x45), 8, GUEST_RAX.0, RAX);
        Some(())
    }

    fn xadd(&mut self, i: &Instruction) -> Option<()> {
        if i.op0_kind() != OpKind::Memory {
            return None;
        }
        let (from, width) = (place(i.op1_register())?, i.op1_register().size() as u8);
        let to = self.memory(i, Way::Write)?;
        self.on(from, true, true, |asm, reg| asm.modrm(op2(0xC0 | u8::from(width > 1)), width, reg.0, to));
        Some(())
    }
}

/// The whole register of AH, CH, DH, BH.
fn high(register: Register) -> Option<Place> {
    let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
    if high { place(register.full_register()) } else { None }
}

/// `operation rm, imm`.
fn immediate_form(asm: &mut Asm, m: M, group: u8, width: u8, rm: Rm, value: u64) {
    let value = value as i32;
    let byte = match m {
        M::Mov => 0xC6,
        M::Test => 0xF6,
        _ if width > 1 && i8::try_from(value).is_ok() => {
            asm.modrm(op(0x83), width, group, rm);
            asm.immediate(1, value);
            return;
        }
        _ => 0x80,
    };
    asm.modrm(sized(byte, width), width, group, rm);
    asm.immediate(width, value);
}
