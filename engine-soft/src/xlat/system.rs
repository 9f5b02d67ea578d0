//! What kernels do all the time, and compilers never: with flags, segment registers, and pairs of words.

use std::mem::offset_of;

use engine::state::Segment;
use iced_x86::{Code, Instruction};

use super::body::Body;
use super::emit::{CPU, RAX, RCX, RDX, RSI, Rm, SCRATCH, op, op2, word};
use super::memory::Way;
use super::registers::{GUEST_RAX, GUEST_RCX, GUEST_RDX, GUEST_RSP, place};
use crate::cpu::Cpu;
use crate::flags::{Flags, bit};
use crate::frame::Frame;

/// What is not a status flag, in the vCPU that RDX points to.
const CONTROL: Rm = Rm::Base(RDX, (offset_of!(Cpu, flags) + offset_of!(Flags, control)) as i32);

impl Body<'_> {
    /// Translates an instruction of this kind.
    pub(crate) fn system(&mut self, i: &Instruction) -> Option<()> {
        match i.code() {
            Code::Pushfq => self.push_flags(),
            // Nobody runs translated code at levels 1 and 2.
            Code::Cli if !self.user => self.change_control(4, !(bit::IF as i32)),
            Code::Sti if !self.user => self.unmask_interrupts(),
            Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg => self.selector(i)?,
            Code::Prefetch_m8
            | Code::Prefetchw_m8
            | Code::Prefetchnta_m8
            | Code::Prefetcht0_m8
            | Code::Prefetcht1_m8
            | Code::Prefetcht2_m8 => {}
            Code::Cmpxchg16b_m128 => self.compare_exchange_16(i)?,
            _ => return None,
        }
        Some(())
    }

    fn push_flags(&mut self) {
        self.asm.save_flags();
        // movzx ecx, ah, whose bit 1 is set; movzx edx, al; shl edx, 11; or ecx, edx
        self.asm.raw(&[0x0F, 0xB6, 0xCC, 0x0F, 0xB6, 0xD0, 0xC1, 0xE2, 11, 0x09, 0xD1]);
        self.asm.load(RDX, CPU);
        self.asm.modrm(op(0x0B), 8, RCX.0, CONTROL);
        self.asm.restore_flags();
        self.asm.store(SCRATCH, RCX);
        let to = self.below_stack();
        self.asm.load(RCX, SCRATCH);
        self.asm.store(to, RCX);
        self.asm.lea(GUEST_RSP, Rm::Base(GUEST_RSP, -8));
    }

    /// AND or OR (their opcode extension) of what is not a status flag.
    fn change_control(&mut self, group: u8, with: i32) {
        self.asm.save_flags();
        self.asm.load(RDX, CPU);
        self.asm.modrm(op(0x81), 8, group, CONTROL);
        self.asm.immediate(4, with);
        self.asm.restore_flags();
    }

    /// Where no interrupt waits there is nothing that the instruction after STI would have to be shielded from; but there has to be
    /// one in this turn. It ends its block.
    fn unmask_interrupts(&mut self) {
        self.asm.load(RCX, word(offset_of!(Frame, due)));
        let quiet = self.asm.jump(0xE3);
        let look = self.asm.here();
        self.slow();
        self.asm.land(quiet);
        self.asm.load(RCX, word(offset_of!(Frame, remaining)));
        let last = self.asm.jump(0xE3);
        self.asm.place(last, look);
        self.change_control(1, bit::IF as i32);
    }

    /// MOV from a segment register to a general one.
    fn selector(&mut self, i: &Instruction) -> Option<()> {
        let to = place(i.op0_register())?;
        let segment = offset_of!(Cpu, segments) + i.op1_register().number() * size_of::<Segment>();
        self.asm.load(RCX, CPU);
        let from = Rm::Base(RCX, (segment + offset_of!(Segment, selector)) as i32);
        self.on(to, false, true, |asm, reg| asm.modrm(op2(0xB7), 4, reg.0, from));
        Some(())
    }

    /// CMPXCHG16B of what is aligned; it changes ZF only.
    fn compare_exchange_16(&mut self, i: &Instruction) -> Option<()> {
        let at = self.memory(i, Way::Write)?;
        self.asm.lea(RDX, at);
        self.asm.save_flags();
        // test dl, 15
        self.asm.raw(&[0xF6, 0xC2, 15]);
        let aligned = self.asm.jump(0x84);
        self.asm.restore_flags();
        self.slow();
        self.asm.land(aligned);
        self.asm.restore_flags();
        self.asm.store(SCRATCH, RSI);
        self.asm.load(RSI, RDX);
        self.asm.load(RAX, GUEST_RAX);
        self.asm.load(RDX, GUEST_RDX);
        self.asm.load(RCX, GUEST_RCX);
        self.asm.modrm(op2(0xC7), 8, 1, Rm::Base(RSI, 0));
        self.asm.load(GUEST_RAX, RAX);
        self.asm.load(GUEST_RDX, RDX);
        self.asm.load(RSI, SCRATCH);
        Some(())
    }
}
