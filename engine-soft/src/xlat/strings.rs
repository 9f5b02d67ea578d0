//! Repeated MOVS and STOS that stay within a page, by the host's own.
//!
//! What goes backwards, has no element, or leaves the page of either operand is the interpreter's: it does a part at a time.

use std::mem::offset_of;

use iced_x86::{Code, Instruction, OpKind, Register};

use super::body::Body;
use super::emit::{RAX, RCX, RDI, RDX, RSI, Reg, Rm, SCRATCH, word};
use super::memory::{Address, Way};
use super::registers::{GUEST_RAX, GUEST_RCX};
use crate::frame::Frame;

/// Guest RSI and RDI are in the host's own.
const KEPT: [Rm; 2] = [word(offset_of!(Frame, kept)), word(offset_of!(Frame, kept) + 8)];

impl Body<'_> {
    /// Translates one that ends its block; behind it code goes on.
    pub(crate) fn string(&mut self, i: &Instruction) -> Option<()> {
        let (moves, scale) = match i.code() {
            Code::Stosb_m8_AL => (false, 0),
            Code::Stosw_m16_AX => (false, 1),
            Code::Stosd_m32_EAX => (false, 2),
            Code::Stosq_m64_RAX => (false, 3),
            Code::Movsb_m8_m8 => (true, 0),
            Code::Movsw_m16_m16 => (true, 1),
            Code::Movsd_m32_m32 => (true, 2),
            Code::Movsq_m64_m64 => (true, 3),
            _ => return None,
        };
        let wide = i.op0_kind() == OpKind::MemoryESRDI && (!moves || i.op1_kind() == OpKind::MemorySegRSI);
        if !wide || i.segment_prefix() != Register::None {
            return None;
        }
        // Forwards, and from one element to a page of them.
        self.asm.lea(RCX, Rm::Base(GUEST_RCX, -1));
        self.shift_right(8, RCX, RCX, 12 - scale);
        self.asm.load(RDX, word(offset_of!(Frame, backward)));
        self.asm.lea(RCX, Rm::Index(RCX, RDX, 0, 0));
        let possible = self.asm.jump(0xE3);
        self.slow();
        self.asm.land(possible);
        if moves {
            self.whole(RSI, scale, Way::Read);
            self.asm.lea(RDX, Rm::Index(RSI, RDX, 0, 0));
            self.asm.store(SCRATCH, RDX);
        }
        self.whole(RDI, scale, Way::Write);
        for (reg, kept) in [RSI, RDI].into_iter().zip(KEPT).skip(usize::from(!moves)) {
            self.asm.lea(RAX, Rm::Index(reg, GUEST_RCX, scale, 0));
            self.asm.store(kept, RAX);
        }
        self.asm.lea(RDI, Rm::Index(RDI, RDX, 0, 0));
        self.asm.load(RCX, GUEST_RCX);
        let opcode = if moves {
            self.asm.load(RSI, SCRATCH);
            0xA4
        } else {
            self.asm.load(RAX, GUEST_RAX);
            0xAA
        };
        self.asm.raw(match scale {
            1 => &[0x66, 0xF3],
            3 => &[0xF3, 0x48],
            _ => &[0xF3],
        });
        self.asm.raw(&[opcode | u8::from(scale > 0)]);
        if moves {
            self.asm.load(RSI, KEPT[0]);
        }
        self.asm.load(RDI, KEPT[1]);
        self.asm.constant(GUEST_RCX, 0);
        Some(())
    }

    /// Probes for all elements from an address on, at most a page of them: what makes a host address comes in RDX.
    fn whole(&mut self, first: Reg, scale: u8, way: Way) {
        self.asm.lea(RAX, Rm::Index(first, GUEST_RCX, scale, -1));
        self.known(Address::In(first), Rm::Index(RCX, RAX, 0, 0), way);
    }
}
