//! The translator: guest x86-64 to host x86-64, block by block.
//!
//! Guest code runs as host code of the same kind. Its registers are in host registers, its flags are the host's flags, and
//! its memory operands go by the translation cache of [`crate::mmu`], probed inline. What is not worth a translation of
//! its own, and every access that the cache does not know, is done by the interpreter's function for that instruction,
//! from within translated code: so the two agree on everything by construction, and any instruction works.
//!
//! A translation belongs to one decoded [`crate::block`] at one linear address and privilege. It counts as many
//! instructions as the block, so budgets end where they end under the interpreter; the last few, which the budget covers
//! only in part, are the interpreter's. When the block is dropped, because its code has changed, the translation's first
//! bytes become a way out: jumps that lead there need not be known.

pub(crate) mod arena;
mod arith;
mod bmi;
mod body;
mod data;
pub(crate) mod emit;
mod flags;
mod flow;
mod groups;
mod memory;
mod registers;
mod run;
mod runs;
mod stress;
mod strings;
mod system;
mod thunk;
mod vector;
mod watched;
mod wide;
mod x87;

use engine::cpuid::CpuModel;

use std::collections::HashMap;
use std::sync::Arc;

use crate::block::{BlockRef, Library};
use arena::Arena;
use body::{Code, Setting, Source, translate};
use thunk::{Site, Thunks};
use watched::Noted;

pub use stress::Haste;
pub(crate) use stress::Stress;

/// Times that a block is interpreted before it is translated.
const WARM: u8 = 6;
/// Times that a group of accesses may be in two pages, or otherwise not of the translation cache.
const MISFITS: u8 = 8;
/// Bytes of code: several kernels' worth of boots.
const CODE: usize = 64 << 20;
/// A block of [`crate::block::MAX_INSNS`] instructions needs no more than this.
const ROOM: usize = 64 << 10;

/// A translated block.
#[derive(Debug)]
pub(crate) struct Translation {
    block: BlockRef,
    /// Instruction pointer of its first instruction.
    rip: u64,
    user: bool,
    /// The interpreter's word is final on where its last instruction goes.
    leaves: bool,
    /// Where it leads on to what follows it, code goes on.
    falls: bool,
    /// Where its instructions begin in [`Translator::parts`].
    parts: u32,
    /// Times that a group of accesses did not fit.
    misfits: u8,
    /// Another one has come in its place.
    replaced: bool,
    /// Address of the code.
    entry: u64,
    exits: [Exit; body::MAX_EXITS],
    /// Another translation of the same block, its number and one.
    next: u32,
}

/// An instruction of a translation.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// Bytes from its block's begin.
    offset: u16,
    /// What it does, if it can log that itself.
    noted: Option<Noted>,
}

/// A way on within the page.
#[derive(Debug, Clone, Copy, Default)]
struct Exit {
    /// Instruction pointer.
    target: u64,
    /// Address of the displacement of the jump there.
    patch: u64,
}

/// Translated code of a partition.
#[derive(Debug)]
pub(crate) struct Translator {
    arena: Arena,
    thunks: Thunks,
    /// End of the thunks in the arena.
    begin: usize,
    /// What an earlier partition has left, and how many translations.
    base: Option<(Arc<Library>, usize)>,
    /// Its own, with the numbers behind those.
    translations: Vec<Translation>,
    /// Their instructions.
    parts: Vec<Part>,
    /// Fences are logged, so instructions that imply one are not translated.
    pub(crate) watching: bool,
    bmi2: bool,
    /// Times that a block is interpreted first.
    warm: u8,
    /// What is made hard for it.
    pub(crate) stress: Option<Stress>,
}

impl Translator {
    /// Empty.
    pub(crate) fn new(haste: Haste) -> std::io::Result<Self> {
        let mut arena = Arena::new(CODE)?;
        let (code, thunks) = thunk::write(arena.next(), run::execute, run::execute_rest);
        arena.add(&code);
        let begin = arena.used();
        let bmi2 = std::arch::is_x86_feature_detected!("bmi2");
        let (warm, stress) = match haste {
            Haste::Warm => (WARM, None),
            Haste::AtOnce => (0, None),
            Haste::Stressed(seed) => (0, Some(Stress::new(seed))),
        };
        Ok(Self {
            arena,
            thunks,
            begin,
            base: None,
            translations: Vec::new(),
            parts: Vec::new(),
            watching: false,
            bmi2,
            warm,
            stress,
        })
    }

    /// Takes the translations of a library, which are borrowed with their blocks. There are none of its own yet.
    pub(crate) fn build_on(&mut self, library: Arc<Library>) {
        let count = library.translator().map_or(0, |translator| translator.translations.len());
        self.base = Some((library, count));
    }

    /// Ends the making of translations. Jumps within a page lead on where there is something to lead to.
    pub(crate) fn seal(&mut self) {
        self.stress = None;
        let place = |translation: &Translation| {
            (translation.block.header().place().0 >> 12, translation.rip, translation.user)
        };
        let alive =
            |translation: &&Translation| !translation.block.header().is_dead() && !translation.replaced;
        let live = self.translations.iter().filter(alive);
        let entries: HashMap<_, _> =
            live.map(|translation| (place(translation), translation.entry)).collect();
        for translation in self.translations.iter().filter(alive) {
            let (page, _, user) = place(translation);
            for exit in translation.exits.iter().filter(|exit| exit.patch != 0) {
                if let Some(&entry) = entries.get(&(page, exit.target, user)) {
                    self.arena.patch(exit.patch, entry.wrapping_sub(exit.patch + 4) as i32);
                }
            }
        }
        self.arena.seal();
    }

    /// How many of the translations are a library's.
    fn borrowed(&self) -> usize {
        self.base.as_ref().map_or(0, |&(_, count)| count)
    }

    /// Whose translation this is, and which of them.
    fn owner(&self, number: usize) -> (&Self, usize) {
        match &self.base {
            Some((library, count)) if number < *count => (library.translator().unwrap_or(self), number),
            _ => (self, number - self.borrowed()),
        }
    }

    fn at(&self, number: usize) -> &Translation {
        let (owner, n) = self.owner(number);
        &owner.translations[n]
    }

    /// Instruction `n` of a translation.
    fn part(&self, number: usize, n: usize) -> Part {
        let (owner, number) = self.owner(number);
        owner.parts[owner.translations[number].parts as usize + n]
    }

    /// No further translation fits before [`Translator::clear`].
    pub(crate) fn is_full(&self) -> bool {
        self.arena.room() < ROOM || self.borrowed() + self.translations.len() >= Site::MAX
    }

    /// Forgets everything but the thunks.
    pub(crate) fn clear(&mut self) {
        self.translations.clear();
        self.parts.clear();
        self.arena.shorten(self.begin);
    }

    /// The translation of a block here, if there is one. The list begins at `first`, a number and one.
    fn find(&self, mut first: u32, rip: u64, user: bool) -> Option<usize> {
        while first != 0 {
            let number = first as usize - 1;
            let translation = self.at(number);
            if translation.rip == rip && translation.user == user && !translation.replaced {
                return Some(number);
            }
            first = translation.next;
        }
        None
    }

    /// Makes one. The bytes are those of the block's instructions.
    fn make(&mut self, block: BlockRef, bytes: &[u8], rip: u64, (user, model): (bool, CpuModel)) -> usize {
        let number = self.borrowed() + self.translations.len();
        let header = block.header();
        let source = Source { insns: block.insns(), bytes, rip, sync: header.sync, user };
        let bmi2 = self.bmi2 && !self.happens(2);
        let stress = self.stress.as_mut().map(Stress::fork);
        let alone = header.alone.get();
        let setting = Setting { thunks: self.thunks, watching: self.watching, bmi2, alone, model, stress };
        let entry = self.arena.next();
        let code = translate(&source, entry, number, setting);
        self.arena.add(&code.bytes);
        let mut exits = [Exit::default(); body::MAX_EXITS];
        for (exit, &(offset, target)) in exits.iter_mut().zip(&code.exits) {
            *exit = Exit { target, patch: entry + offset as u64 };
        }
        let next = header.translation.replace(number as u32 + 1);
        let parts = self.parts.len() as u32;
        let mut offset = 0;
        for (insn, &noted) in block.insns().iter().zip(&code.noted) {
            self.parts.push(Part { offset, noted });
            offset += u16::from(insn.len);
        }
        let Code { leaves, falls, .. } = code;
        self.translations.push(Translation {
            block,
            rip,
            user,
            leaves,
            falls,
            parts,
            misfits: 0,
            replaced: false,
            entry,
            exits,
            next,
        });
        number
    }

    /// Under stress, once in so many times.
    pub(crate) fn happens(&mut self, once_in: u64) -> bool {
        self.stress.as_mut().is_some_and(|stress| stress.happens(once_in))
    }

    /// A block was dropped: nobody may run its translations any more.
    pub(crate) fn drop_block(&mut self, block: BlockRef) {
        let mut first = block.header().translation.get();
        while first != 0 {
            let number = first as usize - 1;
            first = self.at(number).next;
            self.close(number);
        }
    }

    /// Makes the begin of a translation a way out.
    fn close(&mut self, number: usize) {
        let entry = self.at(number).entry;
        let mut code = emit::Asm::new(entry);
        code.constant(emit::RCX, Site::new(number, 0).0.into());
        code.go(0xE9, self.thunks.dead);
        self.arena.replace(entry, code.bytes());
    }

    /// A group of a translation's accesses has not fit: after some times its block is to be translated without groups.
    fn misfit(&mut self, number: usize) {
        let Some(own) = number.checked_sub(self.borrowed()) else { return };
        let found = &mut self.translations[own];
        found.misfits = found.misfits.saturating_add(1);
        if found.misfits < MISFITS || found.replaced {
            return;
        }
        found.replaced = true;
        found.block.header().alone.set(true);
        self.close(number);
    }

    /// Lets a jump go to a translation.
    fn link(&mut self, patch: u64, to: usize) {
        let distance = self.at(to).entry.wrapping_sub(patch + 4);
        self.arena.patch(patch, distance as i32);
    }

    /// Lets whoever jumps to a dead translation go to its successor.
    fn forward(&mut self, dead: usize, to: usize) {
        let entry = self.at(dead).entry;
        let mut code = emit::Asm::new(entry);
        code.go(0xE9, self.at(to).entry);
        self.arena.replace(entry, code.bytes());
    }
}

#[cfg(test)]
mod host_tests;
#[cfg(test)]
mod tests;
