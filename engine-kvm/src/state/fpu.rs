//! x87, MMX and SSE: the legacy region of an XSAVE image; and the upper halves of YMM registers (SDM vol. 1, 13.4).

use engine::cpuid::xsave::{AVX, UPPER};
use engine::state::Fpu;
use engine::{Error, Result};
use kvm_bindings::{kvm_xcrs, kvm_xsave};
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
    let live = in_use(xsave);
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
    let mut fpu = Fpu::new(&image);
    if live & AVX != 0 {
        for (n, half) in fpu.upper.iter_mut().enumerate() {
            let words = std::array::from_fn::<u128, 4, _>(|k| word(UPPER + 16 * n + 4 * k).into());
            *half = words[0] | words[1] << 32 | words[2] << 64 | words[3] << 96;
        }
    }
    fpu
}

/// XSTATE_BV.
pub(super) fn in_use(xsave: &kvm_xsave) -> u64 {
    let word = |at: usize| u64::from(xsave.region[at / 4]);
    word(XSTATE_BV) | word(XSTATE_BV + 4) << 32
}

pub(super) fn to_kvm(fpu: &Fpu) -> kvm_xsave {
    let mut xsave = kvm_xsave::default();
    for (word, bytes) in xsave.region.iter_mut().zip(fpu.bytes()[..416].chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    let mut live = X87 | SSE;
    // A guest without AVX may not have its component.
    if fpu.upper != [0; 16] {
        live |= AVX;
        for (words, half) in xsave.region[UPPER / 4..].chunks_exact_mut(4).zip(&fpu.upper) {
            words.copy_from_slice(&[0, 32, 64, 96].map(|at| (half >> at) as u32));
        }
    }
    xsave.region[XSTATE_BV / 4] = live as u32;
    xsave
}

/// XCR0. A host without XSAVE has none, and refuses to talk of it.
pub(super) fn xcr0(vcpu: &VcpuFd) -> Result<u64> {
    let xcrs = match vcpu.get_xcrs() {
        Ok(xcrs) => xcrs,
        Err(errno) if errno.errno() == libc::EINVAL => kvm_xcrs::default(),
        Err(errno) => return Err(refused("KVM_GET_XCRS")(errno)),
    };
    let known = &xcrs.xcrs[..(xcrs.nr_xcrs as usize).min(xcrs.xcrs.len())];
    Ok(known.iter().find(|xcr| xcr.xcr == 0).map_or(X87, |xcr| xcr.value))
}

fn set_xcr0(vcpu: &VcpuFd, xcr0: u64) -> Result<()> {
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    xcrs.xcrs[0].value = xcr0;
    match vcpu.set_xcrs(&xcrs) {
        Err(errno) if errno.errno() != libc::EINVAL => Err(refused("KVM_SET_XCRS")(errno)),
        Err(_) if xcr0 != X87 => Err(Error::BadState(format!("KVM refuses {xcr0:#x} for XCR0"))),
        _ => Ok(()),
    }
}

#[expect(unsafe_code, reason = "kvm-ioctls cannot know the size of the guest's XSAVE area")]
pub(super) fn restore(vcpu: &VcpuFd, fpu: &Fpu, xcr0: u64) -> Result<()> {
    set_xcr0(vcpu, xcr0)?;
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
        let mut fpu = Fpu::new(&image);
        assert_eq!(to_kvm(&fpu).region[XSTATE_BV / 4], 3);
        fpu.upper = std::array::from_fn(|n| 0x0123_4567_89AB_CDEF_0F1E_2D3C_4B5A_6978 << n);
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
