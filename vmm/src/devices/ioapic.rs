//! The I/O APIC (Intel 82093AA): 24 edge-triggered pins, each sent on as the interrupt message of its redirection entry.
//!
//! There is no level triggering: every device of the machine pulses, and an entry that a guest programs as
//! level-triggered is sent as an edge.

use engine::Msi;
use serde::{Deserialize, Serialize};

use super::{Action, Registers, Snapshot};
use crate::{Error, Result};

/// Pins.
const PINS: usize = 24;
/// Value of the version register: version 0x11, highest entry 23.
const VERSION: u32 = 0x0017_0011;
/// Index register.
const SELECT: u64 = 0x00;
/// Data window.
const WINDOW: u64 = 0x10;

/// Bits of a redirection entry.
mod entry {
    pub const VECTOR: u64 = 0xFF;
    pub const DELIVERY: u64 = 7 << 8;
    pub const LOGICAL: u64 = 1 << 11;
    pub const MASKED: u64 = 1 << 16;
    pub const DESTINATION_SHIFT: u32 = 56;
    /// Delivery status and remote IRR are the hardware's.
    pub const READ_ONLY: u64 = 1 << 12 | 1 << 14;
    /// What exists at all.
    pub const WRITABLE: u64 = 0xFF00_0000_0001_AFFF;
}

/// Delivery modes, in place.
const LOWEST_PRIORITY: u64 = 1 << 8;
const EXTERNAL: u64 = 7 << 8;

/// Everything about an I/O APIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    /// Index register.
    pub select: u8,
    /// Identification, bits 27..24.
    pub id: u32,
    /// Redirection entries; 24.
    pub entries: Vec<u64>,
}

/// The I/O APIC.
#[derive(Debug)]
pub struct IoApic {
    state: IoApicState,
}

impl Default for IoApic {
    fn default() -> Self {
        Self { state: IoApicState { select: 0, id: 0, entries: vec![entry::MASKED; PINS] } }
    }
}

impl IoApic {
    /// The message for a rising edge on a pin; none if the pin is masked, absent, or would ask a PIC that there is not.
    #[must_use]
    pub fn edge(&self, pin: u8) -> Option<Msi> {
        let value = *self.state.entries.get(usize::from(pin))?;
        if value & entry::MASKED != 0 || value & entry::DELIVERY == EXTERNAL {
            return None;
        }
        let destination = value >> entry::DESTINATION_SHIFT;
        let logical = u64::from(value & entry::LOGICAL != 0) << 2;
        let hint = u64::from(value & entry::DELIVERY == LOWEST_PRIORITY) << 3;
        Some(Msi {
            address: crate::layout::LOCAL_APIC | destination << 12 | hint | logical,
            data: (value & (entry::VECTOR | entry::DELIVERY)) as u32,
        })
    }

    fn window(&self) -> u32 {
        match self.state.select {
            0 | 2 => self.state.id,
            1 => VERSION,
            index => self.half(index).map_or(0, |(value, shift)| (value >> shift) as u32),
        }
    }

    /// The entry behind an index and which half of it.
    fn half(&self, index: u8) -> Option<(u64, u32)> {
        let slot = usize::from(index.checked_sub(0x10)?);
        Some((*self.state.entries.get(slot / 2)?, 32 * (slot as u32 % 2)))
    }

    fn set_window(&mut self, value: u32) {
        if self.state.select == 0 {
            self.state.id = value & 0x0F00_0000;
        } else if let Some((old, shift)) = self.half(self.state.select) {
            let merged = old & !(0xFFFF_FFFF << shift) | u64::from(value) << shift;
            let slot = usize::from(self.state.select - 0x10) / 2;
            self.state.entries[slot] = merged & entry::WRITABLE & !entry::READ_ONLY;
        }
    }
}

impl Registers for IoApic {
    fn read(&mut self, offset: u64, _size: u8, _now: u64) -> u64 {
        match offset {
            SELECT => u64::from(self.state.select),
            WINDOW => u64::from(self.window()),
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, _size: u8, value: u64, _now: u64) -> Action {
        match offset {
            SELECT => self.state.select = value as u8,
            WINDOW => self.set_window(value as u32),
            _ => {}
        }
        Action::None
    }
}

impl Snapshot for IoApic {
    type State = IoApicState;

    fn save(&self) -> IoApicState {
        self.state.clone()
    }

    fn restore(&mut self, state: IoApicState) -> Result<()> {
        if state.entries.len() != PINS {
            let reason = format!("{} redirection entries instead of {PINS}", state.entries.len());
            return Err(Error::BadState { device: "the I/O APIC", reason });
        }
        self.state = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ioapic: &mut IoApic, index: u8, value: u32) {
        ioapic.write(SELECT, 4, index.into(), 0);
        ioapic.write(WINDOW, 4, value.into(), 0);
    }

    fn get(ioapic: &mut IoApic, index: u8) -> u32 {
        ioapic.write(SELECT, 4, index.into(), 0);
        ioapic.read(WINDOW, 4, 0) as u32
    }

    #[test]
    fn says_how_many_pins_it_has() {
        assert_eq!(get(&mut IoApic::default(), 1) >> 16 & 0xFF, 23);
    }

    #[test]
    fn an_unmasked_entry_becomes_a_message() {
        let mut ioapic = IoApic::default();
        assert_eq!(ioapic.edge(4), None, "masked at power-up");
        set(&mut ioapic, 0x10 + 8, 0x0000_0931);
        set(&mut ioapic, 0x10 + 9, 0x0300_0000);
        let logical_lowest = Msi { address: 0xFEE0_300C, data: 0x131 };
        assert_eq!(ioapic.edge(4), Some(logical_lowest));
        set(&mut ioapic, 0x10 + 8, 0x0001_0031);
        assert_eq!(ioapic.edge(4), None);
    }

    #[test]
    fn reserved_and_read_only_bits_stay_clear() {
        let mut ioapic = IoApic::default();
        set(&mut ioapic, 0x10, u32::MAX);
        set(&mut ioapic, 0x11, u32::MAX);
        assert_eq!(get(&mut ioapic, 0x10), 0x0001_AFFF);
        assert_eq!(get(&mut ioapic, 0x11), 0xFF00_0000);
    }

    #[test]
    fn nonsense_is_harmless() {
        let mut ioapic = IoApic::default();
        for index in 0..=255 {
            set(&mut ioapic, index, 0x55AA_55AA);
            get(&mut ioapic, index);
        }
        for offset in [1, 4, 0x11, 0x40, 0xFFF] {
            ioapic.write(offset, 8, u64::MAX, 0);
            assert_eq!(ioapic.read(offset, 8, 0), 0);
        }
        for pin in 0..=255 {
            let _ = ioapic.edge(pin);
        }
    }

    crate::devices::law::snapshot_law!(law, IoApic::default(), |ioapic: &mut IoApic| set(ioapic, 0x18, 0x41));
}
