//! Ports (SDM vol. 1, ch. 19; vol. 2: IN, OUT, INS, OUTS).

use engine::event::StoreKind;
use engine::state::{Segment, SystemRegisters};
use iced_x86::{Code, Instruction};

use crate::cpu::Cpu;
use crate::flags::bit;
use crate::insn::{Exec, FLAT, Insn, RIP, prefix};
use crate::mem::MemValue;
use crate::trap::Step;
use crate::width::Width;

pub(super) fn lookup(i: &Instruction) -> Option<Exec> {
    Some(match i.code() {
        Code::In_AL_imm8 => in_imm::<u8>,
        Code::In_AX_imm8 => in_imm::<u16>,
        Code::In_EAX_imm8 => in_imm::<u32>,
        Code::In_AL_DX => in_dx::<u8>,
        Code::In_AX_DX => in_dx::<u16>,
        Code::In_EAX_DX => in_dx::<u32>,
        Code::Out_imm8_AL => out_imm::<u8>,
        Code::Out_imm8_AX => out_imm::<u16>,
        Code::Out_imm8_EAX => out_imm::<u32>,
        Code::Out_DX_AL => out_dx::<u8>,
        Code::Out_DX_AX => out_dx::<u16>,
        Code::Out_DX_EAX => out_dx::<u32>,
        Code::Insb_m8_DX => ins::<u8>,
        Code::Insw_m16_DX => ins::<u16>,
        Code::Insd_m32_DX => ins::<u32>,
        Code::Outsb_DX_m8 => outs::<u8>,
        Code::Outsw_DX_m16 => outs::<u16>,
        Code::Outsd_DX_m32 => outs::<u32>,
        _ => return None,
    })
}

/// Numbers in [`Cpu::gpr`].
const RAX: u8 = 0;
const RCX: usize = 1;
const RDX: u8 = 2;
const RSI: usize = 6;
const RDI: usize = 7;

/// Offset of the I/O map's offset in a task-state segment.
const MAP_BASE: u64 = 102;

impl Cpu {
    /// #GP unless the privilege level or the task's I/O map allows these ports.
    fn may_access_ports(&mut self, port: u16, size: usize) -> Step {
        let flags = self.flags.control;
        let virtual_mode = flags & bit::VM != 0;
        let iopl = (flags & bit::IOPL) >> 12;
        if !virtual_mode && (self.real || u64::from(self.cpl) <= iopl) {
            return Ok(());
        }
        let Segment { base, limit, attributes, .. } = self.tr;
        let limit = u64::from(limit);
        let task = attributes & Segment::PRESENT != 0 && matches!(attributes & 0x1F, 9 | 11);
        if !task || limit < MAP_BASE + 1 {
            return self.gp();
        }
        let map = u64::from(self.load_system::<u16>(base.wrapping_add(MAP_BASE))?);
        let at = map + u64::from(port / 8);
        if at + 1 > limit {
            return self.gp();
        }
        let bits = self.load_system::<u16>(base.wrapping_add(at))? >> (port & 7);
        if bits & ((1 << size) - 1) != 0 { self.gp() } else { Ok(()) }
    }

    fn port(&self) -> u16 {
        self.get::<u16>(RDX)
    }
}

fn input<W: Width>(cpu: &mut Cpu, port: u16) -> Step {
    cpu.may_access_ports(port, W::BYTES)?;
    let value = cpu.io_read(port, W::BYTES as u8)?;
    cpu.put(RAX, W::of(u64::from(value)));
    Ok(())
}

fn output<W: Width>(cpu: &mut Cpu, port: u16) -> Step {
    cpu.may_access_ports(port, W::BYTES)?;
    let value = cpu.get::<W>(RAX).zext() as u32;
    cpu.io_write(port, W::BYTES as u8, value)
}

fn in_imm<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Step {
    input::<W>(cpu, insn.imm as u8 as u16)
}

fn in_dx<W: Width>(cpu: &mut Cpu, _: &Insn) -> Step {
    let port = cpu.port();
    input::<W>(cpu, port)
}

fn out_imm<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Step {
    output::<W>(cpu, insn.imm as u8 as u16)
}

fn out_dx<W: Width>(cpu: &mut Cpu, _: &Insn) -> Step {
    let port = cpu.port();
    output::<W>(cpu, port)
}

fn address_mask(insn: &Insn) -> u64 {
    match insn.addr_size {
        2 => 0xFFFF,
        4 => 0xFFFF_FFFF,
        _ => !0,
    }
}

/// A repeated instruction has something left to do.
fn remains(cpu: &Cpu, insn: &Insn) -> bool {
    insn.prefixes & (prefix::REP | prefix::REPNE) == 0 || cpu.gpr[RCX] & address_mask(insn) != 0
}

/// Writes a register as wide as addresses are.
fn put_address(cpu: &mut Cpu, insn: &Insn, register: usize, value: u64) {
    cpu.gpr[register] = match insn.addr_size {
        2 => (value as u16).merge(cpu.gpr[register]),
        4 => (value as u32).merge(cpu.gpr[register]),
        _ => value,
    };
}

/// One element is done: moves the index, counts, and comes again if there is more.
fn advance<W: Width>(cpu: &mut Cpu, insn: &Insn, index: usize) {
    let step = W::BYTES as u64;
    let down = cpu.flags.control & bit::DF != 0;
    let at = cpu.gpr[index];
    put_address(cpu, insn, index, if down { at.wrapping_sub(step) } else { at.wrapping_add(step) });
    if insn.prefixes & (prefix::REP | prefix::REPNE) != 0 {
        let left = cpu.gpr[RCX].wrapping_sub(1);
        put_address(cpu, insn, RCX, left);
        if left & address_mask(insn) != 0 {
            let rip = &mut cpu.gpr[usize::from(RIP)];
            *rip = rip.wrapping_sub(u64::from(insn.len));
        }
    }
}

fn ins<W: Width + MemValue>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let port = cpu.port();
    cpu.may_access_ports(port, W::BYTES)?;
    if !remains(cpu, insn) {
        return Ok(());
    }
    let segment = if cpu.long { FLAT } else { SystemRegisters::ES as u8 };
    let offset = cpu.gpr[RDI] & address_mask(insn);
    // The port is read only once the element can be stored.
    cpu.probe(segment, offset, W::BYTES, true)?;
    let value = cpu.io_read(port, W::BYTES as u8)?;
    cpu.store_at(segment, offset, W::of(u64::from(value)), StoreKind::Cached)?;
    advance::<W>(cpu, insn, RDI);
    Ok(())
}

fn outs<W: Width + MemValue>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let port = cpu.port();
    cpu.may_access_ports(port, W::BYTES)?;
    if !remains(cpu, insn) {
        return Ok(());
    }
    let offset = cpu.gpr[RSI] & address_mask(insn);
    let value: W = cpu.load_at(insn.seg, offset)?;
    cpu.io_write(port, W::BYTES as u8, value.zext() as u32)?;
    advance::<W>(cpu, insn, RSI);
    Ok(())
}
