//! Delivery of exceptions and interrupts (SDM vol. 3, ch. 6).

use engine::ExitKind;

use crate::cpu::Cpu;

impl Cpu {
    /// Delivers a fault of the instruction at RIP.
    pub(crate) fn fault(&mut self, _vector: u8, _code: Option<u32>) -> Result<(), ExitKind> {
        Err(ExitKind::Shutdown)
    }

    /// Delivers a trap after an instruction.
    pub(crate) fn trap(&mut self, _vector: u8) -> Result<(), ExitKind> {
        Err(ExitKind::Shutdown)
    }

    /// Delivers an interrupt from outside.
    pub(crate) fn interrupt(&mut self, _vector: u8) -> Result<(), ExitKind> {
        Err(ExitKind::Shutdown)
    }
}
