//! What can be wrong with a trace.

/// The result of working with traces.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a trace cannot be read, or not further. Whoever opened the file says its name.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host refused.
    #[error("The trace cannot be read or written at offset {offset:#x}")]
    Io {
        /// Bytes before.
        offset: u64,
        /// The host's answer.
        #[source]
        source: std::io::Error,
    },
    /// It is no trace.
    #[error("This is no trace of nvsim; `nvsim run --record FILE` makes one")]
    Foreign,
    /// It was made by another nvsim.
    #[error("The trace has format {found}, this nvsim knows {known}; use the nvsim that made it", known = crate::FORMAT)]
    Version {
        /// Its format.
        found: u32,
    },
    /// It ends too early.
    #[error("The trace is cut short at offset {offset:#x}; {events} events before that are whole")]
    CutShort {
        /// Where the last whole chunk ends.
        offset: u64,
        /// Events before.
        events: u64,
    },
    /// It was changed after it was written.
    #[error("The trace is damaged at offset {offset:#x}: {what}; {events} events before that are whole")]
    Damaged {
        /// Where the damaged chunk begins.
        offset: u64,
        /// What is wrong with it.
        what: &'static str,
        /// Events before.
        events: u64,
    },
    /// Something does not fit into a trace.
    #[error("{what} cannot be put into a trace")]
    TooLarge {
        /// What.
        what: &'static str,
    },
    /// A moment that cannot be understood.
    #[error("{text:?} names no moment: {reason}")]
    When {
        /// The text as given.
        text: String,
        /// What would be right.
        reason: String,
    },
    /// The files with what is sure of the DIMMs' content cannot be read or written.
    #[error("A copy of what the NV-DIMMs held cannot be kept")]
    Floor(#[source] std::io::Error),
    /// What the medium says.
    #[error(transparent)]
    Model(#[from] nvdimm_model::Error),
}
