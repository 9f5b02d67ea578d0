//! What is watched, and what was seen of it: between the machine's threads and those of the vCPUs.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use engine::event::{Event, MemoryEvents};

/// From here on a vCPU asks to have the log drained.
const LOG_CAPACITY: usize = 1 << 16;

/// What to look for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Watch {
    pub(crate) ranges: Vec<Range<u64>>,
    pub(crate) loads: bool,
}

/// The partition's share of stepping.
#[derive(Debug, Default)]
pub(crate) struct Events {
    watch: Mutex<Arc<Watch>>,
    log: Mutex<Vec<Event>>,
    /// Instructions stepped by all vCPUs.
    stepped: AtomicU64,
    /// Interrupt messages that the machine has sent.
    messages: AtomicU64,
    turn: Turn,
}

impl Events {
    /// Interrupt messages so far.
    pub(crate) fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    /// The machine has sent one.
    pub(crate) fn message(&self) {
        self.messages.fetch_add(1, Ordering::Relaxed);
    }

    /// What is watched now.
    pub(crate) fn watch(&self) -> Arc<Watch> {
        Arc::clone(&lock(&self.watch))
    }

    /// Nobody has drained since the log was full.
    pub(crate) fn is_full(&self) -> bool {
        lock(&self.log).len() >= LOG_CAPACITY
    }

    pub(crate) fn append(&self, events: &mut Vec<Event>) {
        if !events.is_empty() {
            lock(&self.log).append(events);
        }
    }

    /// Counts an instruction, and gives its number.
    pub(crate) fn count(&self) -> u64 {
        self.stepped.fetch_add(1, Ordering::Relaxed)
    }

    /// The number of the instruction that is being stepped.
    pub(crate) fn number(&self) -> u64 {
        self.stepped.load(Ordering::Relaxed)
    }

    /// Waits until no other vCPU is within an instruction, first come, first served. So events of all vCPUs are in the
    /// order in which memory saw them, and one that spins cannot keep the others from what it waits for.
    pub(crate) fn take_turn(&self) -> impl Drop + '_ {
        self.turn.take()
    }
}

impl MemoryEvents for Events {
    fn watch(&self, ranges: &[Range<u64>], loads: bool) {
        let ranges = ranges.iter().filter(|range| range.start < range.end).cloned().collect();
        *lock(&self.watch) = Arc::new(Watch { ranges, loads });
    }

    fn drain(&self, sink: &mut dyn FnMut(&Event)) {
        let events = std::mem::take(&mut *lock(&self.log));
        events.iter().for_each(sink);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A lock that is passed on in the order in which it was asked for.
#[derive(Debug, Default)]
struct Turn {
    /// The next ticket, and the one whose turn it is.
    tickets: Mutex<(u64, u64)>,
    passed: Condvar,
}

impl Turn {
    fn take(&self) -> Taken<'_> {
        let mut tickets = lock(&self.tickets);
        let mine = tickets.0;
        tickets.0 += 1;
        while tickets.1 != mine {
            tickets = self.passed.wait(tickets).unwrap_or_else(PoisonError::into_inner);
        }
        Taken(self)
    }
}

struct Taken<'a>(&'a Turn);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut tickets = lock(&self.0.tickets);
        tickets.1 += 1;
        if tickets.0 != tickets.1 {
            self.0.passed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_goes_round() {
        let events = Events::default();
        let order = Mutex::new(Vec::new());
        let first = events.take_turn();
        std::thread::scope(|scope| {
            for n in 0..2 {
                let (events, order) = (&events, &order);
                scope.spawn(move || {
                    for _ in 0..50 {
                        let _turn = events.take_turn();
                        lock(order).push(n);
                        std::thread::sleep(std::time::Duration::from_micros(200));
                    }
                });
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
            drop(first);
        });
        let order = order.into_inner().unwrap();
        let alternate = order.windows(2).take(80).filter(|pair| pair[0] != pair[1]).count();
        assert!(alternate > 60, "{order:?}");
    }
}
