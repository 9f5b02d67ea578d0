//! The machine: memory plan, ACPI, devices, boot, power.

pub mod devices;
mod error;
pub mod layout;
pub mod memory;

pub use error::{Error, Result};
