//! Far jumps, calls and returns between code segments (SDM vol. 3, 5.8). There are no call gates and no task switches:
//! their selectors are #GP.

use engine::event::StoreKind;
use engine::state::{Segment, SystemRegisters};
use iced_x86::{Code, Instruction};

use crate::cpu::Cpu;
use crate::insn::{Exec, Insn, RIP};
use crate::mem::MemValue;
use crate::mmu::canonical;
use crate::segment::{error_code, is_null, rpl};
use crate::trap::{Step, vector};
use crate::width::Width;

const RIP_SLOT: usize = RIP as usize;
const CS: usize = SystemRegisters::CS;
const SS: usize = SystemRegisters::SS;

/// The code segment that a far jump or call leads to, at the current privilege level.
fn code_segment(cpu: &mut Cpu, selector: u16, target: u64) -> Step<Segment> {
    if !cpu.is_protected() {
        let segment = cpu.real_segment(CS, selector);
        return if target > u64::from(segment.limit) { cpu.gp() } else { Ok(segment) };
    }
    if is_null(selector) {
        return cpu.gp();
    }
    let descriptor = cpu.descriptor(selector, vector::GP)?;
    let long = cpu.is_long_mode_active();
    let allowed = descriptor.is_code()
        && if descriptor.is_conforming() {
            descriptor.dpl() <= cpu.cpl
        } else {
            rpl(selector) <= cpu.cpl && descriptor.dpl() == cpu.cpl
        }
        && !(long && descriptor.is_long() && descriptor.is_big());
    if !allowed {
        return cpu.raise(vector::GP, error_code(selector));
    }
    if !descriptor.is_present() {
        return cpu.raise(vector::NP, error_code(selector));
    }
    let selector = selector & !3 | u16::from(cpu.cpl);
    check_target(cpu, long && descriptor.is_long(), descriptor.segment(selector), target)?;
    cpu.accept(descriptor, selector)
}

/// An instruction pointer has to lie in its segment.
fn check_target(cpu: &mut Cpu, long: bool, segment: Segment, target: u64) -> Step {
    let good = if long { canonical(target) } else { target <= u64::from(segment.limit) };
    if good { Ok(()) } else { cpu.gp() }
}

fn jump(cpu: &mut Cpu, selector: u16, target: u64) -> Step {
    cpu.segments[CS] = code_segment(cpu, selector, target)?;
    cpu.gpr[RIP_SLOT] = target;
    cpu.mode_changed();
    Ok(())
}

fn call<W: Width>(cpu: &mut Cpu, selector: u16, target: u64) -> Step {
    let segment = code_segment(cpu, selector, target)?;
    let sp = cpu.gpr[4].wrapping_sub(2 * W::BYTES as u64) & cpu.stack_mask();
    let mut frame = [0; 16];
    frame[..8].copy_from_slice(&cpu.gpr[RIP_SLOT].to_le_bytes());
    frame[W::BYTES..W::BYTES + 2].copy_from_slice(&cpu.segments[CS].selector.to_le_bytes());
    frame[W::BYTES + 2..].fill(0);
    cpu.store_bytes(cpu.stack(), sp, &frame[..2 * W::BYTES], StoreKind::Cached)?;
    cpu.set_stack_pointer(sp);
    cpu.segments[CS] = segment;
    cpu.gpr[RIP_SLOT] = target;
    cpu.mode_changed();
    Ok(())
}

/// The far pointer in the immediate.
fn immediate(insn: &Insn) -> (u16, u64) {
    ((insn.imm >> 32) as u16, insn.imm & 0xFFFF_FFFF)
}

/// The far pointer in memory: offset, then selector.
fn memory<W: Width + MemValue>(cpu: &mut Cpu, insn: &Insn) -> Step<(u16, u64)> {
    let mut bytes = [0; 10];
    let offset = cpu.offset(insn);
    cpu.load_bytes(insn.seg, offset, &mut bytes[..W::BYTES + 2])?;
    let selector = u16::from_le_bytes([bytes[W::BYTES], bytes[W::BYTES + 1]]);
    let whole =
        u64::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]]);
    Ok((selector, W::of(whole).zext()))
}

fn jmp_immediate(cpu: &mut Cpu, insn: &Insn) -> Step {
    let (selector, target) = immediate(insn);
    jump(cpu, selector, target)
}

fn jmp_memory<W: Width + MemValue>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let (selector, target) = memory::<W>(cpu, insn)?;
    jump(cpu, selector, target)
}

fn call_immediate<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let (selector, target) = immediate(insn);
    call::<W>(cpu, selector, target)
}

fn call_memory<W: Width + MemValue>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let (selector, target) = memory::<W>(cpu, insn)?;
    call::<W>(cpu, selector, target)
}

/// Code and stack that a far return or IRET leads to.
#[derive(Debug)]
pub(super) struct Return {
    pub(super) cs: Segment,
    pub(super) cpl: u8,
    /// It goes to an outer level.
    pub(super) outward: bool,
    /// To 64-bit mode.
    pub(super) long: bool,
}

/// The code segment of a return to `selector`.
pub(super) fn return_segment(cpu: &mut Cpu, selector: u16, target: u64) -> Step<Return> {
    if is_null(selector) {
        return cpu.gp();
    }
    let descriptor = cpu.descriptor(selector, vector::GP)?;
    let rpl = rpl(selector);
    let active = cpu.is_long_mode_active();
    let level = if descriptor.is_conforming() { descriptor.dpl() <= rpl } else { descriptor.dpl() == rpl };
    let mixed = active && descriptor.is_long() && descriptor.is_big();
    if !descriptor.is_code() || rpl < cpu.cpl || !level || mixed {
        return cpu.raise(vector::GP, error_code(selector));
    }
    if !descriptor.is_present() {
        return cpu.raise(vector::NP, error_code(selector));
    }
    let long = active && descriptor.is_long();
    check_target(cpu, long, descriptor.segment(selector), target)?;
    let outward = rpl > cpu.cpl;
    Ok(Return { cs: cpu.accept(descriptor, selector)?, cpl: rpl, outward, long })
}

/// The stack segment of a return.
pub(super) fn return_stack(cpu: &mut Cpu, selector: u16, to: &Return) -> Step<Segment> {
    if is_null(selector) {
        if !to.long || to.cpl == 3 || rpl(selector) != to.cpl {
            return cpu.gp();
        }
        return Ok(crate::segment::null_stack(selector, to.cpl));
    }
    let descriptor = cpu.descriptor(selector, vector::GP)?;
    if rpl(selector) != to.cpl || descriptor.dpl() != to.cpl || !descriptor.is_writable_data() {
        return cpu.raise(vector::GP, error_code(selector));
    }
    if !descriptor.is_present() {
        return cpu.raise(vector::SS, error_code(selector));
    }
    cpu.accept(descriptor, selector)
}

/// Data segments that the outer level may not use become null.
pub(super) fn leave_inner_segments(cpu: &mut Cpu) {
    for n in [SystemRegisters::ES, SystemRegisters::DS, SystemRegisters::FS, SystemRegisters::GS] {
        let segment = &mut cpu.segments[n];
        let conforming = segment.attributes & 0x1C == 0x1C;
        if !is_null(segment.selector) && !conforming && segment.dpl() < cpu.cpl {
            *segment = Segment { selector: 0, base: segment.base, limit: 0, attributes: Segment::UNUSABLE };
        }
    }
}

fn retf<W: Width + MemValue>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let target = cpu.peek::<W>(0)?.zext();
    let selector = cpu.peek::<W>(W::BYTES as u64)?.zext() as u16;
    let drop = insn.imm & 0xFFFF;
    let used = 2 * W::BYTES as u64 + drop;
    if !cpu.is_protected() {
        cpu.segments[CS] = code_segment(cpu, selector, target)?;
        cpu.set_stack_pointer(cpu.gpr[4].wrapping_add(used));
        cpu.gpr[RIP_SLOT] = target;
        cpu.mode_changed();
        return Ok(());
    }
    let to = return_segment(cpu, selector, target)?;
    if to.outward {
        let pointer = cpu.peek::<W>(used)?.zext();
        let stack = cpu.peek::<W>(used + W::BYTES as u64)?.zext() as u16;
        let stack = return_stack(cpu, stack, &to)?;
        cpu.segments[SS] = stack;
        cpu.segments[CS] = to.cs;
        cpu.cpl = to.cpl;
        cpu.gpr[RIP_SLOT] = target;
        leave_inner_segments(cpu);
        cpu.mode_changed();
        cpu.set_stack_pointer(pointer.wrapping_add(drop));
        return Ok(());
    }
    cpu.set_stack_pointer(cpu.gpr[4].wrapping_add(used));
    cpu.segments[CS] = to.cs;
    cpu.gpr[RIP_SLOT] = target;
    cpu.mode_changed();
    Ok(())
}

pub(super) fn lookup(i: &Instruction) -> Option<Exec> {
    Some(match i.code() {
        Code::Jmp_ptr1616 | Code::Jmp_ptr1632 => jmp_immediate,
        Code::Jmp_m1616 => jmp_memory::<u16>,
        Code::Jmp_m1632 => jmp_memory::<u32>,
        Code::Jmp_m1664 => jmp_memory::<u64>,
        Code::Call_ptr1616 => call_immediate::<u16>,
        Code::Call_ptr1632 => call_immediate::<u32>,
        Code::Call_m1616 => call_memory::<u16>,
        Code::Call_m1632 => call_memory::<u32>,
        Code::Call_m1664 => call_memory::<u64>,
        Code::Retfw | Code::Retfw_imm16 => retf::<u16>,
        Code::Retfd | Code::Retfd_imm16 => retf::<u32>,
        Code::Retfq | Code::Retfq_imm16 => retf::<u64>,
        _ => return None,
    })
}
