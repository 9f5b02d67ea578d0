//! Interrupt lines: how a device reaches the I/O APIC without knowing it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// All lines of the machine. Pulses wait here until the board, which holds every device, hands them to the I/O APIC at
/// the end of the access that caused them.
#[derive(Debug, Clone, Default)]
pub struct Wires {
    pulsed: Arc<AtomicU32>,
}

impl Wires {
    /// The line to an I/O APIC pin, 0 to 31.
    #[must_use]
    pub fn line(&self, gsi: u8) -> InterruptLine {
        debug_assert!(gsi < 32, "the wires are one word");
        InterruptLine { pulsed: Arc::clone(&self.pulsed), mask: 1 << (gsi & 31) }
    }

    /// Pins pulsed since the last call, lowest first.
    pub fn take(&self) -> impl Iterator<Item = u8> + use<> {
        let mut pulsed = self.pulsed.swap(0, Ordering::Relaxed);
        std::iter::from_fn(move || {
            let pin = pulsed.trailing_zeros();
            pulsed &= pulsed.wrapping_sub(1);
            u8::try_from(pin).ok().filter(|pin| *pin < 32)
        })
    }
}

/// One edge-triggered line.
#[derive(Debug, Clone)]
pub struct InterruptLine {
    pulsed: Arc<AtomicU32>,
    mask: u32,
}

impl InterruptLine {
    /// A rising edge.
    pub fn pulse(&self) {
        self.pulsed.fetch_or(self.mask, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pulses_arrive_once_and_in_order() {
        let wires = Wires::default();
        let (high, low) = (wires.line(31), wires.line(3));
        high.pulse();
        low.pulse();
        low.pulse();
        assert_eq!(wires.take().collect::<Vec<_>>(), [3, 31]);
        assert_eq!(wires.take().count(), 0);
    }
}
