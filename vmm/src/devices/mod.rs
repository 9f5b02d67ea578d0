//! The devices. Each is a small state machine: it is given accesses and guest time, returns data or an [`Action`], pulls
//! an [`InterruptLine`], prints its own AML and obeys the snapshot law (save, change, restore: equal).

mod doorbell;
mod interrupt;
mod ioapic;
#[cfg(test)]
pub(crate) mod law;
mod pm_timer;
mod power;
mod rtc;
mod serial;
pub mod virtio;

pub use doorbell::Doorbell;
pub use interrupt::{InterruptLine, Wires};
pub use ioapic::{IoApic, IoApicState};
pub use pm_timer::PmTimer;
pub use power::Power;
pub use rtc::{Rtc, RtcState};
pub use serial::{Serial, SerialBackend, SerialPlace, SerialState, Unconnected};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Result;

/// What a device asks of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// Restart from power-up.
    Reset,
    /// End the run: the guest switched itself off.
    PowerOff,
    /// End the run with the guest's own exit code.
    Exit(u32),
    /// Note this point of the run.
    Mark(u32),
}

/// A block of registers in port or memory space.
pub trait Registers {
    /// A load of `size` (1, 2, 4 or 8) bytes at `offset` from the block's start, at guest time `now` in nanoseconds.
    /// Bytes beyond `size` are ignored.
    fn read(&mut self, offset: u64, size: u8, now: u64) -> u64;

    /// A store; `value` is zero-extended.
    fn write(&mut self, offset: u64, size: u8, value: u64, now: u64) -> Action;
}

/// The snapshot law: what `save` gives, `restore` brings back into any device of the same make, whatever that was doing.
pub trait Snapshot {
    /// Everything that the guest could tell apart.
    type State: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug;

    /// The state now.
    fn save(&self) -> Self::State;

    /// Replaces the state.
    ///
    /// # Errors
    /// [`crate::Error::BadState`] for a state that no device of this make can have; the device is then unchanged.
    fn restore(&mut self, state: Self::State) -> Result<()>;
}

/// All ones of an access's width: what a bus answers where nobody listens.
#[must_use]
pub const fn all_ones(size: u8) -> u64 {
    match size {
        1 => 0xFF,
        2 => 0xFFFF,
        4 => 0xFFFF_FFFF,
        _ => u64::MAX,
    }
}
