//! The time-stamp counter's offset (Linux Documentation/virt/kvm/devices/vcpu.rst, KVM_VCPU_TSC_CTRL, since Linux 5.16).
//!
//! The counter itself cannot be set to less than a second from where it is: KVM takes that for an attempt to synchronise it.
#![expect(unsafe_code, reason = "an attribute's value is passed by address")]

use engine::{Error, Result};
use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
ioctl_iow_nr!(KVM_HAS_DEVICE_ATTR, KVMIO, 0xe3, kvm_device_attr);

/// Can this KVM set the offset?
pub(crate) fn is_adjustable(vcpu: &VcpuFd) -> bool {
    // SAFETY: the kernel reads the structure, and of the attribute only which it is.
    unsafe { ioctl_with_ref(vcpu, KVM_HAS_DEVICE_ATTR(), &offset(0)) == 0 }
}

/// Has a vCPU's counter ahead by so many ticks of its own, modulo 2^64.
pub(crate) fn shift(vcpu: &VcpuFd, by: u64) -> Result<()> {
    let mut value = 0_u64;
    let place = (&raw mut value).expose_provenance() as u64;
    // SAFETY: the kernel reads the structure and writes eight bytes at the address in it, which are `value`'s.
    done("KVM_GET_DEVICE_ATTR", unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &offset(place)) })?;
    value = value.wrapping_add(by);
    let place = (&raw mut value).expose_provenance() as u64;
    // SAFETY: the kernel reads the structure and eight bytes at the address in it, which are `value`'s.
    done("KVM_SET_DEVICE_ATTR", unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &offset(place)) })
}

fn offset(addr: u64) -> kvm_device_attr {
    kvm_device_attr { flags: 0, group: KVM_VCPU_TSC_CTRL, attr: KVM_VCPU_TSC_OFFSET.into(), addr }
}

fn done(call: &str, result: libc::c_int) -> Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(Error::Host {
            what: format!("{call}(KVM_VCPU_TSC_OFFSET)"),
            source: std::io::Error::last_os_error(),
        }),
    }
}
