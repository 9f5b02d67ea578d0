//! x87, MMX and SSE state in the FXSAVE64 format (SDM vol. 1, table 10-3), and the upper halves of YMM registers.

/// The 512-byte FXSAVE area and what AVX adds.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Fpu {
    /// The area; 512 bytes.
    bytes: Vec<u8>,
    /// Bits 128 to 255 of YMM0 to YMM15.
    pub upper: [u128; 16],
}

impl Fpu {
    /// Size of the area in bytes.
    pub const SIZE: usize = 512;

    /// From an FXSAVE64 image. Upper halves are 0.
    #[must_use]
    pub fn new(bytes: &[u8; Self::SIZE]) -> Self {
        Self { bytes: bytes.to_vec(), upper: [0; 16] }
    }

    /// The same with these upper halves.
    #[must_use]
    pub fn with_upper(self, upper: [u128; 16]) -> Self {
        Self { upper, ..self }
    }

    /// The FXSAVE64 image.
    #[must_use]
    pub fn bytes(&self) -> [u8; Self::SIZE] {
        let mut image = [0; Self::SIZE];
        let known = self.bytes.len().min(Self::SIZE);
        image[..known].copy_from_slice(&self.bytes[..known]);
        image
    }
}

impl Default for Fpu {
    /// After FNINIT: control word 0x37F, MXCSR 0x1F80, everything empty.
    fn default() -> Self {
        let mut bytes = [0; Self::SIZE];
        bytes[0..2].copy_from_slice(&0x37F_u16.to_le_bytes());
        bytes[24..28].copy_from_slice(&0x1F80_u32.to_le_bytes());
        bytes[28..32].copy_from_slice(&0xFFFF_u32.to_le_bytes());
        Self::new(&bytes)
    }
}

impl std::fmt::Debug for Fpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = |at: usize| u16::from_le_bytes([self.bytes()[at], self.bytes()[at + 1]]);
        f.debug_struct("Fpu")
            .field("fcw", &word(0))
            .field("fsw", &word(2))
            .field("mxcsr", &word(24))
            .finish_non_exhaustive()
    }
}
