//! Device-specific methods: what the guest's NFIT driver asks of the bus and of each DIMM, as functions from bytes to
//! bytes.
//!
//! A call has a revision, a function number and an input buffer; its answer begins with a status word. An input of the
//! wrong length answers [`INVALID`], an unknown function [`UNSUPPORTED`]. Function 0 answers the mask of what the tables
//! here implement, so that it cannot promise more.

mod intel;
mod root;

pub use intel::{FAMILY as INTEL_FAMILY, MAX_LABEL_TRANSFER, functions as intel_functions};
pub use root::{Bus, BusMemory, FAMILY as ROOT_FAMILY, Region, functions as root_functions};

/// Largest input or answer of any function here, in bytes.
pub const MAX_TRANSFER: usize = 4080;

/// Status: done.
pub const SUCCESS: u32 = 0;
/// Status: no such function.
pub const UNSUPPORTED: u32 = 1;
/// Status: no such device or address (of the bus: invalid address).
pub const NO_DEVICE: u32 = 2;
/// Status: input that makes no sense to a DIMM.
pub const INVALID: u32 = 3;
/// Status of the bus: invalid input.
pub const ROOT_INVALID: u32 = 2;
/// Status of the bus: no room for what was asked.
pub const ROOT_NO_RESOURCES: u32 = 8;
/// Status: the DIMM's own storage failed.
pub const HARDWARE: u32 = 4;

/// An answer that is a status word alone.
pub fn status(code: u32) -> Vec<u8> {
    code.to_le_bytes().to_vec()
}

/// The answer of function 0: bit 0 and a bit for each function.
fn mask(functions: impl IntoIterator<Item = u64>) -> Vec<u8> {
    functions.into_iter().fold(1u64, |mask, f| mask | 1 << f).to_le_bytes().to_vec()
}
