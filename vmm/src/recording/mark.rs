//! The names of marks, in the guest's memory.

use engine::state::gpr::RSI;
use engine::{CpuState, GuestMemory};
use symbols::Memory;

use crate::sight::VirtualMemory;

/// The name of a mark: `len` bytes at RSI. None where there is no memory, or nothing that could be a name.
pub fn mark_name(state: &CpuState, memory: &GuestMemory, len: u32) -> Option<String> {
    let len = usize::try_from(len).ok().filter(|len| (1..=trace::Kind::MAX_NAME).contains(len))?;
    let mut name = vec![0; len];
    VirtualMemory::new(memory, state).read(state.registers.gpr[RSI], &mut name).then_some(())?;
    let name = String::from_utf8(name).ok()?;
    (!name.chars().any(char::is_control)).then_some(name)
}
