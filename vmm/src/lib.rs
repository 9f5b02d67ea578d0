//! The machine: memory plan, ACPI, devices, boot, power.
//!
//! [`Machine`] is put together from a [`MachineSpec`] (what was asked for), a [`Wiring`] (what connects it with its
//! host) and an engine; [`Machine::run`] switches it on and gives a [`Report`]. A machine that rests can be kept as a
//! [`Snapshot`], from which any number of machines go on.

pub mod acpi;
pub mod board;
pub mod boot;
pub mod devices;
mod draft;
mod engines;
mod error;
mod extents;
pub mod gdb;
pub mod layout;
mod machine;
pub mod memory;
pub mod nvdimm;
mod outcome;
pub mod recording;
mod remote;
mod rest;
mod session;
mod sight;
pub mod snapshot;
mod transcript;

pub use devices::virtio::DiskSpec;
/// Comparing runs of two engines.
pub use engine_soft::lockstep;
pub use engines::{
    Chosen, CpuModel, EngineChoice, KvmFitness, host_lacks_of_v3, kvm_fitness, open as open_engine, stressed,
};
pub use error::{Error, Result};
pub use machine::{Machine, MachineSpec, Wiring};
pub use outcome::{Mark, Outcome, Report, Statistics};
pub use remote::{Keyboard, Remote, StopReason};
pub use sight::{Sight, Stand, VirtualMemory};
pub use snapshot::{Snapshot, SnapshotInfo};
