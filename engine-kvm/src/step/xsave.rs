//! What XSAVE, XSAVEOPT and XRSTOR touch (SDM vol. 1, 13.4 and 13.7 to 13.9), in the standard format.

use std::ops::Range;

use engine::cpuid::xsave::{AVX, HEADER, SSE, UPPER, X87};
use engine::event::StoreKind;
use iced_x86::{Instruction, Mnemonic};
use kvm_bindings::{kvm_regs, kvm_sregs};

use super::effects::Touch;

const CR4_OSXSAVE: u64 = 1 << 18;
/// Where parts of the legacy region are.
const MXCSR: u64 = 24;
const ST: u64 = 32;
const XMM: u64 = 160;

/// What a vCPU has of extended state.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Extended {
    /// Components that are switched on.
    pub(super) xcr0: u64,
    /// Components that are not in their initial state.
    pub(super) in_use: u64,
}

/// Is it one of them?
pub(super) fn is_one(i: &Instruction) -> bool {
    is_save(i) || matches!(i.mnemonic(), Mnemonic::Xrstor | Mnemonic::Xrstor64)
}

fn is_save(i: &Instruction) -> bool {
    is_optimised(i) || matches!(i.mnemonic(), Mnemonic::Xsave | Mnemonic::Xsave64)
}

/// Leaves components alone that are in their initial state.
fn is_optimised(i: &Instruction) -> bool {
    matches!(i.mnemonic(), Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64)
}

/// The parts of the area that are touched, in order.
pub(super) fn parts(
    i: &Instruction,
    regs: &kvm_regs,
    sregs: &kvm_sregs,
    state: Extended,
) -> Vec<(Range<u64>, Touch)> {
    if sregs.cr4 & CR4_OSXSAVE == 0 {
        return Vec::new();
    }
    let (header, upper) = (HEADER as u64, UPPER as u64);
    let registers = if sregs.cs.l != 0 { 16 } else { 8 };
    let asked = (regs.rdx << 32 | regs.rax & 0xFFFF_FFFF) & state.xcr0;
    if !is_save(i) {
        let end = if asked & AVX != 0 { upper + 16 * registers } else { upper };
        return vec![(0..end, Touch::Load)];
    }
    let written = if is_optimised(i) { asked & state.in_use } else { asked };
    let stores = [
        (written & X87, 0..MXCSR),
        (written & X87, ST..XMM),
        // MXCSR and the mask of its bits are of no component.
        (asked & (SSE | AVX), MXCSR..ST),
        (written & SSE, XMM..XMM + 16 * registers),
        (1, header..header + 8),
        (written & AVX, upper..upper + 16 * registers),
    ];
    let stores = stores.into_iter().filter(|(wanted, _)| *wanted != 0);
    std::iter::once((header..header + 8, Touch::Load))
        .chain(stores.map(|(_, range)| (range, Touch::Store(StoreKind::Cached))))
        .collect()
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    fn stored(code: &[u8], rax: u64, state: Extended) -> Vec<Range<u64>> {
        let mut sregs = kvm_sregs { cr4: CR4_OSXSAVE, ..Default::default() };
        sregs.cs.l = 1;
        let regs = kvm_regs { rax, ..Default::default() };
        let i = Decoder::new(64, code, DecoderOptions::NONE).decode();
        let parts = parts(&i, &regs, &sregs, state).into_iter();
        parts.filter(|(_, touch)| *touch != Touch::Load).map(|(range, _)| range).collect()
    }

    #[test]
    fn what_is_asked_for_and_switched_on_is_stored() {
        const XSAVE: &[u8] = &[0x48, 0x0F, 0xAE, 0x20];
        const XSAVEOPT: &[u8] = &[0x0F, 0xAE, 0x30];
        let all = [0..24, 32..160, 24..32, 160..416, 512..520, 576..832];
        let state = |xcr0, in_use| Extended { xcr0, in_use };
        assert_eq!(stored(XSAVE, u64::MAX, state(7, 0)), all);
        assert_eq!(stored(XSAVE, u64::MAX, state(3, 7)), all[..5]);
        assert_eq!(stored(XSAVE, 4, state(7, 7)), [24..32, 512..520, 576..832]);
        assert_eq!(stored(XSAVEOPT, 7, state(7, 3)), all[..5]);
        assert_eq!(stored(XSAVEOPT, 7, state(7, 0)), [24..32, 512..520]);
        assert_eq!(stored(XSAVE, 0, state(7, 7)), std::slice::from_ref(&(512..520)));
    }

    #[test]
    fn what_is_brought_back_is_loaded() {
        let i = Decoder::new(64, &[0x0F, 0xAE, 0x28], DecoderOptions::NONE).decode();
        let mut sregs = kvm_sregs { cr4: CR4_OSXSAVE, ..Default::default() };
        let regs = kvm_regs { rax: 7, ..Default::default() };
        let loaded = |sregs: &kvm_sregs, xcr0| parts(&i, &regs, sregs, Extended { xcr0, in_use: 0 });
        assert_eq!(loaded(&sregs, 3), [(0..576, Touch::Load)]);
        assert_eq!(loaded(&sregs, 7), [(0..704, Touch::Load)]);
        sregs.cs.l = 1;
        assert_eq!(loaded(&sregs, 7), [(0..832, Touch::Load)]);
        sregs.cr4 = 0;
        assert_eq!(loaded(&sregs, 7), [], "it is undefined");
    }
}
