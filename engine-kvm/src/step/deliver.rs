//! Delivers an interrupt or exception in the processor's stead (SDM vol. 3, 6.14, "Exception and Interrupt Handling in
//! 64-bit Mode"), and executes SYSCALL and SYSRET.
//!
//! The processor would do all of this with the single-step flag set: it would save the flag where the guest finds it, and
//! clear it, so that the handler would run unseen.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};

use super::walk::{Paging, Want};
use engine::GuestMemory;

const TF: u64 = 1 << 8;
const IF: u64 = 1 << 9;
const NT: u64 = 1 << 14;
const RF: u64 = 1 << 16;
const VM: u64 = 1 << 17;
/// RFLAGS bits that SYSRET loads.
const SYSRET_FLAGS: u64 = 0x003C_7FD7;

/// What comes to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Delivery {
    pub(super) vector: u8,
    pub(super) error_code: Option<u32>,
    /// A fault: the instruction is executed again, and the resume flag is saved.
    pub(super) fault: bool,
    /// INT n, INT3: the gate's privilege level counts.
    pub(super) software: bool,
}

/// The registers that a delivery needs and changes.
#[derive(Debug)]
pub(super) struct Registers<'a> {
    pub(super) memory: &'a GuestMemory,
    pub(super) regs: &'a mut kvm_regs,
    pub(super) sregs: &'a mut kvm_sregs,
}

impl Registers<'_> {
    /// Enters the handler; `regs.rip` is what is saved. `None`, and nothing but the page tables' marks changed, where it
    /// is not the plain case of a present gate, code segment and stack in long mode.
    pub(super) fn deliver(&mut self, delivery: Delivery) -> Option<()> {
        let paging = Paging::of(self.memory, self.regs, self.sregs).supervisor();
        if !paging.is_long() {
            return None;
        }
        let idt = self.sregs.idt;
        let offset = u64::from(delivery.vector) * 16;
        if offset + 15 > idt.limit.into() {
            return None;
        }
        let gate = self.read::<16>(&paging, idt.base.wrapping_add(offset))?;
        let gate = Gate(u128::from_le_bytes(gate));
        let from = self.sregs.ss.dpl;
        if !gate.is_usable() || (delivery.software && gate.dpl() < from) {
            return None;
        }
        let gdt = self.sregs.gdt;
        let selector = gate.selector() & !3;
        if selector == 0 || selector & 4 != 0 || u64::from(selector) + 7 > gdt.limit.into() {
            return None;
        }
        let descriptor = self.read::<8>(&paging, gdt.base.wrapping_add(selector.into()))?;
        let code = code_segment(u64::from_le_bytes(descriptor), selector)?;
        if code.dpl > from {
            return None;
        }
        let changes = code.dpl < from;
        let tss = self.sregs.tr.base;
        let stack = match gate.ist() {
            0 if !changes => self.regs.rsp,
            0 => u64::from_le_bytes(self.read(&paging, tss + 4 + u64::from(code.dpl) * 8)?),
            ist => u64::from_le_bytes(self.read(&paging, tss + 28 + u64::from(ist) * 8)?),
        };
        let saved = self.regs.rflags & !TF | if delivery.fault { RF } else { 0 };
        let frame = [
            u64::from(self.sregs.ss.selector),
            self.regs.rsp,
            saved,
            self.sregs.cs.selector.into(),
            self.regs.rip,
        ];
        let mut rsp = stack & !15;
        for value in frame.into_iter().chain(delivery.error_code.map(u64::from)) {
            rsp = rsp.wrapping_sub(8);
            let at = paging.translate_for_store(rsp).ok()?;
            self.memory.write_obj(value, GuestAddress(at)).ok()?;
        }
        self.regs.rsp = rsp;
        self.regs.rip = gate.offset();
        self.regs.rflags &= !(TF | NT | RF | VM);
        if gate.clears_if() {
            self.regs.rflags &= !IF;
        }
        self.sregs.cs = code;
        if changes {
            self.sregs.ss = kvm_segment { dpl: code.dpl, selector: code.dpl.into(), ..null() };
        }
        Some(())
    }

    /// SYSCALL of 64-bit code, with STAR, LSTAR and SFMASK; `next` is the instruction behind it.
    pub(super) fn syscall(&mut self, next: u64, [star, lstar, mask]: [u64; 3]) {
        self.regs.rcx = next;
        self.regs.r11 = self.regs.rflags & !RF;
        self.regs.rip = lstar;
        self.regs.rflags &= !(mask | RF);
        let selector = (star >> 32) as u16 & !3;
        self.sregs.cs = flat_code(selector, 0);
        self.sregs.ss = flat_data(selector.wrapping_add(8), 0);
    }

    /// SYSRET to 64-bit code. `None` where it would fault.
    pub(super) fn sysret(&mut self, star: u64) -> Option<()> {
        let target = self.regs.rcx;
        if self.sregs.ss.dpl != 0 || target >> 47 != 0 || self.regs.r11 & TF != 0 {
            return None;
        }
        self.regs.rip = target;
        self.regs.rflags = self.regs.r11 & SYSRET_FLAGS | 2;
        let selector = (star >> 48) as u16;
        self.sregs.cs = flat_code(selector.wrapping_add(16) | 3, 3);
        self.sregs.ss = flat_data(selector.wrapping_add(8) | 3, 3);
        Some(())
    }

    fn read<const N: usize>(&self, paging: &Paging<'_>, linear: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        for (n, byte) in (0..).zip(&mut bytes) {
            let at = paging.translate(linear.wrapping_add(n), Want::Read).ok()?;
            *byte = self.memory.read_obj(GuestAddress(at)).ok()?;
        }
        Some(bytes)
    }
}

/// An entry of the IDT in long mode.
#[derive(Debug, Clone, Copy)]
struct Gate(u128);

impl Gate {
    /// A present interrupt or trap gate.
    fn is_usable(self) -> bool {
        self.0 >> 47 & 1 == 1 && matches!(self.0 >> 40 & 0x1F, 0xE | 0xF)
    }

    fn clears_if(self) -> bool {
        self.0 >> 40 & 0xF == 0xE
    }

    fn dpl(self) -> u8 {
        (self.0 >> 45) as u8 & 3
    }

    fn ist(self) -> u8 {
        (self.0 >> 32) as u8 & 7
    }

    fn selector(self) -> u16 {
        (self.0 >> 16) as u16
    }

    fn offset(self) -> u64 {
        let high = (self.0 >> 64) as u64 & 0xFFFF_FFFF;
        high << 32 | (self.0 >> 32) as u64 & 0xFFFF_0000 | self.0 as u64 & 0xFFFF
    }
}

/// The present, non-conforming 64-bit code segment of a descriptor.
fn code_segment(descriptor: u64, selector: u16) -> Option<kvm_segment> {
    let kind = (descriptor >> 40) as u8;
    let is_long_code = kind & 0x9C == 0x98 && descriptor >> 53 & 3 == 1;
    let dpl = kind >> 5 & 3;
    let accessed = kind & 0xF | 1;
    is_long_code.then(|| kvm_segment { type_: accessed, ..flat_code(selector | u16::from(dpl), dpl) })
}

fn flat_code(selector: u16, dpl: u8) -> kvm_segment {
    kvm_segment {
        selector,
        limit: u32::MAX,
        type_: 11,
        present: 1,
        dpl,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    }
}

fn flat_data(selector: u16, dpl: u8) -> kvm_segment {
    kvm_segment {
        selector,
        limit: u32::MAX,
        type_: 3,
        present: 1,
        dpl,
        s: 1,
        db: 1,
        g: 1,
        ..Default::default()
    }
}

fn null() -> kvm_segment {
    kvm_segment { unusable: 1, ..Default::default() }
}
