//! What can go wrong with a machine. A guest's own failure is not here: it is an [`crate::Outcome`].

use std::path::PathBuf;

/// The machine's result.
pub type Result<T> = std::result::Result<T, Error>;

/// A host-side failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A RAM size that cannot be laid out.
    #[error("RAM of {bytes} bytes is not possible; give a multiple of 2 MiB between 64 MiB and 256 GiB")]
    RamSize {
        /// What was asked for.
        bytes: u64,
    },
    /// Persistent memory beyond the physical address space.
    #[error(
        "Persistent memory of {bytes} bytes does not fit below guest-physical address {limit:#x}; make the DIMMs smaller"
    )]
    AddressSpace {
        /// The range that did not fit.
        bytes: u64,
        /// End of the address space.
        limit: u64,
    },
    /// A number of processors that cannot be had.
    #[error("{0} processors are not possible; give 1 to 8")]
    Vcpus(u8),
    /// Guest memory could not be had from the host.
    #[error("Cannot map {bytes} bytes of guest memory; give the guest less or free some on the host")]
    Map {
        /// The size of the mapping.
        bytes: u64,
        /// The host's answer.
        #[source]
        source: std::io::Error,
    },
    /// A file that the machine needs could not be read.
    #[error("Cannot read {what} {}", path.display())]
    Read {
        /// `kernel`, `initrd`, ...
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The host's answer.
        #[source]
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("Cannot write {what} {}", path.display())]
    Write {
        /// `snapshot`, ...
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The host's answer.
        #[source]
        source: std::io::Error,
    },
    /// A file that is no good snapshot.
    #[error("Snapshot {} cannot be used: {reason}", path.display())]
    Snapshot {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// A snapshot and what it should go on with do not belong together.
    #[error("The snapshot does not fit: {reason}")]
    Misfit {
        /// Why, and what to do.
        reason: String,
    },
    /// The machine cannot be kept.
    #[error("No snapshot can be taken of the machine: {reason}")]
    NoSnapshot {
        /// Why, and what to do.
        reason: String,
    },
    /// The kernel file cannot be booted.
    #[error("{} cannot be booted: {reason}", path.display())]
    Kernel {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it, and what to give instead.
        reason: String,
    },
    /// Something does not fit into the guest's memory.
    #[error(
        "{what} needs {need} bytes of guest memory below 3 GiB, but only {have} are free; give the guest more memory"
    )]
    TooLarge {
        /// What.
        what: String,
        /// Its size in bytes.
        need: u64,
        /// The space for it in bytes.
        have: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("The kernel command line has {length} characters; the kernel takes at most {limit}")]
    CommandLine {
        /// Its length without the NUL.
        length: usize,
        /// The kernel's limit.
        limit: usize,
    },
    /// The command line holds what cannot be passed.
    #[error("The kernel command line holds a NUL character at position {0}; remove it")]
    CommandLineNul(usize),
    /// The ACPI tables outgrew their place.
    #[error("The ACPI tables need {need} bytes, but have {have}; use fewer NV-DIMMs")]
    AcpiTables {
        /// Bytes of all tables.
        need: u64,
        /// Bytes of their place.
        have: u64,
    },
    /// Guest memory that must exist does not; a mistake in the memory plan.
    #[error("Guest memory access failed")]
    GuestMemory(#[from] vm_memory::GuestMemoryError),
    /// A disk cannot be used.
    #[error("Disk {} cannot be used: {reason}", path.display())]
    Disk {
        /// Its path.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// More virtio devices than slots.
    #[error("{0} virtio devices are asked for; the machine has {slots} slots", slots = crate::layout::VIRTIO_SLOTS)]
    VirtioSlots(usize),
    /// A saved device state that no device of ours can have.
    #[error("Saved state of {device} refused: {reason}")]
    BadState {
        /// Which device.
        device: &'static str,
        /// What contradicts itself.
        reason: String,
    },
    /// The NV-DIMMs cannot be used.
    #[error(transparent)]
    Nvdimm(#[from] crate::nvdimm::Error),
    /// A recording cannot be made as asked.
    #[error("Cannot record: {0}")]
    Record(String),
    /// The trace cannot be written or read.
    #[error(transparent)]
    Trace(trace::Error),
    /// What the DIMMs held cannot be kept beside them.
    #[error("A copy of what the NV-DIMMs held cannot be kept; free some space beside their files")]
    Floor(#[source] std::io::Error),
    /// The moment of a power cut is not in the run.
    #[error("The power was not cut: {when} never came")]
    NeverCame {
        /// The moment.
        when: String,
    },
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The connection with gdb failed.
    #[error("The connection with gdb failed")]
    Gdb {
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The engine cannot be debugged.
    #[error("This engine has no means for a debugger; use --engine soft")]
    NoDebugger,
    /// A host thread could not be started.
    #[error("Cannot start a host thread for the guest's processors")]
    Thread(#[source] std::io::Error),
}

impl From<trace::Error> for Error {
    fn from(error: trace::Error) -> Self {
        match error {
            trace::Error::Floor(source) => Self::Floor(source),
            error => Self::Trace(error),
        }
    }
}
