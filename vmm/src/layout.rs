//! The memory map: where everything stands in guest-physical and port space, and the typed regions from which the e820
//! map is derived (ACPI 6.5, table 15.4).

use std::ops::Range;

use crate::Error;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// One kibibyte.
pub const KIB: u64 = 1 << 10;
/// One mebibyte.
pub const MIB: u64 = 1 << 20;
/// One gibibyte.
pub const GIB: u64 = 1 << 30;

/// Boot-time structures in the first 640 KiB; the kernel is done with them before it hands out this memory.
pub mod boot {
    /// Global descriptor table.
    pub const GDT: u64 = 0x500;
    /// `struct boot_params`.
    pub const ZERO_PAGE: u64 = 0x7000;
    /// Top of the initial stack.
    pub const STACK: u64 = 0x8FF0;
    /// Page tables: PML4, PDPT, then four page directories.
    pub const PAGE_TABLES: u64 = 0x9000;
    /// Random seed for the kernel, a `struct setup_data`.
    pub const SETUP_DATA: u64 = 0x1_0000;
    /// Command line with its NUL.
    pub const COMMAND_LINE: u64 = 0x2_0000;
    /// Where a bzImage's protected-mode part is put.
    pub const BZIMAGE: u64 = 0x10_0000;
}

/// End of conventional memory, where the legacy video hole begins.
pub const LOW_RAM_END: u64 = 640 * KIB;
/// ACPI tables; the RSDP is at the start, where a scan of the BIOS area finds it too.
pub const ACPI_TABLES: Range<u64> = 0xE_0000..0xF_E000;
/// The page through which the guest's AML talks to the NV-DIMMs; reserved, ordinary memory.
pub const DSM_MAILBOX: Range<u64> = 0xF_E000..0xF_F000;
/// Where a PC has the end of its firmware, and this machine nothing but what [`RESET_VECTOR`] says.
pub const FIRMWARE: Range<u64> = 0xF_F000..0x10_0000;
/// A real-mode jump here resets a PC. Linux does so on hardware-reduced platforms without EFI, where it never tries the
/// reset register of the FADT.
pub const RESET_VECTOR: u64 = 0xF_FFF0;
/// RAM goes on here above the legacy area.
pub const HIGH_RAM_START: u64 = MIB;

/// Where RAM below 4 GiB ends at most, and the hole for devices begins.
pub const MMIO_HOLE: Range<u64> = 3 * GIB..4 * GIB;
/// Virtio-mmio slots.
pub const VIRTIO: u64 = 0xD000_0000;
/// Bytes of a virtio-mmio slot.
pub const VIRTIO_STRIDE: u64 = 0x1000;
/// Number of virtio-mmio slots.
pub const VIRTIO_SLOTS: u8 = 8;
/// Interrupt of the first virtio-mmio slot; the others follow.
pub const VIRTIO_GSI: u8 = 5;
/// The I/O APIC.
pub const IOAPIC: u64 = 0xFEC0_0000;
/// Bytes of the I/O APIC's window.
pub const IOAPIC_SIZE: u64 = 0x1000;
/// Flush-hint pages, one a DIMM.
pub const FLUSH_HINTS: u64 = 0xFED4_0000;
/// Bytes of a flush-hint page.
pub const FLUSH_HINT_STRIDE: u64 = 0x1000;
/// The local APICs; the engine's.
pub const LOCAL_APIC: u64 = 0xFEE0_0000;

/// NV-DIMMs, at most.
pub const DIMMS: u8 = 8;

/// I/O ports. Each device's registers begin here.
pub mod port {
    /// Real-time clock: index, data.
    pub const RTC: u16 = 0x70;
    /// System control port B, of which only the timer output bit is kept.
    pub const SYSTEM_CONTROL_B: u16 = 0x61;
    /// Second serial port: the control channel.
    pub const COM2: u16 = 0x2F8;
    /// First serial port: the console.
    pub const COM1: u16 = 0x3F8;
    /// Sleep control, sleep status, reset: a byte each.
    pub const POWER: u16 = 0x600;
    /// ACPI power-management timer.
    pub const PM_TIMER: u16 = 0x608;
    /// Doorbell: exit code at 0, mark at 4.
    pub const DOORBELL: u16 = 0x700;
    /// A mark whose name is in the guest's memory: its length is written, its address is in RSI.
    pub const NAMED_MARK: u16 = 0x708;
    /// Doorbell of the NV-DIMMs' mailbox.
    pub const DSM_DOORBELL: u16 = 0x710;
}

/// Interrupt of the first serial port.
pub const COM1_GSI: u8 = 4;
/// Interrupt of the second serial port.
pub const COM2_GSI: u8 = 3;

/// What a region is to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionKind {
    /// Free for use.
    Ram,
    /// Memory the firmware keeps.
    Reserved,
    /// ACPI tables.
    Acpi,
    /// Persistent memory.
    Persistent,
}

impl RegionKind {
    /// Type in the e820 map.
    #[must_use]
    pub const fn e820_type(self) -> u32 {
        match self {
            Self::Ram => 1,
            Self::Reserved => 2,
            Self::Acpi => 3,
            Self::Persistent => 7,
        }
    }
}

/// A stretch of guest-physical addresses with one meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// Addresses, 4 KiB aligned.
    pub range: Range<u64>,
    /// Meaning.
    pub kind: RegionKind,
}

/// What was decided about guest-physical memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    ram: Vec<Range<u64>>,
    persistent: Vec<Range<u64>>,
}

impl MemoryPlan {
    /// Smallest RAM that is accepted, in bytes.
    pub const MIN_RAM: u64 = 64 * MIB;
    /// Largest RAM that is accepted, in bytes.
    pub const MAX_RAM: u64 = 256 * GIB;

    /// Lays out `ram` bytes, and above them one range for each length in `persistent`.
    ///
    /// # Errors
    /// [`Error::RamSize`] for a size out of bounds or not a multiple of 2 MiB, [`Error::AddressSpace`] if the ranges
    /// pass the end of the physical address space.
    pub fn new(ram: u64, persistent: &[u64]) -> Result<Self, Error> {
        if !(Self::MIN_RAM..=Self::MAX_RAM).contains(&ram) || !ram.is_multiple_of(2 * MIB) {
            return Err(Error::RamSize { bytes: ram });
        }
        let below = ram.min(MMIO_HOLE.start);
        let above = MMIO_HOLE.end..MMIO_HOLE.end + (ram - below);
        let end_of_ram = above.end;
        let slots = [0..below, above].into_iter().filter(|slot| !slot.is_empty()).collect();
        let limit = 1_u64 << engine::cpuid::PHYSICAL_ADDRESS_BITS;
        let mut next = end_of_ram;
        let mut ranges = Vec::with_capacity(persistent.len());
        for &length in persistent {
            let start = next.checked_next_multiple_of(GIB);
            let range = start.and_then(|start| Some(start..start.checked_add(length)?));
            let range =
                range.filter(|r| r.end <= limit).ok_or(Error::AddressSpace { bytes: length, limit })?;
            next = range.end;
            ranges.push(range);
        }
        Ok(Self { ram: slots, persistent: ranges })
    }

    /// Where RAM is mapped: one range below the device hole, one above it if there is that much. Includes what the
    /// e820 map keeps from the guest.
    #[must_use]
    pub fn ram(&self) -> &[Range<u64>] {
        &self.ram
    }

    /// Where RAM below 4 GiB ends.
    #[must_use]
    pub fn low_ram_end(&self) -> u64 {
        self.ram[0].end
    }

    /// The ranges of persistent memory, in the order in which they were asked for.
    #[must_use]
    pub fn persistent(&self) -> &[Range<u64>] {
        &self.persistent
    }

    /// All regions in address order, none empty, none overlapping.
    #[must_use]
    pub fn regions(&self) -> Vec<Region> {
        let region = |range: Range<u64>, kind| Region { range, kind };
        let mut regions = vec![
            region(0..LOW_RAM_END, RegionKind::Ram),
            region(ACPI_TABLES, RegionKind::Acpi),
            region(DSM_MAILBOX, RegionKind::Reserved),
            region(FIRMWARE, RegionKind::Reserved),
            region(HIGH_RAM_START..self.low_ram_end(), RegionKind::Ram),
        ];
        regions.extend(self.ram[1..].iter().map(|r| region(r.clone(), RegionKind::Ram)));
        regions.extend(self.persistent.iter().map(|r| region(r.clone(), RegionKind::Persistent)));
        regions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_sorted_and_disjoint() {
        for ram in [64 * MIB, 3 * GIB, 3 * GIB + 2 * MIB, 8 * GIB] {
            let plan = MemoryPlan::new(ram, &[16 * MIB, 3 * GIB, 2 * MIB]).unwrap();
            let regions = plan.regions();
            assert!(regions.iter().all(|r| !r.range.is_empty()), "{regions:#x?}");
            assert!(regions.windows(2).all(|w| w[0].range.end <= w[1].range.start), "{regions:#x?}");
            let mapped: u64 = plan.ram().iter().map(|r| r.end - r.start).sum();
            assert_eq!(mapped, ram);
        }
    }

    #[test]
    fn persistent_ranges_stand_on_gibibytes_above_ram() {
        let plan = MemoryPlan::new(4 * GIB, &[16 * MIB, GIB + 2 * MIB, GIB]).unwrap();
        assert_eq!(plan.ram(), [0..3 * GIB, 4 * GIB..5 * GIB]);
        assert_eq!(
            plan.persistent(),
            [5 * GIB..5 * GIB + 16 * MIB, 6 * GIB..7 * GIB + 2 * MIB, 8 * GIB..9 * GIB]
        );
    }

    #[test]
    fn sizes_out_of_bounds_are_refused() {
        for ram in [0, 32 * MIB, 64 * MIB + 4 * KIB, 512 * GIB, u64::MAX] {
            assert!(matches!(MemoryPlan::new(ram, &[]), Err(Error::RamSize { .. })), "{ram}");
        }
        for length in [1 << 40, u64::MAX] {
            assert!(matches!(MemoryPlan::new(GIB, &[length]), Err(Error::AddressSpace { .. })));
        }
    }
}
