//! Everything that can be wrong with what an NV-DIMM is asked to be, or with what stands in one.

use crate::label::LabelVersion;

/// Why a value or an area cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The data size is no multiple of the mapping granularity.
    #[error("size {size} is not a multiple of 2 MiB; the next one is {next}", next = size.next_multiple_of(crate::geometry::ALIGN))]
    SizeAlignment {
        /// The size asked for, in bytes.
        size: u64,
    },
    /// The data size is outside what Linux and the machine's address space can take.
    #[error("a size of {size} bytes is not possible: from {} MiB to {} TiB", min >> 20, max >> 40)]
    SizeRange {
        /// The size asked for, in bytes.
        size: u64,
        /// The smallest size possible.
        min: u64,
        /// The largest size possible.
        max: u64,
    },
    /// The label area has a size that the label protocol cannot use.
    #[error("label area of {size} bytes: it must be 0 (none) or a multiple of 4 KiB from {min} to {max}")]
    LabelAreaSize {
        /// The size asked for, in bytes.
        size: u64,
        /// The smallest size possible.
        min: u64,
        /// The largest size possible.
        max: u64,
    },
    /// The label area has no index block that can be trusted; a new one has none either.
    #[error("no valid index block in the label area of {size} bytes")]
    NoIndex {
        /// Size of the area, in bytes.
        size: usize,
    },
    /// A slot that the index says is in use does not hold a label.
    #[error("label slot {slot}: {what}")]
    BadLabel {
        /// Number of the slot.
        slot: u32,
        /// What is wrong with it.
        what: &'static str,
    },
    /// All label slots are taken.
    #[error("all {slots} label slots are in use")]
    LabelsFull {
        /// Number of slots in the area.
        slots: u32,
    },
    /// A name that does not fit a label.
    #[error("namespace name of {len} bytes: a label holds at most 63")]
    NameLength {
        /// Length of the name, in bytes.
        len: usize,
    },
    /// An interleave set of a size that cannot be laid out.
    #[error("{ways} DIMMs cannot be interleaved: a set has 1, 2 or 4")]
    Ways {
        /// Number of DIMMs asked for.
        ways: usize,
    },
    /// DIMMs of one set that differ in size.
    #[error("interleaved DIMMs must be of one size: {first} and {other} bytes differ")]
    SetSizes {
        /// Size of the first DIMM.
        first: u64,
        /// Size of the one that differs.
        other: u64,
    },
    /// Two DIMMs of one set that the guest could not tell apart.
    #[error("two DIMMs of an interleave set have vendor {vendor:#06x} and serial {serial:#010x}")]
    SetIdentity {
        /// Their vendor.
        vendor: u16,
        /// Their serial number.
        serial: u32,
    },
    /// A namespace that does not fit the free space of its region.
    #[error("namespace of {size} bytes does not fit: {free} bytes are free in one piece")]
    NoSpace {
        /// Size asked for.
        size: u64,
        /// Size of the largest free piece.
        free: u64,
    },
    /// A namespace size that its mode or its set cannot use.
    #[error("namespace of {size} bytes: it must be a multiple of {granule} and at least {min}")]
    NamespaceSize {
        /// Size asked for.
        size: u64,
        /// What it must be a multiple of.
        granule: u64,
        /// The least it can be.
        min: u64,
    },
    /// An alignment that Linux offers for no page-mapped namespace here.
    #[error("alignment {align} is neither 4 KiB nor 2 MiB")]
    Align {
        /// The alignment asked for, in bytes.
        align: u64,
    },
    /// A sector size that BTT does not have.
    #[error("sector size {size} is neither 512 nor 4096")]
    SectorSize {
        /// The sector size asked for, in bytes.
        size: u32,
    },
    /// Several namespaces without labels to tell them apart.
    #[error("without labels a region is one namespace of its full size; {remedy}")]
    NeedsLabels {
        /// What to do instead.
        remedy: &'static str,
    },
    /// An info block that contradicts its namespace.
    #[error("{kind} info block: {what}")]
    InfoBlock {
        /// Its kind, as the signature names it.
        kind: &'static str,
        /// What is wrong.
        what: &'static str,
    },
    /// Two DIMMs of a set whose labels tell different stories.
    #[error("{version} labels of namespace {uuid} disagree: {what}")]
    LabelMismatch {
        /// Version of the labels.
        version: LabelVersion,
        /// The namespace.
        uuid: uuid::Uuid,
        /// What differs.
        what: &'static str,
    },
    /// More stores than one medium can remember.
    #[error("the medium has taken {stores} stores and cannot remember more; start again from an image of it")]
    MediumFull {
        /// Stores so far.
        stores: u64,
    },
    /// A choice for a line that has none.
    #[error("the line at {address:#x} is not in doubt at this point")]
    NotInDoubt {
        /// Its address.
        address: u64,
    },
    /// A choice that a line does not have.
    #[error("the line at {address:#x} cannot have the content that is picked for it")]
    BadPick {
        /// Its address.
        address: u64,
    },
}
