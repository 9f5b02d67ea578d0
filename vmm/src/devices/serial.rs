//! A 16550A serial port: vm-superio's register model between the guest and a byte backend of the host.
//!
//! The port is synchronous. Output reaches the backend within the access that wrote it; input is fetched from the backend
//! when the guest touches the port, when it idles, and when the host kicks it. A backend that is a function of what it
//! was sent therefore makes a deterministic run.

use std::convert::Infallible;
use std::fmt::Debug;

use acpi_tables::aml;
use acpi_tables::{Aml, AmlSink};
use serde::{Deserialize, Serialize};
use vm_superio::Trigger;
use vm_superio::serial::NoEvents;

use super::{Action, InterruptLine, Registers, Snapshot, all_ones};
use crate::{Error, Result};

/// The host's end of a serial line.
pub trait SerialBackend: Send {
    /// The next byte for the guest, if there is one now.
    fn input(&mut self) -> Option<u8>;

    /// A byte from the guest.
    fn output(&mut self, byte: u8);
}

/// A line that nobody listens to.
#[derive(Debug, Default)]
pub struct Unconnected;

impl SerialBackend for Unconnected {
    fn input(&mut self) -> Option<u8> {
        None
    }

    fn output(&mut self, _byte: u8) {}
}

impl Trigger for InterruptLine {
    type E = Infallible;

    fn trigger(&self) -> std::result::Result<(), Infallible> {
        self.pulse();
        Ok(())
    }
}

type Uart = vm_superio::Serial<InterruptLine, NoEvents, Vec<u8>>;

/// Registers used to see whether the guest listens.
const INTERRUPT_ENABLE: u8 = 1;
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;
/// Depth of the receive FIFO of vm-superio.
const FIFO_SIZE: usize = 64;
/// Registers of a port.
const PORTS: u64 = 8;

/// Everything about a port but its backend.
#[expect(missing_docs, reason = "the names are the registers")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    pub divisor: [u8; 2],
    pub interrupt_enable: u8,
    pub interrupt_identification: u8,
    pub line_control: u8,
    pub line_status: u8,
    pub modem_control: u8,
    pub modem_status: u8,
    pub scratch: u8,
    /// Received and not yet read, oldest first; at most 64 bytes.
    pub received: Vec<u8>,
}

/// A serial port.
pub struct Serial {
    uart: Uart,
    line: InterruptLine,
    backend: Box<dyn SerialBackend>,
    place: SerialPlace,
}

/// Where a port stands.
#[derive(Debug, Clone, Copy)]
pub struct SerialPlace {
    /// First I/O port.
    pub port: u16,
    /// Interrupt.
    pub gsi: u8,
    /// Number in `/dev/ttySn`.
    pub number: u8,
}

impl Serial {
    /// A port at power-up.
    #[must_use]
    pub fn new(place: SerialPlace, line: InterruptLine, backend: Box<dyn SerialBackend>) -> Self {
        let uart = Uart::new(line.clone(), Vec::new());
        Self { uart, line, backend, place }
    }

    /// Back to power-up; the backend stays.
    pub fn reset(&mut self) {
        self.uart = Uart::new(self.line.clone(), Vec::new());
    }

    /// Fetches input as long as the guest listens and has read what it got. Gives whether any came.
    pub fn pump(&mut self) -> bool {
        let mut fetched = false;
        while self.listening() {
            let mut bytes = Vec::new();
            while bytes.len() < FIFO_SIZE
                && let Some(byte) = self.backend.input()
            {
                bytes.push(byte);
            }
            if bytes.is_empty() {
                break;
            }
            let taken = self.uart.enqueue_raw_bytes(&bytes);
            debug_assert!(
                matches!(taken, Ok(n) if n == bytes.len()),
                "an empty FIFO takes {FIFO_SIZE} bytes"
            );
            fetched = true;
        }
        fetched
    }

    /// Whether received bytes would reach a driver: before one has opened the port they would be thrown away.
    fn listening(&mut self) -> bool {
        let divisor_latch = self.uart.read(LINE_CONTROL) & 0x80 != 0;
        let loopback = self.uart.read(MODEM_CONTROL) & 0x10 != 0;
        self.uart.fifo_capacity() == FIFO_SIZE
            && !divisor_latch
            && !loopback
            && self.uart.read(INTERRUPT_ENABLE) & 1 != 0
    }

    /// Tells the backend something that the guest has written at another time.
    pub fn tell(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.backend.output(byte));
    }

    /// Hands to the backend what the guest wrote.
    fn drain(&mut self) {
        for byte in self.uart.writer_mut().drain(..) {
            self.backend.output(byte);
        }
    }
}

impl Debug for Serial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serial").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Registers for Serial {
    fn read(&mut self, offset: u64, size: u8, _now: u64) -> u64 {
        if offset >= PORTS {
            return all_ones(size);
        }
        let value = self.uart.read(offset as u8);
        self.pump();
        u64::from(value)
    }

    fn write(&mut self, offset: u64, _size: u8, value: u64, _now: u64) -> Action {
        if offset < PORTS {
            // Neither the sink nor the trigger can fail.
            let _ = self.uart.write(offset as u8, value as u8);
            self.drain();
            self.pump();
        }
        Action::None
    }
}

impl Snapshot for Serial {
    type State = SerialState;

    fn save(&self) -> SerialState {
        let uart = self.uart.state();
        SerialState {
            divisor: [uart.baud_divisor_low, uart.baud_divisor_high],
            interrupt_enable: uart.interrupt_enable,
            interrupt_identification: uart.interrupt_identification,
            line_control: uart.line_control,
            line_status: uart.line_status,
            modem_control: uart.modem_control,
            modem_status: uart.modem_status,
            scratch: uart.scratch,
            received: uart.in_buffer,
        }
    }

    fn restore(&mut self, state: SerialState) -> Result<()> {
        let uart = vm_superio::SerialState {
            baud_divisor_low: state.divisor[0],
            baud_divisor_high: state.divisor[1],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.received,
        };
        self.uart = Uart::from_state(&uart, self.line.clone(), NoEvents, Vec::new())
            .map_err(|error| Error::BadState { device: "a serial port", reason: error.to_string() })?;
        Ok(())
    }
}

impl Aml for Serial {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let SerialPlace { port, gsi, number } = self.place;
        aml::Device::new(
            format!("COM{}", number + 1).as_str().into(),
            vec![
                &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
                &aml::Name::new("_UID".into(), &number),
                &aml::Name::new(
                    "_CRS".into(),
                    &aml::ResourceTemplate::new(vec![
                        &aml::IO::new(port, port, 1, PORTS as u8),
                        &aml::Interrupt::new(true, true, false, false, gsi.into()),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::devices::Wires;

    const PLACE: SerialPlace = SerialPlace { port: 0x3F8, gsi: 4, number: 0 };

    /// Says back what it hears.
    #[derive(Debug, Default, Clone)]
    struct Echo(Arc<Mutex<VecDeque<u8>>>);

    impl SerialBackend for Echo {
        fn input(&mut self) -> Option<u8> {
            self.0.lock().unwrap().pop_front()
        }

        fn output(&mut self, byte: u8) {
            self.0.lock().unwrap().push_back(byte);
        }
    }

    fn echo() -> (Serial, Wires) {
        let wires = Wires::default();
        (Serial::new(PLACE, wires.line(4), Box::<Echo>::default()), wires)
    }

    #[test]
    fn output_reaches_the_backend_and_input_the_guest_in_the_same_access() {
        let (mut serial, wires) = echo();
        serial.write(1, 1, 1, 0);
        for byte in b"hi" {
            serial.write(0, 1, (*byte).into(), 0);
        }
        assert_eq!(wires.take().collect::<Vec<_>>(), [4]);
        assert_eq!(serial.read(5, 1, 0) & 1, 1, "data ready");
        assert_eq!([serial.read(0, 1, 0), serial.read(0, 1, 0)], [u64::from(b'h'), u64::from(b'i')]);
        assert_eq!(serial.read(5, 1, 0) & 1, 0);
    }

    #[test]
    fn input_waits_until_a_driver_listens() {
        let (mut serial, _wires) = echo();
        for byte in 0..200 {
            serial.write(0, 1, byte, 0);
        }
        assert!(!serial.pump());
        serial.write(1, 1, 1, 0);
        let read: Vec<u64> = (0..200).map(|_| serial.read(0, 1, 0)).collect();
        assert_eq!(read, (0..200).collect::<Vec<_>>());
    }

    #[test]
    fn nonsense_is_harmless() {
        let (mut serial, _wires) = echo();
        for offset in 0..20 {
            for value in [0, u64::MAX, 0x80, 0x10] {
                serial.write(offset, 4, value, 0);
                serial.read(offset, 4, 0);
            }
        }
        let state = SerialState { received: vec![0; 65], ..serial.save() };
        assert!(matches!(serial.restore(state), Err(Error::BadState { .. })));
    }

    crate::devices::law::snapshot_law!(law, echo().0, |serial: &mut Serial| {
        serial.write(1, 1, 1, 0);
        serial.write(0, 1, 0x41, 0);
        serial.write(7, 1, 0x5A, 0);
    });
}
