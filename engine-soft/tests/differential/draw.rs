//! Random draws that like the edges. Deterministic: SplitMix64.

use super::machine::{GUARD, SCRATCH, SCRATCH_LEN};

/// A source of draws.
#[derive(Debug, Clone)]
pub struct Draw(u64);

impl Draw {
    /// From a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 uniform bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    /// Uniform below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    /// One of them.
    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// True once in `n`.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// An integer operand: small, minus small, at a sign boundary of some width, a power of two or one less, or of random
    /// length.
    pub fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => self.below(40),
            1 => self.below(5).wrapping_neg(),
            2 => (1_u64 << self.of(&[7, 15, 31, 63])).wrapping_add(self.below(3)).wrapping_sub(1),
            3 => (1_u64 << self.below(64)).wrapping_sub(self.below(2)),
            4 => self.bits() >> self.below(64),
            5 => !(self.bits() >> self.below(64)),
            _ => self.bits(),
        }
    }

    /// An address to put `len` bytes at: mostly inside the scratch memory, at times across its inner page boundary, its
    /// ends, or just outside.
    pub fn target(&mut self, len: u64) -> u64 {
        let end = SCRATCH_LEN as u64;
        let offset = match self.below(32) {
            0 => end - self.below(len.max(1) + 1),
            1 => self.below(GUARD / 2).wrapping_neg(),
            2..=5 => end / 2 - self.below(len.max(1) + 1),
            6..=15 => 0x400 + self.below(0x1800),
            _ => 0x400 + self.below(0x180) * 16,
        };
        SCRATCH.wrapping_add(offset)
    }
}
