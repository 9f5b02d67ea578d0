//! Code that a partition leaves behind, for others with the same memory.
//!
//! A machine's decoded and translated code, as it was when the machine ended, read-only and shared by all that come after.
//! It knows what its pages held. A partition that comes to one of these pages compares, and borrows the whole page or
//! nothing: translations within a page jump to one another. It gives a page back for good when it changes it, or when it
//! wants to translate more of it than the library has. Then its jump caches are emptied, which are the only way in; code of
//! that page itself is not running at that moment, because stores to its own page are done alone.

use std::sync::Arc;

use engine::CodeStock;
use engine::cpuid::CpuModel;

use super::{BlockRef, Blocks, Link, Map, lines};
use crate::ram::{PAGE, Ram};

/// See above.
#[derive(Debug)]
pub(crate) struct Library {
    blocks: Blocks,
    /// What its pages held.
    pages: Map<Box<[u8; PAGE as usize]>>,
    model: CpuModel,
    /// Fences were logged.
    watching: bool,
}

// SAFETY: nothing of it changes after `Library::new`: blocks in it are frozen, and all that would write to one looks for
// that; its translator's code is sealed.
unsafe impl Sync for Library {}

impl Library {
    fn new(mut blocks: Blocks, ram: &Ram, model: CpuModel) -> Self {
        // The other page of those that cross might be another one next time.
        blocks.map.retain(|_, block| !block.header().crosses());
        for page in blocks.pages.values_mut() {
            page.blocks.retain(|block| !block.header().crosses());
        }
        for block in blocks.map.values() {
            let header = block.header();
            header.links.iter().for_each(|link| link.set(Link { block: None }));
            header.frozen.set(true);
        }
        let mut pages = Map::default();
        for (&number, page) in blocks.pages.iter().filter(|(_, page)| !page.blocks.is_empty()) {
            let mut held = Box::new([0; PAGE as usize]);
            if page.lines != 0 && ram.read(number << 12, &mut held[..]) {
                pages.insert(number, held);
            }
        }
        let watching = blocks.is_watching();
        if let Some(translator) = &mut blocks.translator {
            translator.seal();
        }
        Self { blocks, pages, model, watching }
    }

    pub(super) fn find(&self, key: u64) -> Option<BlockRef> {
        self.blocks.map.get(&key).copied()
    }

    /// The lines of a page that hold code.
    pub(super) fn lines(&self, number: u64) -> u64 {
        self.blocks.pages.get(&number).map_or(0, |page| page.lines)
    }

    /// Any of its code is in this stretch of a page.
    pub(super) fn touches(&self, gpa: u64, len: usize) -> bool {
        let page = self.blocks.pages.get(&(gpa >> 12));
        page.is_some_and(|page| {
            page.lines & lines(gpa, len as u64) != 0
                && page.blocks.iter().any(|block| block.header().touches(gpa, len))
        })
    }

    /// A page's code is what its blocks were made of.
    fn is_as_it_was(&self, number: u64, ram: &Ram) -> bool {
        let mut holds = [0; PAGE as usize];
        let lines = self.lines(number);
        let Some(held) = self.pages.get(&number) else { return false };
        ram.read(number << 12, &mut holds)
            && held
                .chunks(64)
                .zip(holds.chunks(64))
                .enumerate()
                .all(|(n, (a, b))| lines >> n & 1 == 0 || a == b)
    }

    /// Its translated code.
    pub(crate) fn translator(&self) -> Option<&crate::xlat::Translator> {
        self.blocks.translator.as_deref()
    }
}

impl Blocks {
    /// Begins with what is in stock, if it is for this CPU and kind of engine.
    pub(crate) fn take_from(&mut self, stock: &CodeStock, model: CpuModel) {
        let Some(library) = stock.get::<Library>() else { return };
        if library.model != model || library.translator().is_some() != self.translator.is_some() {
            return;
        }
        self.heats = vec![0; library.blocks.made as usize];
        if let Some(translator) = &mut self.translator {
            translator.build_on(Arc::clone(&library));
        }
        self.library = Some(library);
    }

    /// Leaves everything for others, if there is nothing yet.
    pub(crate) fn leave_to(self, stock: &CodeStock, ram: &Ram, model: CpuModel) {
        if self.library.is_none() && self.made > 0 {
            stock.put(|| Library::new(self, ram, model));
        }
    }

    fn is_watching(&self) -> bool {
        self.translator.as_ref().is_some_and(|translator| translator.watching)
    }

    /// Borrows the page at this address, if the library has it and it holds the same here. `true`: it became code.
    pub(crate) fn borrow(&mut self, gpa: u64, ram: &Ram) -> bool {
        let number = gpa >> 12;
        let Some(library) = &self.library else { return false };
        let wanted = library.watching == self.is_watching() && library.pages.contains_key(&number);
        if !wanted
            || self.refused.contains(&number)
            || self.pages.get(&number).is_some_and(|page| page.borrowed)
        {
            return false;
        }
        if !library.is_as_it_was(number, ram) {
            self.refused.insert(number);
            return false;
        }
        let page = self.pages.entry(number).or_default();
        page.lines |= library.lines(number);
        page.borrowed = true;
        self.epoch += 1;
        true
    }

    /// Borrows the page at this address no longer, nor again. Every jump cache has to be emptied before its next use.
    pub(crate) fn give_back(&mut self, gpa: u64) {
        let number = gpa >> 12;
        self.refused.insert(number);
        if let Some(page) = self.pages.get_mut(&number)
            && std::mem::take(&mut page.borrowed)
        {
            self.count_lines(number);
            self.generation += 1;
        }
    }

    /// The page at this address is borrowed.
    pub(crate) fn borrows(&self, gpa: u64) -> bool {
        self.pages.get(&(gpa >> 12)).is_some_and(|page| page.borrowed)
    }
}
