//! Guest time: one nanosecond an instruction, plus what HLT and PAUSE skip; and the TSC on top of it.

use crate::cpu::Cpu;

/// Guest time of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Nanoseconds that passed without an instruction.
    pub skipped: u64,
    /// Frequency of the TSC.
    tsc_khz: u32,
}

/// What a PAUSE takes longer than another instruction, in nanoseconds.
pub const PAUSE: u64 = 64;

const KHZ_NS: u128 = 1_000_000;

impl Clock {
    /// At power-on.
    #[must_use]
    pub fn new(tsc_khz: u32) -> Self {
        Self { skipped: 0, tsc_khz: tsc_khz.max(1) }
    }

    /// Guest time in nanoseconds when this many instructions have retired.
    #[must_use]
    pub const fn now(&self, retired: u64) -> u64 {
        retired.saturating_add(self.skipped)
    }

    /// TSC ticks since power-on at a guest time.
    #[must_use]
    pub fn ticks(&self, now: u64) -> u64 {
        (u128::from(now) * u128::from(self.tsc_khz) / KHZ_NS) as u64
    }

    /// The first guest time at which that many TSC ticks have passed.
    #[must_use]
    pub fn when(&self, ticks: u64) -> u64 {
        let ns = (u128::from(ticks) * KHZ_NS).div_ceil(u128::from(self.tsc_khz));
        u64::try_from(ns).unwrap_or(u64::MAX)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(1_000_000)
    }
}

impl Cpu {
    /// Guest time in nanoseconds at the current instruction.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.shared.clock.now(self.place().1)
    }

    /// The time-stamp counter at the current instruction.
    #[must_use]
    pub fn tsc(&self) -> u64 {
        self.shared.clock.ticks(self.now()).wrapping_add(self.tsc_offset)
    }

    /// Writes the time-stamp counter.
    pub fn set_tsc(&mut self, value: u64) {
        let old = self.tsc();
        self.lapic.shift_tsc(old, value);
        self.tsc_offset = self.tsc_offset.wrapping_add(value.wrapping_sub(old));
        self.attention = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_first_time_of_a_tick_is_the_first(khz in 1_u32.., ticks in 0_u64..1 << 50) {
            let clock = Clock::new(khz);
            let when = clock.when(ticks);
            if when < u64::MAX {
                prop_assert!(clock.ticks(when) >= ticks);
                prop_assert!(when == 0 || clock.ticks(when - 1) < ticks);
            }
        }
    }

    #[test]
    fn a_gigahertz_is_a_tick_a_nanosecond() {
        let clock = Clock::new(1_000_000);
        assert_eq!(clock.ticks(u64::MAX), u64::MAX);
        assert_eq!(clock.when(12345), 12345);
        assert_eq!(Clock::new(2_500_000).ticks(3), 7);
    }
}
