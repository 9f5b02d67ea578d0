//! What the vCPUs of a partition have in common. One host thread runs them in turn, and this travels to the one that runs.

use std::ops::Range;

use engine::VcpuId;
use engine::event::{Event, EventKind, FenceKind, StoreKind};

use crate::block::Blocks;
use crate::clock::Clock;
use crate::lapic::Message;
use crate::ram::Ram;

/// Memory, what is known about it, and the log of what is done to it.
#[derive(Debug, Default)]
pub struct Shared {
    /// Guest-physical memory.
    pub ram: Ram,
    /// Ranges whose stores are logged.
    pub watch: Watch,
    /// The log.
    pub log: Vec<Event>,
    /// vCPUs that have flushed or posted something since their last fence, a bit each.
    unfenced: u8,
    /// Where each vCPU was at its last event.
    places: [Option<Place>; 8],
    /// Events have come from a new place, and the machine wants to know.
    pub at_new_place: bool,
    /// Decoded code.
    pub blocks: Blocks,
    /// Guest time.
    pub clock: Clock,
    /// Decides RDRAND.
    pub seed: u64,
    /// Interrupt messages that vCPUs have sent, for the scheduler to deliver.
    pub outbox: Vec<(VcpuId, Message)>,
    /// Instructions retired by all vCPUs before the current [`crate::cpu::Cpu::run`].
    pub retired: u64,
}

/// Guest-physical ranges whose accesses are logged.
#[derive(Debug, Default)]
pub struct Watch {
    /// Page-aligned.
    pub ranges: Vec<Range<u64>>,
    /// Loads too.
    pub loads: bool,
    /// Stop after events from a new place.
    pub places: bool,
}

/// Where events come from: what a call chain depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    rip: u64,
    stack: u64,
    instruction: u64,
}

/// Instructions after which a place counts as another: its caller may have been left and entered anew.
const SAME_PLACE: u64 = 64;

impl Watch {
    /// The page at this guest-physical address is watched.
    #[inline]
    #[must_use]
    pub fn covers(&self, gpa: u64) -> bool {
        self.ranges.iter().any(|range| range.contains(&gpa))
    }

    /// Anything is watched.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.ranges.is_empty()
    }
}

/// Who does something, for the log.
#[derive(Debug, Clone, Copy)]
pub struct Actor {
    /// Which vCPU.
    pub vcpu: VcpuId,
    /// Its instruction.
    pub rip: u64,
    /// Its stack pointer.
    pub stack: u64,
    /// Instructions retired before it.
    pub instruction: u64,
}

/// Events that the log takes before the machine is asked to drain it.
pub const LOG_CAPACITY: usize = 1 << 16;

impl Shared {
    /// The page at this guest-physical address holds decoded code.
    #[must_use]
    pub fn has_code(&self, gpa: u64) -> bool {
        self.blocks.covers(gpa)
    }

    /// Guest memory has changed in one page.
    pub fn code_changed(&mut self, gpa: u64, len: usize) {
        self.blocks.changed(gpa, len);
    }

    /// Guest memory has changed from outside: a device wrote there, or a loader.
    pub fn memory_changed(&mut self, range: Range<u64>) {
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min((at | 0xFFF) + 1);
            self.blocks.changed(at, (end - at) as usize);
            at = end;
        }
    }

    /// The log takes no further instruction. One that has begun to log goes on, lest it be logged twice.
    #[must_use]
    pub fn log_is_full(&self, actor: Actor) -> bool {
        self.log.len() >= LOG_CAPACITY
            && self
                .log
                .last()
                .is_none_or(|event| (event.instruction, event.vcpu) != (actor.instruction, actor.vcpu))
    }

    /// Events of this instruction come from a new place, after which the run is to stop.
    #[must_use]
    pub fn is_new_place(&self, actor: Actor) -> bool {
        self.watch.places
            && self.places.get(usize::from(actor.vcpu)).copied().flatten().is_none_or(|last| {
                (last.rip, last.stack) != (actor.rip, actor.stack)
                    || actor.instruction - last.instruction > SAME_PLACE
            })
    }

    /// The instruction now runs alone, and the run will stop after it if its place is new.
    pub fn reach(&mut self, actor: Actor) {
        self.at_new_place |= self.is_new_place(actor);
        if let Some(last) = self.places.get_mut(usize::from(actor.vcpu)) {
            *last = Some(Place { rip: actor.rip, stack: actor.stack, instruction: actor.instruction });
        }
    }

    /// Forgets what was known of what was watched until now.
    pub fn begin_watching(&mut self, watch: Watch) {
        self.watch = watch;
        self.places = [None; 8];
        self.at_new_place = false;
        // What was flushed before may be waiting for its fence.
        self.unfenced = 0xFF;
    }

    /// Logs; a fence only if it is one for its own sake or has something to order.
    pub fn record(&mut self, actor: Actor, kind: EventKind) {
        let Actor { vcpu, rip, instruction, .. } = actor;
        let own = 1u8.checked_shl(vcpu.into()).unwrap_or(0xFF);
        match kind {
            EventKind::Flush { .. } | EventKind::Store { kind: StoreKind::NonTemporal, .. } => {
                self.unfenced |= own;
            }
            EventKind::Fence { kind: FenceKind::Locked } if self.unfenced & own == 0 => return,
            EventKind::Fence { kind: FenceKind::LockedFailed | FenceKind::Serialising } => {
                // Whether these are fences is for the medium to say: they close nothing.
                if self.unfenced & own == 0 {
                    return;
                }
            }
            EventKind::Fence { .. } => self.unfenced &= !own,
            EventKind::Store { .. } | EventKind::Load { .. } => {}
        }
        let time = self.clock.now(instruction);
        self.log.push(Event { vcpu, rip, instruction, time, kind });
    }

    /// Logs a store of at most 64 bytes.
    pub fn record_store(&mut self, actor: Actor, addr: u64, bytes: &[u8], kind: StoreKind) {
        let mut data = [0; 64];
        let len = bytes.len().min(64);
        data[..len].copy_from_slice(&bytes[..len]);
        self.record(actor, EventKind::Store { addr, data, len: len as u8, kind });
    }
}
