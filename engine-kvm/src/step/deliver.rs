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

#[cfg(test)]
mod tests {
    use super::super::walk::tests::{long_mode, memory};
    use super::*;

    const HANDLER: u64 = 0xFFFF_8000_1234_5678;

    /// IDT at 0x8000, GDT at 0x9000 with kernel code at 8, TSS at 0xA000 with stacks at 0xB000 (RSP0) and 0xC000 (IST1).
    fn scene(user: bool, gate: u128) -> (GuestMemory, kvm_regs, kvm_sregs) {
        let memory = memory();
        let put = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at)).unwrap();
        let offset = u128::from(HANDLER);
        let gate =
            gate | offset & 0xFFFF | (offset >> 16 & 0xFFFF) << 48 | (offset >> 32) << 64 | 8 << 16 | 1 << 47;
        put(0x8000 + 14 * 16, gate as u64);
        put(0x8008 + 14 * 16, (gate >> 64) as u64);
        put(0x9008, 0x00AF_9B00_0000_FFFF);
        put(0xA004, 0xB000);
        put(0xA024, 0xC000);
        let mut sregs = long_mode();
        (sregs.idt.base, sregs.idt.limit) = (0x8000, 0xFFF);
        (sregs.gdt.base, sregs.gdt.limit) = (0x9000, 0x2F);
        sregs.tr.base = 0xA000;
        (sregs.cs.selector, sregs.ss.selector, sregs.ss.dpl) = if user { (0x2B, 0x23, 3) } else { (8, 0, 0) };
        let regs = kvm_regs { rip: 0x40_0000, rsp: 0x6008, rflags: 0x302, ..Default::default() };
        (memory, regs, sregs)
    }

    const FAULT: Delivery = Delivery { vector: 14, error_code: Some(6), fault: true, software: false };

    fn frame(memory: &GuestMemory, rsp: u64) -> [u64; 6] {
        std::array::from_fn(|n| memory.read_obj(GuestAddress(rsp + n as u64 * 8)).unwrap())
    }

    #[test]
    fn a_fault_of_the_kernel_stays_on_its_stack() {
        let (memory, mut regs, mut sregs) = scene(false, 0xE << 40);
        Registers { memory: &memory, regs: &mut regs, sregs: &mut sregs }.deliver(FAULT).unwrap();
        assert_eq!((regs.rip, regs.rsp, regs.rflags), (HANDLER, 0x6000 - 48, 2));
        // The resume flag is saved, and the step flag is not.
        assert_eq!(frame(&memory, regs.rsp), [6, 0x40_0000, 8, 0x1_0202, 0x6008, 0]);
    }

    #[test]
    fn one_of_a_user_changes_the_stack_and_the_privilege() {
        let (memory, mut regs, mut sregs) = scene(true, 0xF << 40);
        Registers { memory: &memory, regs: &mut regs, sregs: &mut sregs }.deliver(FAULT).unwrap();
        assert_eq!(regs.rsp, 0xB000 - 48);
        assert_eq!(frame(&memory, regs.rsp)[1..], [0x40_0000, 0x2B, 0x1_0202, 0x6008, 0x23]);
        assert_eq!((sregs.cs.selector, sregs.cs.l, sregs.ss.dpl, sregs.ss.unusable), (8, 1, 0, 1));
        assert_eq!(regs.rflags, 0x202, "a trap gate leaves IF");
    }

    #[test]
    fn a_stack_of_its_own_and_what_is_no_plain_case() {
        let (memory, regs, mut sregs) = scene(false, 0xE << 40 | 1 << 32);
        let mut deliver = |delivery| {
            let mut regs = regs;
            let entered = Registers { memory: &memory, regs: &mut regs, sregs: &mut sregs }.deliver(delivery);
            entered.map(|()| regs.rsp)
        };
        assert_eq!(deliver(FAULT), Some(0xC000 - 48));
        assert_eq!(deliver(Delivery { vector: 15, ..FAULT }), None, "no gate");
    }

    #[test]
    fn a_user_may_not_call_a_kernel_gate() {
        let (memory, mut regs, mut sregs) = scene(true, 0xE << 40);
        let call = Delivery { software: true, fault: false, error_code: None, vector: 14 };
        let entered = Registers { memory: &memory, regs: &mut regs, sregs: &mut sregs }.deliver(call);
        assert_eq!((entered, regs.rip), (None, 0x40_0000));
    }

    #[test]
    fn system_calls_go_there_and_back() {
        let (memory, mut regs, mut sregs) = scene(true, 0);
        let star = 0x0023_0010_0000_0000;
        regs.rflags = 0x10246;
        let before = regs.rflags;
        let mut registers = Registers { memory: &memory, regs: &mut regs, sregs: &mut sregs };
        registers.syscall(0x40_0002, [star, HANDLER, 0x4_7700]);
        assert_eq!((registers.regs.rip, registers.regs.rcx, registers.regs.r11), (HANDLER, 0x40_0002, 0x246));
        assert_eq!(registers.regs.rflags, 0x046);
        assert_eq!((registers.sregs.cs.selector, registers.sregs.ss.selector), (0x10, 0x18));
        registers.sysret(star).unwrap();
        assert_eq!((registers.regs.rip, registers.regs.rflags), (0x40_0002, before & !0x10000));
        assert_eq!(
            (registers.sregs.cs.selector, registers.sregs.ss.selector, registers.sregs.ss.dpl),
            (0x33, 0x2B, 3)
        );
        registers.regs.rcx = 1 << 47;
        assert_eq!(registers.sysret(star), None);
    }
}
