//! A virtual machine: memory slots, interrupt messages, time (Linux Documentation/virt/kvm/api.rst).
#![expect(unsafe_code, reason = "memory slots lend host memory to the kernel")]

use std::ops::Range;
use std::sync::Arc;

use engine::cpuid::{CpuModel, CpuidEntry, CpuidTable};
use engine::event::MemoryEvents;
use engine::log::Log;
use engine::place::Place;
use engine::{Built, Error, GuestMemory, Msi, Partition, PartitionSpec, Result, Seat, VcpuId};
use kvm_bindings::{
    CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2, kvm_enable_cap, kvm_msi,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::clock::Clock;
use crate::host::Kvm;
use crate::kick::Kick;
use crate::processor::VcpuSeat;
use crate::step::Events;
use crate::{NAME, refused};

/// Where Intel's KVM keeps its own four pages (identity map, then task state segment): below the firmware's place, in
/// the hole under 4 GiB.
const KERNEL_PAGES: Range<u64> = 0xFFFB_C000..0xFFFC_0000;

/// What the seats share.
#[derive(Debug)]
pub(crate) struct KvmPartition {
    vm: VmFd,
    kicks: Vec<Arc<Kick>>,
    pub(crate) clock: Clock,
    pub(crate) tsc_khz: u32,
    /// Size of a run page's mapping.
    pub(crate) run_size: usize,
    /// Lent to the kernel by address for as long as `vm` lives.
    pub(crate) memory: GuestMemory,
    pub(crate) events: Events,
    /// This KVM can keep interrupts away while it single-steps.
    pub(crate) steps: bool,
    /// And set time-stamp counters to what they were.
    adjusts: bool,
}

/// Makes the virtual machine and its vCPUs.
pub(crate) fn build(kvm: &Kvm, spec: &PartitionSpec, memory: &GuestMemory) -> Result<Built> {
    if !(1..=8).contains(&spec.vcpus) {
        return Err(unsupported(format!("{} vCPUs (1 to 8 are possible)", spec.vcpus)));
    }
    let lacks = if spec.cpuid.model() == CpuModel::V3 { kvm.lacks_of_v3()? } else { Vec::new() };
    if !lacks.is_empty() {
        let reason = format!(
            "a CPU of x86-64-v3 needs {}, which KVM does not lend here; take --cpu v2",
            lacks.join(", ")
        );
        return Err(crate::host::unfit(reason));
    }
    let vm = kvm.create_vm()?;
    keep_clear(memory)?;
    vm.set_identity_map_address(KERNEL_PAGES.start).map_err(refused("KVM_SET_IDENTITY_MAP_ADDR"))?;
    let tss = usize::try_from(KERNEL_PAGES.start + 0x1000).unwrap_or(usize::MAX);
    vm.set_tss_address(tss).map_err(refused("KVM_SET_TSS_ADDR"))?;
    // No IOAPIC pin is reserved: only edges are sent, so no end of interrupt has to be told.
    let split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    vm.enable_cap(&split).map_err(refused("KVM_ENABLE_CAP(KVM_CAP_SPLIT_IRQCHIP)"))?;
    map(&vm, memory)?;
    let mut vcpus = Vec::new();
    for id in 0..spec.vcpus {
        vcpus.push(create_vcpu(&vm, id, spec)?);
    }
    let adjusts = vcpus.iter().all(crate::state::is_adjustable);
    let kicks: Vec<_> = (0..spec.vcpus).map(|_| Arc::new(Kick::default())).collect();
    let partition = Arc::new(KvmPartition {
        run_size: vm.run_size(),
        vm,
        kicks: kicks.clone(),
        clock: Clock::host(),
        tsc_khz: spec.tsc_khz,
        memory: memory.clone(),
        events: Events::default(),
        steps: kvm.steps(),
        adjusts,
    });
    let seats = vcpus
        .into_iter()
        .zip(kicks)
        .zip(0..)
        .map(|((fd, kick), id)| {
            Box::new(VcpuSeat { id, fd, kick, partition: Arc::clone(&partition) }) as Box<dyn Seat>
        })
        .collect();
    Ok(Built { partition, seats })
}

/// Refuses memory where KVM's own pages stand.
fn keep_clear(memory: &GuestMemory) -> Result<()> {
    match memory.iter().find(|r| r.start_addr().0 < KERNEL_PAGES.end && r.last_addr().0 >= KERNEL_PAGES.start)
    {
        Some(region) => Err(unsupported(format!(
            "memory at {:#x}..={:#x}: KVM keeps {KERNEL_PAGES:#x?} for itself",
            region.start_addr().0,
            region.last_addr().0
        ))),
        None => Ok(()),
    }
}

/// Lends every region to the kernel.
fn map(vm: &VmFd, memory: &GuestMemory) -> Result<()> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let start = region.start_addr().raw_value();
        let host = memory
            .get_host_address(region.start_addr())
            .map_err(|error| Error::BadState(format!("guest memory at {start:#x}: {error}")))?;
        let lent = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: start,
            memory_size: region.len(),
            userspace_addr: host as u64,
        };
        // SAFETY: the partition keeps the mapping alive for as long as the VM, and guest memory is only reached
        // through volatile accesses.
        unsafe { vm.set_user_memory_region(lent) }
            .map_err(refused(format!("KVM_SET_USER_MEMORY_REGION({start:#x}, {:#x} bytes)", region.len())))?;
    }
    Ok(())
}

/// A vCPU with its CPUID and its frequency; what MSRs exist depends on the former.
fn create_vcpu(vm: &VmFd, id: VcpuId, spec: &PartitionSpec) -> Result<VcpuFd> {
    let vcpu = vm.create_vcpu(id.into()).map_err(refused(format!("KVM_CREATE_VCPU({id})")))?;
    vcpu.set_cpuid2(&cpuid(&spec.cpuid.for_vcpu(id))?).map_err(refused("KVM_SET_CPUID2"))?;
    if vcpu.get_tsc_khz().ok() != Some(spec.tsc_khz) && vcpu.set_tsc_khz(spec.tsc_khz).is_err() {
        return Err(unsupported(format!(
            "a time-stamp counter of {} kHz on this host; ask tsc_khz() first",
            spec.tsc_khz
        )));
    }
    Ok(vcpu)
}

/// What KVM supports, as a table.
pub(crate) fn table(supported: &CpuId) -> CpuidTable {
    let entry = |e: &kvm_cpuid_entry2| CpuidEntry {
        leaf: e.function,
        subleaf: (e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0).then_some(e.index),
        registers: [e.eax, e.ebx, e.ecx, e.edx],
    };
    CpuidTable { entries: supported.as_slice().iter().map(entry).collect() }
}

fn cpuid(table: &CpuidTable) -> Result<CpuId> {
    let entries: Vec<_> = table
        .entries
        .iter()
        .map(|entry| {
            let [eax, ebx, ecx, edx] = entry.registers;
            kvm_cpuid_entry2 {
                function: entry.leaf,
                index: entry.subleaf.unwrap_or(0),
                flags: if entry.subleaf.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
                eax,
                ebx,
                ecx,
                edx,
                ..Default::default()
            }
        })
        .collect();
    CpuId::from_entries(&entries).map_err(|_| unsupported(format!("{} CPUID entries", entries.len())))
}

fn unsupported(what: String) -> Error {
    Error::Unsupported { engine: NAME, what }
}

impl KvmPartition {
    /// Guest time in nanoseconds.
    pub(crate) fn guest_time(&self) -> u64 {
        let number = self.events.number();
        // Kept until the clock is asked: the end of a window sets that.
        let time = self.events.time();
        time.time(number, self.tsc_khz).unwrap_or_else(|| self.clock.now())
    }

    /// A vCPU begins to be stepped: from now on the guest's time is that of its instructions.
    pub(crate) fn begin_time(&self, vcpu: &VcpuFd) -> Result<()> {
        let mut time = self.events.time();
        if !time.has_begun() {
            time.begin(crate::state::tsc(vcpu)?, self.clock.now(), self.events.number());
        }
        Ok(())
    }

    /// A vCPU is about to run without being stepped: guest time goes on as the host's does, from where it is. Gives by how
    /// many ticks the vCPU's counter has to be ahead of what it was when it was made.
    pub(crate) fn end_time(&self, vcpu: &VcpuFd) -> Result<u64> {
        let mut time = self.events.time();
        if time.has_begun() {
            let now = crate::state::tsc(vcpu)?;
            let ended = time.end(now, self.events.number(), self.tsc_khz);
            if let Some(time) = ended.filter(|_| self.adjusts) {
                self.clock.set(time);
            }
        }
        // Where counters cannot be set back, guest time leaps, as after a pause.
        Ok(if self.adjusts { time.shift() } else { 0 })
    }
}

impl Partition for KvmPartition {
    fn send_msi(&self, msi: Msi) -> Result<()> {
        let message = kvm_msi {
            address_lo: msi.address as u32,
            address_hi: (msi.address >> 32) as u32,
            data: msi.data,
            ..Default::default()
        };
        let sent = self.vm.signal_msi(message);
        self.events.message();
        match sent {
            Ok(_) => Ok(()),
            // KVM's -1 for "no local APIC took it".
            Err(errno) if errno.errno() == libc::EPERM => Ok(()),
            Err(errno) => Err(refused(format!("KVM_SIGNAL_MSI({:#x}, {:#x})", msi.address, msi.data))(errno)),
        }
    }

    fn kick(&self) {
        for kick in &self.kicks {
            kick.kick();
        }
    }

    fn now(&self) -> u64 {
        self.guest_time()
    }

    fn instructions(&self) -> Option<u64> {
        None
    }

    /// Every vCPU is single-stepped while anything is watched.
    fn memory_events(&self) -> Option<&dyn MemoryEvents> {
        self.steps.then_some(self as &dyn MemoryEvents)
    }

    fn stop_at(&self, _: Option<u64>) -> bool {
        false
    }
}

impl MemoryEvents for KvmPartition {
    fn watch(&self, ranges: &[Range<u64>], loads: bool) {
        self.events.set_watch(ranges, loads, |vcpu| {
            if let Some(kick) = self.kicks.get(usize::from(vcpu)) {
                kick.kick();
            }
        });
    }

    fn ask_places(&self, on: bool) -> bool {
        self.events.ask_places(on);
        true
    }

    fn learn(&self, vcpu: VcpuId, place: Place) {
        self.events.learn(vcpu, place);
    }

    fn number(&self) -> u64 {
        self.events.number()
    }

    fn stop_at(&self, number: Option<u64>) {
        self.events.stop_at(number);
    }

    fn drain(&self, log: &mut Log) {
        self.events.drain(log);
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;

    #[test]
    fn the_table_reaches_the_kernel_entry_by_entry() {
        let whole = CpuidTable::x86_64_v3(4, 1_000_000).for_vcpu(2);
        assert_eq!(table(&cpuid(&whole).expect("it fits")), whole);
        let table = CpuidTable::x86_64_v2(4, 1_000_000).for_vcpu(2);
        let entries = cpuid(&table).expect("it fits");
        assert_eq!(entries.as_slice().len(), table.entries.len());
        for (ours, theirs) in table.entries.iter().zip(entries.as_slice()) {
            assert_eq!([theirs.eax, theirs.ebx, theirs.ecx, theirs.edx], ours.registers);
            assert_eq!((theirs.function, theirs.index), (ours.leaf, ours.subleaf.unwrap_or(0)));
        }
    }

    #[test]
    fn memory_over_the_kernels_pages_is_refused() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0xFFFB_0000), 0x1_0000)]).expect("host memory");
        assert!(keep_clear(&memory).is_err());
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).expect("host memory");
        assert!(keep_clear(&memory).is_ok());
    }
}
