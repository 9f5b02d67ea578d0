//! Who a DIMM is: the fields of the NFIT control region that stay with it for life (ACPI 5.2.25.5), and the handle under
//! which a machine addresses it (ACPI 9.19.3).
//!
//! The interleave-set cookie is computed from them, so a change makes all labels foreign: they are kept in the DIMM's
//! file and never derived from the machine.

use serde::{Deserialize, Serialize};

/// What stays with a DIMM for life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// JEDEC vendor id, in NFIT byte order.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision of the device.
    pub revision: u16,
    /// Serial number; unique among the DIMMs of a machine.
    pub serial: u32,
    /// Where it was made.
    pub location: u8,
    /// When it was made: binary-coded decimal, week in the high byte and year in the low, in NFIT byte order.
    pub date: u16,
}

impl Identity {
    /// The identity of a new DIMM of this project, with a serial number chosen by the caller.
    pub const fn with_serial(serial: u32) -> Self {
        Self { vendor: 0x4e56, device: 0x0001, revision: 0x0001, serial, location: 0x01, date: 0x2614 }
    }

    /// The id that Linux prints: vendor, location, date and serial, each in the order its bytes stand in the table.
    pub fn id(&self) -> String {
        format!(
            "{:04x}-{:02x}-{:04x}-{:08x}",
            self.vendor.swap_bytes(),
            self.location,
            self.date.swap_bytes(),
            self.serial.swap_bytes()
        )
    }
}

/// An NFIT device handle: the address of a DIMM's slot, equal to `_ADR` of its ACPI device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Handle(pub u32);

impl Handle {
    /// The handle that stands for no DIMM but the bus itself.
    pub const ROOT: Self = Self(0);

    /// The slot of a DIMM on a socket: numbers are cut to their fields (4 bits each, the node 12).
    pub const fn new(node: u16, socket: u8, controller: u8, channel: u8, dimm: u8) -> Self {
        Self(
            (node as u32 & 0xfff) << 16
                | (socket as u32 & 0xf) << 12
                | (controller as u32 & 0xf) << 8
                | (channel as u32 & 0xf) << 4
                | (dimm as u32 & 0xf),
        )
    }

    /// The slot of the n-th DIMM of a machine: on channel n + 1, so that none is [`Handle::ROOT`].
    pub const fn nth(n: u8) -> Self {
        Self::new(0, 0, 0, n + 1, 0)
    }
}

impl std::fmt::Display for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_shows_bytes_in_table_order() {
        let identity = Identity {
            vendor: 0x8680,
            device: 0,
            revision: 0,
            serial: 0x0403_0201,
            location: 0xa1,
            date: 0x2517,
        };
        assert_eq!(identity.id(), "8086-a1-1725-01020304");
    }

    #[test]
    fn handles_of_slots() {
        assert_eq!(Handle::new(1, 2, 3, 4, 5).0, 0x0001_2345);
        assert_eq!(Handle::nth(0).0, 0x10);
        assert_eq!(Handle::nth(7).0, 0x80);
        assert_ne!(Handle::nth(0), Handle::ROOT);
    }
}
