//! x87, MMX and SSE: the legacy region of an XSAVE image (SDM vol. 1, 13.4).

use engine::state::Fpu;
use engine::{Error, Result};
use kvm_bindings::kvm_xsave;
use kvm_ioctls::VcpuFd;

use crate::refused;

/// Offset of XSTATE_BV, the components that are not in their initial state.
const XSTATE_BV: usize = 512;
/// Component bit: x87 and MMX.
const X87: u64 = 1;
/// Component bit: SSE.
const SSE: u64 = 2;
/// Offset of MXCSR.
const MXCSR: usize = 24;
/// Offset of the mask of valid MXCSR bits: the host's, not the guest's.
const MXCSR_MASK: usize = 28;

pub(super) fn from_kvm(xsave: &kvm_xsave) -> Fpu {
    let mut image = Fpu::default().bytes();
    let word = |at: usize| xsave.region[at / 4];
    let live = u64::from(word(XSTATE_BV)) | u64::from(word(XSTATE_BV + 4)) << 32;
    let mut copy = |range: std::ops::Range<usize>| {
        for at in range.step_by(4) {
            image[at..at + 4].copy_from_slice(&word(at).to_le_bytes());
        }
    };
    if live & X87 != 0 {
        copy(0..MXCSR);
        copy(32..160);
    }
    if live & SSE != 0 {
        copy(160..416);
    }
    // MXCSR belongs to no component: it is there whenever it is not initial.
    if word(MXCSR) != 0 || live & SSE != 0 {
        copy(MXCSR..MXCSR_MASK);
    }
    Fpu::new(&image)
}

pub(super) fn to_kvm(fpu: &Fpu) -> kvm_xsave {
    let mut xsave = kvm_xsave::default();
    for (word, bytes) in xsave.region.iter_mut().zip(fpu.bytes()[..416].chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    xsave.region[XSTATE_BV / 4] = (X87 | SSE) as u32;
    xsave
}

#[expect(unsafe_code, reason = "kvm-ioctls cannot know the size of the guest's XSAVE area")]
pub(super) fn restore(vcpu: &VcpuFd, fpu: &Fpu) -> Result<()> {
    let xsave = to_kvm(fpu);
    // SAFETY: KVM reads more than `kvm_xsave`'s 4 KiB only where the process has asked for dynamic XSTATE features
    // for guests (arch_prctl), which it does not.
    unsafe { vcpu.set_xsave(&xsave) }.map_err(|errno| match errno.errno() {
        libc::EINVAL => Error::BadState(format!("KVM refuses the FPU state {fpu:x?}")),
        _ => refused("KVM_SET_XSAVE")(errno),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_returns() {
        let mut image: [u8; Fpu::SIZE] = std::array::from_fn(|n| n as u8);
        image[MXCSR_MASK..32].copy_from_slice(&0xFFFF_u32.to_le_bytes());
        image[416..].fill(0);
        let fpu = Fpu::new(&image);
        assert_eq!(from_kvm(&to_kvm(&fpu)), fpu);
    }

    #[test]
    fn a_component_in_its_initial_state_may_hold_anything() {
        let mut xsave = kvm_xsave::default();
        xsave.region[..128].fill(0xDEAD_BEEF);
        xsave.region[MXCSR / 4] = 0x1F80;
        assert_eq!(from_kvm(&xsave), Fpu::default());
    }
}
