//! Where guest registers are while translated code runs: twelve in host registers, the four that compilers use least in
//! the frame. RAX, RCX and RDX of the host are for scratch, its RSP points into the frame.

use std::mem::offset_of;

use iced_x86::Register;

use super::emit::{RBP, RBX, RDI, RSI, Reg, Rm, word};
use crate::frame::Frame;

/// A guest register's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A host register.
    Host(Reg),
    /// A word of the frame.
    Slot(usize),
}

impl Place {
    /// As an operand.
    pub(crate) fn rm(self) -> Rm {
        match self {
            Self::Host(reg) => Rm::Reg(reg),
            Self::Slot(n) => word(slot(n)),
        }
    }
}

/// Offset in the frame of a register that is kept there.
const fn slot(n: usize) -> usize {
    offset_of!(Frame, registers) + 8 * n
}

/// By guest register number.
pub(crate) const PLACES: [Place; 16] = [
    ACCUMULATOR,
    COUNTER,
    DATA,
    Place::Host(RBX),
    STACK,
    Place::Host(RBP),
    Place::Host(RSI),
    Place::Host(RDI),
    Place::Host(Reg(8)),
    Place::Slot(0),
    Place::Slot(1),
    Place::Slot(2),
    Place::Host(Reg(12)),
    Place::Host(Reg(13)),
    Place::Host(Reg(14)),
    Place::Slot(3),
];

/// Guest RAX.
pub(crate) const GUEST_RAX: Reg = Reg(9);
/// Guest RCX.
pub(crate) const GUEST_RCX: Reg = Reg(10);
/// Guest RDX.
pub(crate) const GUEST_RDX: Reg = Reg(11);
/// Guest RSP.
pub(crate) const GUEST_RSP: Reg = Reg(15);

const ACCUMULATOR: Place = Place::Host(GUEST_RAX);
const COUNTER: Place = Place::Host(GUEST_RCX);
const DATA: Place = Place::Host(GUEST_RDX);
const STACK: Place = Place::Host(GUEST_RSP);

/// Place of a general register, whatever part of it is meant; `None` for AH, CH, DH, BH, which are not where a host
/// instruction could name them.
pub(crate) fn place(register: Register) -> Option<Place> {
    let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
    (register.is_gpr() && !high).then(|| PLACES[register.full_register().number() & 15])
}

#[cfg(test)]
mod tests {
    use super::super::emit::{RAX, RCX, RDX, RSP};
    use super::*;

    #[test]
    fn no_two_registers_share_a_place_nor_a_scratch_register() {
        for (n, a) in PLACES.iter().enumerate() {
            assert!(![RAX, RCX, RDX, RSP].iter().any(|&scratch| *a == Place::Host(scratch)));
            assert!(!PLACES[n + 1..].contains(a));
        }
    }

    #[test]
    fn parts_of_a_register_are_where_it_is() {
        assert_eq!(place(Register::CL), place(Register::RCX));
        assert_eq!(place(Register::R11W), Some(Place::Slot(2)));
        assert_eq!(place(Register::AH), None);
        assert_eq!(place(Register::XMM1), None);
    }
}
