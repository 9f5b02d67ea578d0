//! The ACPI power-management timer (ACPI 6.5, ch. 4.8.3.3): the clock source that needs no calibration.

use super::{Action, Registers, all_ones};

/// A 32-bit counter of guest time. It has no state of its own: guest time is the engine's.
#[derive(Debug, Default)]
pub struct PmTimer;

impl PmTimer {
    /// Ticks per second.
    pub const HZ: u64 = 3_579_545;

    /// The count at a guest time in nanoseconds.
    #[must_use]
    pub fn count(now: u64) -> u32 {
        (u128::from(now) * u128::from(Self::HZ) / 1_000_000_000) as u32
    }
}

impl Registers for PmTimer {
    fn read(&mut self, offset: u64, size: u8, now: u64) -> u64 {
        u64::from(Self::count(now)) >> (8 * offset.min(4)) & all_ones(size)
    }

    fn write(&mut self, _offset: u64, _size: u8, _value: u64, _now: u64) -> Action {
        Action::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_at_the_acpi_frequency_and_wraps() {
        let mut timer = PmTimer;
        assert_eq!(timer.read(0, 4, 1_000_000_000), PmTimer::HZ);
        assert_eq!(timer.read(1, 2, 1_000_000_000), PmTimer::HZ >> 8 & 0xFFFF);
        let wrapped = timer.read(0, 4, 1_200 * 1_000_000_000);
        assert_eq!(wrapped, 1_200 * PmTimer::HZ % (1 << 32));
        assert_eq!(PmTimer::count(u64::MAX), PmTimer::count(u64::MAX));
    }
}
