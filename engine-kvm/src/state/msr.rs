//! Model-specific registers. KVM stops at the first that it does not know and says how many it took.

use engine::msr::{Msrs, TSC, TSC_AUX, TSC_DEADLINE};
use engine::{Error, Result};
use kvm_bindings::kvm_msr_entry;
use kvm_ioctls::VcpuFd;

use crate::refused;

pub(crate) fn save(vcpu: &VcpuFd) -> Result<Msrs> {
    let mut msrs = Msrs::default();
    let mut list = list(msrs.iter())?;
    let got = vcpu.get_msrs(&mut list).map_err(refused("KVM_GET_MSRS"))?;
    complete("KVM_GET_MSRS", got, list.as_slice())?;
    for entry in list.as_slice() {
        if let Some(register) = msrs.get_mut(entry.index) {
            *register = entry.data;
        }
    }
    Ok(msrs)
}

pub(super) fn restore(vcpu: &VcpuFd, msrs: &Msrs) -> Result<()> {
    let list = list(msrs.iter())?;
    let set = vcpu.set_msrs(&list).map_err(refused("KVM_SET_MSRS"))?;
    complete("KVM_SET_MSRS", set, list.as_slice())
}

/// The time-stamp counter as the guest would read it now.
pub(crate) fn tsc(vcpu: &VcpuFd) -> Result<u64> {
    one(vcpu, TSC)
}

/// What RDTSCP gives beside it.
pub(crate) fn tsc_aux(vcpu: &VcpuFd) -> Result<u64> {
    one(vcpu, TSC_AUX)
}

/// Where the local APIC's timer is due; 0: it is not armed, or in another mode.
pub(crate) fn deadline(vcpu: &VcpuFd) -> Result<u64> {
    one(vcpu, TSC_DEADLINE)
}

/// Arms the timer, if it is in the mode for that.
pub(crate) fn set_deadline(vcpu: &VcpuFd, deadline: u64) -> Result<()> {
    let list = list([(TSC_DEADLINE, deadline)])?;
    let set = vcpu.set_msrs(&list).map_err(refused("KVM_SET_MSRS"))?;
    complete("KVM_SET_MSRS", set, list.as_slice())
}

fn one(vcpu: &VcpuFd, index: u32) -> Result<u64> {
    let mut list = list([(index, 0)])?;
    let got = vcpu.get_msrs(&mut list).map_err(refused("KVM_GET_MSRS"))?;
    complete("KVM_GET_MSRS", got, list.as_slice())?;
    Ok(list.as_slice().first().map_or(0, |entry| entry.data))
}

fn list(registers: impl IntoIterator<Item = (u32, u64)>) -> Result<kvm_bindings::Msrs> {
    let entries: Vec<_> = registers
        .into_iter()
        .map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() })
        .collect();
    kvm_bindings::Msrs::from_entries(&entries)
        .map_err(|_| Error::BadState(format!("{} MSRs are too many for KVM", entries.len())))
}

fn complete(call: &str, done: usize, entries: &[kvm_msr_entry]) -> Result<()> {
    match entries.get(done) {
        Some(refused) => Err(Error::BadState(format!(
            "{call} stopped at MSR {:#x} (value {:#x}), which this KVM does not take",
            refused.index, refused.data
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_count_names_the_register() {
        let list = list([(TSC, 1), (0x277, 0x55)]).expect("two fit");
        assert!(complete("KVM_SET_MSRS", 2, list.as_slice()).is_ok());
        let error = complete("KVM_SET_MSRS", 1, list.as_slice()).expect_err("one is missing");
        assert!(error.to_string().contains("MSR 0x277 (value 0x55)"), "{error}");
    }
}
