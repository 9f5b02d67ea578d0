//! What stops an instruction before it has happened.

use engine::ExitKind;

/// Marks that the reason is in [`crate::cpu::Cpu::cause`]. An instruction that gives it has changed no register, flag or
/// memory that its re-execution would see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trap;

/// Result of executing an instruction or of a part of it.
pub type Step<T = ()> = Result<T, Trap>;

/// The reason of a [`Trap`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A fault: delivered with RIP at the instruction itself.
    Exception {
        /// Vector.
        vector: u8,
        /// Error code, for the vectors that have one.
        code: Option<u32>,
    },
    /// The machine has to do something; the instruction runs again when it has.
    Exit(ExitKind),
    /// The instruction runs again, alone: it changes code, or writes to the machine, after which others may not follow
    /// from the same block.
    Restart,
}

/// Exception vectors (SDM vol. 3, table 6-1).
#[expect(missing_docs, reason = "the names are the exceptions")]
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
}
