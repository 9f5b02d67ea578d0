//! Lines of a DIMM that cannot be read: one truth for address range scrub, translation, loads and clearing.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::geometry::LINE;

/// Poisoned ranges of device addresses: whole lines, sorted, apart from each other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Poison {
    /// Start to end.
    ranges: BTreeMap<u64, u64>,
}

impl Poison {
    /// Ranges that a DIMM can remember.
    pub const MAX_RANGES: usize = 1024;

    /// Whether another range could be remembered.
    pub fn has_room(&self) -> bool {
        self.ranges.len() < Self::MAX_RANGES
    }

    /// Poisons every line that `range` touches.
    pub fn add(&mut self, range: Range<u64>) {
        let (mut start, mut end) = lines(&range);
        if start >= end {
            return;
        }
        let touching: Vec<u64> =
            self.ranges.range(..=end).rev().take_while(|&(_, &e)| e >= start).map(|(&s, _)| s).collect();
        for key in touching {
            if let Some(e) = self.ranges.remove(&key) {
                start = start.min(key);
                end = end.max(e);
            }
        }
        self.ranges.insert(start, end);
    }

    /// Heals every line that lies in `range` as a whole.
    pub fn clear(&mut self, range: Range<u64>) {
        let Some(start) = range.start.checked_next_multiple_of(LINE) else { return };
        let end = range.end & !(LINE - 1);
        if start >= end {
            return;
        }
        for Range { start: s, end: e } in self.overlapping(start..end) {
            self.ranges.remove(&s);
            if s < start {
                self.ranges.insert(s, start);
            }
            if end < e {
                self.ranges.insert(end, e);
            }
        }
    }

    /// The poisoned parts of `range`, cut to it, in order.
    pub fn within(&self, range: Range<u64>) -> Vec<Range<u64>> {
        self.overlapping(range.clone())
            .into_iter()
            .map(|r| r.start.max(range.start)..r.end.min(range.end))
            .collect()
    }

    /// Whether any byte of `range` is poisoned.
    pub fn touches(&self, range: Range<u64>) -> bool {
        !self.overlapping(range).is_empty()
    }

    /// Whether nothing is poisoned.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// All poisoned ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(&s, &e)| s..e)
    }

    fn overlapping(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut found: Vec<_> = self
            .ranges
            .range(..range.end)
            .rev()
            .take_while(|&(_, &e)| e > range.start)
            .map(|(&s, &e)| s..e)
            .collect();
        found.reverse();
        found
    }
}

fn lines(range: &Range<u64>) -> (u64, u64) {
    let start = range.start & !(LINE - 1);
    let end = range.end.checked_next_multiple_of(LINE).unwrap_or(!(LINE - 1));
    if range.start < range.end { (start, end) } else { (start, start) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_set_of_lines(steps in prop::collection::vec((any::<bool>(), 0u64..1024, 0u64..300), 0..40)) {
            let mut poison = Poison::default();
            let mut model = [false; 32];
            for (add, start, len) in steps {
                let range = start..start + len;
                for (n, line) in model.iter_mut().enumerate() {
                    let (s, e) = (n as u64 * LINE, (n as u64 + 1) * LINE);
                    if add && len > 0 && s < range.end && e > range.start {
                        *line = true;
                    }
                    if !add && range.start <= s && e <= range.end {
                        *line = false;
                    }
                }
                if add { poison.add(range) } else { poison.clear(range) }
            }
            for (n, line) in model.iter().enumerate() {
                prop_assert_eq!(poison.touches(n as u64 * LINE..n as u64 * LINE + 1), *line);
            }
            let all: Vec<_> = poison.iter().collect();
            prop_assert!(all.windows(2).all(|w| w[0].end < w[1].start));
        }
    }

    #[test]
    fn far_ends_of_the_address_space() {
        let mut poison = Poison::default();
        poison.add(u64::MAX - 1..u64::MAX);
        poison.clear(0..u64::MAX);
        poison.add(5..5);
        assert!(poison.within(0..u64::MAX).len() <= 1);
    }
}
