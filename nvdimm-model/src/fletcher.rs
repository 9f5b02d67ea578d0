//! The checksum of labels, info blocks and interleave-set cookies: a Fletcher sum over little-endian 32-bit words
//! (UEFI, NVDIMM label protocol).

/// The sum over `bytes`; a tail shorter than a word counts as if padded with zeroes.
pub fn fletcher64(bytes: &[u8]) -> u64 {
    let (mut lo, mut hi) = (0u32, 0u32);
    for word in bytes.chunks(4) {
        let mut raw = [0; 4];
        raw[..word.len()].copy_from_slice(word);
        lo = lo.wrapping_add(u32::from_le_bytes(raw));
        hi = hi.wrapping_add(lo);
    }
    u64::from(hi) << 32 | u64::from(lo)
}

/// The sum over `bytes` as if the eight bytes at `at`, where the sum itself is kept, were zero.
pub fn fletcher64_skipping(bytes: &[u8], at: usize) -> u64 {
    let mut copy = bytes.to_vec();
    copy[at..at + 8].fill(0);
    fletcher64(&copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_worked_out_by_hand() {
        assert_eq!(fletcher64(&[]), 0);
        assert_eq!(fletcher64(&[1, 0, 0, 0]), 0x1_0000_0001);
        // lo: 1, 3, 6; hi: 1, 4, 10.
        assert_eq!(fletcher64(&[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]), 10 << 32 | 6);
        // lo wraps: ffff_ffff, then 1; hi: ffff_ffff, then 0.
        assert_eq!(fletcher64(&[0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0]), 1);
    }

    #[test]
    fn the_sums_own_place_does_not_count() {
        let mut bytes = vec![7; 32];
        let sum = fletcher64_skipping(&bytes, 16);
        bytes[16..24].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(fletcher64_skipping(&bytes, 16), sum);
    }
}
