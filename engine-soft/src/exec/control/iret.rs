//! IRET: back from an interrupt (SDM vol. 2, "IRET").

use engine::event::FenceKind;
use engine::state::SystemRegisters;
use iced_x86::{Code, Instruction};

use super::far::{leave_inner_segments, return_segment, return_stack};
use crate::cpu::Cpu;
use crate::flags::bit;
use crate::insn::{Exec, Insn, RIP};
use crate::mem::MemValue;
use crate::trap::Step;
use crate::width::Width;

const RIP_SLOT: usize = RIP as usize;
const CS: usize = SystemRegisters::CS;
const SS: usize = SystemRegisters::SS;

/// RFLAGS after popping an image of width `W` at the privilege level before the return.
fn popped_flags<W: Width>(cpu: &Cpu, image: u64) -> u64 {
    let mut mask = bit::STATUS | bit::TF | bit::DF | bit::NT;
    if W::BITS > 16 {
        mask |= bit::RF | bit::AC | bit::ID;
    }
    let iopl = (cpu.flags.control & bit::IOPL) >> 12;
    if u64::from(cpu.cpl) <= iopl {
        mask |= bit::IF;
    }
    if cpu.cpl == 0 {
        mask |= bit::IOPL;
        if W::BITS > 16 {
            mask |= bit::VIF | bit::VIP;
        }
    }
    cpu.flags.get() & !mask | image & mask
}

fn iret<W: Width + MemValue>(cpu: &mut Cpu, _: &Insn) -> Step {
    let size = W::BYTES as u64;
    let long = cpu.long;
    if cpu.is_protected() && cpu.flags.control & bit::NT != 0 {
        // A return to another task; there are none in 64-bit mode, and none here at all.
        return cpu.gp();
    }
    if cpu.flags.control & bit::VM != 0 {
        return cpu.gp();
    }
    let target = cpu.peek::<W>(0)?.zext();
    let selector = cpu.peek::<W>(size)?.zext() as u16;
    let image = cpu.peek::<W>(2 * size)?.zext();
    let flags = popped_flags::<W>(cpu, image);
    if !cpu.is_protected() {
        let segment = cpu.real_segment(CS, selector);
        if target > u64::from(segment.limit) {
            return cpu.gp();
        }
        cpu.segments[CS] = segment;
        cpu.set_stack_pointer(cpu.gpr[4].wrapping_add(3 * size));
    } else {
        if !long && W::BITS == 32 && cpu.cpl == 0 && image & bit::VM != 0 {
            return cpu.gp();
        }
        let to = return_segment(cpu, selector, target)?;
        if long || to.outward {
            let pointer = cpu.peek::<W>(3 * size)?.zext();
            let stack = cpu.peek::<W>(4 * size)?.zext() as u16;
            let stack = return_stack(cpu, stack, &to)?;
            cpu.segments[SS] = stack;
            cpu.segments[CS] = to.cs;
            cpu.cpl = to.cpl;
            if to.outward {
                leave_inner_segments(cpu);
            }
            cpu.mode_changed();
            cpu.set_stack_pointer(pointer);
        } else {
            cpu.segments[CS] = to.cs;
            cpu.set_stack_pointer(cpu.gpr[4].wrapping_add(3 * size));
        }
    }
    cpu.flags.set(flags);
    cpu.gpr[RIP_SLOT] = target;
    cpu.nmi_blocked = false;
    cpu.mode_changed();
    cpu.fence(FenceKind::Serialising);
    Ok(())
}

pub(super) fn lookup(i: &Instruction) -> Option<Exec> {
    Some(match i.code() {
        Code::Iretw => iret::<u16>,
        Code::Iretd => iret::<u32>,
        Code::Iretq => iret::<u64>,
        _ => return None,
    })
}
