//! A local APIC (SDM vol. 3, ch. 11 "Advanced programmable interrupt controller"): xAPIC page and x2APIC registers.
//!
//! It is a value: every access says the TSC, and what it sends comes back as a [`Message`] for the scheduler to carry.
//! Interrupts are edge-triggered as far as the machine can see: a level-triggered vector is marked in the TMR, but no
//! I/O APIC waits for its EOI.

mod message;
mod timer;

use engine::VcpuId;
use engine::state::Lapic as Page;

use message::{Address, x2apic_logical};
pub use message::{Delivery, Message, Target};
use timer::{MASKED, Timer};

/// The access is a #GP: a register that is not there, or a reserved bit (x2APIC mode and `IA32_APIC_BASE` only).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

/// Offsets of registers in the page; the x2APIC register of offset `o` is MSR `0x800 + o / 16`.
mod at {
    pub const ID: usize = 0x20;
    pub const VERSION: usize = 0x30;
    pub const TPR: usize = 0x80;
    pub const PPR: usize = 0xA0;
    pub const EOI: usize = 0xB0;
    pub const LDR: usize = 0xD0;
    pub const DFR: usize = 0xE0;
    pub const SVR: usize = 0xF0;
    pub const ISR: usize = 0x100;
    pub const TMR: usize = 0x180;
    pub const IRR: usize = 0x200;
    pub const ESR: usize = 0x280;
    pub const ICR: usize = 0x300;
    pub const ICR_HIGH: usize = 0x310;
    pub const TIMER: usize = 0x320;
    pub const THERMAL: usize = 0x330;
    pub const PERFORMANCE: usize = 0x340;
    pub const LINT0: usize = 0x350;
    pub const LINT1: usize = 0x360;
    pub const ERROR: usize = 0x370;
    pub const INITIAL: usize = 0x380;
    pub const CURRENT: usize = 0x390;
    pub const DIVIDE: usize = 0x3E0;
    pub const SELF_IPI: usize = 0x3F0;
}

/// Bits of `IA32_APIC_BASE`.
mod base {
    pub const BOOTSTRAP: u64 = 1 << 8;
    pub const X2APIC: u64 = 1 << 10;
    pub const ENABLE: u64 = 1 << 11;
    pub const ADDRESS: u64 = (1 << engine::cpuid::PHYSICAL_ADDRESS_BITS) - 4096;
}

/// Bits of the error status register.
mod error {
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// Software-enable bit of the spurious-interrupt vector register.
const SOFTWARE_ENABLE: u32 = 1 << 8;

/// Bits of a register that software may set; the others read as zero. 0: not writable, or not so simply.
const fn writable(offset: usize) -> u32 {
    match offset {
        at::TPR => 0xFF,
        at::LDR | at::ICR_HIGH => 0xFF00_0000,
        at::DFR => 0xF000_0000,
        at::SVR => 0x3FF,
        at::ICR => 0xC_CFFF,
        at::TIMER => 0x7_00FF,
        at::THERMAL | at::PERFORMANCE => 0x1_07FF,
        at::LINT0 | at::LINT1 => 0x1_A7FF,
        at::ERROR => 0x1_00FF,
        at::INITIAL => u32::MAX,
        at::DIVIDE => 0xB,
        at::SELF_IPI => 0xFF,
        _ => 0,
    }
}

/// A local APIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lapic {
    id: VcpuId,
    base: u64,
    /// What has no field of its own, as in [`Page`].
    page: Page,
    timer: Timer,
    /// Errors since the error status register was last written.
    errors: u32,
    /// The interrupt that would be taken now: kept at hand, since it is asked for all the time.
    pending: Option<u8>,
}

impl Lapic {
    /// After power-up.
    #[must_use]
    pub fn new(id: VcpuId) -> Self {
        let bootstrap = if id == 0 { base::BOOTSTRAP } else { 0 };
        let base = 0xFEE0_0000 | base::ENABLE | bootstrap;
        Self { id, base, page: Page::reset(id), timer: Timer::RESET, errors: 0, pending: None }
    }

    /// As INIT leaves it: all but its mode and address as after power-up.
    pub fn init(&mut self) {
        *self = Self { base: self.base, ..Self::new(self.id) };
        self.adopt_mode();
    }

    /// ID and logical destination as the mode has them.
    fn adopt_mode(&mut self) {
        let id = u32::from(self.id);
        if self.x2apic() {
            self.page.set(at::ID, id);
            self.page.set(at::LDR, x2apic_logical(self.id));
        } else {
            self.page.set(at::ID, id << 24);
        }
    }

    /// `IA32_APIC_BASE`.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// Writes `IA32_APIC_BASE`: moves the page, enables, disables, enters x2APIC mode.
    ///
    /// # Errors
    /// Reserved bits and the mode changes that the SDM forbids.
    pub fn set_base(&mut self, value: u64) -> Result<(), Refused> {
        const MODE: u64 = base::ENABLE | base::X2APIC;
        if value & !(base::ADDRESS | MODE | base::BOOTSTRAP) != 0 {
            return Err(Refused);
        }
        let (old, new) = (self.base & MODE, value & MODE);
        match (old, new) {
            _ if old == new => {}
            (_, base::X2APIC) | (0, MODE) | (MODE, base::ENABLE) => return Err(Refused),
            (_, 0) => *self = Self { base: value, ..Self::new(self.id) },
            _ => {}
        }
        self.base = value;
        if old != new {
            self.adopt_mode();
        }
        Ok(())
    }

    /// Not disabled by `IA32_APIC_BASE`.
    #[must_use]
    pub const fn enabled(&self) -> bool {
        self.base & base::ENABLE != 0
    }

    /// In x2APIC mode: registers are MSRs and there is no page.
    #[must_use]
    pub const fn x2apic(&self) -> bool {
        self.base & base::X2APIC != 0
    }

    /// Guest-physical address of the register page, in xAPIC mode.
    #[must_use]
    pub const fn page_address(&self) -> Option<u64> {
        if self.enabled() && !self.x2apic() { Some(self.base & base::ADDRESS) } else { None }
    }

    fn software_enabled(&self) -> bool {
        self.page.get(at::SVR) & SOFTWARE_ENABLE != 0
    }

    /// Highest vector of a 256-bit register.
    fn highest(&self, bank: usize) -> Option<u8> {
        (0..8_u8).rev().find_map(|n| {
            let word = self.page.get(bank + usize::from(n) * 16);
            (word != 0).then(|| n * 32 + (31 - word.leading_zeros() as u8))
        })
    }

    fn set_bit(&mut self, bank: usize, vector: u8, on: bool) {
        let (offset, bit) = (bank + usize::from(vector / 32) * 16, 1 << (vector & 31));
        let word = self.page.get(offset);
        self.page.set(offset, if on { word | bit } else { word & !bit });
    }

    /// Processor priority: the higher of the task's and of what is in service.
    #[must_use]
    pub fn processor_priority(&self) -> u8 {
        let task = self.page.get(at::TPR) as u8;
        let service = self.highest(at::ISR).unwrap_or(0);
        if task >> 4 >= service >> 4 { task } else { service & 0xF0 }
    }

    /// The interrupt that would be taken now.
    #[inline]
    #[must_use]
    pub const fn pending(&self) -> Option<u8> {
        self.pending
    }

    /// To be called when requests, services, priorities or the mode have changed.
    fn reconsider(&mut self) {
        let requested = if self.enabled() { self.highest(at::IRR) } else { None };
        self.pending = requested.filter(|vector| vector >> 4 > self.processor_priority() >> 4);
    }

    /// Takes the pending interrupt into service.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.set_bit(at::IRR, vector, false);
        self.set_bit(at::ISR, vector, true);
        self.reconsider();
        Some(vector)
    }

    /// Accepts an interrupt; ignored while disabled.
    pub fn raise(&mut self, vector: u8, level: bool) {
        if !self.enabled() || !self.software_enabled() {
            return;
        }
        if vector < 16 {
            self.err(error::RECEIVE_ILLEGAL_VECTOR);
            return;
        }
        self.set_bit(at::IRR, vector, true);
        self.set_bit(at::TMR, vector, level);
        self.reconsider();
    }

    fn err(&mut self, bit: u32) {
        let news = self.errors & bit == 0;
        self.errors |= bit;
        let entry = self.page.get(at::ERROR);
        if news && entry & MASKED == 0 {
            self.raise(entry as u8, false);
        }
    }

    /// Whether a message from `sender` (`None`: a device) is for this local APIC.
    #[must_use]
    pub fn answers(&self, target: Target, sender: Option<VcpuId>) -> bool {
        let address = Address {
            id: self.id,
            x2apic: self.x2apic(),
            logical: self.page.get(at::LDR),
            format: self.page.get(at::DFR),
        };
        self.enabled() && address.answers(target, sender)
    }

    /// TSC value at which the timer will interrupt; it may have passed.
    #[must_use]
    pub fn timer_expiry(&self) -> Option<u64> {
        if self.enabled() && self.software_enabled() { self.timer.expiry() } else { None }
    }

    /// Lets time have passed up to `tsc`.
    pub fn settle(&mut self, tsc: u64) {
        if self.timer.settle(tsc) {
            self.raise(self.timer.entry as u8, false);
        }
    }

    /// The guest writes the TSC.
    pub fn shift_tsc(&mut self, old: u64, new: u64) {
        self.settle(old);
        self.timer.shift_tsc(old, new);
    }

    /// `IA32_TSC_DEADLINE`.
    pub fn deadline(&mut self, tsc: u64) -> u64 {
        self.settle(tsc);
        self.timer.deadline()
    }

    /// Writes `IA32_TSC_DEADLINE`.
    pub fn set_deadline(&mut self, deadline: u64, tsc: u64) {
        self.settle(tsc);
        self.timer.set_deadline(deadline);
    }

    /// CR8: the task priority's class.
    #[must_use]
    pub fn cr8(&self) -> u64 {
        u64::from(self.page.get(at::TPR) >> 4 & 15)
    }

    /// Writes CR8; the caller has checked that it is below 16.
    pub fn set_cr8(&mut self, class: u64) {
        self.page.set(at::TPR, (class as u32 & 15) << 4);
        self.reconsider();
    }

    /// Register at an offset; `None` where there is none.
    fn register(&mut self, offset: usize, tsc: u64) -> Option<u32> {
        self.settle(tsc);
        Some(match offset {
            at::PPR => u32::from(self.processor_priority()),
            at::TIMER => self.timer.entry,
            at::INITIAL => self.timer.initial(),
            at::CURRENT => self.timer.current(tsc),
            at::DIVIDE => self.timer.divide(),
            at::EOI => 0,
            at::ID | at::VERSION | at::TPR | at::LDR | at::DFR | at::SVR | at::ESR => self.page.get(offset),
            at::ICR | at::ICR_HIGH | at::THERMAL..=at::ERROR => self.page.get(offset),
            at::ISR..at::ESR => self.page.get(offset),
            _ => return None,
        })
    }

    /// Writes a register with a value that has writable bits only; `None` where there is none.
    fn set_register(&mut self, offset: usize, value: u32, tsc: u64) -> Option<Option<Message>> {
        self.settle(tsc);
        match offset {
            at::EOI => {
                if let Some(vector) = self.highest(at::ISR) {
                    self.set_bit(at::ISR, vector, false);
                    self.reconsider();
                }
            }
            at::ESR => {
                self.page.set(at::ESR, self.errors);
                self.errors = 0;
            }
            at::DFR => self.page.set(at::DFR, value | 0x0FFF_FFFF),
            at::SVR => {
                self.page.set(at::SVR, value);
                if value & SOFTWARE_ENABLE == 0 {
                    self.timer.entry |= MASKED;
                    for entry in (at::THERMAL..=at::ERROR).step_by(16) {
                        self.page.set(entry, self.page.get(entry) | MASKED);
                    }
                }
            }
            at::ICR => {
                self.page.set(at::ICR, value);
                return Some(self.send());
            }
            at::TIMER => self.timer.set_entry(value | self.forced_mask()),
            at::THERMAL..=at::ERROR => self.page.set(offset, value | self.forced_mask()),
            at::INITIAL => self.timer.set_initial(value, tsc),
            at::DIVIDE => self.timer.set_divide(value, tsc),
            at::TPR => {
                self.page.set(at::TPR, value);
                self.reconsider();
            }
            at::LDR | at::ICR_HIGH => self.page.set(offset, value),
            at::SELF_IPI => return Some(self.checked(Message::to_self(value as u8))),
            _ => return None,
        }
        Some(None)
    }

    /// While software-disabled the local vector table stays masked.
    fn forced_mask(&self) -> u32 {
        if self.software_enabled() { 0 } else { MASKED }
    }

    /// The message of the interrupt command register.
    fn send(&mut self) -> Option<Message> {
        let high = self.page.get(at::ICR_HIGH);
        let destination = if self.x2apic() { high } else { high >> 24 };
        let message = Message::from_icr(self.page.get(at::ICR), destination)?;
        self.checked(message)
    }

    /// Holds back an interrupt whose vector is illegal.
    fn checked(&mut self, message: Message) -> Option<Message> {
        if matches!(message.delivery, Delivery::Fixed | Delivery::LowestPriority) && message.vector < 16 {
            self.err(error::SEND_ILLEGAL_VECTOR);
            return None;
        }
        Some(message)
    }

    /// Reads the xAPIC page. What is beside the registers, and a width that leaves one, reads as zeros.
    pub fn read_page(&mut self, offset: usize, size: usize, tsc: u64) -> u64 {
        let within = offset & 15;
        if within + size.min(4) > 4 {
            return 0;
        }
        let Some(value) = self.readable_in_page(offset & !15, tsc) else {
            self.err(error::ILLEGAL_REGISTER);
            return 0;
        };
        let bits = size.min(4) * 8;
        u64::from(value) >> (within * 8) & ((1_u64 << bits) - 1)
    }

    fn readable_in_page(&mut self, offset: usize, tsc: u64) -> Option<u32> {
        match offset {
            // Arbitration priority and remote read: there, and zero since the Pentium 4.
            0x90 | 0xC0 => Some(0),
            at::SELF_IPI => None,
            _ => self.register(offset, tsc),
        }
    }

    /// Writes the xAPIC page. Anything but an aligned 32-bit write is ignored.
    pub fn write_page(&mut self, offset: usize, size: usize, value: u64, tsc: u64) -> Option<Message> {
        if offset & 15 != 0 || size != 4 {
            return None;
        }
        match offset {
            // Read-only, ignored.
            at::ID | at::VERSION | 0x90 | at::PPR | 0xC0 | at::ISR..at::ESR | at::CURRENT => None,
            at::SELF_IPI => {
                self.err(error::ILLEGAL_REGISTER);
                None
            }
            _ => self.set_register(offset, value as u32 & writable(offset), tsc).unwrap_or_else(|| {
                self.err(error::ILLEGAL_REGISTER);
                None
            }),
        }
    }

    /// Reads an x2APIC register by its MSR index, 0x800 to 0x8FF.
    ///
    /// # Errors
    /// Not in x2APIC mode; no such register; write-only.
    pub fn read_msr(&mut self, index: u32, tsc: u64) -> Result<u64, Refused> {
        let offset = self.x2apic_offset(index)?;
        match offset {
            at::EOI | at::DFR | at::ICR_HIGH | at::SELF_IPI => Err(Refused),
            at::ICR => Ok(u64::from(self.page.get(at::ICR)) | u64::from(self.page.get(at::ICR_HIGH)) << 32),
            _ => self.register(offset, tsc).map(u64::from).ok_or(Refused),
        }
    }

    /// Writes an x2APIC register.
    ///
    /// # Errors
    /// As [`Self::read_msr`]; read-only; reserved bits.
    pub fn write_msr(&mut self, index: u32, value: u64, tsc: u64) -> Result<Option<Message>, Refused> {
        let offset = self.x2apic_offset(index)?;
        let reserved = match offset {
            at::ID | at::VERSION | at::PPR | at::LDR | at::DFR | at::ISR..at::ESR => return Err(Refused),
            at::ICR_HIGH | at::CURRENT => return Err(Refused),
            at::ICR => !(0xFFFF_FFFF_0000_0000 | u64::from(writable(at::ICR))),
            _ => !u64::from(writable(offset)),
        };
        if value & reserved != 0 {
            return Err(Refused);
        }
        if offset == at::ICR {
            self.page.set(at::ICR_HIGH, (value >> 32) as u32);
        }
        self.set_register(offset, value as u32, tsc).ok_or(Refused)
    }

    fn x2apic_offset(&self, index: u32) -> Result<usize, Refused> {
        let register = index.wrapping_sub(0x800);
        if self.x2apic() && register < 0x40 { Ok(register as usize * 16) } else { Err(Refused) }
    }

    /// The neutral page. The id stands in its upper byte in x2APIC mode too. Errors that the guest has not yet latched stand in bits 8..16 of the error status register.
    pub fn save(&mut self, tsc: u64) -> Page {
        self.settle(tsc);
        let mut page = self.page.clone();
        page.set(at::ID, u32::from(self.id) << 24);
        page.set(at::PPR, u32::from(self.processor_priority()));
        page.set(at::ESR, self.page.get(at::ESR) | self.errors << 8);
        page.set(at::TIMER, self.timer.entry);
        page.set(at::INITIAL, self.timer.initial());
        page.set(at::CURRENT, self.timer.current(tsc));
        page.set(at::DIVIDE, self.timer.divide());
        page
    }

    /// From the neutral page and the registers beside it.
    ///
    /// # Errors
    /// What contradicts itself, in words.
    pub fn load(id: VcpuId, page: &Page, base: u64, deadline: u64, tsc: u64) -> Result<Self, String> {
        if base & !(base::ADDRESS | base::ENABLE | base::X2APIC | base::BOOTSTRAP) != 0
            || base & (base::ENABLE | base::X2APIC) == base::X2APIC
        {
            return Err(format!("IA32_APIC_BASE {base:#x} has reserved bits or an invalid mode"));
        }
        let mut lapic = Self::new(id);
        lapic.base = base;
        let told = page.get(at::ID);
        if told != u32::from(id) && told != u32::from(id) << 24 {
            return Err(format!("local APIC id register {told:#x} is not of vCPU {id}"));
        }
        lapic.page = page.clone();
        lapic.page.set(at::PPR, 0);
        lapic.page.set(at::ESR, page.get(at::ESR) & 0xFF);
        lapic.errors = page.get(at::ESR) >> 8 & 0xFF;
        let (entry, divide) = (page.get(at::TIMER), page.get(at::DIVIDE));
        lapic.timer = Timer::load(
            entry & writable(at::TIMER),
            page.get(at::INITIAL),
            page.get(at::CURRENT),
            divide & writable(at::DIVIDE),
            deadline,
            tsc,
        );
        for moved in [at::TIMER, at::INITIAL, at::CURRENT, at::DIVIDE] {
            lapic.page.set(moved, Page::reset(id).get(moved));
        }
        lapic.adopt_mode();
        lapic.reconsider();
        Ok(lapic)
    }
}

#[cfg(test)]
mod tests;
