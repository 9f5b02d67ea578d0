//! The local APIC's registers as one page (SDM vol. 3, table 11-1): a 32-bit register every 16 bytes.

use crate::VcpuId;

/// The 1 KiB of registers.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Lapic {
    /// Register `n` at offset `16 * n`; 64 of them.
    registers: Vec<u32>,
}

impl Lapic {
    /// Number of registers in the page.
    pub const COUNT: usize = 64;
    /// Offset of the ID register.
    pub const ID: usize = 0x20;
    /// Offset of the version register.
    pub const VERSION: usize = 0x30;
    /// Offset of the destination format register.
    pub const DFR: usize = 0xE0;
    /// Offset of the spurious-interrupt vector register.
    pub const SPURIOUS: usize = 0xF0;
    /// Offset of the first local vector table entry in order: CMCI 0x2F0, timer 0x320, thermal 0x330, performance 0x340,
    /// LINT0 0x350, LINT1 0x360, error 0x370.
    pub const LVT: [usize; 7] = [0x2F0, 0x320, 0x330, 0x340, 0x350, 0x360, 0x370];

    /// After power-up: software-disabled, all of the local vector table masked.
    #[must_use]
    pub fn reset(vcpu: VcpuId) -> Self {
        let mut lapic = Self { registers: vec![0; Self::COUNT] };
        lapic.set(Self::ID, u32::from(vcpu) << 24);
        lapic.set(Self::VERSION, 0x0005_0014);
        lapic.set(Self::DFR, 0xFFFF_FFFF);
        lapic.set(Self::SPURIOUS, 0xFF);
        for entry in Self::LVT.into_iter().skip(1) {
            lapic.set(entry, 0x1_0000);
        }
        lapic
    }

    /// Register at a byte offset (a multiple of 16 below 1024); 0 beyond.
    #[must_use]
    pub fn get(&self, offset: usize) -> u32 {
        self.registers.get(offset / 16).copied().unwrap_or(0)
    }

    /// Sets the register at a byte offset; ignored beyond the page.
    pub fn set(&mut self, offset: usize, value: u32) {
        if let Some(register) = self.registers.get_mut(offset / 16) {
            *register = value;
        }
    }
}

impl std::fmt::Debug for Lapic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map()
            .entries(self.registers.iter().enumerate().filter(|(_, v)| **v != 0).map(|(n, v)| (n * 16, v)))
            .finish()
    }
}
