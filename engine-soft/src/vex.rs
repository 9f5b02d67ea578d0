//! VEX encodings taken apart (SDM vol. 2, 2.3): what an instruction is, and which of its operands each field names.
//!
//! So it can be encoded again with its operands elsewhere: [`crate::xlat::emit::Asm::vex`].

use iced_x86::{Instruction, OpKind};

/// An encoding without its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Vex {
    /// 1: 0F, 2: 0F 38, 3: 0F 3A.
    pub(crate) map: u8,
    /// 0: none, 1: 66, 2: F3, 3: F2.
    pub(crate) prefix: u8,
    pub(crate) w: bool,
    /// 256 bits.
    pub(crate) l: bool,
    pub(crate) opcode: u8,
}

/// Which operand is named by each field, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fields {
    /// ModRM's register field, or the opcode extension that it holds.
    pub(crate) reg: Result<usize, u8>,
    pub(crate) vvvv: Option<usize>,
    pub(crate) rm: usize,
}

/// What follows the operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tail {
    Nothing,
    /// An immediate.
    Byte(u8),
    /// The register of operand 3, in an immediate's upper half.
    Register,
}

impl Vex {
    /// Takes a VEX-encoded instruction apart: its bytes, and what the decoder says they are.
    pub(crate) fn of(bytes: &[u8], i: &Instruction) -> Option<(Self, Fields, Tail)> {
        let at = bytes.iter().position(|byte| matches!(byte, 0xC4 | 0xC5))?;
        let (map, bits, opcode, modrm) = match *bytes.get(at..)? {
            [0xC5, bits, opcode, modrm, ..] => (1, bits & 0x7F, opcode, modrm),
            [0xC4, map, bits, opcode, modrm, ..] => (map & 0x1F, bits, opcode, modrm),
            _ => return None,
        };
        let vex = Self { map, prefix: bits & 3, w: bits & 0x80 != 0, l: bits & 4 != 0, opcode };
        let operands = (0..i.op_count()).filter(|&n| i.op_kind(n) != OpKind::Immediate8).count();
        let tail = if operands == 4 {
            Tail::Register
        } else if operands < i.op_count() as usize {
            Tail::Byte(i.immediate8())
        } else {
            Tail::Nothing
        };
        let fields = match operands.min(3) {
            2 if vex.is_bit_group() => Fields { reg: Err(modrm >> 3 & 7), vvvv: Some(0), rm: 1 },
            3 if vex.counts() => Fields { reg: Ok(0), vvvv: Some(2), rm: 1 },
            2 if vex.shifts_by_immediate() => Fields { reg: Err(modrm >> 3 & 7), vvvv: Some(0), rm: 1 },
            2 if vex.stores() => Fields { reg: Ok(1), vvvv: None, rm: 0 },
            2 => Fields { reg: Ok(0), vvvv: None, rm: 1 },
            3 if vex.stores() => Fields { reg: Ok(2), vvvv: Some(1), rm: 0 },
            3 => Fields { reg: Ok(0), vvvv: Some(1), rm: 2 },
            _ => return None,
        };
        Some((vex, fields, tail))
    }

    /// VPSRLW and the like: an opcode extension, and VEX.vvvv names the destination.
    fn shifts_by_immediate(self) -> bool {
        self.map == 1 && matches!(self.opcode, 0x71..=0x73)
    }

    /// BLSR, BLSMSK, BLSI: as well.
    fn is_bit_group(self) -> bool {
        self.map == 2 && self.opcode == 0xF3
    }

    /// BEXTR, BZHI, SHLX and the like: VEX.vvvv names the last operand.
    fn counts(self) -> bool {
        self.map == 2 && (self.opcode == 0xF7 || self.opcode == 0xF5 && self.prefix == 0)
    }

    /// Operand 0 is named by ModRM's other field.
    fn stores(self) -> bool {
        match self.map {
            1 => {
                matches!(self.opcode, 0x11 | 0x13 | 0x17 | 0x29 | 0x2B | 0x7F | 0xD6 | 0xE7)
                    || self.opcode == 0x7E && self.prefix == 1
            }
            2 => matches!(self.opcode, 0x2E | 0x2F | 0x8E),
            _ => matches!(self.opcode, 0x14..=0x17 | 0x19 | 0x1D | 0x39),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn of(bytes: &[u8]) -> (Vex, Fields, Tail) {
        let i = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
        Vex::of(bytes, &i).unwrap_or_else(|| panic!("{i}"))
    }

    #[test]
    fn fields_name_operands() {
        // vaddps ymm1, ymm2, [rax], its two-byte and its three-byte form
        let add = Vex { map: 1, prefix: 0, w: false, l: true, opcode: 0x58 };
        let fields = Fields { reg: Ok(0), vvvv: Some(1), rm: 2 };
        assert_eq!(of(&[0xC5, 0xEC, 0x58, 0x08]), (add, fields, Tail::Nothing));
        assert_eq!(of(&[0xC4, 0xE1, 0x6C, 0x58, 0x08]), (add, fields, Tail::Nothing));
        // vpsrldq xmm1, xmm2, 5
        let (_, fields, tail) = of(&[0xC5, 0xF1, 0x73, 0xDA, 5]);
        assert_eq!((fields, tail), (Fields { reg: Err(3), vvvv: Some(0), rm: 1 }, Tail::Byte(5)));
        // vmovups [rax], ymm1
        let (_, fields, _) = of(&[0xC5, 0xFC, 0x11, 0x08]);
        assert_eq!(fields, Fields { reg: Ok(1), vvvv: None, rm: 0 });
        // vblendvps xmm1, xmm2, xmm3, xmm4
        let (_, fields, tail) = of(&[0xC4, 0xE3, 0x69, 0x4A, 0xCB, 0x40]);
        assert_eq!((fields, tail), (Fields { reg: Ok(0), vvvv: Some(1), rm: 2 }, Tail::Register));
    }
}
