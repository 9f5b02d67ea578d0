//! Where a vCPU is in its instruction stream, and the blocks that it has been to.

#![expect(unsafe_code, reason = "blocks are held by pointer; see `block`")]

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};

use crate::block::BlockRef;
use crate::cpu::Cpu;
use crate::insn::RIP;

/// Entries of the jump cache.
const JUMPS: usize = 1 << 14;

/// Bits of [`Progress::mode`] that count how often the jump cache was forgotten since it was emptied, and their unit.
const EPOCHS: u64 = 0xFFF << 51;
const EPOCH: u64 = 1 << 51;

/// Nothing.
const NO_JUMP: Jump = Jump { tag: 0, block: None };

/// A place in the code and its block.
#[derive(Debug, Clone, Copy)]
struct Jump {
    /// Instruction pointer, its upper 16 bits, which are alike, mixed with 15 bits of mode and epoch.
    tag: u64,
    block: Option<BlockRef>,
}

/// Where a vCPU is in its instruction stream.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Instructions that may still be begun.
    pub(crate) remaining: u64,
    /// Those of them that translated code does not know of.
    pub(crate) withheld: u64,
    /// What `remaining` was at the begin of the run.
    pub(crate) budget: u64,
    /// Instructions at the end of the block being executed that the budget does not cover.
    pub(super) unpaid: u64,
    /// The block being executed.
    pub(crate) current: Option<BlockRef>,
    /// RIP at its begin.
    pub(crate) entry: u64,
    /// The instruction being executed is alone in its block, and the loop looks around after it.
    pub(crate) stepping: bool,
    /// An exception or interrupt is on its way to its handler.
    pub(crate) delivering: bool,
    /// Debug conditions that the current instruction has met: bits of DR6.
    pub(crate) debug: u64,
    /// The current instruction was a software interrupt, which takes its own single step along.
    pub(crate) interrupted: bool,
    /// Mixed into the tags of the jump cache: privilege and width of the code, and the epoch.
    mode: u64,
    /// Base of the code segment.
    pub(super) code_base: u64,
    jumps: Box<[Jump; JUMPS]>,
    /// Entries for pages that a load of CR3 unmaps.
    local: Vec<u16>,
    /// See [`crate::block::Blocks`].
    pub(crate) generation: u64,
    pub(super) epoch: u64,
}

// SAFETY: the blocks behind the pointers belong to `Blocks`, which travels with the vCPU that runs and is looked at by no
// other thread meanwhile.
unsafe impl Send for Progress {}

impl Default for Progress {
    fn default() -> Self {
        Self {
            remaining: 0,
            withheld: 0,
            budget: 0,
            unpaid: 0,
            current: None,
            entry: 0,
            stepping: false,
            delivering: false,
            debug: 0,
            interrupted: false,
            mode: 0,
            code_base: 0,
            jumps: empty(),
            local: Vec::new(),
            generation: 0,
            epoch: 0,
        }
    }
}

impl Progress {
    /// Blocks are chosen by privilege, width and base of the code.
    pub(crate) fn set_mode(&mut self, user: bool, bits: u32, code_base: u64) {
        let width = u64::from(bits.trailing_zeros() & 3);
        self.mode = self.mode & EPOCHS | (width << 1 | u64::from(user)) << 48;
        if self.code_base != code_base {
            self.code_base = code_base;
            self.forget();
        }
    }

    /// Empties the jump cache.
    pub(crate) fn forget(&mut self) {
        self.local.clear();
        self.mode = self.mode & !EPOCHS | (self.mode + EPOCH) & EPOCHS;
        if self.mode & EPOCHS == 0 {
            self.jumps.fill(NO_JUMP);
        }
    }

    /// Empties it of what is not global.
    pub(crate) fn forget_local(&mut self) {
        for index in self.local.drain(..) {
            self.jumps[usize::from(index)] = NO_JUMP;
        }
    }

    /// The live block that was last met at an instruction pointer.
    #[inline(always)]
    pub(super) fn known(&self, rip: u64) -> Option<BlockRef> {
        let jump = &self.jumps[index(rip)];
        let met = jump.tag == rip ^ self.mode;
        jump.block.filter(|block| met && !block.header().is_dead())
    }

    /// Remembers the block at an instruction pointer.
    pub(super) fn remember(&mut self, rip: u64, block: BlockRef, global: bool) {
        if !global {
            if self.local.len() >= JUMPS {
                self.forget();
            }
            self.local.push(index(rip) as u16);
        }
        self.jumps[index(rip)] = Jump { tag: rip ^ self.mode, block: Some(block) };
    }

    /// A stretch of memory holds the code that is being executed, or may hold borrowed code that it goes on to.
    pub(crate) fn is_running(&self, gpa: u64, len: usize) -> bool {
        self.current.is_some_and(|block| {
            let header = block.header();
            header.touches(gpa, len) || header.is_borrowed() && (header.place().0 ^ gpa) >> 12 == 0
        })
    }
}

/// A jump cache, which becomes resident as it is used.
fn empty() -> Box<[Jump; JUMPS]> {
    let layout = Layout::new::<[Jump; JUMPS]>();
    // SAFETY: of that many bytes, which are not none.
    let zeros = unsafe { alloc_zeroed(layout) }.cast::<[Jump; JUMPS]>();
    if zeros.is_null() {
        handle_alloc_error(layout);
    }
    // SAFETY: just allocated for it, and zeros are jumps to no block.
    unsafe { Box::from_raw(zeros) }
}

/// The entry for an instruction pointer.
#[inline(always)]
fn index(rip: u64) -> usize {
    (rip ^ rip >> 12) as usize & (JUMPS - 1)
}

impl Cpu {
    /// RIP of the current instruction, and the instructions retired before it.
    pub(crate) fn place(&self) -> (u64, u64) {
        let begun = self.shared.retired + self.progress.budget - self.progress.remaining;
        let unpaid = self.progress.unpaid;
        let next = self.gpr[usize::from(RIP)];
        let Some(block) = self.progress.current else { return (next, begun) };
        let insns = block.insns();
        let mut rip = self.progress.entry;
        for (n, insn) in insns.iter().enumerate() {
            let after = rip.wrapping_add(u64::from(insn.len));
            if after == next {
                return (rip, begun + unpaid - (insns.len() - n) as u64);
            }
            rip = after;
        }
        (self.progress.entry, begun + unpaid - insns.len() as u64)
    }
}
