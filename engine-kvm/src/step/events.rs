//! What is watched, and what was seen of it: between the machine's threads and those of the vCPUs.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use engine::VcpuId;
use engine::event::Event;
use engine::log::Log;
use engine::place::{Place, Places};

use super::time::Slow;
use crate::partition::KvmPartition;

/// From here on a vCPU asks to have the log drained.
const LOG_CAPACITY: usize = 1 << 16;

/// What to look for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Watch {
    pub(crate) ranges: Vec<Range<u64>>,
    pub(crate) loads: bool,
    /// Ask for places that are not known.
    pub(crate) places: bool,
}

/// The partition's share of stepping.
#[derive(Debug, Default)]
pub(crate) struct Events {
    watch: Mutex<Arc<Watch>>,
    /// Whether to ask for places, from the next watch on; and those that the machine has told of.
    asks: AtomicBool,
    places: Mutex<Places>,
    /// The numbers that were told for the instructions that vCPUs have asked about.
    told: Mutex<[Option<u32>; 8]>,
    /// vCPUs that run without being stepped, a bit each; and told when one has left the guest.
    free: Mutex<u32>,
    left: Condvar,
    log: Mutex<Log>,
    /// Instructions stepped by all vCPUs.
    stepped: AtomicU64,
    /// One more than the number at which to stop; 0 is none.
    limit: AtomicU64,
    /// Interrupt messages that the machine has sent.
    messages: AtomicU64,
    time: Mutex<Slow>,
    turn: Turn,
}

impl Events {
    /// Interrupt messages so far.
    pub(crate) fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    /// The machine has sent one, or a vCPU may have.
    pub(crate) fn message(&self) {
        self.messages.fetch_add(1, Ordering::Relaxed);
    }

    /// The time of a guest that is being stepped.
    pub(crate) fn time(&self) -> MutexGuard<'_, Slow> {
        lock(&self.time)
    }

    /// What is watched now.
    pub(crate) fn watch(&self) -> Arc<Watch> {
        Arc::clone(&lock(&self.watch))
    }

    /// Watches something else, and waits until no vCPU runs that saw what was watched before; `kick` gets one to leave.
    pub(crate) fn set_watch(&self, ranges: &[Range<u64>], loads: bool, kick: impl Fn(VcpuId)) {
        let ranges: Vec<_> = ranges.iter().filter(|range| range.start < range.end).cloned().collect();
        let (is_on, places) = (!ranges.is_empty(), self.asks.load(Ordering::Relaxed));
        let mut free = lock(&self.free);
        *lock(&self.watch) = Arc::new(Watch { ranges, loads, places });
        *lock(&self.places) = Places::default();
        if is_on {
            (0..8).filter(|vcpu| *free & 1 << vcpu != 0).for_each(kick);
            while *free != 0 {
                free = self.left.wait(free).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// A vCPU is about to run without being stepped; not if something is watched by now.
    pub(crate) fn set_free(&self, vcpu: VcpuId) -> Option<Free<'_>> {
        let mut free = lock(&self.free);
        if !lock(&self.watch).ranges.is_empty() {
            return None;
        }
        *free |= 1 << vcpu;
        Some(Free(self, vcpu))
    }

    pub(crate) fn ask_places(&self, on: bool) {
        self.asks.store(on, Ordering::Relaxed);
    }

    /// The machine tells where a vCPU's next instruction is.
    pub(crate) fn learn(&self, vcpu: VcpuId, place: Place) {
        if let Some(told) = lock(&self.told).get_mut(usize::from(vcpu)) {
            *told = Some(place.number);
        }
        lock(&self.places).learn(place);
    }

    /// What was told last of a vCPU's next instruction.
    pub(crate) fn take_told(&self, vcpu: VcpuId) -> Option<u32> {
        lock(&self.told).get_mut(usize::from(vcpu)).and_then(Option::take)
    }

    /// The number of a place, if it is known. See [`Places::find`].
    pub(crate) fn find_place(
        &self,
        rip: u64,
        gpr: &[u64],
        look: impl FnMut(u64, usize) -> Option<u64>,
    ) -> Option<u32> {
        lock(&self.places).find(rip, gpr, 0, look).map(|found| found.number)
    }

    pub(crate) fn stop_at(&self, number: Option<u64>) {
        self.limit.store(number.map_or(0, |number| number.saturating_add(1)), Ordering::Relaxed);
    }

    /// The number at which to stop is reached.
    pub(crate) fn is_at_limit(&self) -> bool {
        self.limit.load(Ordering::Relaxed).checked_sub(1).is_some_and(|limit| self.number() >= limit)
    }

    pub(crate) fn drain(&self, log: &mut Log) {
        log.clear();
        std::mem::swap(&mut *lock(&self.log), log);
    }

    /// Nobody has drained since the log was full.
    pub(crate) fn is_full(&self) -> bool {
        lock(&self.log).len() >= LOG_CAPACITY
    }

    pub(crate) fn append(&self, events: &mut Vec<Event>) {
        if !events.is_empty() {
            let mut log = lock(&self.log);
            events.drain(..).for_each(|event| log.push(event));
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
    pub(crate) fn take_turn(of: &Arc<KvmPartition>) -> Taken {
        of.events.turn.take();
        Taken(Arc::clone(of))
    }
}

/// Held by the vCPU that is within an instruction; passed on when it is dropped.
#[derive(Debug)]
pub(crate) struct Taken(Arc<KvmPartition>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.events.turn.pass();
    }
}

/// A vCPU that runs without being stepped.
#[derive(Debug)]
pub(crate) struct Free<'a>(&'a Events, VcpuId);

impl Drop for Free<'_> {
    fn drop(&mut self) {
        let mut free = lock(&self.0.free);
        *free &= !(1 << self.1);
        self.0.left.notify_all();
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
    fn take(&self) {
        let mut tickets = lock(&self.tickets);
        let mine = tickets.0;
        tickets.0 += 1;
        while tickets.1 != mine {
            tickets = self.passed.wait(tickets).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn pass(&self) {
        let mut tickets = lock(&self.tickets);
        tickets.1 += 1;
        if tickets.0 != tickets.1 {
            self.passed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_goes_round() {
        let turn = Turn::default();
        let order = Mutex::new(Vec::new());
        turn.take();
        std::thread::scope(|scope| {
            for n in 0..2 {
                let (turn, order) = (&turn, &order);
                scope.spawn(move || {
                    for _ in 0..50 {
                        turn.take();
                        lock(order).push(n);
                        std::thread::sleep(std::time::Duration::from_micros(200));
                        turn.pass();
                    }
                });
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
            turn.pass();
        });
        let order = order.into_inner().unwrap();
        let alternate = order.windows(2).take(80).filter(|pair| pair[0] != pair[1]).count();
        assert!(alternate > 60, "{order:?}");
    }

    #[test]
    fn watching_begins_when_all_have_left() {
        let events = Events::default();
        let page = 0..0x1000;
        let kicked = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let free = events.set_free(3).unwrap();
            let watching = scope.spawn(|| {
                events.set_watch(std::slice::from_ref(&page), false, |vcpu| {
                    kicked.fetch_add(1 << vcpu, Ordering::Relaxed);
                });
            });
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!watching.is_finished());
            drop(free);
        });
        assert_eq!(kicked.into_inner(), 8);
        assert!(events.set_free(0).is_none());
        events.set_watch(&[], false, |_| panic!("nobody runs"));
        assert!(events.set_free(0).is_some());
    }

    #[test]
    fn the_limit_is_a_number() {
        let events = Events::default();
        assert!(!events.is_at_limit());
        events.stop_at(Some(1));
        assert!(!events.is_at_limit());
        events.count();
        assert!(events.is_at_limit());
        events.stop_at(None);
        assert!(!events.is_at_limit());
    }
}
