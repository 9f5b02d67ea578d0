//! Decoded code, by guest-physical address, and how it notices that the code has changed.
//!
//! A block is a run of instructions that ends at the end of its page at the latest; an instruction across two pages is a
//! block of its own. Pages with blocks get no store tag in any translation cache, so every store to them comes to
//! [`Blocks::changed`], which drops the blocks whose bytes it touches. Dropped blocks keep their memory until
//! [`Blocks::clear`], because jump caches still point to them; a count that no budget covers makes them unusable.

#![expect(
    unsafe_code,
    reason = "blocks are shared by jump caches, which outlive their validity but not their memory"
)]

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ptr::NonNull;

use crate::insn::Insn;

/// Instructions of a block at most.
pub(crate) const MAX_INSNS: usize = 64;
/// Decoded instructions kept before everything is dropped: 40 MiB of them.
const CAPACITY: usize = 1 << 20;
/// A count that no budget covers.
const DEAD: u32 = u32::MAX;

/// A run of decoded instructions.
#[derive(Debug)]
pub(crate) struct Block {
    /// The instructions.
    pub(crate) insns: Box<[Insn]>,
    /// How many, or [`DEAD`].
    count: Cell<u32>,
    /// The run loop has to look around after it: its last instruction may change what interrupts do, or the mode.
    pub(crate) sync: bool,
    /// Its parts in memory: guest-physical address and length; the second is empty for all that do not cross a page.
    parts: [(u64, u64); 2],
    /// Its name in the map.
    key: u64,
}

impl Block {
    /// Instructions; more than any budget once the block is dropped.
    #[inline(always)]
    pub(crate) fn count(&self) -> u32 {
        self.count.get()
    }

    /// The code it was made of has changed.
    pub(crate) fn is_dead(&self) -> bool {
        self.count.get() == DEAD
    }

    /// Its one instruction lies in two pages.
    pub(crate) fn crosses(&self) -> bool {
        self.parts[1].1 > 0
    }

    /// Its second page begins at this guest-physical address.
    pub(crate) fn continues_at(&self, gpa: u64) -> bool {
        self.parts[1].0 == gpa
    }

    /// Any of its bytes is in this stretch of memory.
    pub(crate) fn touches(&self, gpa: u64, len: usize) -> bool {
        self.parts.iter().any(|&(at, size)| at < gpa + len as u64 && gpa < at + size)
    }
}

/// A block as jump caches hold it.
pub(crate) type BlockRef = NonNull<Block>;

/// Multiplies; the keys are addresses.
#[derive(Debug, Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, key: u64) {
        let mixed = (self.0 ^ key).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = mixed ^ mixed >> 32;
    }
}

type Map<T> = HashMap<u64, T, BuildHasherDefault<AddressHasher>>;

/// A page that blocks were made of.
#[derive(Debug, Default)]
struct Page {
    /// The 64-byte lines that hold any of their bytes.
    lines: u64,
    blocks: Vec<BlockRef>,
}

/// All decoded code of a partition.
#[derive(Debug, Default)]
pub struct Blocks {
    map: Map<BlockRef>,
    pages: Map<Page>,
    /// Every block since the last [`Blocks::clear`], dropped ones too: the owner.
    all: Vec<BlockRef>,
    /// Instructions in them.
    insns: usize,
    /// Counts [`Blocks::clear`]: jump caches filled before point nowhere.
    pub(crate) generation: u64,
    /// Counts pages that became code: store tags given before may be to code.
    pub(crate) epoch: u64,
}

// SAFETY: the blocks behind the pointers are owned by this and reached only through it or by the vCPU that holds it.
unsafe impl Send for Blocks {}

impl Drop for Blocks {
    fn drop(&mut self) {
        self.clear();
    }
}

/// What a block is known by: where it is, how wide code is there, and whether it is a single instruction.
pub(crate) fn key(gpa: u64, bits: u32, single: bool) -> u64 {
    gpa | u64::from(bits) << 48 | u64::from(single) << 60
}

impl Blocks {
    /// The block of this key.
    pub(crate) fn find(&self, key: u64) -> Option<BlockRef> {
        self.map.get(&key).copied()
    }

    /// Takes a new one in. `true` with it: a page became code.
    pub(crate) fn insert(
        &mut self,
        key: u64,
        insns: Box<[Insn]>,
        sync: bool,
        parts: [(u64, u64); 2],
    ) -> (BlockRef, bool) {
        self.insns += insns.len();
        let count = Cell::new(insns.len() as u32);
        let block = Box::new(Block { insns, count, sync, parts, key });
        let block = NonNull::from(Box::leak(block));
        self.all.push(block);
        self.map.insert(key, block);
        let mut fresh = false;
        for (at, len) in parts.into_iter().filter(|&(_, len)| len > 0) {
            let page = self.pages.entry(at >> 12).or_insert_with(|| {
                fresh = true;
                Page::default()
            });
            page.lines |= lines(at, len);
            page.blocks.push(block);
        }
        self.epoch += u64::from(fresh);
        (block, fresh)
    }

    /// No further block fits before [`Blocks::clear`].
    pub(crate) fn is_full(&self) -> bool {
        self.insns >= CAPACITY
    }

    /// Drops and frees everything. No block may be running, and every jump cache has to be emptied before its next use.
    pub(crate) fn clear(&mut self) {
        self.map.clear();
        self.pages.clear();
        self.insns = 0;
        self.generation += 1;
        for block in self.all.drain(..) {
            // SAFETY: leaked by `insert`, freed only here, and by the contract nobody looks at it again.
            drop(unsafe { Box::from_raw(block.as_ptr()) });
        }
    }

    /// The page at this address holds code.
    #[inline]
    pub(crate) fn covers(&self, gpa: u64) -> bool {
        self.pages.contains_key(&(gpa >> 12))
    }

    /// Bytes within a page have changed.
    pub(crate) fn changed(&mut self, gpa: u64, len: usize) {
        let Some(page) = self.pages.get_mut(&(gpa >> 12)) else { return };
        if len == 0 || page.lines & lines(gpa, len as u64) == 0 {
            return;
        }
        let mut dropped = Vec::new();
        page.blocks.retain(|&block| {
            // SAFETY: blocks live until `clear`.
            let live = unsafe { block.as_ref() };
            let hit = live.touches(gpa, len);
            if hit {
                dropped.push(block);
            }
            !hit
        });
        for block in dropped {
            // SAFETY: blocks live until `clear`.
            let dead = unsafe { block.as_ref() };
            dead.count.set(DEAD);
            self.map.remove(&dead.key);
            for (at, _) in dead.parts.into_iter().filter(|&(_, len)| len > 0) {
                self.forget(at >> 12, block);
            }
        }
    }

    /// Takes a dropped block off a page.
    fn forget(&mut self, number: u64, block: BlockRef) {
        let Some(page) = self.pages.get_mut(&number) else { return };
        page.blocks.retain(|&other| other != block);
        if page.blocks.is_empty() {
            self.pages.remove(&number);
            return;
        }
        page.lines = 0;
        for block in &page.blocks {
            // SAFETY: blocks live until `clear`.
            let block = unsafe { block.as_ref() };
            for (at, len) in block.parts.into_iter().filter(|&(at, len)| len > 0 && at >> 12 == number) {
                page.lines |= lines(at, len);
            }
        }
    }
}

/// The 64-byte lines of its page that a stretch touches.
fn lines(gpa: u64, len: u64) -> u64 {
    let first = (gpa & 0xFFF) >> 6;
    let last = ((gpa & 0xFFF) + len.max(1) - 1).min(0xFFF) >> 6;
    !0 << first & !0 >> (63 - last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(blocks: &mut Blocks, gpa: u64, len: u64) -> BlockRef {
        blocks.insert(key(gpa, 64, false), Box::new([]), false, [(gpa, len), (0, 0)]).0
    }

    #[test]
    fn lines_of_a_stretch() {
        assert_eq!(lines(0x1000, 1), 1);
        assert_eq!(lines(0x103F, 2), 3);
        assert_eq!(lines(0x1FFF, 1), 1 << 63);
        assert_eq!(lines(0x1000, 4096), !0);
    }

    #[test]
    fn only_touched_blocks_are_dropped() {
        let mut blocks = Blocks::default();
        let a = block(&mut blocks, 0x1000, 16);
        let b = block(&mut blocks, 0x1010, 16);
        blocks.changed(0x100F, 1);
        // SAFETY: not cleared yet.
        let (a, b) = unsafe { (a.as_ref(), b.as_ref()) };
        assert!(a.is_dead() && !b.is_dead());
        assert!(blocks.find(key(0x1000, 64, false)).is_none());
        assert!(blocks.covers(0x1000));
        blocks.changed(0x1018, 4);
        assert!(b.is_dead() && !blocks.covers(0x1000));
    }

    #[test]
    fn a_block_across_pages_notices_both() {
        let mut blocks = Blocks::default();
        let parts = [(0x1FFE, 2), (0x5000, 3)];
        let (block, fresh) = blocks.insert(key(0x1FFE, 64, false), Box::new([]), false, parts);
        assert!(fresh && blocks.covers(0x1000) && blocks.covers(0x5000));
        blocks.changed(0x5002, 1);
        // SAFETY: not cleared yet.
        assert!(unsafe { block.as_ref() }.is_dead());
        assert!(!blocks.covers(0x1000) && !blocks.covers(0x5000));
    }
}
