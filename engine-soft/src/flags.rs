//! RFLAGS, its six status flags kept lazily (SDM vol. 1, 3.4.3).
//!
//! An arithmetic instruction leaves its sign-extended result and its carries; a flag is computed when it is asked for.
//! `POPF` and the like can set any combination, so two deltas say where a flag differs from what the result implies.

use crate::width::Width;

/// Bits of RFLAGS.
#[expect(missing_docs, reason = "the names are the flags")]
pub mod bit {
    pub const CF: u64 = 1 << 0;
    pub const FIXED: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// The six status flags.
    pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
    /// All others that exist, but the one that is always set.
    pub const CONTROL: u64 = TF | IF | DF | IOPL | NT | RF | VM | AC | VIF | VIP | ID;
}

/// The register.
#[derive(Debug, Clone, Copy)]
pub struct Flags {
    /// Sign-extended result of the last instruction that set flags. ZF: it is zero.
    result: u64,
    /// Bit 63: carry out of the top bit (CF). Bit 62: carry into it (OF is their difference). Bit 3: AF.
    /// Bit 7: SF is the result's top bit exclusive-or this. Bits 8..16: PF is the parity of the result's low byte
    /// exclusive-or this.
    aux: u64,
    /// All bits that are not status flags, in place.
    pub control: u64,
}

const CARRIES: u64 = 3 << 62 | 8;

/// Places a carry vector of width `W` so that its two top bits are bits 63 and 62.
#[inline(always)]
fn place<W: Width>(carries: u64) -> u64 {
    if W::BITS == 64 { carries & CARRIES } else { carries << (64 - W::BITS) & 3 << 62 | carries & 8 }
}

impl Flags {
    /// From an RFLAGS image; reserved bits are dropped.
    #[must_use]
    pub fn new(rflags: u64) -> Self {
        let mut flags = Self { result: 0, aux: 0, control: 0 };
        flags.set(rflags);
        flags
    }

    /// The RFLAGS image.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.control | bit::FIXED | self.status()
    }

    /// The six status flags in place.
    #[must_use]
    pub fn status(&self) -> u64 {
        u64::from(self.cf())
            | u64::from(self.pf()) << 2
            | u64::from(self.af()) << 4
            | u64::from(self.zf()) << 6
            | u64::from(self.sf()) << 7
            | u64::from(self.of()) << 11
    }

    /// Replaces everything.
    pub fn set(&mut self, rflags: u64) {
        self.control = rflags & bit::CONTROL;
        self.set_status(rflags);
    }

    /// Replaces the six status flags by those of an RFLAGS image.
    #[inline]
    pub fn set_status(&mut self, rflags: u64) {
        let on = |flag: u64| u64::from(rflags & flag != 0);
        // A result that is not zero has bit 8 set: its sign is plus and its low byte of even parity.
        self.result = (on(bit::ZF) ^ 1) << 8;
        let carry = on(bit::CF);
        self.aux = carry << 63
            | (carry ^ on(bit::OF)) << 62
            | on(bit::AF) << 3
            | on(bit::SF) << 7
            | (on(bit::PF) ^ 1) << 8;
    }

    /// Carry.
    #[inline(always)]
    #[must_use]
    pub fn cf(&self) -> bool {
        self.aux >> 63 != 0
    }

    /// Parity: the low byte has an even number of ones.
    #[inline(always)]
    #[must_use]
    pub fn pf(&self) -> bool {
        ((self.result ^ self.aux >> 8) as u8).count_ones() & 1 == 0
    }

    /// Auxiliary carry: out of bit 3.
    #[inline(always)]
    #[must_use]
    pub fn af(&self) -> bool {
        self.aux & 8 != 0
    }

    /// Zero.
    #[inline(always)]
    #[must_use]
    pub fn zf(&self) -> bool {
        self.result == 0
    }

    /// Sign.
    #[inline(always)]
    #[must_use]
    pub fn sf(&self) -> bool {
        (self.result >> 63 ^ self.aux >> 7) & 1 != 0
    }

    /// Overflow.
    #[inline(always)]
    #[must_use]
    pub fn of(&self) -> bool {
        (self.aux ^ self.aux << 1) >> 63 != 0
    }

    /// Sets CF and keeps the others.
    #[inline(always)]
    pub fn set_cf(&mut self, carry: bool) {
        let change = (self.aux >> 63 ^ u64::from(carry)) * (3 << 62);
        self.aux ^= change;
    }

    /// The condition that the low four bits of a Jcc, SETcc or CMOVcc opcode name.
    #[inline(always)]
    #[must_use]
    pub fn condition(&self, code: u8) -> bool {
        let holds = match code >> 1 & 7 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() || self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => self.zf() || self.sf() != self.of(),
        };
        holds != (code & 1 != 0)
    }

    /// `a + b + carry`.
    #[inline(always)]
    pub fn add<W: Width>(&mut self, a: W, b: W, carry: bool) -> W {
        let (a, b) = (a.zext(), b.zext());
        let result = W::of(a.wrapping_add(b).wrapping_add(u64::from(carry)));
        self.result = result.sext();
        self.aux = place::<W>(a & b | (a | b) & !result.zext());
        result
    }

    /// `a - b - borrow`; also what compares do.
    #[inline(always)]
    pub fn sub<W: Width>(&mut self, a: W, b: W, borrow: bool) -> W {
        let (a, b) = (a.zext(), b.zext());
        let result = W::of(a.wrapping_sub(b).wrapping_sub(u64::from(borrow)));
        self.result = result.sext();
        self.aux = place::<W>(!a & b | (!a | b) & result.zext());
        result
    }

    /// AND, OR, XOR, TEST: CF, OF and AF are cleared (AF is undefined by the SDM).
    #[inline(always)]
    pub fn logic<W: Width>(&mut self, result: W) -> W {
        self.result = result.sext();
        self.aux = 0;
        result
    }

    /// `a + 1`, keeping CF.
    #[inline(always)]
    pub fn inc<W: Width>(&mut self, a: W) -> W {
        let carry = self.cf();
        let result = self.add(a, W::of(1), false);
        self.set_cf(carry);
        result
    }

    /// `a - 1`, keeping CF.
    #[inline(always)]
    pub fn dec<W: Width>(&mut self, a: W) -> W {
        let carry = self.cf();
        let result = self.sub(a, W::of(1), false);
        self.set_cf(carry);
        result
    }

    /// Result flags (ZF, SF, PF) of `result`, AF clear, and CF and OF as told: shifts and multiplications.
    #[inline(always)]
    pub fn shifted<W: Width>(&mut self, result: W, carry: bool, overflow: bool) -> W {
        self.result = result.sext();
        self.aux = u64::from(carry) << 63 | u64::from(carry != overflow) << 62;
        result
    }

    /// Sets CF and OF and keeps the others: rotates.
    #[inline(always)]
    pub fn rotated(&mut self, carry: bool, overflow: bool) {
        self.aux = self.aux & !(3 << 62) | u64::from(carry) << 63 | u64::from(carry != overflow) << 62;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_combination_is_kept(rflags: u64) {
            let mask = Flags::new(!0).get();
            prop_assert_eq!(Flags::new(rflags).get(), rflags & mask | bit::FIXED);
        }

        #[test]
        fn carry_alone_changes(rflags: u64, carry: bool) {
            let mut flags = Flags::new(rflags);
            let before = flags.get();
            flags.set_cf(carry);
            prop_assert_eq!(flags.get(), before & !bit::CF | u64::from(carry));
        }

        #[test]
        fn sums_match_wider_arithmetic(a: u8, b: u8, carry: bool) {
            let mut flags = Flags::new(0);
            let result = flags.add(a, b, carry);
            let wide = u16::from(a) + u16::from(b) + u16::from(carry);
            let signed = i16::from(a as i8) + i16::from(b as i8) + i16::from(carry);
            prop_assert_eq!(result, wide as u8);
            prop_assert_eq!(flags.cf(), wide > 255);
            prop_assert_eq!(flags.of(), !(-128..=127).contains(&signed));
            prop_assert_eq!(flags.af(), (a & 15) + (b & 15) + u8::from(carry) > 15);
            prop_assert_eq!(flags.sf(), (result as i8) < 0);
            prop_assert_eq!(flags.zf(), result == 0);
            prop_assert_eq!(flags.pf(), result.count_ones().is_multiple_of(2));
        }

        #[test]
        fn differences_match_wider_arithmetic(a: u8, b: u8, borrow: bool) {
            let mut flags = Flags::new(0);
            let result = flags.sub(a, b, borrow);
            let wide = i16::from(a) - i16::from(b) - i16::from(borrow);
            let signed = i16::from(a as i8) - i16::from(b as i8) - i16::from(borrow);
            prop_assert_eq!(result, wide as u8);
            prop_assert_eq!(flags.cf(), wide < 0);
            prop_assert_eq!(flags.of(), !(-128..=127).contains(&signed));
            prop_assert_eq!(flags.af(), i16::from(a & 15) - i16::from(b & 15) - i16::from(borrow) < 0);
        }
    }
}
