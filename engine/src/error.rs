//! What can go wrong at the neck.

/// The neck's result.
pub type Result<T> = std::result::Result<T, Error>;

/// An engine's failure. A guest's failure is never one: it is an [`crate::ExitKind`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine cannot run on this host at all.
    #[error("The {engine} engine cannot run here: {reason}")]
    Unfit {
        /// Name of the engine.
        engine: &'static str,
        /// What is missing, and how to get it.
        reason: String,
    },
    /// The specification asks for what this engine does not honour.
    #[error("The {engine} engine does not support {what}")]
    Unsupported {
        /// Name of the engine.
        engine: &'static str,
        /// What was asked for.
        what: String,
    },
    /// A vCPU number outside the partition.
    #[error("No vCPU {0} in this partition")]
    NoSuchVcpu(u8),
    /// The state given to `restore` contradicts itself or this partition.
    #[error("CPU state refused: {0}")]
    BadState(String),
    /// A host system call failed.
    #[error("{what} failed")]
    Host {
        /// The call and its main argument.
        what: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}
