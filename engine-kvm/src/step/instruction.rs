//! The next instruction: fetched and decoded through the guest's page tables, its accesses translated, and what KVM is
//! better not given executed in software.

use engine::Result;
use engine::msr::{Msrs, TSC, TSC_DEADLINE};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::deliver::{Delivery, Registers};
use super::effects::{self, Access, Touch};
use super::walk::{Miss, Paging, Want};
use super::xsave::{self, Extended};
use super::{Begun, Events, IF, MSR_LSTAR, MSR_SFMASK, MSR_STAR, Next, PAGE, Piece, Stepper, Watch};

const EFER_LMA: u64 = 1 << 10;
const CR4_TSD: u64 = 1 << 2;
/// Bits of IA32_APIC_BASE that say where the local APIC is.
const APIC_PAGE: u64 = 0x000F_FFFF_FFFF_F000;
const PAGE_FAULT: u8 = 14;
const PROTECTION: u8 = 13;
const STACK_FAULT: u8 = 12;
const UNDEFINED: u8 = 6;
/// A store event holds no more; a longer run is several.
const WIDEST: u64 = 64;

/// Can execution be at `rip` after the instruction, when it raised nothing?
pub(super) fn leads_to(i: &Instruction, rip: u64) -> bool {
    match i.flow_control() {
        _ if i.is_invalid() => true,
        FlowControl::Next => rip == i.next_ip() || (i.is_string_instruction() && rip == i.ip()),
        FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch if i.near_branch_target() != 0 => {
            rip == i.next_ip() || rip == i.near_branch_target()
        }
        _ => true,
    }
}

impl Begun {
    /// Of an instruction that cannot be told.
    fn blindly(rip: u64) -> Self {
        let instruction = Instruction::default();
        Self { rip, instruction, pieces: Vec::new(), place: 0, calls: false, behind: None }
    }
}

impl Stepper {
    /// Looks at the instruction at `rip`.
    pub(super) fn look(&mut self, fd: &VcpuFd, rip: u64, watch: &Watch, events: &Events) -> Result<Next> {
        let instruction = match self.fetch(rip) {
            Ok(instruction) => instruction,
            Err((at, miss)) => return self.missed(fd, rip, at, false, miss),
        };
        if rip == self.regs.rip {
            if let Some(done) = self.in_software(fd, &instruction, events)? {
                return Ok(done);
            }
            if let Some(done) = self.string(fd, &instruction, watch)? {
                return Ok(done);
            }
        }
        let mut accesses = std::mem::take(&mut self.accesses);
        let extended = if xsave::is_one(&instruction) { extended(fd)? } else { Extended::default() };
        let registers = (&self.regs, &self.sregs);
        effects::accesses(&instruction, &mut self.info, registers, extended, &mut accesses);
        let mut pieces = Vec::new();
        let mut miss = None;
        let mut calls = false;
        for access in &accesses {
            match self.translate(access, watch, &mut pieces) {
                Ok(last) => calls |= self.is_apic(last) && access.touch != Touch::Load,
                Err((at, why)) => {
                    miss = Some((at, access.stack, why));
                    break;
                }
            }
        }
        self.accesses = accesses;
        match miss {
            Some((at, stack, why)) => self.missed(fd, rip, at, stack, why),
            None => Ok(Next::Run(Begun { rip, instruction, pieces, place: 0, calls, behind: None })),
        }
    }

    fn fetch(&self, rip: u64) -> std::result::Result<Instruction, (u64, Miss)> {
        let long = self.sregs.cs.l != 0;
        let bitness = if long {
            64
        } else if self.sregs.cs.db != 0 {
            32
        } else {
            16
        };
        let start = if long { rip } else { self.sregs.cs.base.wrapping_add(rip) };
        let paging = Paging::of(&self.memory, &self.regs, &self.sregs);
        let mut bytes = [0; 15];
        let here = (PAGE - start % PAGE).min(15) as usize;
        let first = paging.translate(start, Want::Execute).map_err(|miss| (start, miss))?;
        let _ = self.memory.read_slice(&mut bytes[..here], GuestAddress(first));
        let decode = |bytes: &[u8]| Decoder::with_ip(bitness, bytes, rip, DecoderOptions::NONE).decode();
        let instruction = decode(&bytes[..here]);
        if here == 15 || instruction.code() != Code::INVALID {
            return Ok(instruction);
        }
        let behind = start.wrapping_add(here as u64);
        let second = paging.translate(behind, Want::Execute).map_err(|miss| (behind, miss))?;
        let _ = self.memory.read_slice(&mut bytes[here..], GuestAddress(second));
        Ok(decode(&bytes))
    }

    /// Is this in the page of the local APIC?
    fn is_apic(&self, addr: u64) -> bool {
        addr / PAGE == (self.sregs.apic_base & APIC_PAGE) / PAGE
    }

    /// The watched parts of an access, page by page. Gives where the last begins.
    fn translate(
        &self,
        access: &Access,
        watch: &Watch,
        pieces: &mut Vec<Piece>,
    ) -> std::result::Result<u64, (u64, Miss)> {
        let paging = Paging::of(&self.memory, &self.regs, &self.sregs);
        let want = if matches!(access.touch, Touch::Store(_)) { Want::Write } else { Want::Read };
        let (mut linear, mut left) = (access.linear, access.len);
        let mut last = 0;
        while left > 0 {
            let here = left.min(PAGE - linear % PAGE);
            let addr = paging.translate(linear, want).map_err(|miss| (linear, miss))?;
            clip(addr, here, access.touch, watch, pieces);
            linear = linear.wrapping_add(here);
            left -= here;
            last = addr;
        }
        Ok(last)
    }

    /// An address that cannot be reached: enters the fault's handler.
    fn missed(&mut self, fd: &VcpuFd, rip: u64, at: u64, stack: bool, miss: Miss) -> Result<Next> {
        let (vector, code) = match miss {
            // One behind a MOV SS comes when its turn has come.
            _ if rip != self.regs.rip => return Ok(Next::Raised),
            Miss::Fault(code) => {
                self.sregs.cr2 = at;
                (PAGE_FAULT, code)
            }
            Miss::NotCanonical if stack => (STACK_FAULT, 0),
            Miss::NotCanonical => (PROTECTION, 0),
            Miss::Unknown => return Ok(Next::Run(Begun::blindly(rip))),
        };
        if self.enter(fd, Delivery { vector, error_code: Some(code), fault: true, software: false })? {
            return Ok(Next::Raised);
        }
        // KVM raises it, and what its handler does is not seen.
        Ok(Next::Run(Begun::blindly(rip)))
    }

    /// Executes what KVM is better not given while it single-steps; none if that is KVM's.
    fn in_software(&mut self, fd: &VcpuFd, i: &Instruction, events: &Events) -> Result<Option<Next>> {
        let kernel = self.sregs.ss.dpl == 0;
        let raised = |vector, fault| Delivery { vector, error_code: None, fault, software: !fault };
        match i.mnemonic() {
            Mnemonic::Hlt if kernel => {
                self.regs.rip = i.next_ip();
                self.halted = true;
                self.write_general(fd)?;
            }
            Mnemonic::Pause => {
                self.regs.rip = i.next_ip();
                self.write_general(fd)?;
            }
            Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => {
                return Ok(self.enter(fd, raised(UNDEFINED, true))?.then_some(Next::Raised));
            }
            // Its shadow holds off the trap too on some processors, and then a HLT behind it would sleep in KVM.
            Mnemonic::Sti if kernel && self.sregs.efer & EFER_LMA != 0 => {
                self.shadow = self.regs.rflags & IF == 0;
                self.regs.rflags |= IF;
                self.regs.rip = i.next_ip();
                self.write_general(fd)?;
            }
            Mnemonic::Int3 | Mnemonic::Int => {
                let vector = if i.mnemonic() == Mnemonic::Int3 { 3 } else { i.immediate8() };
                let at = std::mem::replace(&mut self.regs.rip, i.next_ip());
                let entered = self.enter(fd, raised(vector, false))?;
                if !entered {
                    self.regs.rip = at;
                }
                return Ok(entered.then_some(Next::Executed));
            }
            Mnemonic::Syscall if self.sregs.cs.l != 0 && self.sregs.efer & 1 != 0 => {
                let msrs = msrs(fd)?;
                let mut registers =
                    Registers { memory: &self.memory, regs: &mut self.regs, sregs: &mut self.sregs };
                registers.syscall(i.next_ip(), msrs);
                self.write(fd)?;
            }
            // Not where a program must not read it.
            Mnemonic::Rdtsc | Mnemonic::Rdtscp if kernel || self.sregs.cr4 & CR4_TSD == 0 => {
                let Some(tsc) = self.tsc else { return Ok(None) };
                (self.regs.rax, self.regs.rdx) = (tsc & 0xFFFF_FFFF, tsc >> 32);
                if i.mnemonic() == Mnemonic::Rdtscp {
                    self.regs.rcx = crate::state::tsc_aux(fd)?;
                }
                self.regs.rip = i.next_ip();
                self.write_general(fd)?;
            }
            Mnemonic::Wrmsr if kernel && self.regs.rcx as u32 == TSC_DEADLINE && self.tsc.is_some() => {
                // It serialises nothing (SDM vol. 3, 11.5.4.1). Where the timer waits for something else, nothing happens.
                if crate::state::waits_for_counter(fd)? {
                    let deadline = self.regs.rdx << 32 | self.regs.rax & 0xFFFF_FFFF;
                    events.time().arm(self.id, deadline);
                }
                self.regs.rip = i.next_ip();
                self.write_general(fd)?;
            }
            Mnemonic::Rdmsr if kernel && matches!(self.regs.rcx as u32, TSC | TSC_DEADLINE) => {
                let Some(tsc) = self.tsc else { return Ok(None) };
                let is_counter = self.regs.rcx as u32 == TSC;
                let value = if is_counter { tsc } else { events.time().deadline(self.id) };
                (self.regs.rax, self.regs.rdx) = (value & 0xFFFF_FFFF, value >> 32);
                self.regs.rip = i.next_ip();
                self.write_general(fd)?;
            }
            Mnemonic::Sysretq => {
                let [star, ..] = msrs(fd)?;
                let mut registers =
                    Registers { memory: &self.memory, regs: &mut self.regs, sregs: &mut self.sregs };
                if registers.sysret(star).is_none() {
                    return Ok(None);
                }
                self.write(fd)?;
            }
            _ => return Ok(None),
        }
        Ok(Some(Next::Executed))
    }
}

/// The parts of a run of bytes that are watched, none longer than an event holds.
fn clip(addr: u64, len: u64, touch: Touch, watch: &Watch, pieces: &mut Vec<Piece>) {
    if touch == Touch::Load && !watch.loads {
        return;
    }
    for range in &watch.ranges {
        let (mut start, end) = (addr.max(range.start), (addr + len).min(range.end));
        while start < end {
            let len = (end - start).min(WIDEST);
            pieces.push(Piece { addr: start, len, touch });
            start += len;
        }
    }
}

/// STAR, LSTAR and SFMASK.
fn msrs(fd: &VcpuFd) -> Result<[u64; 3]> {
    let msrs: Msrs = crate::state::msrs(fd)?;
    Ok([MSR_STAR, MSR_LSTAR, MSR_SFMASK]
        .map(|wanted| msrs.iter().find(|(index, _)| *index == wanted).map_or(0, |(_, value)| value)))
}

fn extended(fd: &VcpuFd) -> Result<Extended> {
    let (xcr0, in_use) = crate::state::extended(fd)?;
    Ok(Extended { xcr0, in_use })
}
