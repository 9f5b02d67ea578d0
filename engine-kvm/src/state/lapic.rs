//! The local APIC's page.

use engine::state::Lapic;
use kvm_bindings::kvm_lapic_state;

/// KVM adds "directed EOI" to the version when the IOAPIC is in user space; the neutral page does not have it.
const DIRECTED_EOI: u32 = 1 << 24;

pub(super) fn from_kvm(page: &kvm_lapic_state) -> Lapic {
    let mut lapic = Lapic::reset(0);
    for offset in (0..Lapic::COUNT * 16).step_by(16) {
        let register = u32::from_le_bytes(std::array::from_fn(|n| page.regs[offset + n].cast_unsigned()));
        lapic.set(offset, if offset == Lapic::VERSION { register & !DIRECTED_EOI } else { register });
    }
    lapic
}

pub(super) fn to_kvm(lapic: &Lapic) -> kvm_lapic_state {
    let mut page = kvm_lapic_state::default();
    for offset in (0..Lapic::COUNT * 16).step_by(16) {
        for (n, byte) in lapic.get(offset).to_le_bytes().into_iter().enumerate() {
            page.regs[offset + n] = byte.cast_signed();
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_returns() {
        let mut lapic = Lapic::reset(3);
        for offset in (0..Lapic::COUNT * 16).step_by(16) {
            lapic.set(offset, 0x8000_0081 + offset as u32);
        }
        lapic.set(Lapic::VERSION, 0x0005_0014);
        assert_eq!(from_kvm(&to_kvm(&lapic)), lapic);
    }
}
