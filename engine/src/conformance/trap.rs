//! The frame that a handler found on its stack (SDM vol. 3, figures 6-4 and 6-9).

use vm_memory::{Bytes, GuestAddress};

use super::bench::Failure;
use super::scene::{Mode, has_error_code};
use crate::GuestMemory;
use crate::state::{CpuState, SystemRegisters, gpr};

/// What was on the stack when a handler reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trap {
    pub(super) vector: u8,
    pub(super) error: Option<u32>,
    pub(super) rip: u64,
    pub(super) cs: u16,
    pub(super) rflags: u64,
    /// The interrupted stack pointer, which only 64-bit mode always pushes.
    pub(super) rsp: u64,
    pub(super) ss: u16,
    /// Where the frame's instruction pointer is, to edit it.
    pub(super) frame: u64,
    /// The whole state in the handler.
    pub(super) state: CpuState,
}

impl Trap {
    /// Reads the frame of a handler that has pushed its vector.
    pub(super) fn read(mode: Mode, memory: &GuestMemory, state: CpuState) -> Result<Self, Failure> {
        let wide = u64::from(mode.bits() / 8);
        let top = state.system.segments[SystemRegisters::SS].base + state.registers.gpr[gpr::RSP];
        let word = |n: u64| -> Result<u64, Failure> {
            let mut bytes = [0; 8];
            memory
                .read_slice(&mut bytes[..wide as usize], GuestAddress(top + n * wide))
                .map_err(|error| Failure(format!("a frame at {top:#x}: {error}")))?;
            Ok(u64::from_le_bytes(bytes))
        };
        let vector = word(0)? as u8;
        let coded = has_error_code(vector) && mode != Mode::Real;
        let error = if coded { Some(word(1)? as u32) } else { None };
        let first = 1 + u64::from(coded);
        let long = mode == Mode::Long;
        Ok(Self {
            vector,
            error,
            rip: word(first)?,
            cs: word(first + 1)? as u16,
            rflags: word(first + 2)?,
            rsp: if long { word(first + 3)? } else { 0 },
            ss: if long { word(first + 4)? as u16 } else { 0 },
            frame: top + first * wide,
            state,
        })
    }
}
