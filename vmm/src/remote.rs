//! Hands that reach into a running machine from any thread: stop it, or tell it that input has come.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engine::Partition;

/// Why a run is stopped from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The time that the user allowed is over.
    Timeout,
    /// The user asked.
    Stopped,
    /// The guest's kernel said its last words on the console.
    Panic,
    /// To look at the machine, or to keep it: it can go on.
    Paused,
}

#[derive(Debug, Default)]
struct Signals {
    rung: bool,
    stop: Option<StopReason>,
    pause: bool,
    partition: Option<Arc<dyn Partition>>,
}

#[derive(Debug, Default)]
struct Shared {
    signals: Mutex<Signals>,
    bell: Condvar,
    /// A copy of `signals.rung` that costs nothing to look at.
    rung: AtomicBool,
    /// The guest's kernel has begun its last words.
    panicked: AtomicBool,
}

/// A remote control. Clones control the same machine.
#[derive(Debug, Clone, Default)]
pub struct Remote {
    shared: Arc<Shared>,
}

impl Remote {
    /// Ends the run soon. The first reason counts.
    pub fn stop(&self, reason: StopReason) {
        self.ring(|signals| {
            signals.stop.get_or_insert(reason);
        });
    }

    /// Brings the machine to rest soon, between two instructions of each processor; where a device asks for it within an
    /// access, as soon as that access's instruction is done.
    pub fn pause(&self) {
        self.ring(|signals| signals.pause = true);
    }

    /// Notes that the guest's kernel has begun its last words: where its processors stand now is worth knowing.
    pub(crate) fn note_panic(&self) {
        self.shared.panicked.store(true, Ordering::Release);
    }

    /// Whether the guest's kernel has begun its last words.
    pub(crate) fn is_panicked(&self) -> bool {
        self.shared.panicked.load(Ordering::Acquire)
    }

    /// Makes the machine look at its serial backends soon.
    pub fn wake(&self) {
        self.ring(|_| {});
    }

    fn ring(&self, change: impl FnOnce(&mut Signals)) {
        let mut signals = self.lock();
        change(&mut signals);
        signals.rung = true;
        self.shared.rung.store(true, Ordering::Release);
        let partition = signals.partition.clone();
        drop(signals);
        self.shared.bell.notify_all();
        if let Some(partition) = partition {
            partition.kick();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Signals> {
        self.shared.signals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names the partition to kick from now on.
    pub(crate) fn attach(&self, partition: Option<Arc<dyn Partition>>) {
        self.lock().partition = partition;
    }

    /// Whether somebody rang since the last [`Remote::take`].
    pub(crate) fn is_rung(&self) -> bool {
        self.shared.rung.load(Ordering::Acquire)
    }

    /// Whether somebody has asked for the end.
    pub(crate) fn is_stopped(&self) -> bool {
        self.lock().stop.is_some()
    }

    /// Takes the ring, and gives the reason to stop if there is one. The reason stays, but for a pause.
    pub(crate) fn take(&self) -> Option<StopReason> {
        let mut signals = self.lock();
        signals.rung = false;
        self.shared.rung.store(false, Ordering::Release);
        let pause = std::mem::take(&mut signals.pause);
        signals.stop.or(pause.then_some(StopReason::Paused))
    }

    /// Waits for a ring; at most so long, if there is a limit.
    pub(crate) fn wait(&self, limit: Option<Duration>) {
        let signals = self.lock();
        let quiet = |signals: &mut Signals| !signals.rung;
        match limit {
            Some(limit) => drop(self.shared.bell.wait_timeout_while(signals, limit, quiet)),
            None => drop(self.shared.bell.wait_while(signals, quiet)),
        }
    }
}

/// Bytes typed on the host for a serial backend to hand on. Clones share them.
#[derive(Debug, Clone)]
pub struct Keyboard {
    typed: Arc<Mutex<Typed>>,
    remote: Remote,
}

#[derive(Debug, Default)]
struct Typed {
    bytes: VecDeque<u8>,
    held: bool,
}

impl Keyboard {
    /// A keyboard of the machine behind `remote`.
    #[must_use]
    pub fn new(remote: Remote) -> Self {
        Self { typed: Arc::default(), remote }
    }

    /// Types; the machine is woken.
    pub fn press(&self, bytes: &[u8]) {
        self.lock().bytes.extend(bytes);
        self.remote.wake();
    }

    /// Keeps back what is typed until [`Keyboard::release`]: a booting guest throws away what comes before somebody reads
    /// its console.
    pub fn hold(&self) {
        self.lock().held = true;
    }

    /// Hands on what was typed, and what will be.
    pub fn release(&self) {
        self.lock().held = false;
        self.remote.wake();
    }

    /// Whether all that was typed has been read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().bytes.is_empty()
    }

    /// The oldest byte not yet read, unless it is kept back.
    #[must_use]
    pub fn next(&self) -> Option<u8> {
        let mut typed = self.lock();
        if typed.held { None } else { typed.bytes.pop_front() }
    }

    fn lock(&self) -> MutexGuard<'_, Typed> {
        self.typed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_to_stop_counts_and_stays() {
        let remote = Remote::default();
        assert_eq!((remote.is_rung(), remote.take()), (false, None));
        remote.stop(StopReason::Timeout);
        remote.stop(StopReason::Stopped);
        assert!(remote.is_rung());
        assert_eq!(remote.take(), Some(StopReason::Timeout));
        assert!(!remote.is_rung());
        assert_eq!(remote.take(), Some(StopReason::Timeout));
    }

    #[test]
    fn a_pause_is_taken_once() {
        let remote = Remote::default();
        remote.pause();
        assert_eq!([remote.take(), remote.take()], [Some(StopReason::Paused), None]);
    }

    #[test]
    fn waiting_ends_with_a_ring() {
        let remote = Remote::default();
        let keyboard = Keyboard::new(remote.clone());
        std::thread::scope(|scope| {
            scope.spawn(|| keyboard.press(b"x"));
            remote.wait(None);
        });
        assert_eq!((keyboard.next(), keyboard.next()), (Some(b'x'), None));
        remote.take();
        remote.wait(Some(Duration::from_millis(1)));
    }

    #[test]
    fn what_is_typed_ahead_is_kept_until_somebody_reads() {
        let keyboard = Keyboard::new(Remote::default());
        keyboard.hold();
        keyboard.press(b"ab");
        assert_eq!(keyboard.next(), None);
        keyboard.release();
        assert_eq!((keyboard.next(), keyboard.next(), keyboard.next()), (Some(b'a'), Some(b'b'), None));
    }
}
