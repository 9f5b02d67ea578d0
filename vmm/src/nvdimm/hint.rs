//! Flush-hint pages: a store of eight bytes anywhere in a DIMM's page asks for its write-pending queues to be flushed
//! (ACPI 6.5, ch. 5.2.25.8).

use serde::{Deserialize, Serialize};

use crate::layout;

/// The pages of all DIMMs, one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlushHints {
    /// Hints written, a DIMM each; `None` for one without a page.
    written: Vec<Option<u64>>,
}

impl FlushHints {
    /// Pages for DIMMs; `false` for one that has none.
    pub fn new(pages: impl IntoIterator<Item = bool>) -> Self {
        Self { written: pages.into_iter().map(|has| has.then_some(0)).collect() }
    }

    /// Whether the same DIMMs have pages.
    pub fn is_like(&self, other: &Self) -> bool {
        self.written.iter().map(Option::is_some).eq(other.written.iter().map(Option::is_some))
    }

    /// Hints written to a DIMM's page so far.
    pub fn count(&self, dimm: usize) -> u64 {
        self.written.get(dimm).copied().flatten().unwrap_or(0)
    }

    /// A load from the pages: hints cannot be read, so it gives zero.
    pub fn read(&self, _offset: u64, _size: u8) -> u64 {
        0
    }

    /// A store to the pages. Gives the DIMM that is to flush; narrower stores are no hints and do nothing.
    pub fn write(&mut self, offset: u64, size: u8) -> Option<usize> {
        let dimm = usize::try_from(offset / layout::FLUSH_HINT_STRIDE).ok()?;
        let count = self.written.get_mut(dimm)?.as_mut()?;
        (size == 8).then(|| *count += 1)?;
        Some(dimm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_stores_are_hints_for_their_dimm() {
        let mut hints = FlushHints::new([true, false, true]);
        assert_eq!(hints.write(0, 8), Some(0));
        assert_eq!(hints.write(0x2ff8, 8), Some(2));
        assert_eq!(hints.write(0x2000, 8), Some(2));
        assert_eq!(hints.write(0x1000, 8), None);
        assert_eq!(hints.write(0x2000, 4), None);
        assert_eq!(hints.write(0x3000, 8), None);
        assert_eq!(hints.write(u64::MAX, 8), None);
        assert_eq!([0, 1, 2, 3].map(|dimm| hints.count(dimm)), [1, 0, 2, 0]);
        assert_eq!(hints.read(0, 8), 0);
    }
}
