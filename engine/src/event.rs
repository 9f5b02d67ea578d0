//! Memory events: every store, flush and fence that concerns a watched range (crash-semantics of persistent memory;
//! SDM vol. 1 ch. 11.12).

use std::ops::Range;

use crate::VcpuId;
use crate::log::Log;
use crate::place::Place;

/// How a store reaches memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum StoreKind {
    /// Through the cache.
    Cached,
    /// MOVNTx: write-combining, posted until a fence of the same vCPU.
    NonTemporal,
    /// LOCK-prefixed, or XCHG with memory. The page walker's update of an entry is a cached store.
    Locked,
}

/// Which instruction flushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum FlushKind {
    /// Ordered as a store.
    Clflush,
    /// Takes effect at the next fence of the same vCPU.
    Clflushopt,
    /// As CLFLUSHOPT, and keeps the line.
    Clwb,
}

/// Which instruction orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum FenceKind {
    /// SFENCE.
    Sfence,
    /// MFENCE.
    Mfence,
    /// LOCK-prefixed or XCHG with memory; the store it may make is an event of its own, before it.
    Locked,
    /// CMPXCHG with LOCK that failed.
    LockedFailed,
    /// CPUID, IRET, MOV to CR and the like.
    Serialising,
    /// WBINVD or WBNOINVD: everything is written back.
    Wbinvd,
    /// INVD: dirty lines may be lost.
    Invd,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// A store of 1 to 64 bytes within a watched range; wider ones are several.
    Store {
        /// Guest-physical address of the first byte.
        addr: u64,
        /// The bytes stored; the first `len` count.
        data: [u8; 64],
        /// 1 to 64.
        len: u8,
        /// How.
        kind: StoreKind,
    },
    /// A load, reported on demand only.
    Load {
        /// Guest-physical address of the first byte.
        addr: u64,
        /// Width in bytes.
        len: u8,
    },
    /// A flush of one line in a watched range.
    Flush {
        /// Guest-physical address, 64-byte aligned.
        line: u64,
        /// Which instruction.
        kind: FlushKind,
    },
    /// A fence: SFENCE, MFENCE, WBINVD and INVD always; the others only if this vCPU has flushed or posted something
    /// that no fence has followed yet, as nearly every instruction of that kind has nothing to order.
    Fence {
        /// Which instruction.
        kind: FenceKind,
    },
}

/// An event with its place in the total order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Who.
    pub vcpu: VcpuId,
    /// Guest instruction pointer of the instruction.
    pub rip: u64,
    /// Instructions before this one, of all vCPUs, as [`MemoryEvents::number`] counts them; events of one instruction share
    /// it and keep their order.
    pub instruction: u64,
    /// Guest time in nanoseconds.
    pub time: u64,
    /// The number of the [`Place`] that it comes from; 0 where that is not known.
    pub place: u32,
    /// What.
    pub kind: EventKind,
}

/// An exact source of memory events.
pub trait MemoryEvents {
    /// Replaces the watched guest-physical ranges; an empty slice ends watching. Ranges are 4 KiB aligned. From here on no
    /// vCPU executes anything unseen: one that another thread has in the guest has left it when this returns.
    fn watch(&self, ranges: &[Range<u64>], loads: bool);

    /// Asks for [`crate::ExitKind::UnknownPlace`] right before an instruction that is about to make events of its own (a store,
    /// a flush, a fence for its own sake, a load that is reported) in a place that is not known. Takes effect with the next
    /// [`MemoryEvents::watch`], with which all places are forgotten; gives `false` where the engine cannot.
    fn ask_places(&self, _on: bool) -> bool {
        false
    }

    /// Answers that, before the vCPU goes on. The events of that instruction, and of all that come from the same place later,
    /// get the place's number. Without an answer the instruction's get 0.
    fn learn(&self, _vcpu: VcpuId, _place: Place) {}

    /// The number that an event of the next instruction would have: what [`crate::Partition::instructions`] gives, or,
    /// where an engine does not count those, the instructions that were executed while something was watched.
    fn number(&self) -> u64;

    /// Asks for [`crate::ExitKind::InstructionLimit`] when that number is reached while something is watched (`None`:
    /// never). It is the same limit as [`crate::Partition::stop_at`]'s, where the engine counts all instructions.
    fn stop_at(&self, number: Option<u64>);

    /// Puts all events so far into a log, in place of what it has. Its room is used for those to come.
    fn drain(&self, log: &mut Log);
}
