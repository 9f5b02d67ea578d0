//! Health of a DIMM: what SMART tells, what raises an alarm, and how shutdowns are counted (Intel NVDIMM DSM interface).

use serde::{Deserialize, Serialize};

/// A temperature in sixteenths of a degree Celsius.
pub type Sixteenths = u16;

/// Where alarms begin, and which are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thresholds {
    /// Which alarms are on: b0 spares, b1 media temperature, b2 controller temperature.
    pub enabled: u16,
    /// Alarm at this percentage of spares or below.
    pub spares: u8,
    /// Alarm at this media temperature or above.
    pub media: Sixteenths,
    /// Alarm at this controller temperature or above.
    pub controller: Sixteenths,
}

/// Values that replace measured ones, for tests of the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Injected {
    /// Media temperature.
    pub media: Option<Sixteenths>,
    /// Percentage of spares left.
    pub spares: Option<u8>,
    /// The DIMM reports fatal health.
    pub fatal: bool,
    /// The next shutdown counts as dirty.
    pub unsafe_shutdown: bool,
}

/// Whether power is on, as far as the DIMM's own memory can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Power {
    /// The last machine switched the DIMM off in order.
    Off,
    /// A machine runs, or went away without a word.
    On,
}

/// Health of a DIMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Percentage of spare blocks left.
    pub spares: u8,
    /// Percentage of the media's life that is used.
    pub life_used: u8,
    /// Media temperature.
    pub media: Sixteenths,
    /// Controller temperature.
    pub controller: Sixteenths,
    /// Where alarms begin.
    pub thresholds: Thresholds,
    /// Injected values.
    pub injected: Injected,
    /// Shutdowns that lost what was not yet persistent, counted while latched.
    pub dirty_shutdowns: u32,
    /// Whether dirty shutdowns are counted.
    pub latched: bool,
    /// Whether the last shutdown was dirty.
    pub last_dirty: bool,
    /// Whether power is on.
    pub power: Power,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            spares: 100,
            life_used: 0,
            media: 25 * 16,
            controller: 30 * 16,
            thresholds: Thresholds { enabled: 0, spares: 10, media: 82 * 16, controller: 98 * 16 },
            injected: Injected::default(),
            dirty_shutdowns: 0,
            latched: true,
            last_dirty: false,
            power: Power::Off,
        }
    }
}

impl Health {
    /// Switches power on. If it never went off in order, that shutdown was dirty.
    pub fn power_on(&mut self) {
        if self.power == Power::On {
            self.lose();
        }
        self.power = Power::On;
    }

    /// Switches power off in order: all that was written is on the medium.
    pub fn power_off(&mut self) {
        if std::mem::take(&mut self.injected.unsafe_shutdown) {
            self.lose();
        } else {
            self.last_dirty = false;
        }
        self.power = Power::Off;
    }

    /// Cuts the power: what was undecided may be lost.
    pub fn power_cut(&mut self) {
        self.lose();
        self.power = Power::Off;
    }

    fn lose(&mut self) {
        self.injected.unsafe_shutdown = false;
        if self.latched {
            self.dirty_shutdowns = self.dirty_shutdowns.saturating_add(1);
            self.last_dirty = true;
        }
    }

    /// Media temperature as reported.
    pub fn reported_media(&self) -> Sixteenths {
        self.injected.media.unwrap_or(self.media)
    }

    /// Percentage of spares as reported.
    pub fn reported_spares(&self) -> u8 {
        self.injected.spares.unwrap_or(self.spares)
    }

    /// The alarms that sound: b0 spares, b1 media temperature, b2 controller temperature.
    pub fn alarms(&self) -> u8 {
        let limits = &self.thresholds;
        let sounding = u16::from(self.reported_spares() <= limits.spares)
            | u16::from(self.reported_media() >= limits.media) << 1
            | u16::from(self.controller >= limits.controller) << 2;
        (sounding & limits.enabled & 0b111) as u8
    }

    /// The health byte: b0 non-critical, b1 critical, b2 fatal.
    pub fn status(&self) -> u8 {
        u8::from(self.alarms() != 0) | u8::from(self.injected.fatal) << 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shutdowns_are_counted_while_latched() {
        let mut health = Health::default();
        health.power_on();
        health.power_off();
        assert_eq!((health.dirty_shutdowns, health.last_dirty), (0, false));
        health.power_on();
        health.power_cut();
        assert_eq!((health.dirty_shutdowns, health.last_dirty), (1, true));
        health.power_on();
        // The machine went away: the next one finds power still on.
        health.power_on();
        assert_eq!(health.dirty_shutdowns, 2);
        health.latched = false;
        health.power_cut();
        assert_eq!(health.dirty_shutdowns, 2);
    }

    #[test]
    fn injected_unsafe_shutdown_counts_once() {
        let mut health = Health::default();
        health.injected.unsafe_shutdown = true;
        health.power_on();
        health.power_off();
        health.power_on();
        health.power_off();
        assert_eq!((health.dirty_shutdowns, health.last_dirty), (1, false));
    }

    #[test]
    fn alarms_need_to_be_enabled() {
        let mut health = Health::default();
        health.injected.spares = Some(5);
        assert_eq!(health.status(), 0);
        health.thresholds.enabled = 1;
        assert_eq!((health.alarms(), health.status()), (1, 1));
    }
}
