//! Names of images: equal images have equal names, and changing a line changes the name without looking at the others.
//!
//! A name is a sum, in four lanes: the hash of each line's content less that of its content at the start. The image at the
//! start has the sum over nothing.

use serde::{Deserialize, Serialize};

use super::LINE_BYTES;

/// The name of an image, relative to the image at the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ImageName([u64; 4]);

/// A line's part in the name of an image.
#[derive(Debug, Clone, Copy)]
pub(super) struct LineName([u64; 4]);

impl LineName {
    /// The part of a line at an address.
    pub fn new(address: u64, content: &[u8; LINE_BYTES]) -> Self {
        let mut message = [0; 8 + LINE_BYTES];
        message[..8].copy_from_slice(&address.to_le_bytes());
        message[8..].copy_from_slice(content);
        let hash = blake3::hash(&message);
        Self(std::array::from_fn(|lane| crate::le::u64_at(hash.as_bytes(), 8 * lane)))
    }
}

impl ImageName {
    /// A line's content becomes another.
    pub fn change(&mut self, address: u64, old: &[u8; LINE_BYTES], new: &[u8; LINE_BYTES]) {
        self.exchange(LineName::new(address, old), LineName::new(address, new));
    }

    /// One line's part for another's.
    pub(super) fn exchange(&mut self, old: LineName, new: LineName) {
        for (lane, (old, new)) in self.0.iter_mut().zip(old.0.into_iter().zip(new.0)) {
            *lane = lane.wrapping_sub(old).wrapping_add(new);
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
