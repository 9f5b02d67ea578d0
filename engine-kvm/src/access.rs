//! A port or memory access that KVM hands out whole and the machine takes piece by piece.
//!
//! KVM gives a string instruction's items together and splits what crosses a page into fragments of 1 to 8 bytes; the
//! neck knows widths of 1, 2, 4 and 8 only.

use engine::ExitKind;

/// Where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Items of a width at one I/O port.
    Port { port: u16, size: u8 },
    /// Bytes at ascending guest-physical addresses.
    Memory { addr: u64 },
}

/// The access and how far it has got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Transfer {
    pub(crate) place: Place,
    pub(crate) write: bool,
    /// Offset of the bytes in the run page.
    pub(crate) offset: usize,
    /// Number of bytes.
    pub(crate) len: usize,
    /// Bytes whose pieces are over.
    done: usize,
    /// Width of the piece that the machine has in hand; 0 is none.
    held: u8,
}

impl Transfer {
    pub(crate) fn new(place: Place, write: bool, offset: usize, len: usize) -> Self {
        Self { place, write, offset, len, done: 0, held: 0 }
    }

    /// Ends the piece in hand: a write was taken note of, or a read has its answer.
    pub(crate) fn answer(&mut self, bytes: &mut [u8], value: u64) {
        let held = usize::from(self.held);
        if !self.write
            && let Some(piece) = bytes.get_mut(self.done..self.done + held)
        {
            piece.copy_from_slice(&value.to_le_bytes()[..held]);
        }
        self.done += held;
        self.held = 0;
    }

    /// Takes the piece in hand back, so that it is handed out again.
    pub(crate) fn rewind(&mut self) {
        self.held = 0;
    }

    /// Is a piece in hand that needs an answer?
    pub(crate) fn asks(&self) -> bool {
        !self.write && self.held != 0
    }

    /// Have all pieces been handed out?
    pub(crate) fn handed_out(&self) -> bool {
        self.done + usize::from(self.held) >= self.len
    }

    /// The next piece, or the one in hand again.
    pub(crate) fn next(&mut self, bytes: &[u8]) -> Option<ExitKind> {
        let left = self.len.saturating_sub(self.done);
        if left == 0 {
            return None;
        }
        let size = match self.place {
            Place::Port { size, .. } => size,
            Place::Memory { addr } => width(addr + self.done as u64, left),
        };
        self.held = size;
        let piece = bytes.get(self.done..self.done + usize::from(size))?;
        let mut value = [0; 8];
        value[..piece.len()].copy_from_slice(piece);
        let value = u64::from_le_bytes(value);
        Some(match (self.place, self.write) {
            (Place::Port { port, .. }, false) => ExitKind::IoRead { port, size },
            (Place::Port { port, .. }, true) => ExitKind::IoWrite { port, size, value: value as u32 },
            (Place::Memory { addr }, false) => ExitKind::MmioRead { addr: addr + self.done as u64, size },
            (Place::Memory { addr }, true) => {
                ExitKind::MmioWrite { addr: addr + self.done as u64, size, value }
            }
        })
    }
}

/// All that is left when that is a machine width, else the largest naturally aligned width within it.
fn width(addr: u64, left: usize) -> u8 {
    if left <= 8 && left.is_power_of_two() {
        return left as u8;
    }
    let fits = 1_usize << left.min(8).ilog2();
    let aligned = 1_usize << addr.trailing_zeros().min(3);
    fits.min(aligned) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(mut transfer: Transfer, bytes: &mut [u8], answers: &[u64]) -> Vec<ExitKind> {
        let mut answers = answers.iter();
        let mut all = Vec::new();
        while let Some(kind) = transfer.next(bytes) {
            all.push(kind);
            transfer.answer(bytes, answers.next().copied().unwrap_or(0));
        }
        all
    }

    #[test]
    fn string_items_come_one_by_one() {
        let place = Place::Port { port: 0x10, size: 2 };
        let kinds = pieces(Transfer::new(place, true, 0, 4), &mut [1, 2, 3, 4], &[]);
        let item = |value| ExitKind::IoWrite { port: 0x10, size: 2, value };
        assert_eq!(kinds, [item(0x0201), item(0x0403)]);
    }

    #[test]
    fn answers_of_a_string_read_fill_its_buffer() {
        let place = Place::Port { port: 0x10, size: 4 };
        let mut bytes = [0; 8];
        pieces(Transfer::new(place, false, 0, 8), &mut bytes, &[0x0403_0201, 0xFFFF_FFFF_0807_0605]);
        assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn odd_fragments_are_split_at_natural_alignment() {
        let place = Place::Memory { addr: 0xFFD };
        let kinds = pieces(Transfer::new(place, true, 0, 3), &mut [1, 2, 3], &[]);
        assert_eq!(
            kinds,
            [
                ExitKind::MmioWrite { addr: 0xFFD, size: 1, value: 1 },
                ExitKind::MmioWrite { addr: 0xFFE, size: 2, value: 0x0302 },
            ]
        );
    }

    #[test]
    fn an_unaligned_machine_width_stays_whole() {
        let place = Place::Memory { addr: 0x1001 };
        let mut bytes = [0; 4];
        let kinds = pieces(Transfer::new(place, false, 0, 4), &mut bytes, &[0x1122_3344]);
        assert_eq!(kinds, [ExitKind::MmioRead { addr: 0x1001, size: 4 }]);
        assert_eq!(bytes, [0x44, 0x33, 0x22, 0x11]);
    }

    #[test]
    fn a_read_is_asked_again_until_it_is_answered() {
        let mut transfer = Transfer::new(Place::Memory { addr: 0 }, false, 0, 8);
        let first = transfer.next(&[0; 8]);
        assert!(transfer.asks());
        assert_eq!(transfer.next(&[0; 8]), first);
        transfer.answer(&mut [0; 8], 1);
        assert_eq!(transfer.next(&[0; 8]), None);
    }
}
