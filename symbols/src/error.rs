//! What can be wrong with a kernel.

/// Why a kernel's names cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is no ELF file for x86-64, or a damaged one.
    #[error("not a whole ELF kernel for x86-64: {why}")]
    Elf {
        /// What the parser says.
        why: String,
    },
    /// There are no kallsyms tables in it.
    #[error(
        "it holds no kallsyms tables ({missing}); build it with CONFIG_KALLSYMS=y and CONFIG_KALLSYMS_BASE_RELATIVE=y"
    )]
    Kallsyms {
        /// The first table that was not found.
        missing: &'static str,
    },
}
