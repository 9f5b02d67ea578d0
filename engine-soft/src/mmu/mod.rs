//! Linear to physical addresses (SDM vol. 3, ch. 4): the translation cache and the walk that fills it.

mod code;
#[cfg(test)]
mod tests;
mod tlb;
mod walk;

pub(crate) use code::CodePages;
pub use tlb::Tlb;
pub(crate) use tlb::property;

/// What an access wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Load.
    Read,
    /// Store, or load and store.
    Write,
    /// Fetch an instruction.
    Execute,
}

/// The address is in canonical form.
#[inline(always)]
#[must_use]
pub const fn canonical(va: u64) -> bool {
    (va as i64) << 16 >> 16 == va as i64
}
