//! How eagerly blocks are translated, and the mode that makes everything rare happen often.

/// When a block is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Haste {
    /// When it has been interpreted some times.
    Warm,
    /// At its first execution.
    AtOnce,
    /// At once, while at random moments, which the seed decides, all caches are emptied, accesses take the slow path, blocks
    /// are single instructions, jumps stay unlinked, and the host seems to lack BMI2. What a guest computes stays the same.
    Stressed(u64),
}

/// The dice of [`Haste::Stressed`].
#[derive(Debug, Clone)]
pub(crate) struct Stress(u64);

impl Stress {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Once in so many times.
    pub(crate) fn happens(&mut self, once_in: u64) -> bool {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32).is_multiple_of(once_in)
    }

    /// Dice of their own.
    pub(crate) fn fork(&mut self) -> Self {
        self.happens(2);
        Self::new(self.0)
    }
}
