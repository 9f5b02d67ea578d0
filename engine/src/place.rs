//! Places: where memory events come from, known again by all that their call chain was found by.
//!
//! A call chain is a function of the instruction pointer, of the registers that its finder used and of the words of memory
//! that it read. While those are what they were, it is the same chain: an engine compares them at each event and asks
//! ([`crate::ExitKind::UnknownPlace`]) where it knows none that fits.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// RSP, as [`Trail::registers`] numbers it.
const RSP: u8 = 4;
/// Heads of lists, by a hash of instruction and stack pointer.
const HEADS: usize = 1 << 10;
/// As many places are known, and as many in a list; then the oldest is forgotten.
const PLACES: usize = 1 << 14;
const LIST: usize = 16;
/// The number of no place.
const NONE: u32 = u32::MAX;
/// Instructions whose last place is at hand.
const RECENT: usize = 1 << 8;
/// Places learnt last whose words are looked at for the same.
const LATELY: usize = 16;
/// Trails that depend on more than this are not kept.
const WORDS: usize = 512;

/// The answer to [`crate::ExitKind::UnknownPlace`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// What [`crate::event::Event::place`] of its events will be; 0 for nothing.
    pub number: u32,
    /// What it is known again by; `None` if it is only the place of the one instruction that was asked about.
    pub trail: Option<Trail>,
}

/// All that a call chain was found by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trail {
    /// The instruction pointer.
    pub rip: u64,
    /// General registers, as they are numbered in [`crate::state::Registers::gpr`], and their values.
    pub registers: Vec<(u8, u64)>,
    /// What was read.
    pub words: Vec<Word>,
}

/// At most eight bytes of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    /// Linear address.
    pub address: u64,
    /// Bytes, 1 to 8.
    pub len: u8,
    /// The bytes, little-endian; `None` where some of them were not mapped.
    pub value: Option<u64>,
}

/// The places that an engine has been told of.
#[derive(Debug, Default)]
pub struct Places {
    /// A ring, once it is full.
    known: Vec<Known>,
    next: usize,
    /// Lists of them, the newest last; empty before the first.
    heads: Vec<Vec<u32>>,
    /// The place where an instruction was last vouched for, or [`NONE`], by a hash of its address.
    recent: Vec<Cell<u32>>,
}

#[derive(Debug)]
struct Known {
    number: u32,
    /// As in its [`Trail`].
    rip: u64,
    registers: Vec<(u8, u64)>,
    /// Shared with its neighbours: what a loop's chains were found by is the same.
    words: Arc<Words>,
}

impl Known {
    /// The list that it is in.
    fn list(&self) -> usize {
        let stack = self.registers.iter().find(|(n, _)| *n == RSP);
        head(self.rip, stack.map(|&(_, value)| value))
    }

    fn is_at(&self, rip: u64, gpr: &[u64]) -> bool {
        self.rip == rip && self.registers.iter().all(|&(n, value)| gpr.get(usize::from(n)) == Some(&value))
    }
}

/// Words of memory, and when they were last what they were; see [`Places::vouch`].
#[derive(Debug)]
struct Words {
    words: Vec<Word>,
    vouched: AtomicU64,
}

impl Words {
    #[inline]
    fn are_vouched(&self, now: u64) -> bool {
        now != 0 && self.vouched.load(Relaxed) == now
    }

    fn hold(&self, look: &mut impl FnMut(u64, usize) -> Option<u64>) -> bool {
        self.words.iter().all(|word| look(word.address, usize::from(word.len)) == word.value)
    }
}

/// A place that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    id: u32,
    /// See [`Place::number`].
    pub number: u32,
}

impl Places {
    /// Takes note of a place.
    pub fn learn(&mut self, place: Place) {
        let Some(trail) = place.trail.filter(|trail| trail.words.len() <= WORDS) else { return };
        if self.heads.is_empty() {
            self.heads = vec![Vec::new(); HEADS];
            self.recent = vec![Cell::new(NONE); RECENT];
        }
        let id = self.next as u32;
        self.next = (self.next + 1) % PLACES;
        let Trail { rip, registers, words } = trail;
        let known = Known { number: place.number, rip, registers, words: self.shared(words) };
        let list = known.list();
        match self.known.get_mut(id as usize) {
            None => self.known.push(known),
            Some(oldest) => {
                self.heads[oldest.list()].retain(|&other| other != id);
                *oldest = known;
            }
        }
        let list = &mut self.heads[list];
        if list.len() >= LIST {
            let oldest = list.remove(0);
            self.recent.iter().filter(|recent| recent.get() == oldest).for_each(|recent| recent.set(NONE));
        }
        list.push(id);
    }

    /// Such words, of one of the places that were learnt last where that has the same.
    fn shared(&self, words: Vec<Word>) -> Arc<Words> {
        let lately = (1..=LATELY).filter_map(|n| self.known.get((self.next + PLACES - n) % PLACES));
        let same = lately.map(|known| &known.words).find(|known| known.words == words);
        same.cloned().unwrap_or_else(|| Arc::new(Words { words, vouched: AtomicU64::new(0) }))
    }

    /// The place where an instruction is: with these general registers before it, and memory as `look` gives so many bytes,
    /// 1 to 8, at a linear address (`None` where it is not mapped).
    ///
    /// `now` is a number that is another as soon as memory may have changed; 0 where nobody knows. See [`Places::vouch`].
    pub fn find(
        &self,
        rip: u64,
        gpr: &[u64],
        now: u64,
        mut look: impl FnMut(u64, usize) -> Option<u64>,
    ) -> Option<Found> {
        let mut is_here = |id: u32| {
            self.known.get(id as usize).is_some_and(|known| {
                known.is_at(rip, gpr) && (known.words.are_vouched(now) || known.words.hold(&mut look))
            })
        };
        // Nearly always it is where it last was.
        let last = self.recent.get(recent(rip)).map(Cell::get).filter(|&id| is_here(id));
        let stack = gpr.get(usize::from(RSP)).copied();
        // What a chain without callers is found by does not depend on the stack.
        let lists = [head(rip, stack), head(rip, None)].map(|head| self.heads.get(head));
        let mut ids = lists.into_iter().flatten().flat_map(|list| list.iter().rev()).copied();
        let id = last.or_else(|| ids.find(|&id| is_here(id)))?;
        self.known.get(id as usize).map(|known| Found { id, number: known.number })
    }

    /// The place that was found is known to hold until `now` is another number: its words need not be looked at again.
    pub fn vouch(&self, found: Found, now: u64) {
        if let Some(known) = self.known.get(found.id as usize) {
            known.words.vouched.store(now, Relaxed);
            if let Some(recent) = self.recent.get(recent(known.rip)) {
                recent.set(found.id);
            }
        }
    }

    /// The place where an instruction was last vouched for, if it is there again and that still holds.
    #[inline]
    #[must_use]
    pub fn recall(&self, rip: u64, gpr: &[u64], now: u64) -> Option<Found> {
        let id = self.recent.get(recent(rip))?.get();
        let known = self.known.get(id as usize)?;
        (known.words.are_vouched(now) && known.is_at(rip, gpr)).then_some(Found { id, number: known.number })
    }

    /// The place that was found is known by no other registers than these.
    #[must_use]
    pub fn is_told_by(&self, found: Found, registers: &[u8]) -> bool {
        self.known
            .get(found.id as usize)
            .is_some_and(|known| known.registers.iter().all(|(n, _)| registers.contains(n)))
    }
}

/// The slot of an instruction in [`Places::recent`].
#[inline]
fn recent(rip: u64) -> usize {
    (rip ^ rip >> 8) as usize % RECENT
}

/// The list of those with this instruction pointer and, if it matters, stack pointer.
fn head(rip: u64, stack: Option<u64>) -> usize {
    let mixed = rip.wrapping_add(stack.unwrap_or(0).rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 54) as usize % HEADS
}

#[cfg(test)]
mod tests {
    use super::*;

    const STACK: u64 = 0x1000;

    fn place(number: u32, caller: u64) -> Place {
        let words = vec![
            Word { address: STACK + 8, len: 8, value: Some(caller) },
            Word { address: STACK + 16, len: 8, value: None },
        ];
        Place { number, trail: Some(Trail { rip: 5, registers: vec![(4, STACK), (5, 7)], words }) }
    }

    fn find(places: &Places, rip: u64, (stack, bp): (u64, u64), caller: u64) -> Option<u32> {
        let mut gpr = [0; 16];
        (gpr[4], gpr[5]) = (stack, bp);
        let found = places.find(rip, &gpr, 0, |at, len| (at == STACK + 8 && len == 8).then_some(caller));
        found.map(|found| found.number)
    }

    #[test]
    fn a_place_is_known_by_its_instruction_its_registers_and_its_words() {
        let mut places = Places::default();
        assert_eq!(find(&places, 5, (STACK, 7), 1), None);
        places.learn(place(1, 100));
        // The same function called from elsewhere, with the same stack pointer.
        places.learn(place(2, 105));
        assert_eq!(find(&places, 5, (STACK, 7), 100), Some(1));
        assert_eq!(find(&places, 5, (STACK, 7), 105), Some(2));
        assert_eq!(find(&places, 5, (STACK, 7), 110), None);
        assert_eq!(find(&places, 6, (STACK, 7), 100), None);
        assert_eq!(find(&places, 5, (STACK + 8, 7), 100), None);
        assert_eq!(find(&places, 5, (STACK, 8), 100), None);
        // A word that is mapped now was not then.
        let mut gpr = [0; 16];
        (gpr[4], gpr[5]) = (STACK, 7);
        assert_eq!(places.find(5, &gpr, 0, |_, _| Some(100)), None);
    }

    #[test]
    fn a_place_that_is_vouched_for_is_not_looked_at() {
        let mut places = Places::default();
        places.learn(place(1, 100));
        let mut gpr = [0; 16];
        (gpr[4], gpr[5]) = (STACK, 7);
        let look = |at, _| (at == STACK + 8).then_some(100);
        let found = places.find(5, &gpr, 3, look).unwrap();
        assert_eq!(places.recall(5, &gpr, 3), None);
        places.vouch(found, 3);
        assert_eq!(places.recall(5, &gpr, 3), Some(found));
        assert!(places.is_told_by(found, &[5, 4]) && !places.is_told_by(found, &[4]));
        assert_eq!(places.find(5, &gpr, 3, |_, _| panic!("looked")), Some(found));
        // Memory may have changed, nobody knows, another register, another instruction, another place.
        assert_eq!(places.recall(5, &gpr, 4), None);
        assert_eq!(places.find(5, &gpr, 4, |_, _| None), None);
        places.vouch(found, 0);
        assert_eq!(places.recall(5, &gpr, 0), None);
        places.vouch(found, 5);
        assert_eq!(places.recall(6, &gpr, 5), None);
        gpr[5] = 8;
        assert_eq!(places.recall(5, &gpr, 5), None);
        for n in 0..PLACES as u64 {
            places.learn(place(9, n));
        }
        gpr[5] = 7;
        assert_eq!(places.recall(5, &gpr, 5), None);
    }

    #[test]
    fn places_found_by_the_same_words_are_vouched_for_together() {
        let mut places = Places::default();
        for (rip, value) in [(5, 100), (6, 100), (7, 101)] {
            let words = vec![Word { address: STACK, len: 8, value: Some(value) }];
            let trail = Trail { rip, registers: Vec::new(), words };
            places.learn(Place { number: rip as u32, trail: Some(trail) });
        }
        let found = places.find(5, &[0; 16], 3, |_, _| Some(100)).unwrap();
        places.vouch(found, 3);
        let find = |rip, now| places.find(rip, &[0; 16], now, |_, _| None).map(|found| found.number);
        assert_eq!([find(5, 3), find(6, 3), find(7, 3), find(6, 4)], [Some(5), Some(6), None, None]);
    }

    #[test]
    fn a_place_without_callers_does_not_depend_on_the_stack() {
        let mut places = Places::default();
        let trail = Trail { rip: 5, registers: Vec::new(), words: Vec::new() };
        places.learn(Place { number: 3, trail: Some(trail) });
        assert_eq!(find(&places, 5, (1, 2), 3), Some(3));
        assert_eq!(find(&places, 5, (4, 5), 6), Some(3));
    }

    #[test]
    fn what_holds_for_one_instruction_is_not_kept_and_too_many_are_forgotten() {
        let mut places = Places::default();
        places.learn(Place { number: 1, trail: None });
        assert_eq!(find(&places, 5, (STACK, 7), 100), None);
        for n in 0..=LIST as u64 {
            places.learn(place(n as u32 + 1, n));
        }
        assert_eq!(find(&places, 5, (STACK, 7), 0), None, "the oldest");
        assert_eq!(find(&places, 5, (STACK, 7), 1), Some(2));
        assert_eq!(find(&places, 5, (STACK, 7), LIST as u64), Some(LIST as u32 + 1));
        let gpr: Vec<u64> = (0..16).map(|n| if n == 4 { STACK } else { 7 }).collect();
        let second = places.find(5, &gpr, 3, |at, _| (at == STACK + 8).then_some(1)).unwrap();
        places.vouch(second, 3);
        assert_eq!(places.recall(5, &gpr, 3), Some(second));
        places.learn(place(99, 99));
        assert_eq!(places.recall(5, &gpr, 3), None, "forgotten since");
        let mut long = place(1, 0);
        long.trail.iter_mut().for_each(|trail| trail.words = vec![trail.words[0]; WORDS + 1]);
        let mut places = Places::default();
        places.learn(long);
        assert_eq!(find(&places, 5, (STACK, 7), 0), None);
    }
}
