//! The neck between the machine and whatever executes guest instructions.
//!
//! An [`Engine`] is a prototype that can be asked what it honours. [`Engine::build`] makes a [`Partition`] (what is
//! shared, callable from any thread) and its [`Seat`]s. A seat is moved to the host thread that will run it and bound
//! there into a [`Processor`], which is not `Send`. A processor is a function of values: [`Processor::run`] takes an
//! [`Entry`] and gives an [`Exit`]; the answer to a port or memory read travels in the next entry, so an engine never
//! calls into a device.
//!
//! A seat holds one vCPU where the host runs them side by side (KVM) and all of them where one host thread interleaves
//! them deterministically (soft), so every exit names its vCPU.

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod cpuid;
pub mod debug;
mod error;
pub mod event;
mod exit;
pub mod log;
pub mod msr;
mod partition;
pub mod place;
pub mod state;
mod stock;

pub use error::{Error, Result};
pub use exit::{Access, Entry, Exit, ExitKind, VcpuId};
pub use partition::{Built, Engine, GuestMemory, Msi, Partition, PartitionSpec, Processor, Seat};
pub use state::{CpuState, PartitionState};
pub use stock::CodeStock;
