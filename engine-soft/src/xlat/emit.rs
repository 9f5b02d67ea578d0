//! Bytes of host instructions (SDM vol. 2, ch. 2): only what the translator emits.

use std::mem::offset_of;

use crate::frame::Frame;
use crate::vex::Vex;

/// A host general register by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reg(pub(crate) u8);

pub(crate) const RAX: Reg = Reg(0);
pub(crate) const RCX: Reg = Reg(1);
pub(crate) const RDX: Reg = Reg(2);
pub(crate) const RBX: Reg = Reg(3);
pub(crate) const RSP: Reg = Reg(4);
pub(crate) const RBP: Reg = Reg(5);
pub(crate) const RSI: Reg = Reg(6);
pub(crate) const RDI: Reg = Reg(7);

/// A register or memory operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rm {
    /// A register: general or XMM, as the instruction has it.
    Reg(Reg),
    /// `[base + disp]`.
    Base(Reg, i32),
    /// `[base + index * 2^scale + disp]`; the index is not RSP.
    Index(Reg, Reg, u8, i32),
    /// `[index * 2^scale + disp]`.
    Scaled(Reg, u8, i32),
}

impl Rm {
    /// Numbers of the base, or of the register itself, and of the index.
    fn registers(self) -> (u8, u8) {
        match self {
            Self::Reg(r) | Self::Base(r, _) => (r.0, 0),
            Self::Index(base, index, ..) => (base.0, index.0),
            Self::Scaled(index, ..) => (0, index.0),
        }
    }
}

impl From<Reg> for Rm {
    fn from(reg: Reg) -> Self {
        Self::Reg(reg)
    }
}

/// A word of the frame, by its offset there.
pub(crate) const fn word(offset: usize) -> Rm {
    Rm::Base(RSP, offset as i32 - Frame::BASE as i32)
}

/// An entry of a frame's table of words, whose index is in a register.
pub(crate) fn entry(offset: usize, index: Reg) -> Rm {
    Rm::Index(RSP, index, 3, offset as i32 - Frame::BASE as i32)
}

/// Where the frame keeps the vCPU's address.
pub(crate) const CPU: Rm = word(offset_of!(Frame, cpu));
/// A word for one instruction.
pub(crate) const SCRATCH: Rm = word(offset_of!(Frame, scratch));

/// An opcode: mandatory prefix (0: none), the map's escape bytes, the byte itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Op {
    pub(crate) prefix: u8,
    pub(crate) map: Map,
    pub(crate) byte: u8,
}

/// Opcode maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Map {
    /// One byte.
    One,
    /// 0F.
    Two,
    /// 0F 38.
    Three38,
    /// 0F 3A.
    Three3A,
}

/// An opcode of one byte.
pub(crate) const fn op(byte: u8) -> Op {
    Op { prefix: 0, map: Map::One, byte }
}

/// An opcode after 0F.
pub(crate) const fn op2(byte: u8) -> Op {
    Op { prefix: 0, map: Map::Two, byte }
}

/// A place in the code to be jumped to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label(usize);

/// A jump whose target comes later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Jump {
    /// End of its displacement.
    at: usize,
    short: bool,
}

impl Jump {
    /// Offset of a long jump's displacement.
    pub(crate) fn displacement(self) -> usize {
        self.at - 4
    }
}

/// Host code in the making, for a known address.
#[derive(Debug)]
pub(crate) struct Asm {
    bytes: Vec<u8>,
    /// Address of the first byte.
    origin: u64,
}

impl Asm {
    pub(crate) fn new(origin: u64) -> Self {
        Self { bytes: Vec::with_capacity(1024), origin }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn here(&self) -> Label {
        Label(self.bytes.len())
    }

    /// Takes back what was emitted after a label.
    pub(crate) fn cut(&mut self, label: Label) {
        self.bytes.truncate(label.0);
    }

    fn byte(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    fn imm32(&mut self, value: i32) {
        self.bytes.extend(value.to_le_bytes());
    }

    /// An instruction with a ModRM byte. Widths are 1, 2, 4 or 8 bytes; `reg` is a register or an opcode extension, and
    /// immediates are the caller's to append.
    pub(crate) fn modrm(&mut self, op: Op, width: u8, reg: u8, rm: impl Into<Rm>) {
        self.encode(op, width, reg, rm.into(), width == 1);
    }

    /// As [`Asm::modrm`], of a wider register and a byte operand: MOVZX and MOVSX.
    pub(crate) fn modrm_byte(&mut self, op: Op, width: u8, reg: u8, rm: Rm) {
        self.encode(op, width, reg, rm, true);
    }

    /// As [`Asm::modrm`], of byte registers as they are without a REX prefix: 4 to 7 are AH to BH.
    pub(crate) fn legacy_byte(&mut self, op: Op, reg: u8, rm: Rm) {
        self.encode(op, 1, reg, rm, false);
    }

    fn encode(&mut self, op: Op, width: u8, reg: u8, rm: Rm, byte: bool) {
        if width == 2 {
            self.byte(0x66);
        }
        if op.prefix != 0 {
            self.byte(op.prefix);
        }
        let (base, index) = rm.registers();
        let rex = u8::from(width == 8) << 3 | reg >> 3 << 2 | index >> 3 << 1 | base >> 3;
        // Registers 4 to 7 of 8 bits are SPL to DIL with a REX prefix only.
        if rex != 0 || byte {
            self.byte(0x40 | rex);
        }
        match op.map {
            Map::One => {}
            Map::Two => self.byte(0x0F),
            Map::Three38 => self.bytes.extend([0x0F, 0x38]),
            Map::Three3A => self.bytes.extend([0x0F, 0x3A]),
        }
        self.byte(op.byte);
        self.operand(reg, rm);
    }

    fn operand(&mut self, reg: u8, rm: Rm) {
        let reg = (reg & 7) << 3;
        match rm {
            Rm::Reg(r) => self.byte(0xC0 | reg | r.0 & 7),
            Rm::Base(base, disp) => {
                let mode = Self::mode(base, disp);
                self.byte(mode | reg | base.0 & 7);
                if base.0 & 7 == 4 {
                    self.byte(0x24);
                }
                self.displacement(mode, disp);
            }
            Rm::Index(base, index, scale, disp) => {
                let mode = Self::mode(base, disp);
                self.byte(mode | reg | 4);
                self.byte(scale << 6 | (index.0 & 7) << 3 | base.0 & 7);
                self.displacement(mode, disp);
            }
            Rm::Scaled(index, scale, disp) => {
                self.byte(reg | 4);
                self.byte(scale << 6 | (index.0 & 7) << 3 | 5);
                self.imm32(disp);
            }
        }
    }

    /// RBP and R13 as base always have a displacement.
    fn mode(base: Reg, disp: i32) -> u8 {
        if disp == 0 && base.0 & 7 != 5 {
            0
        } else if i8::try_from(disp).is_ok() {
            0x40
        } else {
            0x80
        }
    }

    fn displacement(&mut self, mode: u8, disp: i32) {
        match mode {
            0 => {}
            0x40 => self.byte(disp as u8),
            _ => self.imm32(disp),
        }
    }

    /// Appends an immediate of 1, 2 or 4 bytes (4 for width 8).
    pub(crate) fn immediate(&mut self, width: u8, value: i32) {
        let len = usize::from(width.min(4));
        self.bytes.extend_from_slice(&value.to_le_bytes()[..len]);
    }

    /// `mov reg, value` in the shortest form.
    pub(crate) fn constant(&mut self, reg: Reg, value: u64) {
        if u32::try_from(value).is_ok() {
            if reg.0 >= 8 {
                self.byte(0x41);
            }
            self.byte(0xB8 | reg.0 & 7);
            self.imm32(value as i32);
        } else if i32::try_from(value as i64).is_ok() {
            self.modrm(op(0xC7), 8, 0, reg);
            self.imm32(value as i32);
        } else {
            self.byte(0x48 | reg.0 >> 3);
            self.byte(0xB8 | reg.0 & 7);
            self.bytes.extend(value.to_le_bytes());
        }
    }

    /// `mov reg, rm`, 64 bits.
    pub(crate) fn load(&mut self, reg: Reg, rm: impl Into<Rm>) {
        self.modrm(op(0x8B), 8, reg.0, rm);
    }

    /// `mov rm, reg`, 64 bits.
    pub(crate) fn store(&mut self, rm: impl Into<Rm>, reg: Reg) {
        self.modrm(op(0x89), 8, reg.0, rm);
    }

    /// `lea reg, rm`, 64 bits.
    pub(crate) fn lea(&mut self, reg: Reg, rm: Rm) {
        self.modrm(op(0x8D), 8, reg.0, rm);
    }

    /// `cmp reg, rm`.
    pub(crate) fn compare(&mut self, width: u8, reg: Reg, rm: impl Into<Rm>) {
        self.modrm(op(0x3B), width, reg.0, rm);
    }

    /// `prefetchw rm`.
    pub(crate) fn prefetch(&mut self, rm: Rm) {
        self.modrm(op2(0x0D), 4, 1, rm);
    }

    /// `bswap reg`, 32 or 64 bits.
    pub(crate) fn bswap(&mut self, width: u8, reg: Reg) {
        self.byte(0x40 | u8::from(width == 8) << 3 | reg.0 >> 3);
        self.bytes.extend([0x0F, 0xC8 | reg.0 & 7]);
    }

    /// `shrx to, from, by`: a shift right without touching flags; RSP shifts by 12.
    pub(crate) fn shrx(&mut self, width: u8, to: Reg, from: Reg, by: Reg) {
        let shrx = Vex { map: 2, prefix: 3, w: width == 8, l: false, opcode: 0xF7 };
        self.vex(shrx, to.0, by.0, Rm::Reg(from));
    }

    /// `sarx to, from, by`, 64 bits.
    pub(crate) fn sarx(&mut self, to: Reg, from: Reg, by: Reg) {
        let sarx = Vex { map: 2, prefix: 2, w: true, l: false, opcode: 0xF7 };
        self.vex(sarx, to.0, by.0, Rm::Reg(from));
    }

    /// An instruction with a VEX prefix, its immediate the caller's to append. An unused `vvvv` is 0.
    pub(crate) fn vex(&mut self, vex: Vex, reg: u8, vvvv: u8, rm: impl Into<Rm>) {
        let rm = rm.into();
        let (base, index) = rm.registers();
        let high = |register: u8, at: u8| (!(register >> 3) & 1) << at;
        self.byte(0xC4);
        self.byte(high(reg, 7) | high(index, 6) | high(base, 5) | vex.map);
        self.byte(u8::from(vex.w) << 7 | (!vvvv & 15) << 3 | u8::from(vex.l) << 2 | vex.prefix);
        self.byte(vex.opcode);
        self.operand(reg, rm);
    }

    /// A jump to be placed, `opcode` being JRCXZ (E3), JMP (E9) or the low byte of a long Jcc (80 to 8F).
    pub(crate) fn jump(&mut self, opcode: u8) -> Jump {
        if opcode == 0xE3 {
            self.bytes.extend([0xE3, 0]);
            return Jump { at: self.bytes.len(), short: true };
        }
        if opcode != 0xE9 {
            self.byte(0x0F);
        }
        self.byte(opcode);
        self.imm32(0);
        Jump { at: self.bytes.len(), short: false }
    }

    /// Lets a jump go to a label.
    pub(crate) fn place(&mut self, jump: Jump, to: Label) {
        let distance = to.0 as i64 - jump.at as i64;
        if jump.short {
            debug_assert!(i8::try_from(distance).is_ok(), "a short jump over {distance} bytes");
            self.bytes[jump.at - 1] = distance as u8;
        } else {
            self.bytes[jump.at - 4..jump.at].copy_from_slice(&(distance as i32).to_le_bytes());
        }
    }

    /// Lets a jump go here.
    pub(crate) fn land(&mut self, jump: Jump) {
        let here = self.here();
        self.place(jump, here);
    }

    /// `jmp label`.
    pub(crate) fn jump_to(&mut self, to: Label) {
        let jump = self.jump(0xE9);
        self.place(jump, to);
    }

    /// `jmp` (E9) or `call` (E8) to an address within 2 GiB.
    pub(crate) fn go(&mut self, opcode: u8, address: u64) {
        self.byte(opcode);
        let next = self.origin + self.bytes.len() as u64 + 4;
        self.imm32(address.wrapping_sub(next) as i32);
    }

    /// Bytes as they are: instructions without operands.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Flags to AH and AL: `lahf; seto al`.
    pub(crate) fn save_flags(&mut self) {
        self.raw(&[0x9F, 0x0F, 0x90, 0xC0]);
    }

    /// Flags from AH and AL: `add al, 0x7f; sahf`.
    pub(crate) fn restore_flags(&mut self) {
        self.raw(&[0x04, 0x7F, 0x9E]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter};

    /// What a decoder makes of the code.
    fn text(emit: impl FnOnce(&mut Asm)) -> String {
        let mut asm = Asm::new(0x1000);
        emit(&mut asm);
        let mut formatter = GasFormatter::new();
        let mut lines = Vec::new();
        for i in &mut Decoder::with_ip(64, asm.bytes(), 0x1000, DecoderOptions::NONE) {
            let mut line = String::new();
            formatter.format(&i, &mut line);
            lines.push(line);
        }
        lines.join("; ")
    }

    #[test]
    fn every_register_is_encoded_in_every_place() {
        use iced_x86::Register;
        let name = |n: u8| (Register::RAX as u32 + u32::from(n)) as u8;
        for n in 0..16 {
            for m in 0..16 {
                let mut asm = Asm::new(0);
                let (n, m) = (Reg(n), Reg(m));
                asm.load(n, m);
                asm.load(n, Rm::Base(m, 0));
                asm.load(n, Rm::Base(m, -5));
                asm.load(n, Rm::Base(m, 0x1234));
                asm.shrx(8, n, m, RSP);
                let mut count = 5;
                if m != RSP {
                    asm.lea(RAX, Rm::Index(n, m, 3, 0));
                    asm.lea(RAX, Rm::Scaled(m, 2, 7));
                    count = 7;
                }
                let mut decoder = Decoder::with_ip(64, asm.bytes(), 0, DecoderOptions::NONE);
                let all: Vec<_> = decoder.iter().collect();
                assert_eq!(all.len(), count);
                let is = |r: Register, n: Reg| r as u8 == name(n.0);
                assert!(is(all[0].op0_register(), n) && is(all[0].op1_register(), m));
                for (i, disp) in [(1, 0), (2, -5), (3, 0x1234)] {
                    assert!(is(all[i].op0_register(), n) && is(all[i].memory_base(), m));
                    assert_eq!(all[i].memory_displacement64() as i64, disp);
                    assert_eq!(all[i].memory_index(), Register::None);
                }
                assert_eq!(all[4].mnemonic(), iced_x86::Mnemonic::Shrx);
                assert!(is(all[4].op0_register(), n) && is(all[4].op1_register(), m));
                assert_eq!(all[4].op2_register(), Register::RSP);
                if count == 7 {
                    assert!(is(all[5].memory_base(), n) && is(all[5].memory_index(), m));
                    assert_eq!(all[5].memory_index_scale(), 8);
                    assert!(is(all[6].memory_index(), m) && all[6].memory_base() == Register::None);
                    assert_eq!((all[6].memory_index_scale(), all[6].memory_displacement64()), (4, 7));
                }
            }
        }
    }

    #[test]
    fn widths_choose_prefixes() {
        let add = |width| text(|asm| asm.modrm(op(if width == 1 { 0 } else { 1 }), width, 6, Reg(7)));
        assert_eq!(add(1), "add %sil,%dil");
        assert_eq!(add(2), "add %si,%di");
        assert_eq!(add(4), "add %esi,%edi");
        assert_eq!(add(8), "add %rsi,%rdi");
    }

    #[test]
    fn constants_are_exact() {
        assert_eq!(text(|asm| asm.constant(Reg(9), 5)), "mov $5,%r9d");
        assert_eq!(text(|asm| asm.constant(RAX, !0)), "mov $0xFFFFFFFFFFFFFFFF,%rax");
        assert_eq!(text(|asm| asm.constant(Reg(12), 1 << 40)), "movabs $0x10000000000,%r12");
    }

    #[test]
    fn jumps_land() {
        let code = text(|asm| {
            let start = asm.here();
            let a = asm.jump(0xE3);
            let b = asm.jump(0x84);
            asm.land(a);
            asm.land(b);
            asm.jump_to(start);
            asm.go(0xE8, 0x2000);
        });
        assert_eq!(code.replace("0x000000000000", "0x"), "jrcxz 0x1008; je 0x1008; jmp 0x1000; call 0x2000");
    }

    #[test]
    fn flags_travel_in_ax() {
        assert_eq!(text(Asm::save_flags), "lahf; seto %al");
        assert_eq!(text(Asm::restore_flags), "add $0x7F,%al; sahf");
    }
}
