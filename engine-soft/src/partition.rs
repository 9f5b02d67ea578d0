//! The engine as the machine asks for it, and what its threads share.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use engine::cpuid::{CpuModel, CpuidTable, V3, feature};
use engine::event::MemoryEvents;
use engine::{Built, CodeStock, Engine, Error, GuestMemory, Msi, Partition, PartitionSpec, Result};

use crate::clock::Clock;
use crate::cpu::Cpu;
use crate::events::Events;
use crate::exec::fpu::{avx, native};
use crate::processor::Bench;
use crate::ram::Ram;
use crate::xlat::Haste;

/// TSC frequencies that guests may see: a tick at least every nanosecond, so that every instruction has a TSC value of
/// its own, and no more hertz than CPUID leaf 0x15 can tell.
const TSC_KHZ: std::ops::RangeInclusive<u32> = 1_000_000..=4_000_000;

/// At most this many vCPUs, as [`PartitionSpec::vcpus`] says.
const MAX_VCPUS: u8 = 8;

/// The engine in software.
#[derive(Debug, Clone, Copy)]
pub struct Soft {
    name: &'static str,
    translates: Option<Haste>,
}

impl Soft {
    /// `soft`: the fastest way to execute that there is.
    #[must_use]
    pub const fn new() -> Self {
        Self { name: "soft", translates: Some(Haste::Warm) }
    }

    /// `interp`: the interpreter alone. Its runs are those of `soft`, to the instruction and the byte, only slower.
    #[must_use]
    pub const fn interpreter() -> Self {
        Self { name: "interp", translates: None }
    }

    /// `soft`, with everything rare made to happen often, as the seed decides: for tests.
    #[must_use]
    pub const fn stressed(seed: u64) -> Self {
        Self { name: "soft", translates: Some(Haste::Stressed(seed)) }
    }
}

impl Default for Soft {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine for Soft {
    fn name(&self) -> &'static str {
        self.name
    }

    fn tsc_khz(&self, preferred: u32) -> u32 {
        preferred.clamp(*TSC_KHZ.start(), *TSC_KHZ.end())
    }

    fn repeats(&self) -> bool {
        true
    }

    fn build(&self, spec: &PartitionSpec, memory: &GuestMemory) -> Result<Built> {
        self.build_with(spec, memory, None)
    }

    fn build_with(
        &self,
        spec: &PartitionSpec,
        memory: &GuestMemory,
        stock: Option<&CodeStock>,
    ) -> Result<Built> {
        let unsupported = |what: String| Err(Error::Unsupported { engine: self.name, what });
        if !(1..=MAX_VCPUS).contains(&spec.vcpus) {
            return unsupported(format!("{} vCPUs; 1 to {MAX_VCPUS} are possible", spec.vcpus));
        }
        if !TSC_KHZ.contains(&spec.tsc_khz) {
            return unsupported(format!("a TSC of {} kHz", spec.tsc_khz));
        }
        if let Some(excess) = beyond(&spec.cpuid) {
            return unsupported(excess);
        }
        if let Some(feature) = native::missing() {
            let reason = format!("the host CPU has no {feature}, and vector instructions are executed on it");
            return Err(Error::Unfit { engine: self.name, reason });
        }
        let lacks = if spec.cpuid.model() == CpuModel::V3 { avx::missing() } else { Vec::new() };
        if !lacks.is_empty() {
            let reason = format!(
                "a CPU of x86-64-v3 needs {}, which this host does not have; take --cpu v2",
                lacks.join(", ")
            );
            return Err(Error::Unfit { engine: self.name, reason });
        }
        let mut cpus: Vec<Cpu> = (0..spec.vcpus).map(Cpu::new).collect();
        for cpu in &mut cpus {
            cpu.show(spec.cpuid.for_vcpu(cpu.id));
        }
        let shared = &mut cpus[0].shared;
        shared.ram = Ram::new(memory);
        shared.clock = Clock::new(spec.tsc_khz);
        shared.seed = spec.seed;
        if let Some(haste) = self.translates {
            shared.blocks.translate(haste);
        }
        if let Some(stock) = stock {
            shared.blocks.take_from(stock, spec.cpuid.model());
        }
        let common = Arc::new(Common::default());
        let seat = Bench::new(cpus, Arc::clone(&common), stock.cloned());
        Ok(Built { partition: common, seats: vec![Box::new(seat)] })
    }
}

/// A feature in the table that the engine does not have.
fn beyond(cpuid: &CpuidTable) -> Option<String> {
    const HYPERTHREADING: u32 = 1 << 28;
    let v3 = cpuid.model() == CpuModel::V3;
    let mut known = [
        (1, 2, feature::LEAF1_ECX | feature::X2APIC),
        (1, 3, feature::LEAF1_EDX | HYPERTHREADING),
        (7, 1, feature::LEAF7_EBX),
        (7, 2, 0),
        (7, 3, feature::LEAF7_EDX),
        (0x8000_0001, 2, feature::EXT1_ECX),
        (0x8000_0001, 3, feature::EXT1_EDX),
    ];
    // All of them or none.
    for f in V3.iter().filter(|_| v3) {
        for (_, _, bits) in
            known.iter_mut().filter(|(leaf, r, _)| (*leaf, 0, *r) == (f.leaf.0, f.leaf.1, f.register))
        {
            *bits |= 1 << f.bit;
        }
    }
    known.into_iter().find_map(|(leaf, register, known)| {
        let excess = cpuid.lookup(leaf, 0)[register] & !known;
        let name = ["EAX", "EBX", "ECX", "EDX"][register];
        (excess != 0).then(|| format!("CPUID leaf {leaf:#x} {name} bits {excess:#x}"))
    })
}

/// What the machine's threads and the one that runs vCPUs share.
#[derive(Debug)]
pub(crate) struct Common {
    /// Interrupt messages that wait for the next run.
    inbox: Mutex<Vec<Msi>>,
    /// Guest memory that the machine has written since the last run.
    written: Mutex<Vec<Range<u64>>>,
    kicked: AtomicBool,
    now: AtomicU64,
    retired: AtomicU64,
    /// See [`Partition::stop_at`]; the largest number is never.
    limit: AtomicU64,
    pub(crate) events: Events,
}

impl Default for Common {
    fn default() -> Self {
        Self {
            inbox: Mutex::default(),
            written: Mutex::default(),
            kicked: AtomicBool::new(false),
            now: AtomicU64::new(0),
            retired: AtomicU64::new(0),
            limit: AtomicU64::new(u64::MAX),
            events: Events::default(),
        }
    }
}

fn take<T>(list: &Mutex<Vec<T>>) -> Vec<T> {
    std::mem::take(&mut *list.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Common {
    /// The messages that have come, in order.
    pub(crate) fn messages(&self) -> Vec<Msi> {
        take(&self.inbox)
    }

    /// Where the machine has written.
    pub(crate) fn written(&self) -> Vec<Range<u64>> {
        take(&self.written)
    }

    /// A kick has come; it is taken.
    pub(crate) fn kicked(&self) -> bool {
        self.kicked.load(Ordering::Relaxed) && self.kicked.swap(false, Ordering::Acquire)
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Tells how far the guest is.
    pub(crate) fn tell(&self, now: u64, retired: u64) {
        self.now.store(now, Ordering::Relaxed);
        self.retired.store(retired, Ordering::Relaxed);
    }
}

impl Partition for Common {
    fn send_msi(&self, msi: Msi) -> Result<()> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).push(msi);
        Ok(())
    }

    fn memory_written(&self, range: Range<u64>) {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).push(range);
    }

    fn kick(&self) {
        self.kicked.store(true, Ordering::Release);
    }

    fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    fn instructions(&self) -> Option<u64> {
        Some(self.retired.load(Ordering::Relaxed))
    }

    fn memory_events(&self) -> Option<&dyn MemoryEvents> {
        Some(self)
    }

    fn stop_at(&self, instructions: Option<u64>) -> bool {
        self.limit.store(instructions.unwrap_or(u64::MAX), Ordering::Relaxed);
        true
    }
}
