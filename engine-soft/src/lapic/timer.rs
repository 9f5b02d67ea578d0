//! The local APIC's timer (SDM vol. 3, "APIC timer"): one-shot, periodic and TSC-deadline.
//!
//! It counts the TSC's ticks divided; the divider runs freely on the TSC, so that a count saved and restored at one TSC
//! value expires at the same later one.

/// The timer. All times are TSC values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timer {
    /// The local vector table entry: vector 0..8, mask 16, mode 17..19.
    pub entry: u32,
    /// Initial count.
    initial: u32,
    /// Divide configuration register.
    divide: u32,
    /// In counting modes, while the count is not zero: the divided tick at which it will be.
    end: Option<u64>,
    /// In TSC-deadline mode: when, 0 if disarmed.
    deadline: u64,
}

/// Mask bit of a local vector table entry.
pub(super) const MASKED: u32 = 1 << 16;

/// Mode field of the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    OneShot,
    Periodic,
    Deadline,
    Reserved,
}

fn mode(entry: u32) -> Mode {
    match entry >> 17 & 3 {
        0 => Mode::OneShot,
        1 => Mode::Periodic,
        2 => Mode::Deadline,
        _ => Mode::Reserved,
    }
}

/// Shift that a divide configuration means: 0b1011 is 1, 0b0000 is 2, up to 0b1010, 128.
fn shift(divide: u32) -> u32 {
    ((divide & 3 | divide >> 1 & 4) + 1) & 7
}

impl Timer {
    /// After power-up or INIT.
    pub const RESET: Self = Self { entry: MASKED, initial: 0, divide: 0, end: None, deadline: 0 };

    /// From saved registers.
    pub fn load(entry: u32, initial: u32, current: u32, divide: u32, deadline: u64, tsc: u64) -> Self {
        let mut timer = Self { entry, initial, divide, end: None, deadline };
        timer.start(current, tsc);
        timer
    }

    fn counts(&self) -> bool {
        matches!(mode(self.entry), Mode::OneShot | Mode::Periodic)
    }

    fn start(&mut self, count: u32, tsc: u64) {
        let tick = tsc >> shift(self.divide);
        self.end = (count != 0 && self.counts()).then(|| tick.saturating_add(u64::from(count)));
    }

    /// When it expires, if it is armed and that would interrupt.
    pub fn expiry(&self) -> Option<u64> {
        if self.entry & MASKED != 0 { None } else { self.due() }
    }

    fn due(&self) -> Option<u64> {
        match mode(self.entry) {
            Mode::Deadline => (self.deadline != 0).then_some(self.deadline),
            _ => self.end.map(|end| end.saturating_mul(1 << shift(self.divide))),
        }
    }

    /// Lets it expire if it is due; says whether that interrupts. Several periods that have passed interrupt once.
    pub fn settle(&mut self, tsc: u64) -> bool {
        if self.due().is_none_or(|due| due > tsc) {
            return false;
        }
        self.deadline = 0;
        self.end = match (mode(self.entry), self.end) {
            (Mode::Periodic, Some(end)) if self.initial != 0 => {
                let period = u64::from(self.initial);
                let late = (tsc >> shift(self.divide)).saturating_sub(end);
                Some(end.saturating_add(period.saturating_mul(late / period + 1)))
            }
            _ => None,
        };
        self.entry & MASKED == 0
    }

    /// Current count register.
    pub fn current(&self, tsc: u64) -> u32 {
        let tick = tsc >> shift(self.divide);
        self.end.map_or(0, |end| u32::try_from(end.saturating_sub(tick)).unwrap_or(u32::MAX))
    }

    /// Initial count register.
    pub const fn initial(&self) -> u32 {
        self.initial
    }

    /// Divide configuration register.
    pub const fn divide(&self) -> u32 {
        self.divide
    }

    /// Deadline register: 0 when disarmed.
    pub const fn deadline(&self) -> u64 {
        self.deadline
    }

    /// Writes the entry. Entering or leaving TSC-deadline mode disarms.
    pub fn set_entry(&mut self, entry: u32) {
        if mode(self.entry) != mode(entry)
            && !(self.counts() && matches!(mode(entry), Mode::OneShot | Mode::Periodic))
        {
            self.end = None;
            self.deadline = 0;
        }
        self.entry = entry;
    }

    /// Writes the initial count and starts; 0 stops. Nothing in TSC-deadline mode.
    pub fn set_initial(&mut self, count: u32, tsc: u64) {
        if mode(self.entry) != Mode::Deadline {
            self.initial = count;
            self.start(count, tsc);
        }
    }

    /// Writes the divide configuration; the count goes on from where it is.
    pub fn set_divide(&mut self, divide: u32, tsc: u64) {
        let current = self.current(tsc);
        self.divide = divide;
        self.start(current, tsc);
    }

    /// Writes the deadline: arms, 0 disarms. Nothing in the counting modes.
    pub fn set_deadline(&mut self, deadline: u64) {
        if mode(self.entry) == Mode::Deadline {
            self.deadline = deadline;
        }
    }

    /// The guest has written the TSC: a count is not moved by that, a deadline is absolute.
    pub fn shift_tsc(&mut self, old: u64, new: u64) {
        let current = self.current(old);
        self.start(current, new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIODIC: u32 = 1 << 17;
    const DEADLINE: u32 = 2 << 17;

    fn timer(entry: u32, divide: u32) -> Timer {
        Timer { entry, divide, ..Timer::RESET }
    }

    #[test]
    fn divide_configurations() {
        let values: Vec<u32> = [0b1011, 0, 1, 2, 3, 0b1000, 0b1001, 0b1010].map(|d| 1 << shift(d)).to_vec();
        assert_eq!(values, [1, 2, 4, 8, 16, 32, 64, 128]);
    }

    #[test]
    fn one_shot_expires_once() {
        let mut timer = timer(0x20, 0b1011);
        timer.set_initial(100, 1000);
        assert_eq!((timer.expiry(), timer.current(1040)), (Some(1100), 60));
        assert!(!timer.settle(1099));
        assert!(timer.settle(1100));
        assert_eq!((timer.expiry(), timer.current(2000)), (None, 0));
    }

    #[test]
    fn periods_that_were_missed_count_once() {
        let mut timer = timer(0x20 | PERIODIC, 0b0011);
        timer.set_initial(10, 0);
        assert_eq!(timer.expiry(), Some(160));
        assert!(timer.settle(160 * 3 + 5));
        assert_eq!(timer.expiry(), Some(640));
        timer.set_initial(0, 700);
        assert_eq!(timer.expiry(), None);
    }

    #[test]
    fn a_masked_timer_counts_but_is_silent() {
        let mut timer = timer(0x20 | MASKED | PERIODIC, 0b1011);
        timer.set_initial(10, 0);
        assert_eq!(timer.expiry(), None);
        assert!(!timer.settle(25));
        assert_eq!(timer.current(25), 5);
        timer.set_entry(0x20 | PERIODIC);
        assert_eq!(timer.expiry(), Some(30));
    }

    #[test]
    fn deadline_mode_stands_apart() {
        let mut timer = timer(0x20, 0b1011);
        timer.set_deadline(5);
        assert_eq!(timer.deadline(), 0, "not in this mode");
        timer.set_initial(10, 0);
        timer.set_entry(0x20 | DEADLINE);
        assert_eq!(timer.expiry(), None, "switching disarms");
        timer.set_initial(7, 0);
        assert_eq!(timer.expiry(), None);
        timer.set_deadline(50);
        assert_eq!(timer.expiry(), Some(50));
        assert!(timer.settle(50));
        assert_eq!(timer.deadline(), 0);
    }

    #[test]
    fn a_saved_count_expires_when_it_would_have() {
        for divide in [0b1011, 0, 0b0011, 0b1010] {
            for tsc in 1000..1300 {
                let mut timer = timer(0x20 | PERIODIC, divide);
                timer.set_initial(77, 1000);
                timer.settle(tsc);
                let again = Timer::load(
                    timer.entry,
                    timer.initial(),
                    timer.current(tsc),
                    timer.divide(),
                    timer.deadline(),
                    tsc,
                );
                assert_eq!(again, timer);
            }
        }
    }
}
