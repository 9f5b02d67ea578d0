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
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::insn::Insn;
use crate::xlat::{Haste, Translator};

mod library;

pub(crate) use library::Library;

/// Instructions of a block at most.
pub(crate) const MAX_INSNS: usize = 64;
/// A count that no budget covers.
const DEAD: u32 = u32::MAX;

/// A run of decoded instructions. They follow it in memory, beginning on the next cache line.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Block {
    /// How many instructions there are, or [`DEAD`].
    count: Cell<u32>,
    /// How many there are.
    len: u16,
    /// Offset of its first byte in its page.
    start: u16,
    /// Bytes in its page.
    bytes: u16,
    /// Bytes in another page.
    more: u8,
    /// The run loop has to look around after it: its last instruction may change what interrupts do, or the mode.
    pub(crate) sync: bool,
    /// Blocks of the same page that follow: after a jump, and in line.
    links: [Cell<Link>; 2],
    /// Its name in the map.
    key: u64,
    /// Guest-physical address of the other page's part.
    other: u64,
    /// Its translations: the first one's number and one.
    pub(crate) translation: Cell<u32>,
    /// How often it was interpreted, as far as that matters to translation.
    heat: Cell<u8>,
    /// Its accesses are probed for one by one.
    pub(crate) alone: Cell<bool>,
    /// It is of a [`Library`]: nothing of it changes any more.
    frozen: Cell<bool>,
    /// Blocks that were made before it.
    number: u32,
}

/// A block that has followed another one.
#[derive(Debug, Clone, Copy)]
struct Link {
    block: Option<BlockRef>,
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

    /// Its parts in memory: guest-physical address and length; the second is empty for all that do not cross a page.
    fn parts(&self) -> [(u64, u64); 2] {
        [(self.key & ADDRESS, u64::from(self.bytes)), (self.other, u64::from(self.more))]
    }

    /// Its one instruction lies in two pages.
    pub(crate) fn crosses(&self) -> bool {
        self.more > 0
    }

    /// Its second page begins at this guest-physical address.
    pub(crate) fn continues_at(&self, gpa: u64) -> bool {
        self.other == gpa
    }

    /// Guest-physical address and length of its part in the first page.
    pub(crate) fn place(&self) -> (u64, usize) {
        (self.key & ADDRESS, usize::from(self.bytes))
    }

    /// Any of its bytes is in this stretch of memory.
    pub(crate) fn touches(&self, gpa: u64, len: usize) -> bool {
        self.parts().iter().any(|&(at, size)| at < gpa + len as u64 && gpa < at + size)
    }

    /// It is of a [`Library`], of a borrowed page.
    pub(crate) fn is_borrowed(&self) -> bool {
        self.frozen.get()
    }

    /// Slot for what follows this many bytes after its begin.
    #[inline(always)]
    fn slot(&self, ahead: u64) -> &Cell<Link> {
        &self.links[usize::from(ahead == u64::from(self.bytes))]
    }

    /// The block this many bytes ahead of its begin, if it is known, which only one in the same page can be: there no
    /// change of translations comes between the two.
    #[inline(always)]
    pub(crate) fn next(&self, ahead: u64) -> Option<BlockRef> {
        let block = self.slot(ahead).get().block?;
        let offset = u64::from(self.start).wrapping_add(ahead);
        (u64::from(block.header().start) == offset).then_some(block)
    }

    /// Remembers what followed.
    pub(crate) fn set_next(&self, ahead: u64, block: BlockRef) {
        let offset = u64::from(self.start).wrapping_add(ahead);
        let same = (self.key ^ block.header().key) & !0xFFF == 0 && offset == u64::from(block.header().start);
        let own = !self.is_borrowed() && !block.header().is_borrowed();
        if same && own && !self.crosses() && !block.header().crosses() {
            self.slot(ahead).set(Link { block: Some(block) });
        }
    }
}

/// A block as it is held: good until [`Blocks::clear`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockRef(NonNull<Block>);

impl BlockRef {
    /// The block without its instructions.
    #[inline(always)]
    pub(crate) fn header<'a>(self) -> &'a Block {
        // SAFETY: `Blocks::clear` frees blocks, and its contract is that nobody holds one then.
        unsafe { self.0.as_ref() }
    }

    /// The first instruction; the others follow.
    #[inline(always)]
    pub(crate) fn first(self) -> *const Insn {
        // SAFETY: the instructions begin right after the header, in the same allocation.
        unsafe { self.0.as_ptr().add(1).cast() }
    }

    /// The instructions.
    pub(crate) fn insns<'a>(self) -> &'a [Insn] {
        // SAFETY: as in `header`; that many were written behind it.
        unsafe { std::slice::from_raw_parts(self.first(), usize::from(self.header().len)) }
    }
}

/// Memory for blocks, given out in order and freed all at once.
#[derive(Debug, Default)]
struct Arena {
    chunks: Vec<NonNull<[Line; CHUNK]>>,
    /// Lines given out of the last chunk.
    used: usize,
}

/// A cache line.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "it is space")] [u64; 8]);

/// Lines of a chunk: 256 KiB.
const CHUNK: usize = 4096;
/// Chunks before everything is dropped: 40 MiB.
const MAX_CHUNKS: usize = 160;

impl Arena {
    /// Space for a block of that many instructions.
    fn allocate(&mut self, insns: usize) -> NonNull<Block> {
        let lines = 1 + (insns * size_of::<Insn>()).div_ceil(size_of::<Line>());
        assert!(lines <= CHUNK, "a block has at most {MAX_INSNS} instructions");
        let chunk = match self.chunks.last() {
            Some(&chunk) if self.used + lines <= CHUNK => chunk,
            _ => {
                let chunk = NonNull::from(Box::leak(Box::<[Line; CHUNK]>::new_uninit())).cast();
                self.chunks.push(chunk);
                self.used = 0;
                chunk
            }
        };
        // SAFETY: `used` is within the chunk.
        let at = unsafe { chunk.cast::<Line>().add(self.used) };
        self.used += lines;
        at.cast()
    }

    fn clear(&mut self) {
        for chunk in self.chunks.drain(..) {
            // SAFETY: leaked by `allocate`, freed only here.
            drop(unsafe { Box::from_raw(chunk.as_ptr().cast::<MaybeUninit<[Line; CHUNK]>>()) });
        }
        self.used = 0;
    }
}

/// Multiplies; the keys are addresses.
#[derive(Debug, Default)]
pub(crate) struct AddressHasher(u64);

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

pub(crate) type Map<T> = HashMap<u64, T, BuildHasherDefault<AddressHasher>>;
type Set = HashSet<u64, BuildHasherDefault<AddressHasher>>;

/// A page that blocks were made of.
#[derive(Debug, Default)]
struct Page {
    /// The 64-byte lines that hold any of their bytes.
    lines: u64,
    blocks: Vec<BlockRef>,
    /// The library's blocks of this page are in use, too.
    borrowed: bool,
}

/// All decoded code of a partition.
#[derive(Debug, Default)]
pub struct Blocks {
    map: Map<BlockRef>,
    pages: Map<Page>,
    /// Every block since the last [`Blocks::clear`], dropped ones too: the owner.
    arena: Arena,
    /// Counts [`Blocks::clear`]: jump caches filled before point nowhere.
    pub(crate) generation: u64,
    /// Counts pages that became code: store tags given before may be to code.
    pub(crate) epoch: u64,
    /// Translates them, where that is wanted.
    pub(crate) translator: Option<Box<Translator>>,
    /// What an earlier partition has left.
    library: Option<Arc<Library>>,
    /// Pages that hold something else here than there, or have translations of their own.
    refused: Set,
    /// [`Block::heat`] of the library's blocks, here.
    heats: Vec<u8>,
    /// Blocks made since the last [`Blocks::clear`].
    made: u32,
}

// SAFETY: the blocks behind the pointers are owned by this and reached only through it or by the vCPU that holds it.
unsafe impl Send for Blocks {}

impl Drop for Blocks {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Address bits of a key.
const ADDRESS: u64 = (1 << 48) - 1;

/// What a block is known by: where it is, how wide code is there, and whether it is a single instruction.
pub(crate) fn key(gpa: u64, bits: u32, single: bool) -> u64 {
    gpa | u64::from(bits) << 48 | u64::from(single) << 60
}

impl Blocks {
    /// The block of this key.
    pub(crate) fn find(&self, key: u64) -> Option<BlockRef> {
        self.map.get(&key).copied().or_else(|| {
            let library = self.library.as_ref()?;
            self.pages.get(&((key & ADDRESS) >> 12)).filter(|page| page.borrowed)?;
            library.find(key)
        })
    }

    /// Takes a new one in: at most [`MAX_INSNS`], from `bytes` bytes at the key's address and, if it crosses, `more` at
    /// the begin of another page. `true` with it: a page became code.
    pub(crate) fn insert(
        &mut self,
        key: u64,
        insns: &[Insn],
        sync: bool,
        bytes: u16,
        (other, more): (u64, u8),
    ) -> (BlockRef, bool) {
        let nowhere = || Cell::new(Link { block: None });
        let header = Block {
            count: Cell::new(insns.len() as u32),
            len: insns.len() as u16,
            start: (key & 0xFFF) as u16,
            bytes,
            more,
            sync,
            links: [nowhere(), nowhere()],
            key,
            other,
            translation: Cell::new(0),
            heat: Cell::new(0),
            alone: Cell::new(false),
            frozen: Cell::new(false),
            number: self.made,
        };
        self.made += 1;
        let parts = header.parts();
        let block = BlockRef(self.arena.allocate(insns.len()));
        // SAFETY: that much space was allocated, and nobody else knows it yet.
        unsafe {
            block.0.as_ptr().write(header);
            let first = block.0.as_ptr().add(1).cast::<Insn>();
            first.copy_from_nonoverlapping(insns.as_ptr(), insns.len());
        }
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

    /// Has blocks translated from now on, if the host gives memory for that.
    pub fn translate(&mut self, haste: Haste) {
        match Translator::new(haste) {
            Ok(translator) => self.translator = Some(Box::new(translator)),
            Err(error) => {
                tracing::warn!(%error, "no memory for translated code: the interpreter does it all")
            }
        }
    }

    /// Fences are logged from now on, or no longer.
    pub(crate) fn set_watching(&mut self, on: bool) {
        if let Some(translator) = &mut self.translator
            && translator.watching != on
        {
            translator.watching = on;
            self.clear();
        }
    }

    /// No further block fits before [`Blocks::clear`].
    pub(crate) fn is_full(&self) -> bool {
        self.arena.chunks.len() >= MAX_CHUNKS || self.translator.as_ref().is_some_and(|code| code.is_full())
    }

    /// Drops and frees everything. No block may be running, and every jump cache has to be emptied before its next use.
    pub(crate) fn clear(&mut self) {
        self.map.clear();
        self.pages.clear();
        self.arena.clear();
        if let Some(translator) = &mut self.translator {
            translator.clear();
        }
        self.refused.clear();
        self.heats.fill(0);
        self.made = 0;
        self.generation += 1;
    }

    /// Notes that a block is interpreted, and gives how often it has been before.
    pub(crate) fn warm(&mut self, block: BlockRef) -> u8 {
        let header = block.header();
        if !header.is_borrowed() {
            return header.heat.replace(header.heat.get().saturating_add(1));
        }
        let Some(heat) = self.heats.get_mut(header.number as usize) else { return 0 };
        std::mem::replace(heat, heat.saturating_add(1))
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
        if page.borrowed && self.library.as_ref().is_some_and(|library| library.touches(gpa, len)) {
            self.give_back(gpa);
        }
        let Some(page) = self.pages.get_mut(&(gpa >> 12)) else { return };
        let mut dropped = Vec::new();
        page.blocks.retain(|&block| {
            let hit = block.header().touches(gpa, len);
            if hit {
                dropped.push(block);
            }
            !hit
        });
        for block in dropped {
            let dead = block.header();
            dead.count.set(DEAD);
            if let Some(translator) = &mut self.translator {
                translator.drop_block(block);
            }
            self.map.remove(&dead.key);
            for (at, _) in dead.parts().into_iter().filter(|&(_, len)| len > 0) {
                self.forget(at >> 12, block);
            }
        }
    }

    /// Takes a dropped block off a page.
    fn forget(&mut self, number: u64, block: BlockRef) {
        let Some(page) = self.pages.get_mut(&number) else { return };
        page.blocks.retain(|&other| other != block);
        self.count_lines(number);
    }

    /// A page's lines, when blocks have gone.
    fn count_lines(&mut self, number: u64) {
        let Some(page) = self.pages.get_mut(&number) else { return };
        if page.blocks.is_empty() && !page.borrowed {
            self.pages.remove(&number);
            return;
        }
        let library = self.library.as_ref().filter(|_| page.borrowed);
        page.lines = library.map_or(0, |library| library.lines(number));
        for block in &page.blocks {
            for (at, len) in
                block.header().parts().into_iter().filter(|&(at, len)| len > 0 && at >> 12 == number)
            {
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

    fn block(blocks: &mut Blocks, gpa: u64, bytes: u16) -> BlockRef {
        blocks.insert(key(gpa, 64, false), &[], false, bytes, (0, 0)).0
    }

    #[test]
    fn a_header_is_a_cache_line() {
        assert_eq!(size_of::<Block>(), 64);
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
        let a = block(&mut blocks, 0x1000, 16).header();
        let b = block(&mut blocks, 0x1010, 16).header();
        blocks.changed(0x100F, 1);
        assert!(a.is_dead() && !b.is_dead());
        assert!(blocks.find(key(0x1000, 64, false)).is_none());
        assert!(blocks.covers(0x1000));
        blocks.changed(0x1018, 4);
        assert!(b.is_dead() && !blocks.covers(0x1000));
    }

    #[test]
    fn a_block_across_pages_notices_both() {
        let mut blocks = Blocks::default();
        let (block, fresh) = blocks.insert(key(0x1FFE, 64, false), &[], false, 2, (0x5000, 3));
        assert!(fresh && blocks.covers(0x1000) && blocks.covers(0x5000));
        blocks.changed(0x5002, 1);
        assert!(block.header().is_dead());
        assert!(!blocks.covers(0x1000) && !blocks.covers(0x5000));
    }

    #[test]
    fn links_stay_within_a_page() {
        let mut blocks = Blocks::default();
        let a = block(&mut blocks, 0x1000, 16);
        let b = block(&mut blocks, 0x1010, 16);
        let c = block(&mut blocks, 0x2000, 16);
        a.header().set_next(16, b);
        a.header().set_next(0x1000, c);
        assert_eq!(a.header().next(16), Some(b));
        assert_eq!(a.header().next(0x1000), None);
        assert_eq!(a.header().next(8), None);
        b.header().set_next(16_u64.wrapping_neg(), a);
        assert_eq!(b.header().next(16_u64.wrapping_neg()), Some(a));
    }
}
