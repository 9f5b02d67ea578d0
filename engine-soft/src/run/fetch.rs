//! From an instruction pointer to the block there.

use engine::state::SystemRegisters;

use crate::block::{BlockRef, MAX_INSNS, key};
use crate::cpu::Cpu;
use crate::decode::{Decoded, LONGEST, decode, decode_next, decoder};
use crate::insn::Insn;
use crate::mmu::canonical;
use crate::ram::PAGE;
use crate::trap::{Cause, Step, Trap};

/// Bytes that a block is made of, at most: as many as [`MAX_INSNS`] of the usual length have.
pub(crate) const WINDOW: usize = 4 * MAX_INSNS + LONGEST;

impl Cpu {
    /// The live block at an instruction pointer.
    #[inline(always)]
    pub(crate) fn lookup(&mut self, rip: u64) -> Step<BlockRef> {
        match self.progress.known(rip) {
            Some(block) => Ok(block),
            None => self.find(rip),
        }
    }

    /// As [`Cpu::lookup`], from the map or made now; it goes into the jump cache.
    #[cold]
    #[inline(never)]
    fn find(&mut self, rip: u64) -> Step<BlockRef> {
        // What a walk on the way stores is no instruction's doing.
        self.progress.current = None;
        if self.progress.remaining == 0 || self.is_near_breakpoint(rip) {
            // A fault would come too early, or each instruction has to be looked at.
            self.cause = Cause::Restart;
            return Err(Trap);
        }
        let block = self.find_in_map(rip, false)?;
        let global = self.code_pages.is_global(self.progress.code_base.wrapping_add(rip), self.tlb.is_user());
        self.progress.remember(rip, block, global && !block.header().crosses());
        Ok(block)
    }

    /// The block at an instruction pointer; a single instruction if that is wanted.
    pub(super) fn find_in_map(&mut self, rip: u64, single: bool) -> Step<BlockRef> {
        let va = self.code_address(rip)?;
        let gpa = self.translate_code(va)?;
        let bits = self.code_bits();
        let name = key(gpa, bits, single);
        let found = self.shared.blocks.find(name).or_else(|| self.borrow(gpa, name));
        let Some(block) = found else {
            return self.build(va, gpa, bits, single);
        };
        if block.header().crosses() {
            // Its second page may be mapped elsewhere by now.
            let next = va.wrapping_add(PAGE) & !(PAGE - 1);
            let second = self.translate_code(if self.long { next } else { next & 0xFFFF_FFFF })?;
            if !block.header().continues_at(second) {
                self.shared.blocks.changed(gpa, 1);
                self.notice_generation();
                return self.build(va, gpa, bits, single);
            }
        }
        Ok(block)
    }

    /// The block of this name, if its page can be borrowed now and has it.
    fn borrow(&mut self, gpa: u64, name: u64) -> Option<BlockRef> {
        let shared = &mut self.shared;
        if !shared.blocks.borrow(gpa, &shared.ram) {
            return None;
        }
        self.tlb.protect(gpa);
        self.progress.epoch = self.shared.blocks.epoch;
        self.shared.blocks.find(name)
    }

    /// Linear address of an instruction, checked against the code segment.
    fn code_address(&mut self, rip: u64) -> Step<u64> {
        if self.long {
            return if canonical(rip) { Ok(rip) } else { self.gp() };
        }
        let cs = &self.segments[SystemRegisters::CS];
        if rip > u64::from(cs.limit) {
            return self.gp();
        }
        Ok(cs.base.wrapping_add(rip) & 0xFFFF_FFFF)
    }

    /// Decodes a block. Its first instruction has to be fetchable to its end; where a later one is not, the block ends.
    fn build(&mut self, va: u64, gpa: u64, bits: u32, single: bool) -> Step<BlockRef> {
        if self.shared.blocks.is_full() {
            self.shared.blocks.clear();
            self.notice_generation();
        }
        let mut bytes = [0xFF; WINDOW];
        let left = (PAGE - (gpa & (PAGE - 1))) as usize;
        let here = left.min(WINDOW);
        self.shared.ram.read(gpa, &mut bytes[..here]);
        let bytes = &bytes[..here];
        let alone = self.shared.blocks.translator.as_mut().is_some_and(|translator| translator.happens(3));
        let limit = if single || alone { 1 } else { MAX_INSNS };
        let mut insns: Vec<Insn> = Vec::with_capacity(8);
        let mut sync = false;
        let mut at = 0;
        let mut decoder = decoder(bits, bytes);
        // Behind the window there may be more of an instruction, behind the page there is another page.
        while insns.len() < limit && at < here && (here == left || at + LONGEST <= here) {
            let next = decode_next(&mut decoder, &bytes[at..], self.model);
            let Some(Decoded { insn, branches, sync: look }) = next else { break };
            at += usize::from(insn.len);
            insns.push(insn);
            sync = look;
            if branches || look {
                break;
            }
        }
        let (mut here_bytes, mut other) = (at, (0, 0));
        if insns.is_empty() {
            // It crosses into the next page.
            let next = va.wrapping_add(here as u64);
            let next = if self.long { next } else { next & 0xFFFF_FFFF };
            if self.long && !canonical(next) {
                return self.gp();
            }
            let second = self.translate_code(next)?;
            let mut whole = [0xFF; 15];
            whole[..here].copy_from_slice(bytes);
            self.shared.ram.read(second, &mut whole[here..]);
            let Some(Decoded { insn, sync: look, .. }) = decode(bits, &whole, self.model) else {
                return self.ud();
            };
            sync = look;
            here_bytes = here;
            other = (second, insn.len.saturating_sub(here as u8));
            insns.push(insn);
        }
        let name = key(gpa, bits, single);
        let (block, fresh) = self.shared.blocks.insert(name, &insns, sync, here_bytes as u16, other);
        if fresh {
            self.tlb.protect(gpa);
            if other.1 > 0 {
                self.tlb.protect(other.0);
            }
            self.progress.epoch = self.shared.blocks.epoch;
        }
        Ok(block)
    }
}
