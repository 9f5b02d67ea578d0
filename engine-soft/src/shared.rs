//! What the vCPUs of a partition have in common. One host thread runs them in turn, and this travels to the one that runs.

use std::ops::Range;

use engine::VcpuId;
use engine::event::{Event, EventKind, StoreKind};

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
}

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

    /// Logs.
    pub fn record(&mut self, actor: Actor, kind: EventKind) {
        let Actor { vcpu, rip, instruction } = actor;
        self.log.push(Event { vcpu, rip, instruction, kind });
    }

    /// Logs a store of at most 64 bytes.
    pub fn record_store(&mut self, actor: Actor, addr: u64, bytes: &[u8], kind: StoreKind) {
        let mut data = [0; 64];
        let len = bytes.len().min(64);
        data[..len].copy_from_slice(&bytes[..len]);
        self.record(actor, EventKind::Store { addr, data, len: len as u8, kind });
    }
}
