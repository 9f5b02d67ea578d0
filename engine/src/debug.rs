//! Debugging from outside: breakpoints, watchpoints and single steps that the guest cannot see, unlike those of its own
//! debug registers.

use std::ops::Range;

use crate::{Result, VcpuId};

/// A stretch of linear addresses whose accesses stop the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watchpoint {
    /// The addresses.
    pub range: Range<u64>,
    /// Loads stop it.
    pub loads: bool,
    /// Stores stop it.
    pub stores: bool,
}

/// Where the machine is to stop, whichever vCPU comes there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Points {
    /// Linear addresses of instructions.
    pub instructions: Vec<u64>,
    /// Data.
    pub data: Vec<Watchpoint>,
}

/// Why a debugged machine stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The vCPU that was to do one instruction has done it, or sleeps.
    Step,
    /// It stands before an instruction of [`Points::instructions`].
    Instruction,
    /// Its last instruction has accessed data of [`Points::data`].
    Data {
        /// The first byte of the access.
        address: u64,
        /// It was a store.
        store: bool,
    },
}

/// What an engine does for a debugger. Stops arrive as [`crate::ExitKind::Debug`].
pub trait Debugger {
    /// Replaces where to stop. While there are watchpoints the guest runs instruction by instruction.
    fn set_points(&mut self, points: &Points);

    /// At the next run only this vCPU does anything, and that is one instruction.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchVcpu`].
    fn step(&mut self, vcpu: VcpuId) -> Result<()>;
}
