//! The real-time clock (Motorola MC146818): the date at power-on, which is injected, plus guest time. It cannot be set and
//! raises no interrupt; its memory reads as zeros.

use acpi_tables::aml;
use acpi_tables::{Aml, AmlSink};
use serde::{Deserialize, Serialize};

use super::{Action, Registers, Snapshot, all_ones};
use crate::Result;
use crate::layout::port;

/// Register C and the other flags read as zero; B says 24 hours, BCD; D says that the time is valid.
const CONTROL_A: u8 = 0x26;
const CONTROL_B: u8 = 0x02;
const VALID: u8 = 0x80;

/// Everything that changes in a clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    /// Selected register.
    pub index: u8,
    /// Seconds since 1970 at power-on.
    pub power_on: u64,
}

/// The clock: index at 0, data at 1.
#[derive(Debug)]
pub struct Rtc {
    state: RtcState,
}

impl Rtc {
    /// A clock that showed `power_on` (seconds since 1970, UTC) when guest time began.
    #[must_use]
    pub fn new(power_on: u64) -> Self {
        Self { state: RtcState { index: 0, power_on } }
    }

    fn register(&self, now: u64) -> u8 {
        let date = Date::new(self.state.power_on.saturating_add(now / 1_000_000_000));
        match self.state.index {
            0 => bcd(date.second),
            2 => bcd(date.minute),
            4 => bcd(date.hour),
            6 => date.weekday + 1,
            7 => bcd(date.day),
            8 => bcd(date.month),
            9 => bcd((date.year % 100) as u8),
            0x0A => CONTROL_A,
            0x0B => CONTROL_B,
            0x0D => VALID,
            0x32 => bcd((date.year / 100 % 100) as u8),
            _ => 0,
        }
    }
}

const fn bcd(value: u8) -> u8 {
    ((value / 10) << 4) | (value % 10)
}

/// A civil date and time.
#[derive(Debug, PartialEq, Eq)]
struct Date {
    year: u64,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
    /// 0 is Sunday.
    weekday: u8,
}

impl Date {
    fn new(seconds: u64) -> Self {
        let (days, time) = (seconds / 86_400, seconds % 86_400);
        // Years begin in March here, so that the leap day is the last of its year; 719468 days lie between 1 March of
        // year 0 and 1970.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let leap_days = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
        let year_of_era = (day_of_era - leap_days) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        Self {
            year: era * 400 + year_of_era + u64::from(month <= 2),
            month: month as u8,
            day: day as u8,
            hour: (time / 3600) as u8,
            minute: (time / 60 % 60) as u8,
            second: (time % 60) as u8,
            weekday: ((days + 4) % 7) as u8,
        }
    }
}

impl Registers for Rtc {
    fn read(&mut self, offset: u64, size: u8, now: u64) -> u64 {
        if offset == 1 { self.register(now).into() } else { all_ones(size) }
    }

    fn write(&mut self, offset: u64, _size: u8, value: u64, _now: u64) -> Action {
        if offset == 0 {
            self.state.index = value as u8 & 0x7F;
        }
        Action::None
    }
}

impl Snapshot for Rtc {
    type State = RtcState;

    fn save(&self) -> RtcState {
        self.state.clone()
    }

    fn restore(&mut self, state: RtcState) -> Result<()> {
        self.state = state;
        Ok(())
    }
}

impl Aml for Rtc {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        aml::Device::new(
            "RTC_".into(),
            vec![
                &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0B00")),
                &aml::Name::new(
                    "_CRS".into(),
                    &aml::ResourceTemplate::new(vec![&aml::IO::new(port::RTC, port::RTC, 1, 2)]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(rtc: &mut Rtc, index: u64, now: u64) -> u64 {
        rtc.write(0, 1, index, 0);
        rtc.read(1, 1, now)
    }

    #[test]
    fn shows_the_injected_date_plus_guest_time() {
        // 29 February 2024, a Thursday, 23:59:58 UTC.
        let mut rtc = Rtc::new(1_709_251_198);
        let show = |rtc: &mut Rtc, now| [0x32, 9, 8, 7, 6, 4, 2, 0].map(|n| get(rtc, n, now));
        assert_eq!(show(&mut rtc, 0), [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x58]);
        assert_eq!(show(&mut rtc, 2_500_000_000), [0x20, 0x24, 0x03, 0x01, 6, 0x00, 0x00, 0x00]);
    }

    #[test]
    fn dates_agree_with_counting_days() {
        let (mut year, mut month, mut day) = (1970_u64, 1_u8, 1_u8);
        for n in 0..80_000 {
            let date = Date::new(n * 86_400);
            assert_eq!((date.year, date.month, date.day), (year, month, day));
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = [31, 28 + u8::from(leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            day += 1;
            if day > length[usize::from(month) - 1] {
                (day, month) = (1, month + 1);
            }
            if month > 12 {
                (month, year) = (1, year + 1);
            }
        }
    }

    #[test]
    fn any_register_at_any_time_answers() {
        let mut rtc = Rtc::new(u64::MAX);
        for index in 0..=255 {
            get(&mut rtc, index, u64::MAX);
        }
    }

    crate::devices::law::snapshot_law!(law, Rtc::new(0), |rtc: &mut Rtc| {
        rtc.write(0, 1, 0x0D, 0);
    });
}
