//! The translation cache: direct-mapped, one half for supervisor and one for user accesses.
//!
//! An entry has a tag for loads and one for stores, and a page that must be looked at at every access (a hole, watched,
//! code under a store, clean under its first store) simply has no tag. So the one comparison of the fast path covers
//! presence, permission, dirtiness, watching and page crossing, and memory that nobody looks at pays for nothing.

/// Entries of a half.
const HALF: usize = 4096;

/// Never equals an address with its low twelve bits cleared.
const NONE: u64 = 1;

/// What is known of a page.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct Entry {
    /// Linear page that may be loaded from, or [`NONE`].
    pub(crate) read: u64,
    /// Linear page that may be stored to, or [`NONE`].
    pub(crate) write: u64,
    /// Host address minus linear address.
    pub(crate) addend: u64,
    /// Physical page, and in its low bits the properties below.
    pub(crate) page: u64,
}

impl Entry {
    /// Instructions may be fetched.
    pub(crate) const EXECUTE: u64 = 1 << 6;
    /// Survives a load of CR3.
    pub(crate) const GLOBAL: u64 = 1 << 7;
    /// Stores are allowed and the page is dirty, whether or not there is a tag for them.
    pub(crate) const WRITE: u64 = 1 << 8;
    /// Binary logarithm of the size of the page that this is a part of.
    pub(crate) const SHIFT: u64 = 63;
    const EMPTY: Self = Self { read: NONE, write: NONE, addend: 0, page: 12 };

    /// Linear page of a cached translation.
    fn linear(&self) -> Option<u64> {
        [self.read, self.write].into_iter().find(|&tag| tag != NONE)
    }
}

/// The cache.
#[derive(Debug)]
pub struct Tlb {
    /// The half in use, and the other one.
    entries: Box<[Entry; HALF]>,
    other: Box<[Entry; HALF]>,
    /// The half in use is that of user accesses.
    user: bool,
    /// Nothing is cached while every access has to be looked at (alignment checks, data breakpoints).
    closed: bool,
    /// Entries filled since the last flush whose translation is not global; those for user accesses are counted from
    /// [`HALF`].
    local: Vec<u16>,
    /// An entry of a large page has been filled since the last full flush.
    large: bool,
}

impl Tlb {
    pub(crate) fn new() -> Self {
        let half = || {
            let entries = vec![Entry::EMPTY; HALF].into_boxed_slice();
            entries.try_into().unwrap_or_else(|_| unreachable!("it has that length"))
        };
        Self { entries: half(), other: half(), user: false, closed: false, local: Vec::new(), large: false }
    }

    /// Chooses the half, and whether anything is cached at all.
    pub(crate) fn set_mode(&mut self, user: bool, closed: bool) {
        self.enter_level(user);
        if closed && !self.closed {
            self.flush();
        }
        self.closed = closed;
    }

    /// Implicit accesses have supervisor rights. Gives what [`Tlb::leave_supervisor`] wants.
    pub(crate) fn enter_supervisor(&mut self) -> bool {
        self.enter_level(false)
    }

    /// As [`Tlb::enter_supervisor`], for either half.
    pub(crate) fn enter_level(&mut self, user: bool) -> bool {
        let before = self.user;
        if before != user {
            std::mem::swap(&mut self.entries, &mut self.other);
            self.user = user;
        }
        before
    }

    pub(crate) fn leave_supervisor(&mut self, user: bool) {
        self.enter_level(user);
    }

    pub(crate) fn is_user(&self) -> bool {
        self.user
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// The place for a linear address.
    #[inline(always)]
    pub(crate) fn entry(&self, va: u64) -> &Entry {
        &self.entries[Self::index(va)]
    }

    #[inline(always)]
    fn index(va: u64) -> usize {
        (va >> 12) as usize & (HALF - 1)
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.entries.iter_mut().chain(self.other.iter_mut())
    }

    /// The cached translation of this address survives a load of CR3.
    pub(crate) fn is_global(&self, va: u64) -> bool {
        let entry = self.entry(va);
        entry.read == va & !0xFFF && entry.page & Entry::GLOBAL != 0
    }

    /// Gives a cached translation its store tag back: its page holds no code any more.
    pub(crate) fn unprotect(&mut self, va: u64) {
        self.entries[Self::index(va)].write = va & !0xFFF;
    }

    pub(crate) fn fill(&mut self, va: u64, entry: Entry) {
        if self.closed {
            return;
        }
        let index = Self::index(va);
        if entry.page & Entry::GLOBAL == 0 {
            if self.local.len() >= 4 * HALF {
                self.flush_local();
            }
            self.local.push((index | if self.user { HALF } else { 0 }) as u16);
        }
        self.large |= entry.page & Entry::SHIFT != 12;
        self.entries[index] = entry;
    }

    /// Forgets everything.
    pub(crate) fn flush(&mut self) {
        self.entries.fill(Entry::EMPTY);
        self.other.fill(Entry::EMPTY);
        self.local.clear();
        self.large = false;
    }

    /// Forgets what is not global.
    pub(crate) fn flush_local(&mut self) {
        for index in self.local.drain(..).map(usize::from) {
            let half = if (index & HALF != 0) == self.user { &mut self.entries } else { &mut self.other };
            half[index & (HALF - 1)] = Entry::EMPTY;
        }
    }

    /// Forgets the page around a linear address, whatever its size.
    pub(crate) fn flush_page(&mut self, va: u64) {
        for half in [&mut self.entries, &mut self.other] {
            let entry = &mut half[Self::index(va)];
            if entry.linear() == Some(va & !0xFFF) {
                *entry = Entry::EMPTY;
            }
        }
        if self.large {
            for entry in self.all() {
                let shift = entry.page & Entry::SHIFT;
                if shift != 12 && entry.linear().is_some_and(|linear| linear >> shift == va >> shift) {
                    *entry = Entry::EMPTY;
                }
            }
        }
    }

    /// Makes every store to a physical page be looked at.
    pub(crate) fn protect(&mut self, gpa: u64) {
        for entry in self.all() {
            if (entry.page ^ gpa) >> 12 == 0 {
                entry.write = NONE;
            }
        }
    }

    /// Makes every store be looked at once.
    pub(crate) fn protect_all(&mut self) {
        for entry in self.all() {
            entry.write = NONE;
        }
    }

    /// No tag.
    pub(crate) const NO_TAG: u64 = NONE;
}
