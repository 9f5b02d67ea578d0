//! What can go wrong on the way from a trace to a view of it.

use std::path::PathBuf;

/// The result of viewing.
pub type Result<T> = std::result::Result<T, Error>;

/// Why there is no view of a trace.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The trace's file cannot be opened.
    #[error("Cannot open the trace {}", path.display())]
    Open {
        /// Its name.
        path: PathBuf,
        /// The host's answer.
        #[source]
        source: std::io::Error,
    },
    /// The trace cannot be read, or not far enough.
    #[error("{}: {source}", path.display())]
    Trace {
        /// Its name.
        path: PathBuf,
        /// What is wrong.
        source: trace::Error,
    },
    /// The moment is not in the trace.
    #[error(
        "{}: {when} never comes: the trace ends after {events} events, {instructions} instructions, {seconds:.6} s; \
         `nvsim trace stats` counts what there is",
        path.display()
    )]
    NeverCame {
        /// The trace.
        path: PathBuf,
        /// The moment.
        when: String,
        /// Events in the trace.
        events: u64,
        /// Instructions at its end.
        instructions: u64,
        /// Guest time at its end.
        seconds: f64,
    },
    /// The image of the DIMMs cannot be made.
    #[error("Cannot lay the DIMMs out in the temporary folder {}; set TMPDIR to another", folder.display())]
    Scratch {
        /// Where.
        folder: PathBuf,
        /// The host's answer.
        #[source]
        source: std::io::Error,
    },
}
