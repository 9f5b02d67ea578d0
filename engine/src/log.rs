//! The log of memory events: what an engine fills and the machine drains. Stores of up to eight bytes, and flushes, are
//! nearly all of it, by the million: a [`Short`] has of them what is not the same each time.

use crate::VcpuId;
use crate::event::{Event, EventKind, FlushKind, StoreKind};

/// What a short event does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// So many bytes are stored, at most 8.
    Store(u8, StoreKind),
    /// A line is flushed.
    Flush(FlushKind),
}

/// What short events have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// As in an [`Event`].
    pub vcpu: VcpuId,
    /// As in an [`Event`].
    pub rip: u64,
    /// As in an [`Event`].
    pub place: u32,
    /// What they do.
    pub deed: Deed,
    /// Guest time less the number of the instruction.
    pub ahead: u64,
    /// What the number of the instruction is short of: see [`Short::left`].
    pub base: u64,
    /// Begin of the [`WINDOW`] in which their addresses are.
    pub window: u64,
}

/// Bytes of guest-physical memory that an origin covers, aligned.
pub const WINDOW: u64 = 1 << WINDOW_BITS;
const WINDOW_BITS: u32 = 20;
/// Origins that a log may have. The number after the last is that of events that are no short ones.
const ORIGINS: usize = (1 << (32 - WINDOW_BITS)) - 1;

/// A short event, laid out for engines that write it themselves: 16 bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Short {
    /// What is stored, low byte first.
    pub data: u64,
    /// Offset in the window of its address (of a flush, anywhere in its line), and above that the number of its origin.
    pub at: u32,
    /// The number of the instruction is the origin's base less this.
    pub left: u32,
}

/// Origins that are looked at for one that is there already: a loop's.
const LATELY: usize = 16;

impl Short {
    /// One of an origin, at an address in its window.
    #[must_use]
    pub const fn new(origin: u32, address: u64, data: u64, left: u32) -> Self {
        Self { data, at: (origin << WINDOW_BITS) | (address % WINDOW) as u32, left }
    }

    /// Number of its origin, if it has one.
    #[inline]
    #[must_use]
    pub const fn origin(&self) -> Option<u32> {
        let origin = self.at >> WINDOW_BITS;
        if origin as usize == ORIGINS { None } else { Some(origin) }
    }

    /// Guest-physical address.
    #[inline]
    #[must_use]
    pub const fn address(&self, origin: &Origin) -> u64 {
        origin.window | (self.at as u64 % WINDOW)
    }

    /// Instructions before its own.
    #[inline]
    #[must_use]
    pub const fn number(&self, origin: &Origin) -> u64 {
        origin.base.wrapping_sub(self.left as u64)
    }

    /// No short event: the one of this number among the others.
    fn other(number: usize) -> Self {
        Self { data: number as u64, at: u32::MAX, left: 0 }
    }
}

/// Events in their order. What was used once is used again.
#[derive(Debug, Default)]
pub struct Log {
    /// The events, and behind them room.
    shorts: Vec<Short>,
    len: usize,
    origins: Vec<Origin>,
    others: Vec<Event>,
}

/// An event of a log.
#[derive(Debug, Clone, Copy)]
pub enum Item<'a> {
    /// A short one.
    Short(&'a Origin, &'a Short),
    /// Another one.
    Other(&'a Event),
}

impl Log {
    /// How many events there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Empties it, and keeps its room.
    pub fn clear(&mut self) {
        self.len = 0;
        self.origins.clear();
        self.others.clear();
    }

    /// Leaves only the first `len` events.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Appends an event.
    pub fn push(&mut self, event: Event) {
        let Event { vcpu, rip, instruction: base, time, place, ref kind } = event;
        let short = match *kind {
            EventKind::Store { addr, data: [a, b, c, d, e, f, g, h, ..], len, kind } if len <= 8 => {
                Some((Deed::Store(len, kind), addr, u64::from_le_bytes([a, b, c, d, e, f, g, h])))
            }
            EventKind::Flush { line, kind } => Some((Deed::Flush(kind), line, 0)),
            _ => None,
        };
        let short = short.and_then(|(deed, address, data)| {
            let (ahead, window) = (time.wrapping_sub(base), address & !(WINDOW - 1));
            let origin = self.origin(Origin { vcpu, rip, place, deed, ahead, base, window })?;
            Some(Short::new(origin, address, data, 0))
        });
        self.push_short(short.unwrap_or(Short::other(self.others.len())));
        if short.is_none() {
            self.others.push(event);
        }
    }

    /// The number of an origin in this log, until it is emptied; `None` if it can have no more.
    pub fn origin(&mut self, origin: Origin) -> Option<u32> {
        let lately = self.origins.len().saturating_sub(LATELY);
        let known = self.origins[lately..].iter().rposition(|known| *known == origin);
        if let Some(known) = known {
            return Some((lately + known) as u32);
        }
        let number = self.origins.len();
        (number < ORIGINS).then(|| {
            self.origins.push(origin);
            number as u32
        })
    }

    /// Appends an event of an origin that [`Log::origin`] has given.
    pub fn push_short(&mut self, short: Short) {
        self.room(self.len + 1)[0] = short;
        self.len += 1;
    }

    /// Room behind the last event for others, up to so many in all.
    pub fn room(&mut self, capacity: usize) -> &mut [Short] {
        if self.shorts.len() < capacity {
            self.shorts.resize(capacity, Short::default());
        }
        self.shorts.get_mut(self.len..capacity).unwrap_or_default()
    }

    /// That many more were written there.
    pub fn advance(&mut self, count: usize) {
        self.len = self.shorts.len().min(self.len + count);
    }

    /// The last event is a store whose bytes are there now: `read` fetches those at an address.
    pub fn complete(&mut self, read: impl FnOnce(u64, &mut [u8])) {
        let Some(last) = self.len.checked_sub(1).and_then(|last| self.shorts.get_mut(last)) else { return };
        let origin = last.origin().and_then(|origin| self.origins.get(origin as usize));
        if let Some(origin @ Origin { deed: Deed::Store(len, _), .. }) = origin {
            let mut bytes = [0; 8];
            read(last.address(origin), &mut bytes[..usize::from(*len).min(8)]);
            last.data = u64::from_le_bytes(bytes);
        } else if let Some(Event { kind: EventKind::Store { addr, data, len, .. }, .. }) =
            self.others.last_mut()
        {
            read(*addr, &mut data[..usize::from(*len).min(64)]);
        }
    }

    /// Appends all events of another one, which is empty afterwards.
    pub fn append(&mut self, other: &mut Self) {
        other.events().for_each(|event| self.push(event));
        other.clear();
    }

    /// The events as they are kept, oldest first.
    #[must_use]
    pub fn shorts(&self) -> &[Short] {
        &self.shorts[..self.len]
    }

    /// What one of them stands for.
    #[inline]
    #[must_use]
    pub fn item<'a>(&'a self, short: &'a Short) -> Option<Item<'a>> {
        match short.origin() {
            None => self.others.get(short.data as usize).map(Item::Other),
            Some(origin) => self.origins.get(origin as usize).map(|origin| Item::Short(origin, short)),
        }
    }

    /// The events, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Item<'_>> {
        self.shorts().iter().filter_map(|short| self.item(short))
    }

    /// The events, oldest first, each by itself.
    pub fn events(&self) -> impl Iterator<Item = Event> {
        self.iter().map(|item| item.event())
    }

    /// The instruction pointers of all events, some of them more than once.
    pub fn rips(&self) -> impl Iterator<Item = u64> {
        self.origins.iter().map(|origin| origin.rip).chain(self.others.iter().map(|event| event.rip))
    }
}

impl Item<'_> {
    /// As an event.
    #[must_use]
    pub fn event(&self) -> Event {
        let (origin, short) = match *self {
            Self::Other(event) => return event.clone(),
            Self::Short(origin, short) => (*origin, short),
        };
        let instruction = short.number(&origin);
        let kind = match origin.deed {
            Deed::Flush(kind) => EventKind::Flush { line: short.address(&origin) & !63, kind },
            Deed::Store(len, kind) => {
                let mut data = [0; 64];
                let stored = usize::from(len).min(8);
                data[..stored].copy_from_slice(&short.data.to_le_bytes()[..stored]);
                EventKind::Store { addr: short.address(&origin), data, len, kind }
            }
        };
        let Origin { vcpu, rip, place, ahead, .. } = origin;
        Event { vcpu, rip, instruction, time: instruction.wrapping_add(ahead), place, kind }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::FenceKind;

    fn event(n: u64, kind: EventKind) -> Event {
        Event { vcpu: 1, rip: n, instruction: 10 + n, time: 20 + n, place: 3, kind }
    }

    fn store(addr: u64, bytes: &[u8]) -> EventKind {
        let mut data = [0; 64];
        data[..bytes.len()].copy_from_slice(bytes);
        EventKind::Store { addr, data, len: bytes.len() as u8, kind: StoreKind::Cached }
    }

    fn events(log: &Log) -> Vec<Event> {
        log.events().collect()
    }

    /// Of each kind one, twice.
    fn all() -> Vec<Event> {
        let kinds = [
            store(8, &[1, 2, 3]),
            store(16, &[9; 8]),
            store(24, &[7; 9]),
            EventKind::Flush { line: 64, kind: FlushKind::Clwb },
            EventKind::Fence { kind: FenceKind::Sfence },
            EventKind::Load { addr: 5, len: 2 },
        ];
        (0..12).map(|n| event(n, kinds[n as usize % 6].clone())).collect()
    }

    #[test]
    fn what_is_pushed_is_there_and_room_is_used_again() {
        let mut log = Log::default();
        for _ in 0..2 {
            all().into_iter().for_each(|event| log.push(event));
            assert_eq!(events(&log), all());
            assert_eq!(log.len(), 12);
            log.truncate(5);
            assert_eq!(events(&log), all()[..5]);
            log.clear();
            assert!(log.is_empty() && events(&log).is_empty() && log.rips().next().is_none());
        }
    }

    #[test]
    fn logs_are_joined() {
        let (mut one, mut two) = (Log::default(), Log::default());
        let (head, tail) = (all()[..5].to_vec(), all()[5..].to_vec());
        head.into_iter().for_each(|event| one.push(event));
        tail.into_iter().for_each(|event| two.push(event));
        one.append(&mut two);
        assert_eq!((events(&one), two.len()), (all(), 0));
    }

    #[test]
    fn an_engine_writes_behind_the_last() {
        let mut log = Log::default();
        log.push(event(1, store(8, &[1])));
        let deed = Deed::Store(4, StoreKind::NonTemporal);
        let window = 5 * WINDOW;
        let origin = Origin { vcpu: 2, rip: 7, place: 9, deed, ahead: 100, base: 50, window };
        let origin = log.origin(origin).unwrap();
        let room = log.room(4);
        assert_eq!(room.len(), 3);
        room[0] = Short::new(origin, window + 16, 0x1_0203_0405, 3);
        room[1] = Short::new(origin, window + WINDOW - 4, 6, 2);
        log.advance(2);
        let mut data = [0; 64];
        data[..4].copy_from_slice(&[5, 4, 3, 2]);
        let kind = EventKind::Store { addr: window + 16, data, len: 4, kind: StoreKind::NonTemporal };
        let expected = Event { vcpu: 2, rip: 7, instruction: 47, time: 147, place: 9, kind };
        assert_eq!(events(&log)[1], expected);
        assert_eq!(events(&log)[2].instruction, 48);
        assert!(matches!(events(&log)[2].kind, EventKind::Store { addr, .. } if addr == 6 * WINDOW - 4));
    }

    #[test]
    fn more_origins_than_it_can_have_are_no_loss() {
        let mut log = Log::default();
        let event = |n: u64| event(n, store(n, &[n as u8, 1]));
        (0..ORIGINS as u64 + 10).for_each(|n| log.push(event(n)));
        assert!(log.events().enumerate().all(|(n, found)| found == event(n as u64)));
        assert_eq!((log.len(), log.others.len()), (ORIGINS + 10, 10));
    }

    #[test]
    fn bytes_come_later() {
        let mut log = Log::default();
        for (kind, len) in [(store(8, &[0; 3]), 3), (store(32, &[0; 16]), 16)] {
            log.push(event(1, kind));
            log.complete(|_, bytes| bytes.fill(5));
            let EventKind::Store { data, .. } = events(&log)[log.len() - 1].kind else { unreachable!() };
            assert_eq!(data.iter().filter(|&&byte| byte == 5).count(), len);
        }
    }
}
