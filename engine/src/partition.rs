//! Life cycle: [`Engine`] -> [`Built`] -> [`Seat`] -> [`Processor`].

use std::fmt::Debug;
use std::sync::Arc;

use crate::cpuid::CpuidTable;
use crate::debug::Debugger;
use crate::event::MemoryEvents;
use crate::{CodeStock, CpuState, Entry, Exit, PartitionState, Result, VcpuId};

/// Guest-physical memory as the engines see it: what is mapped is RAM or persistent memory, holes are MMIO.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// What a partition is asked to be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PartitionSpec {
    /// 1 to 8.
    pub vcpus: u8,
    /// What CPUID answers; the leaves that depend on the vCPU are filled per vCPU by [`CpuidTable::for_vcpu`].
    pub cpuid: CpuidTable,
    /// TSC frequency, agreed on with [`Engine::tsc_khz`] and already told in `cpuid`.
    pub tsc_khz: u32,
    /// Decides RDRAND where the engine owns it.
    pub seed: u64,
}

/// A prototype: what could run guests, before any guest exists.
pub trait Engine: Debug + Send + Sync {
    /// `soft`, `interp` or `kvm`.
    fn name(&self) -> &'static str;

    /// The TSC frequency that guests of this engine will see when `preferred` is asked for.
    fn tsc_khz(&self, preferred: u32) -> u32;

    /// Whether guests run alike, instruction by instruction, whenever they are given alike.
    fn repeats(&self) -> bool {
        false
    }

    /// Makes the partition.
    ///
    /// # Errors
    /// [`crate::Error::Unfit`] or [`crate::Error::Unsupported`], or the host's refusal.
    fn build(&self, spec: &PartitionSpec, memory: &GuestMemory) -> Result<Built>;

    /// As [`Engine::build`], of many that begin with the same memory: code may be taken from stock, and left there.
    ///
    /// # Errors
    /// As [`Engine::build`].
    fn build_with(
        &self,
        spec: &PartitionSpec,
        memory: &GuestMemory,
        _stock: Option<&CodeStock>,
    ) -> Result<Built> {
        self.build(spec, memory)
    }
}

/// A partition with its seats not yet bound.
#[derive(Debug)]
pub struct Built {
    /// The shared part.
    pub partition: Arc<dyn Partition>,
    /// One for each host thread that has to run; together they hold vCPUs `0..vcpus`, in order.
    pub seats: Vec<Box<dyn Seat>>,
}

/// A message-signalled interrupt, as a device or the IOAPIC writes it (SDM vol. 3, "Message Signalled Interrupts").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Msi {
    /// 0xFEE0_0000 with destination and mode bits.
    pub address: u64,
    /// Vector, delivery mode, trigger.
    pub data: u32,
}

/// What all seats share; callable from any thread.
pub trait Partition: Debug + Send + Sync {
    /// Delivers an interrupt message to the local APICs.
    ///
    /// # Errors
    /// The host's refusal. A message that addresses nobody is dropped, as on hardware.
    fn send_msi(&self, msi: Msi) -> Result<()>;

    /// Tells that the machine has written guest memory, other than by an exit's answer: a device's DMA. An engine that
    /// keeps decoded code forgets what was made from there, before it runs on.
    fn memory_written(&self, _range: std::ops::Range<u64>) {}

    /// Makes every running processor return [`crate::ExitKind::Kicked`] soon; sticky until it has.
    fn kick(&self);

    /// Guest time since power-on in nanoseconds.
    fn now(&self) -> u64;

    /// Instructions retired by all vCPUs, where the engine counts them.
    fn instructions(&self) -> Option<u64>;

    /// The memory-event source, where the engine has an exact one.
    fn memory_events(&self) -> Option<&dyn MemoryEvents>;

    /// Asks for [`crate::ExitKind::InstructionLimit`] when this many instructions have retired (`None`: never).
    /// Gives `false` where the engine cannot count.
    fn stop_at(&self, instructions: Option<u64>) -> bool;
}

/// A host thread's worth of vCPUs, ready to be moved to that thread.
pub trait Seat: Debug + Send {
    /// The vCPUs that this seat runs.
    fn vcpus(&self) -> Vec<VcpuId>;

    /// Binds to the calling thread.
    ///
    /// # Errors
    /// The host's refusal.
    fn bind(self: Box<Self>) -> Result<Box<dyn Processor>>;
}

/// One or more vCPUs bound to this thread.
pub trait Processor: Debug {
    /// Runs until something concerns the machine.
    ///
    /// # Errors
    /// The engine failed; the partition is then unusable.
    fn run(&mut self, entry: Entry) -> Result<Exit>;

    /// The architectural state of a vCPU of this seat, between exits. At a read it is that of before the instruction,
    /// which asks again where it is restored; at the last write of an instruction that of after it. Between the parts of
    /// an access that arrives in several exits it may be either: save at [`crate::ExitKind::Kicked`] or
    /// [`crate::ExitKind::InstructionLimit`], which come between instructions.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchVcpu`] or the host's refusal.
    fn save(&mut self, vcpu: VcpuId) -> Result<CpuState>;

    /// Replaces the state of a vCPU of this seat. `restore(save())` changes nothing. A read that waits for its answer is
    /// forgotten: go on with [`Entry::Resume`].
    ///
    /// # Errors
    /// [`crate::Error::NoSuchVcpu`], [`crate::Error::BadState`] or the host's refusal.
    fn restore(&mut self, vcpu: VcpuId, state: &CpuState) -> Result<()>;

    /// What the partition has beside its vCPUs. For a whole snapshot bring every seat to [`crate::ExitKind::Kicked`], then
    /// save this once and each vCPU.
    ///
    /// # Errors
    /// The host's refusal.
    fn save_partition(&mut self) -> Result<PartitionState>;

    /// Replaces it. Comes before the vCPUs' own states, whose timers hang on guest time.
    ///
    /// # Errors
    /// [`crate::Error::BadState`] for one that this partition cannot have; nothing is changed then.
    fn restore_partition(&mut self, state: &PartitionState) -> Result<()>;

    /// Debugging from outside, where the engine can do it without the guest's notice.
    fn debugger(&mut self) -> Option<&mut dyn Debugger> {
        None
    }
}
