//! Opening /dev/kvm: what this host offers, told before any guest exists.

use std::sync::OnceLock;

use engine::{Built, Engine, Error, GuestMemory, PartitionSpec, Result};
use kvm_bindings::{KVM_CAP_SET_GUEST_DEBUG2, KVM_GUESTDBG_BLOCKIRQ, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, VmFd};

use crate::{NAME, partition, refused};

/// The device node.
const DEVICE: &str = "/dev/kvm";

/// What the engine builds on, each with the kernel that brought it.
const NEEDED: [(Cap, &str); 10] = [
    (Cap::SplitIrqchip, "split irqchip (Linux 4.4)"),
    (Cap::ImmediateExit, "immediate exit (Linux 4.11)"),
    (Cap::SignalMsi, "signal MSI"),
    (Cap::UserMemory, "user memory regions"),
    (Cap::ExtCpuid, "CPUID tables"),
    (Cap::MpState, "multiprocessor state"),
    (Cap::VcpuEvents, "vCPU events"),
    (Cap::Debugregs, "debug registers"),
    (Cap::Xsave, "XSAVE state"),
    (Cap::SyncRegs, "registers in the run page (Linux 4.16)"),
];

/// The engine's prototype: an open /dev/kvm.
pub struct Kvm {
    kvm: kvm_ioctls::Kvm,
    /// Frequency of the host's counter as KVM sees it; 0 when it does not say.
    host_khz: OnceLock<u32>,
}

impl std::fmt::Debug for Kvm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kvm").field("host_khz", &self.host_khz.get()).finish_non_exhaustive()
    }
}

impl Kvm {
    /// Opens /dev/kvm and checks that it has all that this engine builds on. Whether it can run a guest is
    /// [`crate::fitness()`]'s question.
    ///
    /// # Errors
    /// [`Error::Unfit`], with the remedy.
    pub fn open() -> Result<Self> {
        let kvm = kvm_ioctls::Kvm::new().map_err(|errno| unfit(closed(errno.errno())))?;
        let version = kvm.get_api_version();
        if version != 12 {
            return Err(unfit(format!("{DEVICE} speaks API version {version}, not 12; use a current Linux")));
        }
        let missing: Vec<_> =
            NEEDED.iter().filter(|(cap, _)| !kvm.check_extension(*cap)).map(|(_, name)| *name).collect();
        if !missing.is_empty() {
            return Err(unfit(format!("its KVM lacks {}; use a newer host kernel", missing.join(", "))));
        }
        Ok(Self { kvm, host_khz: OnceLock::new() })
    }

    /// What a guest of x86-64-v3 needs that this host's CPU, or its KVM, does not have.
    ///
    /// # Errors
    /// KVM does not tell.
    pub fn lacks_of_v3(&self) -> Result<Vec<&'static str>> {
        let supported = self
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("KVM_GET_SUPPORTED_CPUID"))?;
        Ok(partition::table(&supported).lacks())
    }

    /// A virtual machine without anything in it. EINTR only says that a signal came while KVM set up its threads.
    pub(crate) fn create_vm(&self) -> Result<VmFd> {
        loop {
            match self.kvm.create_vm() {
                Ok(vm) => return Ok(vm),
                Err(errno) if errno.errno() == libc::EINTR => {}
                Err(errno) if errno.errno() == libc::EBUSY => {
                    return Err(unfit(
                        "the processor's virtualization is held by another hypervisor (VirtualBox or VMware?); \
                         stop its machines, or unload its modules"
                            .into(),
                    ));
                }
                Err(errno) => return Err(refused("KVM_CREATE_VM")(errno)),
            }
        }
    }

    /// Can it single-step without interrupts (Linux 5.16)?
    pub(crate) fn steps(&self) -> bool {
        self.kvm.check_extension_raw(u64::from(KVM_CAP_SET_GUEST_DEBUG2)) as u32 & KVM_GUESTDBG_BLOCKIRQ != 0
    }

    /// The frequency that an unscaled vCPU counts at.
    fn host_khz(&self) -> u32 {
        *self.host_khz.get_or_init(|| {
            self.create_vm()
                .ok()
                .and_then(|vm| vm.create_vcpu(0).ok())
                .and_then(|vcpu| vcpu.get_tsc_khz().ok())
                .unwrap_or(0)
        })
    }
}

impl Engine for Kvm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn tsc_khz(&self, preferred: u32) -> u32 {
        if self.kvm.check_extension(Cap::TscControl) {
            return preferred;
        }
        match self.host_khz() {
            0 => preferred,
            host => host,
        }
    }

    fn build(&self, spec: &PartitionSpec, memory: &GuestMemory) -> Result<Built> {
        partition::build(self, spec, memory)
    }
}

pub(crate) fn unfit(reason: String) -> Error {
    Error::Unfit { engine: NAME, reason }
}

/// Why the device does not open, and what to do about it.
fn closed(errno: i32) -> String {
    match errno {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => format!(
            "there is no usable {DEVICE}; load kvm_intel or kvm_amd (as root: modprobe kvm_intel), enable \
             virtualization in the firmware, or nested virtualization in the host of this machine"
        ),
        libc::EACCES | libc::EPERM => {
            format!(
                "no permission to open {DEVICE}; join its group (as root: adduser USER kvm), then log in again"
            )
        }
        libc::EBUSY => format!("{DEVICE} is busy: another hypervisor holds the processor; stop it"),
        other => format!("{DEVICE} does not open: {}", std::io::Error::from_raw_os_error(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_device_names_the_remedy() {
        assert!(closed(libc::ENOENT).contains("modprobe"));
        assert!(closed(libc::EACCES).contains("adduser USER kvm"));
        assert!(closed(libc::EBUSY).contains("another hypervisor"));
        assert!(closed(libc::EIO).contains(DEVICE));
    }
}
