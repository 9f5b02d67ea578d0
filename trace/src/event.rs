//! What is recorded.

use nvdimm_model::medium::{FenceKind, FlushKind, Operation, StoreKind};

/// Something that happened, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// Who did it.
    pub vcpu: u8,
    /// Instructions that all vCPUs had retired before the one that did it.
    pub instruction: u64,
    /// Guest time in nanoseconds.
    pub time: u64,
    /// Its instruction pointer.
    pub rip: u64,
    /// Number of the call chain that led there ([`crate::Reader::chain`]); 0 where none was taken.
    pub chain: u32,
    /// What happened.
    pub kind: Kind<'a>,
}

/// What happened. Addresses are guest-physical.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind<'a> {
    /// Bytes were stored, at most [`Kind::MAX_DATA`].
    Store {
        /// Of the first byte.
        address: u64,
        /// The bytes.
        data: &'a [u8],
        /// How.
        kind: StoreKind,
    },
    /// A line was flushed.
    Flush {
        /// In the line.
        address: u64,
        /// How.
        kind: FlushKind,
    },
    /// A fence. Of those that no program makes for its own sake (locked and serialising instructions), only such as find
    /// something to order.
    Fence(FenceKind),
    /// WBINVD or WBNOINVD.
    WriteBackAll,
    /// INVD.
    DropAll,
    /// Bytes were loaded.
    Load {
        /// Of the first byte.
        address: u64,
        /// How many.
        len: u32,
    },
    /// A DIMM's flush hint was written.
    Hint {
        /// Its slot.
        dimm: u8,
    },
    /// The guest called a function of a DIMM, or of the bus, through the mailbox.
    Call {
        /// Handle of the DIMM; 0 for the bus.
        handle: u32,
        /// Number of the function.
        function: u32,
    },
    /// A DIMM wrote outside of its data.
    Meta {
        /// Its slot.
        dimm: u8,
        /// Where.
        area: Area,
        /// Offset in its file.
        offset: u64,
        /// The bytes, at most [`Kind::MAX_DATA`].
        data: &'a [u8],
    },
    /// The guest set a mark, of at most [`Kind::MAX_NAME`] bytes.
    Mark(&'a str),
    /// The guest reset the machine. Caches were written back before.
    Reset,
}

/// Where a DIMM keeps what is not data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// Labels.
    Labels,
    /// What the DIMM says of itself: health, poison. See [`crate::STATE`].
    State,
}

impl Kind<'_> {
    /// The most bytes of a store.
    pub const MAX_DATA: usize = 64 << 10;
    /// The most bytes of a mark's name.
    pub const MAX_NAME: usize = 255;

    /// What it does to the medium, if anything.
    #[must_use]
    pub fn operation(&self) -> Option<Operation<'_>> {
        Some(match *self {
            Self::Store { address, data, kind } => Operation::Store { address, data, kind },
            Self::Flush { address, kind } => Operation::Flush { address, kind },
            Self::Fence(kind) => Operation::Fence(kind),
            Self::WriteBackAll | Self::Reset => Operation::WriteBackAll,
            Self::DropAll => Operation::DropAll,
            Self::Hint { dimm } => Operation::Hint { dimm: dimm.into() },
            Self::Load { .. } | Self::Call { .. } | Self::Meta { .. } | Self::Mark(_) => return None,
        })
    }

    /// One word for it, as it is shown and searched.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Store { kind: StoreKind::Cached | StoreKind::String(_), .. } => "store",
            Self::Store { kind: StoreKind::Locked, .. } => "locked",
            Self::Store { kind: StoreKind::NonTemporal, .. } => "ntstore",
            Self::Store { kind: StoreKind::Direct64, .. } => "direct",
            Self::Store { kind: StoreKind::Device, .. } => "device",
            Self::Flush { kind: FlushKind::Clflush, .. } => "clflush",
            Self::Flush { kind: FlushKind::Clflushopt, .. } => "clflushopt",
            Self::Flush { kind: FlushKind::Clwb, .. } => "clwb",
            Self::Fence(FenceKind::Sfence) => "sfence",
            Self::Fence(FenceKind::Mfence) => "mfence",
            Self::Fence(FenceKind::Lfence) => "lfence",
            Self::Fence(FenceKind::Locked) => "lock",
            Self::Fence(FenceKind::FailedCmpxchg) => "cmpxchg",
            Self::Fence(FenceKind::Serialising) => "serialise",
            Self::WriteBackAll => "wbinvd",
            Self::DropAll => "invd",
            Self::Load { .. } => "load",
            Self::Hint { .. } => "hint",
            Self::Call { .. } => "dsm",
            Self::Meta { area: Area::Labels, .. } => "label",
            Self::Meta { area: Area::State, .. } => "state",
            Self::Mark(_) => "mark",
            Self::Reset => "reset",
        }
    }
}
