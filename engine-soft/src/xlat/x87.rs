//! x87 instructions, executed by the host's own on a register stack that is the guest's as long as translated code runs.
//!
//! The stack is fetched from the vCPU by the first instruction that wants it, and put back when translated code is left or calls
//! the interpreter. While an exception is unmasked or pending all of it is the interpreter's, so nothing here can trap, and
//! neither the opcode of the last instruction nor a store that an exception keeps from happening is of concern.

use std::mem::offset_of;

use iced_x86::{Code, Instruction, OpKind, Register};

use super::body::Body;
use super::emit::{Asm, CPU, RAX, RCX, Rm, op, op2, word};
use super::memory::Way;
use super::registers::GUEST_RAX;
use crate::cpu::{Cpu, control};
use crate::exec::fpu::x87::{computes, stores};
use crate::frame::{Frame, Stack};
use crate::fx::{FxArea, fcw, fsw};

const STACK: Rm = word(offset_of!(Frame, stack));
const RESUME: Rm = word(offset_of!(Frame, resume));

/// Part of the image in the vCPU that a register points to.
fn image(at: super::emit::Reg, part: usize) -> Rm {
    Rm::Base(at, (offset_of!(Cpu, fx) + part) as i32)
}

impl Body<'_> {
    pub(crate) fn x87(&mut self, k: usize, i: &Instruction) -> Option<()> {
        let remembered = computes(i.code());
        let status = matches!(i.code(), Code::Fnstcw_m2byte | Code::Fnstsw_m2byte | Code::Fnstsw_AX);
        if !remembered && !status || matches!(i.segment_prefix(), Register::FS | Register::GS) {
            return None;
        }
        let bytes = self.encoding(k);
        let at = bytes.iter().position(|byte| byte & 0xF8 == 0xD8)?;
        let (byte, modrm) = (bytes[at], *bytes.get(at + 1)?);
        let operand = if (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) {
            let writes = status || stores(i.code());
            Some(self.memory(i, if writes { Way::Write } else { Way::Read })?)
        } else {
            None
        };
        self.fetch_stack();
        match operand {
            Some(rm) => self.asm.modrm(op(byte), 4, modrm >> 3 & 7, rm),
            None => self.asm.raw(&[byte, modrm]),
        }
        if i.code() == Code::Fnstsw_AX {
            self.asm.modrm(op(0x89), 2, RAX.0, GUEST_RAX);
        }
        if remembered {
            self.asm.load(RCX, CPU);
            if let Some(Rm::Index(va, ..)) = operand {
                self.asm.store(image(RCX, offset_of!(FxArea, fdp)), va);
            }
            self.asm.constant(RAX, i.ip());
            self.asm.store(image(RCX, offset_of!(FxArea, fip)), RAX);
        }
        Some(())
    }

    /// The register stack becomes the guest's, unless the interpreter has to see to the instruction.
    fn fetch_stack(&mut self) {
        self.asm.load(RCX, STACK);
        let there = self.asm.jump(0xE3);
        self.asm.load(RCX, word(offset_of!(Frame, no_x87)));
        let usable = self.asm.jump(0xE3);
        self.slow();
        self.asm.land(usable);
        self.asm.go(0xE8, self.thunks.stack);
        self.asm.land(there);
    }
}

/// A function that fetches the register stack; RCX is lost.
pub(super) fn write_fetch(asm: &mut Asm) {
    // The return address off the stack first: words are found from where it points.
    asm.modrm(op(0x8F), 4, 0, RESUME);
    asm.load(RCX, CPU);
    // stmxcsr, fxrstor64: XMM registers are for scratch
    asm.modrm(op2(0xAE), 4, 3, image(RCX, offset_of!(FxArea, mxcsr)));
    asm.modrm(op2(0xAE), 8, 1, image(RCX, 0));
    asm.modrm(op(0xC7), 8, 0, STACK);
    asm.immediate(8, Stack::HERE as i32);
    asm.modrm(op(0xFF), 4, 4, RESUME);
}

/// Code that takes the register stack to the frame, if it is the guest's, and leaves the host's. Flags are lost.
pub(super) fn write_put_back(asm: &mut Asm) {
    asm.modrm(op(0x83), 8, 7, STACK);
    asm.immediate(1, Stack::HERE as i32);
    let elsewhere = asm.jump(0x85);
    // fxsave64, fninit
    asm.modrm(op2(0xAE), 8, 0, word(offset_of!(Frame, image)));
    asm.raw(&[0xDB, 0xE3]);
    asm.modrm(op(0xC7), 8, 0, STACK);
    asm.immediate(8, Stack::SAVED as i32);
    asm.land(elsewhere);
}

impl Cpu {
    /// Takes the register stack that translated code has saved.
    pub(super) fn take_stack(&mut self) {
        let frame = &mut self.tlb.frame;
        if frame.stack == Stack::SAVED {
            frame.stack = Stack::AT_HOME;
            let saved = &frame.image;
            (self.fx.fcw, self.fx.fsw, self.fx.ftw, self.fx.st) = (saved.fcw, saved.fsw, saved.ftw, saved.st);
        }
    }

    /// Tells translated code whether it may execute x87 instructions.
    pub(super) fn tell_x87(&mut self) {
        let usable = self.cr0 & (control::CR0_EM | control::CR0_TS) == 0;
        let quiet = self.fx.fcw & fcw::MASKS == fcw::MASKS && self.fx.fsw & fsw::ES == 0;
        self.tlb.frame.no_x87 = u64::from(!(usable && quiet));
    }
}
