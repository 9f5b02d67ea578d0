//! Guest time: a monotonic host clock with an origin that moves when a state is restored.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Nanoseconds since an arbitrary point; never goes back.
pub(crate) type Source = Box<dyn Fn() -> u64 + Send + Sync>;

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

    /// Makes guest time what a time-stamp counter says.
    pub(crate) fn follow(&self, tsc: u64, khz: u32) {
        let nanoseconds = u128::from(tsc) * 1_000_000 / u128::from(khz.max(1));
        let now = u64::try_from(nanoseconds).unwrap_or(u64::MAX);
        self.origin.store((self.source)().wrapping_sub(now), Ordering::Relaxed);
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
        clock.follow(3_000_000, 1_000_000);
        assert_eq!(clock.now(), 3_000_000);
        clock.follow(u64::MAX, 1);
        assert_eq!(clock.now(), u64::MAX);
    }
}
