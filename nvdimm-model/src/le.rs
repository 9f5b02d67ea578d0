//! Little-endian fields of fixed layouts. Callers hold slices whose length they have checked against the layout.

macro_rules! field {
    ($get:ident, $put:ident, $int:ty) => {
        pub(crate) fn $get(bytes: &[u8], at: usize) -> $int {
            const N: usize = size_of::<$int>();
            let mut raw = [0; N];
            raw.copy_from_slice(&bytes[at..at + N]);
            <$int>::from_le_bytes(raw)
        }

        pub(crate) fn $put(bytes: &mut [u8], at: usize, value: $int) {
            bytes[at..at + size_of::<$int>()].copy_from_slice(&value.to_le_bytes());
        }
    };
}

field!(u16_at, put_u16, u16);
field!(u32_at, put_u32, u32);
field!(u64_at, put_u64, u64);

/// Sixteen raw bytes, as UUIDs stand in labels and info blocks.
pub(crate) fn raw16_at(bytes: &[u8], at: usize) -> [u8; 16] {
    let mut raw = [0; 16];
    raw.copy_from_slice(&bytes[at..at + 16]);
    raw
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}
