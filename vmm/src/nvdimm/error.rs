//! What can go wrong with NV-DIMMs and their files: each message names the file, the value and the way out.

use std::path::{Path, PathBuf};

/// The result of working with NV-DIMMs.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure; nothing was changed unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A `key=value` that cannot be understood.
    #[error("NV-DIMM {text:?}: {reason}")]
    Spec {
        /// The text as given.
        text: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// More DIMMs than the machine has slots.
    #[error("{asked} NV-DIMMs are asked for; the machine has {slots} slots")]
    Slots {
        /// Number asked for.
        asked: usize,
        /// Number of slots.
        slots: usize,
    },
    /// The file does not exist and is not to be made.
    #[error("{} does not exist; give size=SIZE to make it", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file of that name is there already.
    #[error("{} exists already; it is left as it is. Choose another name, or remove it first", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file was not made by nvsim.
    #[error("{} is not an NV-DIMM of nvsim ({looks}); it is left as it is. Give a new name with size=SIZE", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        looks: &'static str,
    },
    /// The file was made by another version of nvsim.
    #[error("{} has format {found}, this nvsim knows {known}; use the nvsim that made it", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// The file is damaged.
    #[error("{} is damaged at offset {offset:#x}: {what}; {remedy}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong there.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The file is held by another process.
    #[error("{} is in use by {holder}; end that run first", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
        /// The process, with its id where known.
        holder: String,
    },
    /// What is asked for contradicts what the file is.
    #[error("{}: {key}={asked} is asked for, but the file has {found}; leave the key out, or make a new file", path.display())]
    Contradiction {
        /// The file.
        path: PathBuf,
        /// Which property.
        key: &'static str,
        /// What was asked for.
        asked: String,
        /// What the file has.
        found: String,
    },
    /// The host's disk is too full.
    #[error("{}: the guest may fill {need} more bytes, but the disk has {have} left; free some, or use a smaller DIMM", path.display())]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// Bytes that are not yet allocated.
        need: u64,
        /// Bytes that the file system has left.
        have: u64,
    },
    /// DIMMs that do not make up an interleave set.
    #[error("interleave set {set:?}: {reason}")]
    Set {
        /// Name of the set.
        set: String,
        /// What does not fit.
        reason: String,
    },
    /// A size, a label area or a namespace that cannot be.
    #[error("{}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: nvdimm_model::Error,
    },
    /// The host refused.
    #[error("Cannot {doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The host's answer.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// Wraps what the host answered when something was done to a file.
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl Fn(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path: path.clone(), source }
    }

    /// Wraps why a file cannot be made: there is one, or the host refuses.
    pub(crate) fn create(path: &Path) -> impl Fn(std::io::Error) -> Self {
        let refused = Self::io("create", path);
        move |source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => Self::Exists { path: path.to_owned() },
            _ => refused(source),
        }
    }

    /// Wraps what the model says about a file.
    pub(crate) fn model(path: impl Into<PathBuf>) -> impl FnOnce(nvdimm_model::Error) -> Self {
        let path = path.into();
        move |source| Self::Model { path, source }
    }
}
