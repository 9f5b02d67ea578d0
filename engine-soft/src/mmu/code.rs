//! Where code is: translations of instruction fetches, each kept until the guest has it forgotten.
//!
//! Interpreter and translator look code up at different moments. Were these translations evicted as data's are, an accessed bit
//! that the guest has cleared without an INVLPG would be set again at different moments, too. So a walk for code comes with
//! the first fetch from a page since the last flush, and with no other, whoever executes.

use super::property::{GLOBAL, SHIFT};
use crate::block::Map;

/// Pages kept; a guest that fetches from more without a flush has all of them forgotten.
const LIMIT: usize = 1 << 16;
/// Linear page numbers have no such bit.
const USER: u64 = 1 << 63;

/// See above.
#[derive(Debug, Default)]
pub(crate) struct CodePages {
    /// By linear page number and level: physical page and [`super::property`] bits.
    known: Map<u64>,
    /// Those that are not global.
    local: Vec<u64>,
    /// A part of a large page is among them.
    large: bool,
}

fn key(va: u64, user: bool) -> u64 {
    va >> 12 | if user { USER } else { 0 }
}

impl CodePages {
    /// Physical page and properties of an address whose code has been fetched.
    pub(crate) fn find(&self, va: u64, user: bool) -> Option<u64> {
        self.known.get(&key(va, user)).copied()
    }

    /// The translation of this address survives a load of CR3.
    pub(crate) fn is_global(&self, va: u64, user: bool) -> bool {
        self.find(va, user).is_some_and(|page| page & GLOBAL != 0)
    }

    /// Keeps a translation. `false`: all others were forgotten.
    pub(crate) fn keep(&mut self, va: u64, user: bool, page: u64) -> bool {
        let has_room = self.known.len() < LIMIT && self.local.len() < 2 * LIMIT;
        if !has_room {
            self.flush();
        }
        self.known.insert(key(va, user), page);
        if page & GLOBAL == 0 {
            self.local.push(key(va, user));
        }
        self.large |= page & SHIFT != 12;
        has_room
    }

    pub(crate) fn flush(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn flush_local(&mut self) {
        for key in self.local.drain(..) {
            self.known.remove(&key);
        }
    }

    /// Forgets the page around a linear address, whatever its size. What is in the list of local ones stays there.
    pub(crate) fn flush_page(&mut self, va: u64) {
        for user in [false, true] {
            self.known.remove(&key(va, user));
        }
        if self.large {
            let around = |key: u64, page: u64| {
                let shift = (page & SHIFT).saturating_sub(12);
                (key & !USER) >> shift == va >> 12 >> shift
            };
            self.known.retain(|&key, &mut page| !around(key, page));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VA: u64 = 0xFFFF_8000_0020_0000;

    #[test]
    fn translations_stay_until_they_are_flushed() {
        let mut code = CodePages::default();
        assert!(code.keep(VA, false, 0x5000 | GLOBAL | 12));
        assert!(code.keep(VA, true, 0x6000 | 12));
        assert!(code.keep(VA + 0x20_0000, false, 0x40_0000 | 21));
        assert!(code.keep(VA + 0x20_1000, false, 0x40_1000 | 21));
        assert_eq!(code.find(VA + 5, false), Some(0x5000 | GLOBAL | 12));
        assert!(code.is_global(VA, false) && !code.is_global(VA, true));
        code.flush_page(VA + 0x3F_F000);
        assert_eq!(code.find(VA + 0x20_0000, false), None, "a part of the same large page");
        assert_eq!(code.find(VA + 0x20_1000, false), None);
        assert!(code.find(VA, false).is_some() && code.find(VA, true).is_some());
        code.flush_local();
        assert_eq!((code.find(VA, false).is_some(), code.find(VA, true)), (true, None));
        code.flush_page(VA);
        assert_eq!(code.find(VA, false), None);
    }

    #[test]
    fn too_many_are_forgotten() {
        let mut code = CodePages::default();
        assert!((0..LIMIT as u64).all(|n| code.keep(n << 12, false, 12)));
        assert!(!code.keep(VA, false, 12));
        assert_eq!((code.find(0, false), code.find(VA, false)), (None, Some(12)));
        // Flushed one by one, they leave no endless list behind.
        for _ in 0..3 * LIMIT {
            code.flush_page(VA);
            code.keep(VA, false, 12);
        }
        assert!(code.local.len() <= 2 * LIMIT);
    }
}
