//! The guest's time while it is stepped: an instruction a nanosecond, as under the software engine.
//!
//! A step takes a thousand times as long. Were the host's time the guest's, its timers would always be due, and what they wake
//! would be most of what is executed. So its time-stamp counter is read in software; at the window's end it leaps to the
//! host's, as after a pause. Timers fire by the host's time, hence early: their handlers find nothing due and set them anew.
//! When all vCPUs are halted, time leaps to the next deadline.

/// See above.
#[derive(Debug, Default)]
pub(super) struct Slow {
    /// The counter and the number of instructions when stepping began.
    begin: Option<(u64, u64)>,
    /// Ticks that were leapt over since.
    leapt: u64,
}

impl Slow {
    /// Stepping begins at this count and number of instructions, unless it has begun already.
    pub(super) fn begin(&mut self, tsc: u64, number: u64) {
        self.begin.get_or_insert((tsc, number));
    }

    /// The time-stamp counter at a number of instructions, with so many ticks a millisecond; none before the begin.
    pub(super) fn tsc(&self, number: u64, khz: u32) -> Option<u64> {
        let (tsc, first) = self.begin?;
        let ticks = u128::from(number.saturating_sub(first)) * u128::from(khz) / 1_000_000;
        Some(tsc.wrapping_add(ticks as u64).wrapping_add(self.leapt))
    }

    /// Leaps, if that is ahead.
    pub(super) fn leap(&mut self, deadline: u64, number: u64, khz: u32) {
        if let Some(now) = self.tsc(number, khz) {
            self.leapt = self.leapt.wrapping_add(deadline.saturating_sub(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_is_a_nanosecond_and_idleness_a_leap() {
        let mut slow = Slow::default();
        assert_eq!(slow.tsc(5, 2_000_000), None);
        slow.begin(1_000_000, 10);
        slow.begin(9_000_000, 11);
        assert_eq!(slow.tsc(10, 2_000_000), Some(1_000_000));
        assert_eq!(slow.tsc(1010, 2_000_000), Some(1_002_000));
        slow.leap(1_500_000, 1010, 2_000_000);
        slow.leap(1_400_000, 1010, 2_000_000);
        assert_eq!(slow.tsc(1011, 2_000_000), Some(1_500_002));
    }
}
