//! The translation cache: direct-mapped, one half for supervisor and one for user accesses.
//!
//! An entry has a tag for loads and one for stores, and a page that must be looked at at every access (a hole, watched,
//! code under a store, clean under its first store) simply has no tag. So the one comparison of the fast path covers
//! presence, permission, dirtiness, watching and page crossing, and memory that nobody looks at pays for nothing.
//!
//! A tag is the linear page's address, negated: added to the address of an access's last byte it leaves less than a page.
//! The tables are in the [`crate::frame`], where translated code probes them too.

use crate::frame::{FrameBox, Half, SLOTS};

/// What is known of a page, in the low bits of [`Half::page`].
pub(crate) mod property {
    /// Binary logarithm of the size of the page that this is a part of.
    pub(crate) const SHIFT: u64 = 63;
    /// Instructions may be fetched.
    pub(crate) const EXECUTE: u64 = 1 << 6;
    /// Survives a load of CR3.
    pub(crate) const GLOBAL: u64 = 1 << 7;
    /// Stores are allowed and the page is dirty, whether or not there is a tag for them.
    pub(crate) const WRITE: u64 = 1 << 8;
    /// The slot is in the list of all that were filled.
    pub(super) const LISTED: u64 = 1 << 9;
    /// The slot is in the list of those to be looked at when CR3 is loaded.
    pub(super) const LISTED_LOCAL: u64 = 1 << 10;
}

/// A translation to be cached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    /// Loads may go on at once.
    pub(crate) read: bool,
    /// Stores may.
    pub(crate) write: bool,
    /// Host address minus linear address.
    pub(crate) addend: u64,
    /// Physical page, and its [`property`] bits.
    pub(crate) page: u64,
}

/// The cache.
#[derive(Debug)]
pub struct Tlb {
    pub(crate) frame: FrameBox,
    /// The half in use is that of user accesses.
    user: bool,
    /// Nothing is cached while every access has to be looked at (alignment checks, data breakpoints).
    closed: bool,
    /// Slots filled since the last flush, user ones counted from [`SLOTS`].
    filled: Vec<u32>,
    /// Those among them whose translation was not global.
    local: Vec<u32>,
    /// An entry of a large page has been filled since the last full flush.
    large: bool,
    /// Entries of the jump cache, user ones counted from [`SLOTS`], and those among them that are not global.
    jumps: Vec<u32>,
    local_jumps: Vec<u32>,
}

/// A tag that no instruction pointer of slot 0 has; in the others 0 is none.
const NO_JUMP: u64 = 1;

/// A tag that matches no access that comes to this slot. For all but two it is zero: what that matches begins in the
/// first page or the last.
#[inline(always)]
const fn no_tag(slot: usize) -> u64 {
    if slot == 0 || slot == SLOTS - 1 { 0_u64.wrapping_sub(0x2000) } else { 0 }
}

#[inline(always)]
fn slot(va: u64) -> usize {
    usize::from((va >> 12) as u16)
}

/// The tag of an address's page.
#[inline(always)]
fn tag(va: u64) -> u64 {
    (va & !0xFFF).wrapping_neg()
}

/// Empties a slot, which stays listed.
fn clear(half: &mut Half, slot: usize, keep: u64) {
    half.read[slot] = no_tag(slot);
    half.write[slot] = no_tag(slot);
    half.page[slot] &= keep;
}

/// Linear page of a cached translation.
fn linear(half: &Half, slot: usize) -> Option<u64> {
    [half.read[slot], half.write[slot]].into_iter().find(|&tag| tag != no_tag(slot)).map(u64::wrapping_neg)
}

impl Tlb {
    pub(crate) fn new() -> Self {
        let mut frame = FrameBox::new();
        for half in &mut frame.halves {
            for slot in [0, SLOTS - 1] {
                clear(half, slot, 0);
            }
        }
        for jumps in &mut frame.jumps {
            jumps.tag[0] = NO_JUMP;
        }
        let (filled, local, jumps, local_jumps) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { frame, user: false, closed: false, filled, local, large: false, jumps, local_jumps }
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
        std::mem::replace(&mut self.user, user)
    }

    pub(crate) fn leave_supervisor(&mut self, user: bool) {
        self.user = user;
    }

    pub(crate) fn is_user(&self) -> bool {
        self.user
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    #[inline(always)]
    fn half(&self) -> &Half {
        &self.frame.halves[usize::from(self.user)]
    }

    #[inline(always)]
    fn half_mut(&mut self) -> &mut Half {
        &mut self.frame.halves[usize::from(self.user)]
    }

    /// Host address of a load that may go on at once.
    #[inline(always)]
    pub(crate) fn load(&self, va: u64, size: u64) -> Option<u64> {
        let (half, slot) = (self.half(), slot(va));
        let ahead = half.read[slot].wrapping_add(va).wrapping_add(size - 1);
        (ahead >> 12 == 0).then(|| va.wrapping_add(half.addend[slot]))
    }

    /// Host address of a store that may go on at once.
    #[inline(always)]
    pub(crate) fn store(&self, va: u64, size: u64) -> Option<u64> {
        let (half, slot) = (self.half(), slot(va));
        let ahead = half.write[slot].wrapping_add(va).wrapping_add(size - 1);
        (ahead >> 12 == 0).then(|| va.wrapping_add(half.addend[slot]))
    }

    /// Physical page and properties of an address whose loads may go on.
    pub(crate) fn known(&self, va: u64) -> Option<u64> {
        let (half, slot) = (self.half(), slot(va));
        (half.read[slot] == tag(va) && half.page[slot] & property::SHIFT != 0).then(|| half.page[slot])
    }

    /// Host address minus linear address, of an address that is known.
    pub(crate) fn addend(&self, va: u64) -> u64 {
        self.half().addend[slot(va)]
    }

    /// Gives a cached translation its store tag back: its page holds no code any more.
    pub(crate) fn unprotect(&mut self, va: u64) {
        self.half_mut().write[slot(va)] = tag(va);
    }

    pub(crate) fn fill(&mut self, va: u64, entry: Entry) {
        if self.closed {
            return;
        }
        let slot = slot(va);
        let id = (slot + if self.user { SLOTS } else { 0 }) as u32;
        let listed = self.half().page[slot];
        let mut page = entry.page | listed & (property::LISTED | property::LISTED_LOCAL);
        if page & property::LISTED == 0 {
            page |= property::LISTED;
            self.filled.push(id);
        }
        if page & (property::GLOBAL | property::LISTED_LOCAL) == 0 {
            page |= property::LISTED_LOCAL;
            self.local.push(id);
        }
        self.large |= entry.page & property::SHIFT != 12;
        let half = self.half_mut();
        half.read[slot] = if entry.read { tag(va) } else { no_tag(slot) };
        half.write[slot] = if entry.write { tag(va) } else { no_tag(slot) };
        half.addend[slot] = entry.addend;
        half.page[slot] = page;
    }

    /// A listed slot.
    fn place(id: u32) -> (usize, usize) {
        (id as usize / SLOTS, id as usize % SLOTS)
    }

    /// Forgets everything.
    pub(crate) fn flush(&mut self) {
        for id in self.filled.drain(..) {
            let (half, slot) = Self::place(id);
            clear(&mut self.frame.halves[half], slot, 0);
        }
        self.local.clear();
        self.large = false;
    }

    /// Forgets what is not global.
    pub(crate) fn flush_local(&mut self) {
        for id in self.local.drain(..) {
            let (half, slot) = Self::place(id);
            let half = &mut self.frame.halves[half];
            if half.page[slot] & property::GLOBAL == 0 {
                clear(half, slot, property::LISTED);
            } else {
                half.page[slot] &= !property::LISTED_LOCAL;
            }
        }
    }

    /// Forgets the page around a linear address, whatever its size.
    pub(crate) fn flush_page(&mut self, va: u64) {
        const KEEP: u64 = property::LISTED | property::LISTED_LOCAL;
        let at = slot(va);
        for half in &mut self.frame.halves {
            if linear(half, at) == Some(va & !0xFFF) {
                clear(half, at, KEEP);
            }
        }
        if !self.large {
            return;
        }
        for &id in &self.filled {
            let (half, slot) = Self::place(id);
            let half = &mut self.frame.halves[half];
            let shift = half.page[slot] & property::SHIFT;
            if shift > 12 && linear(half, slot).is_some_and(|linear| linear >> shift == va >> shift) {
                clear(half, slot, KEEP);
            }
        }
    }

    /// Makes every store to a physical page be looked at.
    pub(crate) fn protect(&mut self, gpa: u64) {
        self.protect_if(|page| (page ^ gpa) >> 12 == 0);
    }

    /// Makes every store be looked at once.
    pub(crate) fn protect_all(&mut self) {
        self.protect_if(|_| true);
    }

    fn protect_if(&mut self, hit: impl Fn(u64) -> bool) {
        for &id in &self.filled {
            let (half, slot) = Self::place(id);
            let half = &mut self.frame.halves[half];
            if hit(half.page[slot]) {
                half.write[slot] = no_tag(slot);
            }
        }
    }

    /// Puts translated code into the jump cache.
    pub(crate) fn remember_jump(&mut self, rip: u64, code: u64, user: bool, global: bool) {
        let slot = usize::from(rip as u16);
        let id = (slot + if user { SLOTS } else { 0 }) as u32;
        if self.known_jump(rip, user) == Some(code) {
            return;
        }
        let jumps = &mut self.frame.jumps[usize::from(user)];
        jumps.tag[slot] = rip.wrapping_neg();
        jumps.code[slot] = code;
        self.jumps.push(id);
        if !global {
            self.local_jumps.push(id);
        }
        if self.jumps.len() > 4 * SLOTS {
            self.forget_jumps();
        }
    }

    /// Translated code at an instruction pointer, if the jump cache has it.
    pub(crate) fn known_jump(&self, rip: u64, user: bool) -> Option<u64> {
        let (jumps, slot) = (&self.frame.jumps[usize::from(user)], usize::from(rip as u16));
        (jumps.tag[slot] == rip.wrapping_neg()).then(|| jumps.code[slot])
    }

    fn forget_jump(frame: &mut FrameBox, id: u32) {
        let (half, slot) = Self::place(id);
        frame.jumps[half].tag[slot] = if slot == 0 { NO_JUMP } else { 0 };
    }

    /// Empties the jump cache.
    pub(crate) fn forget_jumps(&mut self) {
        for id in self.jumps.drain(..) {
            Self::forget_jump(&mut self.frame, id);
        }
        self.local_jumps.clear();
    }

    /// Empties it of what is not global.
    pub(crate) fn forget_local_jumps(&mut self) {
        for id in self.local_jumps.drain(..) {
            Self::forget_jump(&mut self.frame, id);
        }
    }
}
