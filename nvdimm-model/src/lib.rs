//! What an NV-DIMM is, and what survives a power cut.
//!
//! Nothing here touches a file, a guest or a clock: every type is a value, every codec works on byte slices, and writes
//! are answered as [`Patch`]es that the caller carries out. The layouts follow ACPI 6.x chapter 5.2.25 (NFIT), the UEFI
//! 2.x NVDIMM label chapter, the Intel NVDIMM DSM interface and what the Linux libnvdimm drivers accept.

pub mod dimm;
pub mod domain;
pub mod dsm;
mod error;
pub mod fletcher;
pub mod geometry;
pub mod health;
pub mod identity;
pub mod interleave;
pub mod label;
mod le;
pub mod medium;
pub mod namespace;
pub mod poison;

pub use dimm::Dimm;
pub use domain::{Domain, Persistence};
pub use error::Error;
pub use geometry::Geometry;
pub use identity::{Handle, Identity};
pub use medium::Medium;

/// Bytes to be written at an offset of some area.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// Offset in the area that the maker of the patch names, in bytes.
    pub offset: u64,
    /// What stands there afterwards.
    pub bytes: Vec<u8>,
}
