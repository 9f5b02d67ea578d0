//! The machine: memory plan, ACPI, devices, boot, power.
//!
//! [`Machine`] is put together from a [`MachineSpec`] (what was asked for), a [`Wiring`] (what connects it with its
//! host) and an engine; [`Machine::run`] switches it on and gives a [`Report`].

pub mod acpi;
pub mod board;
pub mod boot;
pub mod devices;
mod engines;
mod error;
pub mod layout;
mod machine;
pub mod memory;
pub mod nvdimm;
mod outcome;
mod remote;
mod session;
mod sight;
mod transcript;

pub use devices::virtio::DiskSpec;
pub use engines::{Chosen, EngineChoice, KvmFitness, kvm_fitness, open as open_engine};
pub use error::{Error, Result};
pub use machine::{Machine, MachineSpec, Wiring};
pub use outcome::{Mark, Outcome, Report, Statistics};
pub use remote::{Keyboard, Remote, StopReason};
pub use sight::{Sight, VirtualMemory};
