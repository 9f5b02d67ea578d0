//! What the vCPUs of a partition have in common. One host thread runs them in turn, and this travels to the one that runs.

use std::ops::Range;

use engine::VcpuId;
use engine::event::{Event, EventKind, FenceKind, StoreKind};
use engine::log::{Deed, Log, Origin, Short, WINDOW};
use engine::place::{Place, Places};

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
    pub log: Log,
    /// The bytes of the last event are what will be in memory when somebody next asks: its instruction stores them.
    ahead: bool,
    /// vCPUs that have flushed or posted something since their last fence, a bit each.
    unfenced: u8,
    /// The places that the machine has told of.
    pub places: Places,
    /// Numbers given to stretches in which nothing but watched memory changed.
    pub stretches: u64,
    /// The instruction that was last let into the log, or whose place was asked for.
    here: Option<Here>,
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
    /// Ask for places that are not known.
    pub places: bool,
}

/// An instruction that makes events, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Here {
    vcpu: VcpuId,
    rip: u64,
    instruction: u64,
    place: u32,
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
pub const LOG_CAPACITY: usize = 1 << 13;

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

    /// The log takes no further instruction.
    #[must_use]
    pub fn log_is_full(&self) -> bool {
        self.log.len() >= LOG_CAPACITY
    }

    /// This instruction was let into the log, or its place was asked for: it goes on, lest it be logged twice or asked for
    /// ever again.
    #[inline]
    #[must_use]
    pub fn is_here(&self, actor: Actor) -> bool {
        let Actor { vcpu, rip, instruction } = actor;
        self.here.is_some_and(|here| (here.instruction, here.rip, here.vcpu) == (instruction, rip, vcpu))
    }

    /// Lets an instruction into the log, with the number of its place.
    #[inline]
    pub fn enter_log(&mut self, actor: Actor, place: u32) {
        let Actor { vcpu, rip, instruction } = actor;
        self.here = Some(Here { vcpu, rip, instruction, place });
    }

    /// The machine tells where a vCPU's next instruction is.
    pub fn learn(&mut self, vcpu: VcpuId, place: Place) {
        if let Some(here) = self.here.as_mut().filter(|here| here.vcpu == vcpu) {
            here.place = place.number;
        }
        self.places.learn(place);
    }

    /// Forgets what was known of what was watched until now.
    pub fn begin_watching(&mut self, watch: Watch) {
        self.watch = watch;
        self.places = Places::default();
        self.here = None;
        // What was flushed before may be waiting for its fence.
        self.unfenced = 0xFF;
    }

    /// Gives the last event its bytes, if it was logged ahead of its store. To be called before the log or watched memory is
    /// touched in any other way.
    #[inline]
    pub fn settle(&mut self) {
        if std::mem::take(&mut self.ahead) {
            self.log.complete(|addr, bytes| {
                self.ram.read(addr, bytes);
            });
        }
    }

    /// The last event waits for its bytes.
    #[must_use]
    pub fn is_ahead(&self) -> bool {
        self.ahead
    }

    /// Logs a store within a page that is about to be made.
    #[inline]
    pub fn record_ahead(&mut self, actor: Actor, addr: u64, len: u8, kind: StoreKind) {
        self.record(actor, EventKind::Store { addr, data: [0; 64], len, kind });
        self.ahead = true;
    }

    /// Logs a short event of translated code, of which it may log more by itself: gives the event. `left` is what that code has
    /// left of its budget. `None`, and nothing is logged, where the log can have no more of a new origin.
    pub fn record_short(
        &mut self,
        actor: Actor,
        place: u32,
        deed: Deed,
        (address, data): (u64, u64),
        left: u32,
    ) -> Option<Short> {
        self.settle();
        let Actor { vcpu, rip, instruction } = actor;
        let ahead = self.clock.now(instruction).wrapping_sub(instruction);
        let (base, window) = (instruction.wrapping_add(left.into()), address & !(WINDOW - 1));
        let origin = self.log.origin(Origin { vcpu, rip, place, deed, ahead, base, window })?;
        if !matches!(deed, Deed::Store(_, StoreKind::Cached | StoreKind::Locked)) {
            self.unfenced |= bit(actor.vcpu);
        }
        let short = Short::new(origin, address, data, left);
        self.log.push_short(short);
        Some(short)
    }

    /// Logs; a fence only if it is one for its own sake or has something to order.
    pub fn record(&mut self, actor: Actor, kind: EventKind) {
        self.settle();
        let own = bit(actor.vcpu);
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
        let Actor { vcpu, rip, instruction } = actor;
        let place = self.here.filter(|_| self.is_here(actor)).map_or(0, |here| here.place);
        self.log.push(Event { vcpu, rip, instruction, time: self.clock.now(instruction), place, kind });
    }

    /// Logs a store of at most 64 bytes.
    pub fn record_store(&mut self, actor: Actor, addr: u64, bytes: &[u8], kind: StoreKind) {
        let mut data = [0; 64];
        let len = bytes.len().min(64);
        data[..len].copy_from_slice(&bytes[..len]);
        self.record(actor, EventKind::Store { addr, data, len: len as u8, kind });
    }
}

/// A vCPU's bit.
fn bit(vcpu: VcpuId) -> u8 {
    1u8.checked_shl(vcpu.into()).unwrap_or(0xFF)
}
