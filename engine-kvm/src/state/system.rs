//! Segments, descriptor tables and control registers.

use std::sync::LazyLock;

use engine::state::{DescriptorTable, Segment, SystemRegisters};
use kvm_bindings::{kvm_dtable, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

/// Type of a 64-bit task state segment that no task register holds, and the bit of one that is held.
const AVAILABLE: u8 = 9;
const BUSY: u8 = 2;

/// Gives KVM these registers; see [`task_as_held`].
pub(crate) fn set(vcpu: &VcpuFd, sregs: &kvm_sregs) -> Result<(), kvm_ioctls::Error> {
    vcpu.set_sregs(&task_as_held(*sregs, is_amd()))
}

/// On an AMD processor LTR leaves the task register available, and KVM shows it as busy all the same (`svm_get_segment`),
/// because Intel's must be. It is given back as the processor had it: the one of QEMU heeds the permission map of ports
/// only where it is available, and so would deny the guest's programs their ports from the first time on that KVM is
/// given registers.
fn task_as_held(mut sregs: kvm_sregs, is_amd: bool) -> kvm_sregs {
    if is_amd && sregs.tr.type_ == AVAILABLE | BUSY {
        sregs.tr.type_ = AVAILABLE;
    }
    sregs
}

fn is_amd() -> bool {
    // Asked for once: on a virtual host CPUID is slow.
    static IS_AMD: LazyLock<bool> = LazyLock::new(|| {
        let vendor = std::arch::x86_64::__cpuid(0);
        let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
        matches!(name.as_flattened(), b"AuthenticAMD" | b"HygonGenuine")
    });
    *IS_AMD
}

pub(super) fn from_kvm(sregs: &kvm_sregs, xcr0: u64) -> SystemRegisters {
    SystemRegisters {
        segments: [&sregs.es, &sregs.cs, &sregs.ss, &sregs.ds, &sregs.fs, &sregs.gs].map(segment_from_kvm),
        ldt: segment_from_kvm(&sregs.ldt),
        tr: segment_from_kvm(&sregs.tr),
        gdt: table_from_kvm(&sregs.gdt),
        idt: table_from_kvm(&sregs.idt),
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: sregs.cr8,
        xcr0,
        efer: sregs.efer,
        apic_base: sregs.apic_base,
    }
}

/// An interrupt that is being delivered travels with the events and not in `interrupt_bitmap`.
pub(super) fn to_kvm(system: &SystemRegisters) -> kvm_sregs {
    let [es, cs, ss, ds, fs, gs] = system.segments.each_ref().map(segment_to_kvm);
    kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr: segment_to_kvm(&system.tr),
        ldt: segment_to_kvm(&system.ldt),
        gdt: table_to_kvm(&system.gdt),
        idt: table_to_kvm(&system.idt),
        cr0: system.cr0,
        cr2: system.cr2,
        cr3: system.cr3,
        cr4: system.cr4,
        cr8: system.cr8,
        efer: system.efer,
        apic_base: system.apic_base,
        interrupt_bitmap: [0; 4],
    }
}

fn segment_from_kvm(segment: &kvm_segment) -> Segment {
    let bit = |value: u8, at: u32| u32::from(value & 1) << at;
    let unusable = segment.unusable != 0;
    Segment {
        selector: segment.selector,
        base: segment.base,
        limit: segment.limit,
        // AMD keeps a null segment as a segment that is not present.
        attributes: u32::from(segment.type_ & 15)
            | bit(segment.s, 4)
            | u32::from(segment.dpl & 3) << 5
            | bit(if unusable { 0 } else { segment.present }, 7)
            | bit(segment.avl, 12)
            | bit(segment.l, 13)
            | bit(segment.db, 14)
            | bit(segment.g, 15)
            | if unusable { Segment::UNUSABLE } else { 0 },
    }
}

fn segment_to_kvm(segment: &Segment) -> kvm_segment {
    let bit = |mask: u32| u8::from(segment.attributes & mask != 0);
    let unusable = bit(Segment::UNUSABLE);
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.kind(),
        present: bit(Segment::PRESENT) & !unusable,
        dpl: segment.dpl(),
        db: bit(Segment::BIG),
        s: bit(Segment::CODE_OR_DATA),
        l: bit(Segment::LONG),
        g: bit(Segment::GRANULARITY),
        avl: bit(1 << 12),
        unusable,
        padding: 0,
    }
}

fn table_from_kvm(table: &kvm_dtable) -> DescriptorTable {
    DescriptorTable { base: table.base, limit: table.limit }
}

fn table_to_kvm(table: &DescriptorTable) -> kvm_dtable {
    kvm_dtable { base: table.base, limit: table.limit, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attribute_returns() {
        for bit in (0..=7).chain(12..=15) {
            let segment = Segment { selector: 8, base: 1, limit: 2, attributes: 1 << bit };
            assert_eq!(segment_from_kvm(&segment_to_kvm(&segment)), segment, "bit {bit}");
        }
    }

    #[test]
    fn an_unusable_segment_is_not_present_but_keeps_its_privilege() {
        let attributes = Segment::UNUSABLE | Segment::PRESENT | 3 << 5;
        let there = segment_to_kvm(&Segment { selector: 0, base: 0, limit: 0, attributes });
        assert_eq!((there.unusable, there.present, there.dpl), (1, 0, 3));
        assert_eq!(segment_from_kvm(&there).attributes, Segment::UNUSABLE | 3 << 5);
    }

    #[test]
    fn the_task_register_is_what_the_processor_holds() {
        let busy = to_kvm(&SystemRegisters::reset(true));
        assert_eq!(busy.tr.type_, AVAILABLE | BUSY);
        assert_eq!(task_as_held(busy, false).tr.type_, AVAILABLE | BUSY);
        assert_eq!(task_as_held(busy, true).tr.type_, AVAILABLE);
        assert_eq!(kvm_sregs { tr: busy.tr, ..task_as_held(busy, true) }, busy);
    }

    #[test]
    fn power_up_values_return() {
        for bootstrap in [true, false] {
            let system = SystemRegisters::reset(bootstrap);
            assert_eq!(from_kvm(&to_kvm(&system), system.xcr0), system);
        }
    }
}
