//! The x87, MMX and SSE registers as one FXSAVE64 image (SDM vol. 1, table 10-3), where `fxrstor64` can take them.
//!
//! Image slot `st[i]` is the stack register ST(i), so physical register `R` is slot `R - TOP`; the tag byte goes by
//! physical register. MM registers are physical registers: after any MMX instruction TOP is 0 and the two agree.

use engine::state::Fpu;

/// The image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct FxArea {
    /// x87 control word.
    pub fcw: u16,
    /// x87 status word.
    pub fsw: u16,
    /// Abridged tag: bit R is clear where physical register R is empty.
    pub ftw: u8,
    reserved: u8,
    /// Opcode of the last x87 instruction, 11 bits.
    pub fop: u16,
    /// Address of the last x87 instruction.
    pub fip: u64,
    /// Address of the last x87 memory operand.
    pub fdp: u64,
    /// SSE control and status.
    pub mxcsr: u32,
    /// Bits that MXCSR has.
    pub mxcsr_mask: u32,
    /// ST(0) to ST(7), 80 bits each.
    pub st: [u128; 8],
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    unused: [u128; 6],
}

/// The control word's bits.
pub mod fcw {
    /// Masks of the six exceptions.
    pub const MASKS: u16 = 0x3F;
    /// Bits there are.
    pub const VALID: u16 = 0x1F7F;
    /// Bit 6 is always set.
    pub const ONE: u16 = 1 << 6;
    /// After FNINIT: all masked, 64-bit precision, round to nearest.
    pub const INITIAL: u16 = 0x37F;
}

/// The status word's bits.
pub mod fsw {
    /// Invalid operation.
    pub const IE: u16 = 1;
    /// Overflow.
    pub const OE: u16 = 1 << 3;
    /// Underflow.
    pub const UE: u16 = 1 << 4;
    /// The six exception flags.
    pub const FLAGS: u16 = 0x3F;
    /// Stack fault.
    pub const SF: u16 = 1 << 6;
    /// An unmasked exception is pending.
    pub const ES: u16 = 1 << 7;
    /// Busy: a copy of ES.
    pub const BUSY: u16 = 1 << 15;
}

/// MXCSR's bits.
pub mod mxcsr {
    /// The six exception flags.
    pub const FLAGS: u32 = 0x3F;
    /// Invalid, denormal and divide-by-zero: found before the result is computed.
    pub const EARLY: u32 = 7;
    /// Underflow flag.
    pub const UE: u32 = 1 << 4;
    /// How far a mask is above its flag.
    pub const MASK_SHIFT: u32 = 7;
    /// The six masks.
    pub const MASKS: u32 = FLAGS << MASK_SHIFT;
    /// Flush to zero.
    pub const FTZ: u32 = 1 << 15;
    /// After reset: all masked, round to nearest.
    pub const INITIAL: u32 = 0x1F80;
    /// All bits there are; the others must be 0.
    pub const VALID: u32 = 0xFFFF;
    /// Overflow flag.
    pub const OE: u32 = 1 << 3;
    /// Precision flag.
    pub const PE: u32 = 1 << 5;
    /// Denormals are zeros.
    pub const DAZ: u32 = 1 << 6;
    /// Rounding control.
    pub const ROUNDING: u32 = 3 << 13;

    /// Of the flags that an instruction raised, those that are unmasked.
    #[must_use]
    pub const fn unmasked(raised: u32, mxcsr: u32) -> u32 {
        raised & !(mxcsr >> MASK_SHIFT)
    }

    /// The flags that are set when some of those raised are unmasked: one that is found before computing keeps the later
    /// kinds from being found.
    #[must_use]
    pub const fn reported(raised: u32, mxcsr: u32) -> u32 {
        if unmasked(raised, mxcsr) & EARLY != 0 { raised & EARLY } else { raised }
    }
}

const ST_MASK: u128 = (1 << 80) - 1;

impl FxArea {
    /// From an FXSAVE64 image, as FXRSTOR64 takes it: bits that the registers do not have are dropped.
    #[must_use]
    pub fn new(bytes: &[u8; Fpu::SIZE]) -> Self {
        let wide = |at: usize| u128::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let [head, pointers] = [wide(0), wide(16)];
        let mut area = Self {
            fcw: head as u16,
            fsw: (head >> 16) as u16,
            ftw: (head >> 32) as u8,
            reserved: 0,
            fop: (head >> 48) as u16 & 0x7FF,
            fip: (head >> 64) as u64,
            fdp: pointers as u64,
            mxcsr: (pointers >> 64) as u32 & mxcsr::VALID,
            mxcsr_mask: mxcsr::VALID,
            st: std::array::from_fn(|i| wide(32 + 16 * i) & ST_MASK),
            xmm: std::array::from_fn(|i| wide(160 + 16 * i)),
            unused: [0; 6],
        };
        area.settle();
        area
    }

    /// Brings control word, status word and instruction pointer to what a CPU holds after loading them: fixed bits, ES and
    /// BUSY by the unmasked flags, a canonical address.
    pub fn settle(&mut self) {
        self.fcw = self.fcw & fcw::VALID | fcw::ONE;
        let pending = self.fsw & !self.fcw & fsw::FLAGS != 0;
        self.fsw &= !(fsw::ES | fsw::BUSY);
        if pending {
            self.fsw |= fsw::ES | fsw::BUSY;
        }
        self.fip = ((self.fip << 16) as i64 >> 16) as u64;
    }

    /// The FXSAVE64 image.
    #[must_use]
    pub fn bytes(&self) -> [u8; Fpu::SIZE] {
        let mut bytes = [0; Fpu::SIZE];
        let head = u128::from(self.fcw)
            | u128::from(self.fsw) << 16
            | u128::from(self.ftw) << 32
            | u128::from(self.fop) << 48
            | u128::from(self.fip) << 64;
        let pointers =
            u128::from(self.fdp) | u128::from(self.mxcsr) << 64 | u128::from(self.mxcsr_mask) << 96;
        let slots = [head, pointers].into_iter().chain(self.st).chain(self.xmm);
        for (chunk, slot) in bytes.chunks_exact_mut(16).zip(slots) {
            chunk.copy_from_slice(&slot.to_le_bytes());
        }
        bytes
    }

    /// FNINIT: everything of the x87 but the registers' contents.
    pub fn init(&mut self) {
        self.fcw = fcw::INITIAL;
        self.rotate_to(0);
        self.fsw = 0;
        self.ftw = 0;
        self.fop = 0;
        self.fip = 0;
        self.fdp = 0;
    }

    /// Number of the physical register that is ST(0).
    #[inline(always)]
    #[must_use]
    pub fn top(&self) -> u32 {
        u32::from(self.fsw >> 11 & 7)
    }

    /// Sets TOP; physical registers keep their contents.
    pub fn rotate_to(&mut self, top: u32) {
        let turn = top.wrapping_sub(self.top()) & 7;
        self.st.rotate_left(turn as usize);
        self.fsw = self.fsw & !(7 << 11) | (top as u16 & 7) << 11;
    }

    /// MM register by number.
    #[inline(always)]
    #[must_use]
    pub fn mm(&self, r: u8) -> u64 {
        self.st[(u32::from(r).wrapping_sub(self.top()) & 7) as usize] as u64
    }

    /// Writes an MM register after [`Self::enter_mmx`]: sign and exponent become ones.
    #[inline(always)]
    pub fn set_mm(&mut self, r: u8, value: u64) {
        self.st[usize::from(r & 7)] = 0xFFFF << 64 | u128::from(value);
    }

    /// The registers become MMX registers: TOP 0, all valid.
    #[inline(always)]
    pub fn enter_mmx(&mut self) {
        self.rotate_to(0);
        self.ftw = 0xFF;
    }

    /// XMM register by number.
    #[inline(always)]
    #[must_use]
    pub fn xmm(&self, r: u8) -> u128 {
        self.xmm[usize::from(r & 15)]
    }

    /// XMM register by number.
    #[inline(always)]
    pub fn xmm_mut(&mut self, r: u8) -> &mut u128 {
        &mut self.xmm[usize::from(r & 15)]
    }
}

impl Default for FxArea {
    fn default() -> Self {
        Self::new(&Fpu::default().bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_round_trip() {
        let mut bytes: [u8; Fpu::SIZE] = std::array::from_fn(|i| i as u8 ^ 0x5A);
        bytes[..4].copy_from_slice(&[0x7F, 0x02, 0x3F, 0x3A]);
        bytes[14..16].fill(0);
        let area = FxArea::new(&bytes);
        bytes[5] = 0;
        bytes[7] &= 7;
        bytes[26..32].copy_from_slice(&[0, 0, 0xFF, 0xFF, 0, 0]);
        for st in bytes[32..160].chunks_exact_mut(16) {
            st[10..].fill(0);
        }
        bytes[416..].fill(0);
        assert_eq!(area.bytes(), bytes);
    }

    #[test]
    fn turning_the_stack_keeps_physical_registers() {
        let mut area = FxArea { fsw: 5 << 11, st: std::array::from_fn(|i| i as u128), ..FxArea::default() };
        area.rotate_to(0);
        // R0 was ST(3).
        assert_eq!(area.st, [3, 4, 5, 6, 7, 0, 1, 2]);
        assert_eq!(area.top(), 0);
    }
}
