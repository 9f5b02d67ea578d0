//! Sleep and reset registers of a hardware-reduced platform (ACPI 6.5, ch. 4.8.3.6 and 4.8.3.7).

use acpi_tables::aml;
use acpi_tables::{Aml, AmlSink};

use super::{Action, Registers, all_ones};

/// Sleep control at 0, sleep status at 1, reset at 2: a byte each. Stateless.
#[derive(Debug, Default)]
pub struct Power;

impl Power {
    /// Offset of the sleep control register.
    pub const SLEEP_CONTROL: u64 = 0;
    /// Offset of the sleep status register.
    pub const SLEEP_STATUS: u64 = 1;
    /// Offset of the reset register.
    pub const RESET: u64 = 2;
    /// What to write there.
    pub const RESET_VALUE: u8 = 1;
    /// Sleep type of soft-off, as `\_S5` says it.
    const SOFT_OFF: u8 = 5;
    /// Bit of the sleep control register that starts the transition.
    const SLEEP_ENABLE: u8 = 1 << 5;
}

impl Registers for Power {
    fn read(&mut self, offset: u64, size: u8, _now: u64) -> u64 {
        if offset <= Self::RESET { 0 } else { all_ones(size) }
    }

    fn write(&mut self, offset: u64, _size: u8, value: u64, _now: u64) -> Action {
        let value = value as u8;
        match offset {
            Self::SLEEP_CONTROL if value & Self::SLEEP_ENABLE != 0 && value >> 2 & 7 == Self::SOFT_OFF => {
                Action::PowerOff
            }
            Self::RESET if value == Self::RESET_VALUE => Action::Reset,
            _ => Action::None,
        }
    }
}

impl Aml for Power {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let off = Self::SOFT_OFF;
        aml::Name::new("_S5_".into(), &aml::Package::new(vec![&off, &aml::ZERO, &aml::ZERO, &aml::ZERO]))
            .to_aml_bytes(sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_enabled_soft_off_switches_off() {
        let mut power = Power;
        for value in 0..=255 {
            let action = power.write(Power::SLEEP_CONTROL, 1, value, 0);
            let off = value & 0x20 != 0 && (value >> 2) & 7 == 5;
            assert_eq!(action == Action::PowerOff, off, "{value:#x}");
        }
    }

    #[test]
    fn reset_needs_its_value() {
        assert_eq!(Power.write(Power::RESET, 1, 0, 0), Action::None);
        assert_eq!(Power.write(Power::RESET, 1, 1, 0), Action::Reset);
    }
}
