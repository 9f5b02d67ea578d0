//! The fixed description: what the platform is and where its few fixed registers are (ACPI 6.5, table 5.9).

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes};
use crate::devices::Power;
use crate::layout::port;

/// Bits of IAPC_BOOT_ARCH: there is no VGA to probe. That there is no keyboard controller is said by a clear bit.
const NO_VGA: u16 = 1 << 2;

pub fn build(dsdt: u64) -> Vec<u8> {
    let power = u64::from(port::POWER);
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::TmrValExt);
    fadt.iapc_boot_arch = NO_VGA.into();
    fadt.reset_reg = byte_port(power + Power::RESET);
    fadt.reset_value = Power::RESET_VALUE;
    fadt.sleep_control_reg = byte_port(power + Power::SLEEP_CONTROL);
    fadt.sleep_status_reg = byte_port(power + Power::SLEEP_STATUS);
    fadt.pm_tmr_blk = u32::from(port::PM_TIMER).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm_tmr_blk =
        GAS::new(AddressSpace::SystemIo, 32, 0, AccessSize::DwordAccess, port::PM_TIMER.into());
    bytes(&fadt.finalize())
}

fn byte_port(port: u64) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port)
}
