//! Loops of accesses: programs copy, zero and flush by a few instructions again and again, each time so much further on. Where
//! an access is what a loop foretells, only its bytes are left to be told.

use nvdimm_model::medium::{FenceKind, FlushKind, StoreKind};

use crate::{Event, Kind};

/// Accesses that are remembered, and so the most that a loop has.
pub const PERIOD: usize = 16;
/// The most accesses of one run.
pub const COUNT: u64 = 1 << 16;

/// What is done, but to which address and with which bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    Store(StoreKind),
    Flush(FlushKind),
    Fence(FenceKind),
}

/// An access, but for its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    pub rip: u64,
    pub instruction: u64,
    /// Guest time less the number of the instruction.
    pub ahead: u64,
    /// 0 of a fence.
    pub address: u64,
    /// Bytes stored.
    pub len: usize,
    pub chain: u32,
    pub vcpu: u8,
    pub deed: Deed,
}

impl Access {
    /// What an event is, if it is one that loops are made of, and the bytes that it stores.
    #[inline]
    pub fn of<'a>(event: &Event<'a>) -> Option<(Self, &'a [u8])> {
        let (deed, address, data): (_, _, &[u8]) = match event.kind {
            Kind::Store { address, data, kind } => (Deed::Store(kind), address, data),
            Kind::Flush { address, kind } => (Deed::Flush(kind), address, &[]),
            Kind::Fence(kind) => (Deed::Fence(kind), 0, &[]),
            _ => return None,
        };
        let Event { vcpu, instruction, time, rip, chain, .. } = *event;
        let ahead = time.wrapping_sub(instruction);
        Some((Self { rip, instruction, ahead, address, len: data.len(), chain, vcpu, deed }, data))
    }

    /// The event with these bytes.
    pub fn event<'a>(&self, data: &'a [u8]) -> Event<'a> {
        let Self { rip, instruction, ahead, address, chain, vcpu, deed, .. } = *self;
        let kind = match deed {
            Deed::Store(kind) => Kind::Store { address, data, kind },
            Deed::Flush(kind) => Kind::Flush { address, kind },
            Deed::Fence(kind) => Kind::Fence(kind),
        };
        Event { vcpu, instruction, time: instruction.wrapping_add(ahead), rip, chain, kind }
    }

    /// Where the next access begins if it goes on there: lines are flushed one after the other.
    pub fn end(&self) -> Option<u64> {
        match self.deed {
            Deed::Store(_) => Some(self.address.wrapping_add(self.len as u64)),
            Deed::Flush(_) => Some(self.address.wrapping_add(nvdimm_model::geometry::LINE)),
            Deed::Fence(_) => None,
        }
    }
}

/// A loop of stores, flushes and fences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loop {
    /// How many they are: at most [`Loop::PERIOD`], the last events.
    pub period: usize,
    /// By how much the addresses are higher the next time, wrapping.
    pub address: u64,
    /// How many instructions later each of them happens.
    pub instructions: u64,
}

impl Loop {
    /// The most events that a loop has.
    pub const PERIOD: usize = PERIOD;
    /// The most events of one run.
    pub const COUNT: u64 = COUNT;
}

/// The last accesses.
#[derive(Debug, Clone)]
pub struct History {
    ring: Box<[Access; PERIOD]>,
    count: usize,
}

impl History {
    pub fn new() -> Self {
        let none = Access {
            rip: 0,
            instruction: 0,
            ahead: 0,
            address: 0,
            len: 0,
            chain: 0,
            vcpu: 0,
            deed: Deed::Fence(FenceKind::Sfence),
        };
        Self { ring: Box::new([none; PERIOD]), count: 0 }
    }

    #[inline]
    fn ago(&self, n: usize) -> &Access {
        &self.ring[self.count.wrapping_sub(n) % PERIOD]
    }

    /// So many are known.
    pub fn len(&self) -> usize {
        self.count.min(PERIOD)
    }

    /// The last one.
    pub fn last(&self) -> Option<&Access> {
        (self.count > 0).then(|| self.ago(1))
    }

    #[inline]
    pub fn push(&mut self, access: Access) {
        self.ring[self.count % PERIOD] = access;
        self.count += 1;
    }

    /// What a loop foretells.
    #[inline]
    pub fn next(&self, of: Loop) -> Access {
        let mut access = *self.ago(of.period);
        access.instruction = access.instruction.wrapping_add(of.instructions);
        if !matches!(access.deed, Deed::Fence(_)) {
            access.address = access.address.wrapping_add(of.address);
        }
        access
    }

    /// So many times what a loop foretells.
    pub fn advance(&mut self, of: Loop, count: u64) {
        // What happens but for the last accesses is done in whole rounds.
        let rounds = count.saturating_sub(2 * PERIOD as u64) / of.period as u64;
        for n in 1..=of.period {
            let access = &mut self.ring[self.count.wrapping_sub(n) % PERIOD];
            access.instruction = access.instruction.wrapping_add(of.instructions.wrapping_mul(rounds));
            if !matches!(access.deed, Deed::Fence(_)) {
                access.address = access.address.wrapping_add(of.address.wrapping_mul(rounds));
            }
        }
        for _ in 0..count - rounds * of.period as u64 {
            self.push(self.next(of));
        }
    }

    /// How many bytes so many accesses store that a loop foretells.
    pub fn bytes(&self, of: Loop, count: u64) -> u64 {
        let stored = |n: usize| -> u64 { (1..=n).map(|k| self.ago(of.period + 1 - k).len as u64).sum() };
        let period = of.period as u64;
        stored(of.period) * (count / period) + stored((count % period) as usize)
    }

    /// The loop that an access, which is not remembered yet, may be the second round of.
    pub fn guess(&self, access: &Access) -> Option<Loop> {
        let period = (1..=self.len()).find(|&n| self.ago(n).rip == access.rip)?;
        let before = self.ago(period);
        Some(Loop {
            period,
            // A fence tells nothing of addresses: its loop is guessed at the next access.
            address: access.address.wrapping_sub(before.address),
            instructions: access.instruction.wrapping_sub(before.instruction),
        })
    }
}
