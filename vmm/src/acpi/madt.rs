//! The interrupt model: a local APIC for each processor and one I/O APIC (ACPI 6.5, ch. 5.2.12).

use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes};
use crate::layout;

pub fn build(vcpus: u8) -> Vec<u8> {
    let controller = LocalInterruptController::Address(layout::LOCAL_APIC as u32);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, controller);
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC as u32, 0));
    bytes(&madt)
}
