//! Interrupt messages between local APICs and from devices (SDM vol. 3, "Interrupt command register" and "Message
//! signalled interrupts").

use engine::{Msi, VcpuId};

/// What a message asks of its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// An interrupt for every target.
    Fixed,
    /// An interrupt for the one target of the lowest processor priority.
    LowestPriority,
    /// A non-maskable interrupt.
    Nmi,
    /// Reset to waiting for a SIPI.
    Init,
    /// Start at `vector * 4096`, if waiting.
    Startup,
}

/// Whom a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// By APIC id. All ones in 8 or 32 bits: everyone.
    Physical(u32),
    /// By logical destination.
    Logical(u32),
    /// The sender.
    Myself,
    /// All, the sender included.
    Everyone,
    /// All but the sender.
    Others,
}

/// A message on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// What it asks.
    pub delivery: Delivery,
    /// Interrupt vector, or the page of a [`Delivery::Startup`].
    pub vector: u8,
    /// Level-triggered: sets the bit in the trigger mode register.
    pub level: bool,
    /// Whom it is for.
    pub target: Target,
}

/// Delivery mode field of an ICR, LVT or MSI; SMI, ExtINT and the reserved mode have no meaning on this machine.
fn delivery(mode: u32) -> Option<Delivery> {
    match mode & 7 {
        0 => Some(Delivery::Fixed),
        1 => Some(Delivery::LowestPriority),
        4 => Some(Delivery::Nmi),
        5 => Some(Delivery::Init),
        6 => Some(Delivery::Startup),
        _ => None,
    }
}

impl Message {
    /// The message that a device's write means; `None` if it means nothing here.
    #[must_use]
    pub fn from_msi(msi: Msi) -> Option<Self> {
        if msi.address >> 20 != 0xFEE {
            return None;
        }
        let destination = (msi.address >> 12 & 0xFF) as u32;
        let delivery = delivery(msi.data >> 8)?;
        let logical = msi.address & 1 << 2 != 0;
        Some(Self {
            delivery: if delivery == Delivery::Startup { return None } else { delivery },
            vector: msi.data as u8,
            level: msi.data & 1 << 15 != 0,
            target: if logical { Target::Logical(destination) } else { Target::Physical(destination) },
        })
    }

    /// The message that a write of the interrupt command register sends; `None` for combinations that the SDM calls
    /// invalid and for the INIT de-assertion, which is nothing since the Pentium 4.
    #[must_use]
    pub fn from_icr(command: u32, destination: u32) -> Option<Self> {
        let delivery = delivery(command >> 8)?;
        let asserted = command & 1 << 14 != 0;
        let level = command & 1 << 15 != 0;
        if delivery == Delivery::Init && level && !asserted {
            return None;
        }
        let target = match command >> 18 & 3 {
            0 if command & 1 << 11 != 0 => Target::Logical(destination),
            0 => Target::Physical(destination),
            1 => Target::Myself,
            2 => Target::Everyone,
            _ => Target::Others,
        };
        if matches!(target, Target::Myself | Target::Everyone) && delivery != Delivery::Fixed {
            return None;
        }
        Some(Self { delivery, vector: command as u8, level: false, target })
    }

    /// The message that a write of the self-IPI register sends.
    #[must_use]
    pub const fn to_self(vector: u8) -> Self {
        Self { delivery: Delivery::Fixed, vector, level: false, target: Target::Myself }
    }
}

/// A local APIC's addresses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Address {
    pub id: VcpuId,
    pub x2apic: bool,
    /// Logical destination register.
    pub logical: u32,
    /// Destination format register.
    pub format: u32,
}

/// The logical id that x2APIC mode derives: cluster in the upper half, a bit in the lower.
pub(super) fn x2apic_logical(id: VcpuId) -> u32 {
    u32::from(id >> 4) << 16 | 1 << (id & 15)
}

impl Address {
    /// Whether a message of `sender` (`None`: a device) concerns this local APIC.
    pub fn answers(&self, target: Target, sender: Option<VcpuId>) -> bool {
        let broadcast = |destination: u32| destination == 0xFF || destination == u32::MAX;
        match target {
            Target::Myself => sender == Some(self.id),
            Target::Everyone => true,
            Target::Others => sender != Some(self.id),
            Target::Physical(destination) => broadcast(destination) || destination == u32::from(self.id),
            Target::Logical(u32::MAX) => true,
            Target::Logical(destination) if self.x2apic => {
                destination >> 16 == self.logical >> 16 && destination & self.logical & 0xFFFF != 0
            }
            Target::Logical(destination) => {
                let (own, asked) = ((self.logical >> 24) as u8, destination as u8);
                if self.format >> 28 == 0xF {
                    own & asked != 0
                } else {
                    (asked >> 4 == 0xF || asked >> 4 == own >> 4) && own & asked & 0xF != 0
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(id: VcpuId) -> Address {
        Address { id, x2apic: false, logical: 1 << (24 + id), format: u32::MAX }
    }

    #[test]
    fn a_device_interrupt_is_read_from_its_address_and_data() {
        let msi = Msi { address: 0xFEE0_2004, data: 0xC131 };
        let expected = Message {
            delivery: Delivery::LowestPriority,
            vector: 0x31,
            level: true,
            target: Target::Logical(2),
        };
        assert_eq!(Message::from_msi(msi), Some(expected));
        assert_eq!(Message::from_msi(Msi { address: 0xFED0_0000, data: 0x31 }), None);
        assert_eq!(
            Message::from_msi(Msi { address: 0xFEE0_0000, data: 0x700 }),
            None,
            "ExtINT has no 8259 here"
        );
        assert_eq!(
            Message::from_msi(Msi { address: 0xFEE0_0000, data: 0x608 }),
            None,
            "no SIPI from a device"
        );
    }

    #[test]
    fn destinations_physical_and_logical() {
        let apic = flat(2);
        assert!(apic.answers(Target::Physical(2), None));
        assert!(!apic.answers(Target::Physical(1), None));
        assert!(apic.answers(Target::Physical(0xFF), Some(0)));
        assert!(apic.answers(Target::Logical(0b0110), Some(0)));
        assert!(!apic.answers(Target::Logical(0b1010), Some(0)));
        let cluster = Address { logical: 0x12 << 24, format: 0x0FFF_FFFF, ..flat(2) };
        assert!(cluster.answers(Target::Logical(0x13), None));
        assert!(!cluster.answers(Target::Logical(0x23), None));
        assert!(cluster.answers(Target::Logical(0xF2), None));
        assert!(!cluster.answers(Target::Logical(0xF1), None));
    }

    #[test]
    fn x2apic_clusters_are_derived_from_the_id() {
        let apic = Address { id: 0x25, x2apic: true, logical: x2apic_logical(0x25), format: 0 };
        assert_eq!(apic.logical, 0x0002_0020);
        assert!(apic.answers(Target::Logical(0x0002_0030), None));
        assert!(!apic.answers(Target::Logical(0x0001_0030), None));
    }

    #[test]
    fn shorthands() {
        for (id, myself, everyone, others) in [(0, true, true, false), (1, false, true, true)] {
            let apic = flat(id);
            assert_eq!(apic.answers(Target::Myself, Some(0)), myself);
            assert_eq!(apic.answers(Target::Everyone, Some(0)), everyone);
            assert_eq!(apic.answers(Target::Others, Some(0)), others);
        }
    }

    #[test]
    fn init_startup_and_invalid_commands() {
        let init = Message::from_icr(0xC500, 1).unwrap();
        assert_eq!((init.delivery, init.target), (Delivery::Init, Target::Physical(1)));
        assert_eq!(Message::from_icr(0x8500, 1), None, "de-assertion");
        let startup = Message::from_icr(0x4699, 3).unwrap();
        assert_eq!((startup.delivery, startup.vector), (Delivery::Startup, 0x99));
        assert_eq!(Message::from_icr(0x4_0400, 0), None, "an NMI to oneself");
        assert_eq!(Message::from_icr(0xC_0400, 0).unwrap().target, Target::Others);
    }
}
