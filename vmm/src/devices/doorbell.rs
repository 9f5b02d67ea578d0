//! The doorbell: two 32-bit registers by which a guest that knows the machine ends the run or marks a point of it.

use super::{Action, Registers, all_ones};

/// Exit code at 0, mark at 4. Stateless; anything but a 32-bit store to one of them is ignored.
#[derive(Debug, Default)]
pub struct Doorbell;

impl Doorbell {
    /// Offset of the exit register: the run ends with the value written.
    pub const EXIT: u64 = 0;
    /// Offset of the mark register.
    pub const MARK: u64 = 4;
}

impl Registers for Doorbell {
    fn read(&mut self, _offset: u64, size: u8, _now: u64) -> u64 {
        all_ones(size)
    }

    fn write(&mut self, offset: u64, size: u8, value: u64, _now: u64) -> Action {
        match (offset, size) {
            (Self::EXIT, 4) => Action::Exit(value as u32),
            (Self::MARK, 4) => Action::Mark(value as u32),
            _ => Action::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_registers_ring() {
        assert_eq!(Doorbell.write(0, 4, 7, 0), Action::Exit(7));
        assert_eq!(Doorbell.write(4, 4, 9, 0), Action::Mark(9));
        for (offset, size) in [(0, 1), (0, 2), (4, 1), (1, 4), (8, 4)] {
            assert_eq!(Doorbell.write(offset, size, 1, 0), Action::None);
        }
    }
}
