//! The log of memory events: a vector that keeps its old elements, so that the next store is written over one of them and not
//! made anew; there are millions.

use std::ops::Deref;

use engine::VcpuId;
use engine::event::{Event, EventKind, StoreKind};

/// Events in their order.
#[derive(Debug, Default)]
pub struct Log {
    /// The events, and behind them old ones.
    events: Vec<Event>,
    len: usize,
}

/// All of an event but what happened.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    /// See [`Event`].
    pub vcpu: VcpuId,
    /// See [`Event`].
    pub rip: u64,
    /// See [`Event`].
    pub instruction: u64,
    /// See [`Event`].
    pub time: u64,
    /// See [`Event`].
    pub place: u32,
}

impl Log {
    /// Appends an event.
    pub fn push(&mut self, origin: Origin, kind: EventKind) {
        let Origin { vcpu, rip, instruction, time, place } = origin;
        let event = Event { vcpu, rip, instruction, time, place, kind };
        match self.events.get_mut(self.len) {
            Some(old) => *old = event,
            None => self.events.push(event),
        }
        self.len += 1;
    }

    /// Appends a store, of which [`Log::last_store`] can tell the bytes later.
    #[inline]
    pub fn push_store(&mut self, origin: Origin, addr: u64, len: u8, kind: StoreKind) {
        let old = self.events.get_mut(self.len);
        if let Some(event) = old
            && let EventKind::Store { addr: old_addr, data, len: old_len, kind: old_kind } = &mut event.kind
        {
            if *old_len > len {
                data.fill(0);
            }
            (*old_addr, *old_len, *old_kind) = (addr, len, kind);
            event.vcpu = origin.vcpu;
            event.rip = origin.rip;
            event.instruction = origin.instruction;
            event.time = origin.time;
            event.place = origin.place;
            self.len += 1;
        } else {
            self.push(origin, EventKind::Store { addr, data: [0; 64], len, kind });
        }
    }

    /// Address and bytes of the last event, if it is a store.
    #[inline]
    pub fn last_store(&mut self) -> Option<(u64, &mut [u8])> {
        let last = self.len.checked_sub(1)?;
        match &mut self.events.get_mut(last)?.kind {
            EventKind::Store { addr, data, len, .. } => Some((*addr, data.get_mut(..usize::from(*len))?)),
            _ => None,
        }
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends all events of another one, which is empty afterwards.
    pub fn append(&mut self, other: &mut Self) {
        self.events.truncate(self.len);
        self.events.extend(other.events.drain(..other.len));
        self.len = self.events.len();
        other.len = 0;
    }
}

impl Deref for Log {
    type Target = [Event];

    fn deref(&self) -> &[Event] {
        &self.events[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin = Origin { vcpu: 1, rip: 2, instruction: 3, time: 4, place: 5 };

    fn store(addr: u64, bytes: &[u8]) -> EventKind {
        let mut data = [0; 64];
        data[..bytes.len()].copy_from_slice(bytes);
        EventKind::Store { addr, data, len: bytes.len() as u8, kind: StoreKind::Cached }
    }

    #[test]
    fn what_is_written_over_old_events_is_as_new() {
        let mut log = Log::default();
        log.push(ORIGIN, store(8, &[9; 16]));
        log.push(ORIGIN, EventKind::Load { addr: 1, len: 1 });
        log.clear();
        assert!(log.is_empty());
        for n in 0..3 {
            log.push_store(Origin { rip: n, ..ORIGIN }, n, 8, StoreKind::Cached);
            log.last_store().unwrap().1.fill(7);
        }
        let expected = [0, 1, 2].map(|n| store(n, &[7; 8]));
        assert_eq!(log.iter().map(|event| event.kind.clone()).collect::<Vec<_>>(), expected);
        assert_eq!(log.iter().map(|event| event.rip).collect::<Vec<_>>(), [0, 1, 2]);
        let mut other = Log::default();
        other.push(ORIGIN, EventKind::Load { addr: 1, len: 1 });
        assert_eq!(other.last_store(), None);
        log.append(&mut other);
        assert_eq!((log.len(), other.len()), (4, 0));
    }
}
