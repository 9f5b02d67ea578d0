//! The guest's time while it is stepped: an instruction a nanosecond, as under the software engine.
//!
//! A step takes a thousand times as long. Were the host's time the guest's, its timers would always be due, and what they wake
//! would be most of what is executed. So from the first step on the time-stamp counter, the deadlines of the local APICs'
//! timers and the time that devices are told are kept here; when all vCPUs are halted, time leaps to the next deadline. At the
//! window's end the guest's time goes on from there: the counters are set back by what the host was slower.

use engine::VcpuId;

/// As many vCPUs as a machine has.
const VCPUS: usize = 8;

/// See above.
#[derive(Debug, Default)]
pub(crate) struct Slow {
    begun: Option<Begun>,
    /// By how much the vCPUs' counters have to be ahead of what they were when they were made, in ticks.
    shift: u64,
    /// Where each vCPU's timer is due; 0 is never.
    deadlines: [u64; VCPUS],
}

/// When stepping began.
#[derive(Debug)]
struct Begun {
    /// The time-stamp counter, with what was leapt over since.
    tsc: u64,
    /// Guest time in nanoseconds, and what was leapt over since, in ticks.
    time: u64,
    leapt: u64,
    /// The number of instructions.
    number: u64,
}

impl Slow {
    /// Stepping begins at this counter, guest time and number of instructions, unless it has begun already.
    pub(crate) fn begin(&mut self, tsc: u64, time: u64, number: u64) {
        self.begun.get_or_insert(Begun { tsc, time, leapt: 0, number });
    }

    /// Stepping is over, at this number, and on the host the counter is `tsc`: from now on `shift` says by how much more or less
    /// it has to be. Gives guest time.
    pub(crate) fn end(&mut self, tsc: u64, number: u64, khz: u32) -> Option<u64> {
        let (now, time) = (self.tsc(number, khz)?, self.time(number, khz)?);
        self.shift = self.shift.wrapping_add(now.wrapping_sub(tsc));
        self.begun = None;
        Some(time)
    }

    /// Is the time of the guest that of its instructions?
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.is_some()
    }

    /// What has to be added to the counters that vCPUs had when they were made.
    pub(crate) fn shift(&self) -> u64 {
        self.shift
    }

    /// The time-stamp counter at a number of instructions, with so many ticks a millisecond; none before the begin.
    pub(crate) fn tsc(&self, number: u64, khz: u32) -> Option<u64> {
        let begun = self.begun.as_ref()?;
        let ticks = u128::from(number.saturating_sub(begun.number)) * u128::from(khz) / 1_000_000;
        Some(begun.tsc.wrapping_add(ticks as u64))
    }

    /// Guest time in nanoseconds.
    pub(crate) fn time(&self, number: u64, khz: u32) -> Option<u64> {
        let begun = self.begun.as_ref()?;
        let leapt = u128::from(begun.leapt) * 1_000_000 / u128::from(khz.max(1));
        let passed = number.saturating_sub(begun.number).wrapping_add(leapt as u64);
        Some(begun.time.wrapping_add(passed))
    }

    /// A vCPU's timer is to fire when the counter gets there; 0: never. Gives what it was.
    pub(crate) fn arm(&mut self, vcpu: VcpuId, deadline: u64) -> u64 {
        self.deadlines.get_mut(usize::from(vcpu)).map_or(0, |armed| std::mem::replace(armed, deadline))
    }

    /// Where a vCPU's timer is due; 0: never.
    pub(crate) fn deadline(&self, vcpu: VcpuId) -> u64 {
        self.deadlines.get(usize::from(vcpu)).copied().unwrap_or(0)
    }

    /// Is a vCPU's timer due? Then it is armed no more.
    pub(super) fn fires(&mut self, vcpu: VcpuId, tsc: u64) -> bool {
        let deadline = self.deadline(vcpu);
        let is_due = deadline != 0 && deadline <= tsc;
        if is_due {
            self.arm(vcpu, 0);
        }
        is_due
    }

    /// Nobody does anything before the first deadline: leaps there, if there is one ahead.
    pub(super) fn leap(&mut self, number: u64, khz: u32) {
        let next = self.deadlines.into_iter().filter(|deadline| *deadline != 0).min();
        let (Some(next), Some(now)) = (next, self.tsc(number, khz)) else { return };
        if let Some(begun) = &mut self.begun {
            let ahead = next.saturating_sub(now);
            begun.tsc = begun.tsc.wrapping_add(ahead);
            begun.leapt = begun.leapt.wrapping_add(ahead);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KHZ: u32 = 2_000_000;

    #[test]
    fn an_instruction_is_a_nanosecond_and_idleness_a_leap() {
        let mut slow = Slow::default();
        assert_eq!((slow.tsc(5, KHZ), slow.time(5, KHZ)), (None, None));
        slow.begin(1_000_000, 70, 10);
        slow.begin(9_000_000, 80, 11);
        assert_eq!((slow.tsc(10, KHZ), slow.time(10, KHZ)), (Some(1_000_000), Some(70)));
        assert_eq!((slow.tsc(1010, KHZ), slow.time(1010, KHZ)), (Some(1_002_000), Some(1070)));
        slow.leap(1010, KHZ);
        assert_eq!(slow.time(1010, KHZ), Some(1070), "no timer is armed");
        slow.arm(1, 1_600_000);
        slow.arm(5, 1_500_000);
        slow.leap(1010, KHZ);
        slow.leap(1010, KHZ);
        assert_eq!((slow.tsc(1011, KHZ), slow.time(1011, KHZ)), (Some(1_500_002), Some(250_071)));
        slow.arm(5, 1_400_000);
        slow.leap(1011, KHZ);
        assert_eq!(slow.tsc(1011, KHZ), Some(1_500_002), "no way leads back");
    }

    #[test]
    fn a_timer_fires_once() {
        let mut slow = Slow::default();
        assert_eq!(slow.arm(2, 100), 0);
        assert!(!slow.fires(2, 99));
        assert!(!slow.fires(1, 200));
        assert!(slow.fires(2, 100));
        assert!(!slow.fires(2, 100));
        assert_eq!(slow.arm(200, 1), 0, "there is no such vCPU");
    }

    #[test]
    fn time_goes_on_from_where_a_window_ends() {
        let mut slow = Slow::default();
        assert_eq!(slow.end(5_000, 0, KHZ), None);
        slow.begin(5_000, 70, 0);
        assert_eq!(slow.end(900_000, 500, KHZ), Some(570));
        assert_eq!(900_000_u64.wrapping_add(slow.shift()), 6_000);
        assert!(!slow.has_begun());
        // The next one finds a counter that has been set back.
        slow.begin(7_000, 1000, 500);
        assert_eq!(slow.end(8_000, 600, KHZ), Some(1100));
        assert_eq!(slow.shift(), 6_000_u64.wrapping_sub(900_000).wrapping_sub(800));
    }
}
