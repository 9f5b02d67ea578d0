//! Names of images: equal images have equal names, and changing a line changes the name without looking at the others.
//!
//! A name is a sum, in four lanes: the hash of each line's content less that of its content at the start. The image at the
//! start has the sum over nothing.

use serde::{Deserialize, Serialize};

use super::LINE_BYTES;

/// The name of an image, relative to the image at the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ImageName([u64; 4]);

impl ImageName {
    /// A line's content becomes another.
    pub fn change(&mut self, address: u64, old: &[u8; LINE_BYTES], new: &[u8; LINE_BYTES]) {
        self.combine(address, old, u64::wrapping_sub);
        self.combine(address, new, u64::wrapping_add);
    }

    fn combine(&mut self, address: u64, content: &[u8; LINE_BYTES], how: fn(u64, u64) -> u64) {
        let mut message = [0; 8 + LINE_BYTES];
        message[..8].copy_from_slice(&address.to_le_bytes());
        message[8..].copy_from_slice(content);
        let hash = blake3::hash(&message);
        for (lane, part) in self.0.iter_mut().zip(hash.as_bytes().chunks_exact(8)) {
            *lane = how(*lane, crate::le::u64_at(part, 0));
        }
    }
}

impl std::fmt::Display for ImageName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|lane| write!(f, "{lane:016x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_image_counts_and_not_the_way_to_it() {
        let base = [0; LINE_BYTES];
        let (one, two) = ([1; LINE_BYTES], [2; LINE_BYTES]);
        let mut direct = ImageName::default();
        direct.change(64, &base, &two);
        let mut around = ImageName::default();
        around.change(128, &base, &one);
        around.change(64, &base, &one);
        around.change(64, &one, &two);
        assert_ne!(around, direct);
        around.change(128, &one, &base);
        assert_eq!(around, direct);
        let mut elsewhere = ImageName::default();
        elsewhere.change(128, &base, &two);
        assert_ne!(elsewhere, direct);
        assert_eq!(direct.to_string().len(), 64);
    }
}
