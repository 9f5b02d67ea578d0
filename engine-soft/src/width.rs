//! Operand widths: the four integer types that an instruction can be about.

/// An operand width.
pub trait Width: Copy + Eq + std::fmt::Debug + 'static {
    /// Width in bits.
    const BITS: u32;
    /// Width in bytes.
    const BYTES: usize;
    /// The signed integer of the same width shifts in copies of this.
    const SIGN: u64;

    /// Truncates.
    fn of(value: u64) -> Self;
    /// Zero-extends.
    fn zext(self) -> u64;
    /// Sign-extends.
    fn sext(self) -> u64;
    /// What a register holds after this was written to it, given what it held: 32-bit writes clear the upper half,
    /// 16-bit writes keep it.
    fn merge(self, old: u64) -> u64;
}

macro_rules! width {
    ($unsigned:ty, $signed:ty, $merge:expr) => {
        impl Width for $unsigned {
            const BITS: u32 = <$unsigned>::BITS;
            const BYTES: usize = size_of::<$unsigned>();
            const SIGN: u64 = 1 << (<$unsigned>::BITS - 1);

            #[inline(always)]
            fn of(value: u64) -> Self {
                value as $unsigned
            }

            #[inline(always)]
            fn zext(self) -> u64 {
                self as u64
            }

            #[inline(always)]
            fn sext(self) -> u64 {
                self as $signed as i64 as u64
            }

            #[inline(always)]
            fn merge(self, old: u64) -> u64 {
                let merge: fn(u64, u64) -> u64 = $merge;
                merge(old, self as u64)
            }
        }
    };
}

width!(u8, i8, |old, new| old & !0xFF | new);
width!(u16, i16, |old, new| old & !0xFFFF | new);
width!(u32, i32, |_, new| new);
width!(u64, i64, |_, new| new);
