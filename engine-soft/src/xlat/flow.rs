//! Where control goes: jumps, calls, returns, and the ends of blocks.
//!
//! Within a page a jump is linked to its target's translation once there is one. To other pages and to computed targets it
//! goes by the jump cache, which is emptied when translations of addresses change.

use std::mem::offset_of;

use iced_x86::{Code, FlowControl, Instruction, OpKind};

use super::body::{Body, MAX_EXITS};
use super::emit::{Jump, RAX, RCX, RDX, Reg, Rm, SCRATCH, entry, op, op2, word};
use super::memory::Way;
use super::registers::{GUEST_RSP, place};
use crate::frame::{Frame, Jumps, SLOTS};

impl Body<'_> {
    /// Translates an instruction that ends its block by going elsewhere.
    pub(crate) fn flow(&mut self, i: &Instruction) -> Option<()> {
        let next = i.next_ip();
        match i.flow_control() {
            FlowControl::ConditionalBranch if i.is_jcc_short_or_near() => {
                let condition = (i.condition_code() as u8).checked_sub(1)?;
                let taken = self.asm.jump(0x80 | condition);
                self.exit(next);
                self.exit_by(taken, i.near_branch64());
            }
            FlowControl::UnconditionalBranch if i.op0_kind() == OpKind::NearBranch64 => {
                self.exit(i.near_branch64());
            }
            FlowControl::Call if i.op0_kind() == OpKind::NearBranch64 => {
                let to = self.below_stack();
                self.return_address(to, next);
                self.exit(i.near_branch64());
            }
            FlowControl::IndirectBranch | FlowControl::IndirectCall
                if i.is_jmp_near_indirect() || i.is_call_near_indirect() =>
            {
                self.indirect(i)?;
            }
            FlowControl::Return if matches!(i.code(), Code::Retnq | Code::Retnq_imm16) => {
                let from = self.on_stack(GUEST_RSP);
                self.asm.load(RAX, from);
                self.known_jump();
                let drop = i.stack_pointer_increment();
                self.asm.lea(GUEST_RSP, Rm::Base(GUEST_RSP, drop));
                self.asm.modrm(op(0xFF), 4, 4, self.code_entry(RDX));
            }
            FlowControl::Next => self.string(i).or_else(|| self.system(i))?,
            _ => return None,
        }
        Some(())
    }

    /// JMP and CALL to what a register or memory says.
    fn indirect(&mut self, i: &Instruction) -> Option<()> {
        match i.op0_kind() {
            OpKind::Register if i.op0_register().is_gpr64() => {
                let from = place(i.op0_register())?;
                self.asm.load(RAX, from.rm());
            }
            OpKind::Memory if i.memory_size().size() == 8 => {
                let from = self.memory(i, Way::Read)?;
                self.asm.load(RAX, from);
            }
            _ => return None,
        }
        self.known_jump();
        if i.is_jmp_near_indirect() {
            self.asm.modrm(op(0xFF), 4, 4, self.code_entry(RDX));
            return Some(());
        }
        self.asm.load(RDX, self.code_entry(RDX));
        self.asm.store(SCRATCH, RDX);
        let to = self.below_stack();
        self.return_address(to, i.next_ip());
        self.asm.modrm(op(0xFF), 4, 4, SCRATCH);
        Some(())
    }

    /// Stores the return address of a call and lowers the stack pointer.
    fn return_address(&mut self, to: Rm, next: u64) {
        match i32::try_from(next as i64) {
            Ok(next) => {
                self.asm.modrm(op(0xC7), 8, 0, to);
                self.asm.immediate(8, next);
            }
            Err(_) => {
                self.asm.constant(RCX, next);
                self.asm.store(to, RCX);
            }
        }
        self.asm.lea(GUEST_RSP, Rm::Base(GUEST_RSP, -8));
    }

    /// Offset of this privilege level's jump cache.
    fn jumps(&self) -> usize {
        offset_of!(Frame, jumps) + usize::from(self.user) * size_of::<Jumps>()
    }

    fn code_entry(&self, index: Reg) -> Rm {
        entry(self.jumps() + offset_of!(Jumps, code), index)
    }

    /// Looks the target in RAX up in the jump cache: its slot comes in RDX. If it is not there, the interpreter does the
    /// instruction, and so finds targets that are none.
    fn known_jump(&mut self) {
        self.asm.modrm(op2(0xB7), 4, RDX.0, RAX);
        self.asm.load(RCX, entry(self.jumps() + offset_of!(Jumps, tag), RDX));
        self.asm.lea(RCX, Rm::Index(RCX, RAX, 0, 0));
        let known = self.asm.jump(0xE3);
        self.slow();
        self.asm.land(known);
    }

    /// Goes on at an instruction pointer.
    pub(crate) fn exit(&mut self, target: u64) {
        if self.is_linkable(target) {
            let jump = self.asm.jump(0xE9);
            self.linkable(jump, target);
        } else {
            self.far_exit(target);
        }
    }

    /// Goes on at an instruction pointer from a jump that is there already.
    fn exit_by(&mut self, jump: Jump, target: u64) {
        if self.is_linkable(target) {
            self.linkable(jump, target);
        } else {
            self.asm.land(jump);
            self.far_exit(target);
        }
    }

    fn is_linkable(&self, target: u64) -> bool {
        (target ^ self.rip) >> 12 == 0 && self.exits.len() < MAX_EXITS
    }

    fn linkable(&mut self, jump: Jump, target: u64) {
        self.exits.push((jump, target));
    }

    /// Through the jump cache, to a target that is known now.
    fn far_exit(&mut self, target: u64) {
        let slot = target as usize % SLOTS * 8;
        self.asm.constant(RAX, target);
        self.asm.load(RCX, word(self.jumps() + offset_of!(Jumps, tag) + slot));
        self.asm.lea(RCX, Rm::Index(RCX, RAX, 0, 0));
        let known = self.asm.jump(0xE3);
        self.asm.go(0xE9, self.thunks.jump);
        self.asm.land(known);
        self.asm.modrm(op(0xFF), 4, 4, word(self.jumps() + offset_of!(Jumps, code) + slot));
    }
}
