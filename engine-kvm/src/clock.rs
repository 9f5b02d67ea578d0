//! Guest time: a monotonic host clock with an origin that moves when a state is restored.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Nanoseconds since an arbitrary point; never goes back.
pub(crate) type Source = Box<dyn Fn() -> u64 + Send + Sync>;

/// KVM lets a counter run on that is set to less than a second from where it is; the rest is our own delay.
const SYNCHRONISED: u64 = 2_000_000_000;

/// Guest time in nanoseconds since power-on.
pub(crate) struct Clock {
    source: Source,
    origin: AtomicU64,
}

impl Clock {
    /// A clock that stands at zero now.
    pub(crate) fn new(source: Source) -> Self {
        let origin = AtomicU64::new(source());
        Self { source, origin }
    }

    /// On the host's monotonic clock.
    pub(crate) fn host() -> Self {
        let start = Instant::now();
        Self::new(Box::new(move || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Guest time.
    pub(crate) fn now(&self) -> u64 {
        (self.source)().wrapping_sub(self.origin.load(Ordering::Relaxed))
    }

    /// Guest time goes on from here.
    pub(crate) fn set(&self, now: u64) {
        self.origin.store((self.source)().wrapping_sub(now), Ordering::Relaxed);
    }

    /// Makes guest time what the time-stamp counter says that was set to `asked` and then read as `read`.
    ///
    /// KVM takes a value near the one that its counters have for an attempt to synchronise them, and lets them run on:
    /// then what was read counts. A KVM that cannot set the counter at all shows the host's, which is nobody's guest time.
    pub(crate) fn follow(&self, asked: u64, read: u64, khz: u32) {
        let time = |tsc: u64| {
            let nanoseconds = u128::from(tsc) * 1_000_000 / u128::from(khz.max(1));
            u64::try_from(nanoseconds).unwrap_or(u64::MAX)
        };
        let (asked, read) = (time(asked), time(read));
        let near = |other: u64| read.abs_diff(other) < SYNCHRONISED;
        let now = if near(asked) || near(self.now()) { read } else { asked };
        self.set(now);
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clock").field("now", &self.now()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn starts_at_zero_and_follows_the_counter() {
        let host = Arc::new(AtomicU64::new(5_000));
        let hand = Arc::clone(&host);
        let clock = Clock::new(Box::new(move || hand.load(Ordering::Relaxed)));
        assert_eq!(clock.now(), 0);
        host.store(5_700, Ordering::Relaxed);
        assert_eq!(clock.now(), 700);
        clock.follow(3_000_000, 3_000_200, 1_000_000);
        assert_eq!(clock.now(), 3_000_200);
        clock.follow(u64::MAX, u64::MAX, 1);
        assert_eq!(clock.now(), u64::MAX);
    }

    #[test]
    fn a_reset_that_leaves_the_counter_running_goes_on() {
        let clock = Clock::new(Box::new(|| 0));
        clock.follow(100_000_000_000, 100_000_000_000, 1_000_000);
        clock.follow(0, 100_000_000_500, 1_000_000);
        assert_eq!(clock.now(), 100_000_000_500);
    }

    #[test]
    fn the_hosts_counter_is_not_guest_time() {
        let clock = Clock::new(Box::new(|| 0));
        clock.follow(7_000, 2_656_000_000_000, 1_000_000);
        assert_eq!(clock.now(), 7_000);
    }
}
