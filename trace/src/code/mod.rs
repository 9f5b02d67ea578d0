//! How events stand in a chunk: a byte of kind and flags, then what is not as in the event before. Numbers are in base 128,
//! low digits first; differences are zigzag-coded.
//!
//! Two kinds are no events but hold for those that follow: the number of the call chain, and how far guest time is ahead
//! of the count of instructions. A third stands for the next rounds of a loop ([`crate::run`]): how many accesses it has, how
//! far each is from the round before in instructions and in addresses, how many accesses follow, and then only their bytes.

mod decode;
mod encode;

use nvdimm_model::medium::FenceKind;

use crate::run::{History, Loop};
pub use decode::Decoder;
pub use encode::Encoder;

/// Flags of the first byte, above four bits of kind.
mod flag {
    /// The vCPU is that of the event before.
    pub const VCPU: u8 = 0x10;
    /// The instruction pointer is where this vCPU was last.
    pub const RIP: u8 = 0x20;
    /// The instruction count is that of the event before.
    pub const INSTRUCTION: u8 = 0x40;
    /// The address is where the last access ended.
    pub const ADDRESS: u8 = 0x80;
}

/// Kinds.
mod kind {
    pub const CACHED: u8 = 0;
    pub const LOCKED: u8 = 1;
    pub const NON_TEMPORAL: u8 = 2;
    pub const DIRECT: u8 = 3;
    pub const STRING: u8 = 4;
    pub const DEVICE: u8 = 5;
    pub const CLFLUSH: u8 = 6;
    pub const CLFLUSHOPT: u8 = 7;
    pub const CLWB: u8 = 8;
    pub const FENCE: u8 = 9;
    pub const LOAD: u8 = 10;
    pub const HINT: u8 = 11;
    pub const MARK: u8 = 12;
    pub const OTHER: u8 = 13;
    pub const CHAIN: u8 = 14;
    pub const AHEAD: u8 = 15;

    /// As a whole byte: a new call chain.
    pub const FRAMES: u8 = CHAIN | super::flag::VCPU;
    /// As a whole byte: a run.
    pub const RUN: u8 = AHEAD | super::flag::VCPU;
}

/// Kinds behind [`kind::OTHER`].
mod other {
    pub const WRITE_BACK: u8 = 0;
    pub const DROP: u8 = 1;
    pub const RESET: u8 = 2;
    pub const CALL: u8 = 3;
    pub const LABELS: u8 = 4;
    pub const STATE: u8 = 5;
}

const FENCES: [FenceKind; 6] = [
    FenceKind::Sfence,
    FenceKind::Mfence,
    FenceKind::Lfence,
    FenceKind::Locked,
    FenceKind::FailedCmpxchg,
    FenceKind::Serialising,
];

/// What the next event is told apart from.
#[derive(Debug, Clone)]
struct Before {
    vcpu: u8,
    instruction: u64,
    ahead: u64,
    chain: u32,
    /// Where the last access ended.
    address: u64,
    /// By vCPU.
    rips: Box<[u64; 256]>,
    /// The accesses before.
    history: History,
}

impl Before {
    fn start() -> Self {
        let (rips, history) = (Box::new([0; 256]), History::new());
        Self { vcpu: 0, instruction: 0, ahead: 0, chain: 0, address: 0, rips, history }
    }

    /// A run is over: the last of its accesses is the event before.
    fn catch_up(&mut self) {
        let Some(last) = self.history.last() else { return };
        (self.vcpu, self.instruction, self.ahead, self.chain) =
            (last.vcpu, last.instruction, last.ahead, last.chain);
        self.rips[usize::from(last.vcpu)] = last.rip;
        self.address = last.end().unwrap_or(self.address);
    }
}

/// A run that is not over, and how many accesses it has: so far, or yet to be read.
#[derive(Debug, Clone, Copy)]
struct Run {
    of: Loop,
    count: u64,
}
