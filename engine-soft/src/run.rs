//! The run loop: from block to block, and what happens between instructions.

#![expect(unsafe_code, reason = "blocks are held by pointer; see `block`")]

use engine::ExitKind;
use engine::state::{Activity, SystemRegisters};

use crate::block::{Block, BlockRef, MAX_INSNS, key};
use crate::cpu::Cpu;
use crate::decode::{Decoded, decode};
use crate::flags::bit;
use crate::insn::{Insn, RIP};
use crate::mmu::{Access, canonical};
use crate::ram::PAGE;
use crate::trap::{Cause, Step, Trap, vector};

const RIP_SLOT: usize = RIP as usize;

/// Why [`Cpu::run`] stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The budget is used up, to the instruction.
    Budget,
    /// [`Cpu::attention`] was set.
    Attention,
    /// The machine is needed. After a read, say [`Cpu::answer`] before running on.
    Exit(ExitKind),
}

/// Entries of the jump cache.
const JUMPS: usize = 4096;

/// A tag that no address has in any mode.
const NO_JUMP: u64 = 0x8000 << 48;

/// A place in the code and its block.
#[derive(Debug, Clone, Copy)]
struct Jump {
    /// Instruction pointer, its upper 16 bits mixed with the mode.
    tag: u64,
    block: Option<BlockRef>,
}

/// Where a vCPU is in its instruction stream.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Instructions that may still be begun.
    remaining: u64,
    /// What `remaining` was at the begin of the run.
    budget: u64,
    /// Instructions at the end of the block being executed that the budget does not cover.
    unpaid: u64,
    /// The block being executed.
    current: Option<BlockRef>,
    /// RIP at its begin.
    entry: u64,
    /// The instruction being executed is alone in its block, and the loop looks around after it.
    pub(crate) stepping: bool,
    /// Debug conditions that the current instruction has met: bits of DR6.
    pub(crate) debug: u64,
    /// Mixed into the tags of the jump cache.
    mode: u64,
    /// Base of the code segment.
    code_base: u64,
    jumps: Box<[Jump; JUMPS]>,
    /// Entries for pages that a load of CR3 unmaps.
    local: Vec<u16>,
    /// See [`crate::block::Blocks`].
    generation: u64,
    epoch: u64,
}

// SAFETY: the blocks behind the pointers belong to `Blocks`, which travels with the vCPU that runs and is looked at by no
// other thread meanwhile.
unsafe impl Send for Progress {}

impl Default for Progress {
    fn default() -> Self {
        Self {
            remaining: 0,
            budget: 0,
            unpaid: 0,
            current: None,
            entry: 0,
            stepping: false,
            debug: 0,
            mode: 0,
            code_base: 0,
            jumps: Box::new([Jump { tag: NO_JUMP, block: None }; JUMPS]),
            local: Vec::new(),
            generation: 0,
            epoch: 0,
        }
    }
}

impl Progress {
    /// Blocks are chosen by privilege, width and base of the code.
    pub(crate) fn set_mode(&mut self, user: bool, bits: u32, code_base: u64) {
        self.mode = (u64::from(bits) << 1 | u64::from(user)) << 48;
        if self.code_base != code_base {
            self.code_base = code_base;
            self.forget();
        }
    }

    /// Empties the jump cache.
    pub(crate) fn forget(&mut self) {
        self.jumps.fill(Jump { tag: NO_JUMP, block: None });
        self.local.clear();
    }

    /// Empties it of what is not global.
    pub(crate) fn forget_local(&mut self) {
        for index in self.local.drain(..) {
            self.jumps[usize::from(index)].tag = NO_JUMP;
        }
    }

    /// A stretch of memory holds the code that is being executed.
    pub(crate) fn is_running(&self, gpa: u64, len: usize) -> bool {
        // SAFETY: the current block is not freed before the run loop has left it.
        self.current.is_some_and(|block| unsafe { block.as_ref() }.touches(gpa, len))
    }
}

#[inline(always)]
fn jump_index(rip: u64) -> usize {
    (rip ^ rip >> 12) as usize & (JUMPS - 1)
}

/// Why the inner loop was left.
enum Left {
    /// To look around.
    Look,
    /// The instruction at RIP has to run alone.
    Alone,
    /// For the machine.
    Exit(ExitKind),
}

impl Cpu {
    /// Runs until the budget of instructions is used up or something else is due. An instruction that faults counts, one
    /// that waits for the machine does not yet.
    ///
    /// The caller has put the partition's [`crate::shared::Shared`] here, and [`Cpu::answer`]ed the last read.
    /// Interrupts are taken from the local APIC whenever the flags allow it; a halted vCPU wakes by them.
    /// [`crate::shared::Shared::retired`] is brought up to date at the end; within, [`Cpu::retired`] tells.
    pub fn run(&mut self, budget: u64) -> Stop {
        self.progress.budget = budget;
        self.progress.remaining = budget;
        if self.progress.generation != self.shared.blocks.generation {
            self.progress.generation = self.shared.blocks.generation;
            self.progress.forget();
        }
        if self.progress.epoch != self.shared.blocks.epoch {
            self.progress.epoch = self.shared.blocks.epoch;
            self.tlb.protect_all();
        }
        self.attention = false;
        let stop = self.run_on();
        self.shared.retired += self.progress.budget - self.progress.remaining;
        self.progress.budget = 0;
        self.progress.remaining = 0;
        stop
    }

    /// The answer to the read that [`Cpu::run`] stopped for.
    pub fn answer(&mut self, data: u64) {
        self.replay.0.push(data);
    }

    /// Instructions retired by the partition before the current one.
    #[must_use]
    pub fn retired(&self) -> u64 {
        self.place().1
    }

    /// RIP of the current instruction, and the instructions retired before it.
    pub(crate) fn place(&self) -> (u64, u64) {
        let begun = self.shared.retired + self.progress.budget - self.progress.remaining;
        let unpaid = self.progress.unpaid;
        let next = self.gpr[RIP_SLOT];
        let Some(block) = self.progress.current else { return (next, begun) };
        // SAFETY: the current block is not freed before the run loop has left it.
        let block = unsafe { block.as_ref() };
        let mut rip = self.progress.entry;
        for (n, insn) in block.insns.iter().enumerate() {
            let after = rip.wrapping_add(u64::from(insn.len));
            if after == next {
                return (rip, begun + unpaid - (block.insns.len() - n) as u64);
            }
            rip = after;
        }
        (self.progress.entry, begun + unpaid - block.insns.len() as u64)
    }

    fn run_on(&mut self) -> Stop {
        if !self.replay.0.is_empty()
            && let Some(stop) = self.step()
        {
            return stop;
        }
        loop {
            if let Some(exit) = self.posted.pop_front() {
                return Stop::Exit(exit);
            }
            if self.attention {
                return Stop::Attention;
            }
            if self.progress.remaining == 0 {
                return Stop::Budget;
            }
            if !self.shadow {
                let due = self.interrupt_due();
                if due.is_some() {
                    self.activity = Activity::Running;
                }
                if let Some(vector) = due
                    && let Some(stop) = self.take(vector)
                {
                    return stop;
                }
            }
            if self.activity != Activity::Running {
                return Stop::Attention;
            }
            if self.shadow || self.is_watched() {
                if let Some(stop) = self.step() {
                    return stop;
                }
                continue;
            }
            match self.run_blocks() {
                Left::Look => {}
                Left::Alone => {
                    if let Some(stop) = self.step() {
                        return stop;
                    }
                }
                Left::Exit(kind) => return Stop::Exit(kind),
            }
        }
    }

    /// Something has to be seen after each instruction.
    fn is_watched(&self) -> bool {
        self.flags.control & (bit::TF | bit::RF) != 0 || self.debug.control & 0xFF != 0
    }

    /// From block to block.
    fn run_blocks(&mut self) -> Left {
        loop {
            let rip = self.gpr[RIP_SLOT];
            let jump = self.progress.jumps[jump_index(rip)];
            let block = match jump.block {
                Some(block) if jump.tag == rip ^ self.progress.mode => block,
                _ => match self.find(rip, false) {
                    Ok(block) => block,
                    Err(Trap) => return self.trapped(0),
                },
            };
            // SAFETY: the jump cache and `find` give blocks that live at least until the run loop clears them.
            let block: &Block = unsafe { &*block.as_ptr() };
            let count = u64::from(block.count());
            if self.progress.remaining < count {
                if block.is_dead() {
                    self.progress.jumps[jump_index(rip)].tag = NO_JUMP;
                    continue;
                }
                if self.progress.remaining == 0 {
                    return Left::Look;
                }
                let affordable = self.progress.remaining;
                self.progress.unpaid = count - affordable;
                let partly = self.execute(block, rip, affordable);
                self.progress.unpaid = 0;
                return partly.err().unwrap_or(Left::Look);
            }
            if let Err(left) = self.execute(block, rip, count) {
                return left;
            }
            if block.sync {
                return Left::Look;
            }
        }
    }

    /// The first `count` instructions of a block.
    #[inline(always)]
    fn execute(&mut self, block: &Block, rip: u64, count: u64) -> Result<(), Left> {
        self.progress.remaining -= count;
        self.progress.current = Some(BlockRef::from(block));
        self.progress.entry = rip;
        let mut next = rip;
        for (n, insn) in block.insns[..count as usize].iter().enumerate() {
            next = next.wrapping_add(u64::from(insn.len));
            self.gpr[RIP_SLOT] = next;
            if (insn.exec)(self, insn).is_err() {
                self.gpr[RIP_SLOT] = next.wrapping_sub(u64::from(insn.len));
                return Err(self.trapped(count - n as u64));
            }
        }
        self.progress.current = None;
        Ok(())
    }

    /// After a trap: `undone` instructions were paid for and not done, the trapped one among them.
    #[cold]
    #[inline(never)]
    fn trapped(&mut self, undone: u64) -> Left {
        self.progress.current = None;
        self.progress.remaining += undone;
        match self.cause {
            Cause::Restart => Left::Alone,
            Cause::Exit(kind) => Left::Exit(kind),
            Cause::Exception { vector, code } => {
                self.replay.0.clear();
                self.replay.1 = 0;
                self.posted.clear();
                self.progress.remaining = self.progress.remaining.saturating_sub(1);
                match self.fault(vector, code) {
                    Ok(()) => Left::Look,
                    Err(exit) => Left::Exit(exit),
                }
            }
        }
    }

    /// Delivers an external interrupt.
    fn take(&mut self, vector: Due) -> Option<Stop> {
        let done = match vector {
            Due::Nmi => {
                self.nmi_pending = false;
                self.nmi_blocked = true;
                self.interrupt(vector::NMI)
            }
            Due::External => match self.lapic.acknowledge() {
                Some(vector) => self.interrupt(vector),
                None => Ok(()),
            },
        };
        done.err().map(Stop::Exit)
    }

    /// An interrupt that can be delivered now.
    fn interrupt_due(&self) -> Option<Due> {
        if self.activity == Activity::WaitForSipi {
            return None;
        }
        if self.nmi_pending && !self.nmi_blocked {
            return Some(Due::Nmi);
        }
        let external = self.flags.control & bit::IF != 0 && self.lapic.pending().is_some();
        external.then_some(Due::External)
    }

    /// One instruction, alone.
    fn step(&mut self) -> Option<Stop> {
        if self.progress.remaining == 0 {
            return Some(Stop::Budget);
        }
        let rip = self.gpr[RIP_SLOT];
        let traced = self.flags.control & bit::TF != 0;
        let resuming = self.flags.control & bit::RF != 0;
        let shadowed = self.shadow;
        self.progress.debug = 0;
        if !resuming && let Some(status) = self.code_breakpoint(rip) {
            self.debug.status |= status;
            return self.fault(vector::DB, None).err().map(Stop::Exit);
        }
        self.progress.stepping = true;
        let left = match self.find(rip, true) {
            // SAFETY: `find` gives blocks that live at least until the run loop clears them.
            Ok(block) => self.execute(unsafe { &*block.as_ptr() }, rip, 1),
            Err(Trap) => Err(self.trapped(0)),
        };
        self.progress.stepping = false;
        self.replay.1 = 0;
        match left {
            Ok(()) => {
                self.replay.0.clear();
                if resuming {
                    self.flags.control &= !bit::RF;
                }
                if shadowed {
                    self.shadow = false;
                }
                let mut status = std::mem::take(&mut self.progress.debug);
                if traced {
                    status |= 1 << 14;
                }
                if status != 0 {
                    self.debug.status |= status;
                    return self.trap(vector::DB).err().map(Stop::Exit);
                }
                None
            }
            Err(Left::Exit(kind)) => Some(Stop::Exit(kind)),
            Err(Left::Look | Left::Alone) => None,
        }
    }

    /// The block at an instruction pointer: from the map, or made now.
    #[cold]
    #[inline(never)]
    fn find(&mut self, rip: u64, single: bool) -> Step<BlockRef> {
        let va = self.code_address(rip)?;
        let gpa = self.translate(va, Access::Execute)?;
        let bits = self.code_bits();
        let name = key(gpa, bits, single);
        let known = self.shared.blocks.find(name);
        let block = match known {
            Some(block) => block,
            None => self.build(va, gpa, bits, single)?,
        };
        // SAFETY: just found or made.
        let crossing = unsafe { block.as_ref() }.crosses();
        if crossing {
            // Its second page may be mapped elsewhere by now.
            let next = va.wrapping_add(PAGE) & !(PAGE - 1);
            let second =
                self.translate(if self.long { next } else { next & 0xFFFF_FFFF }, Access::Execute)?;
            // SAFETY: as above.
            if !unsafe { block.as_ref() }.continues_at(second) {
                self.shared.blocks.changed(gpa, 1);
                let block = self.build(va, gpa, bits, single)?;
                return Ok(self.remember(rip, block, single));
            }
        }
        Ok(self.remember(rip, block, single))
    }

    fn remember(&mut self, rip: u64, block: BlockRef, single: bool) -> BlockRef {
        if single {
            return block;
        }
        // SAFETY: just found or made.
        let crossing = unsafe { block.as_ref() }.crosses();
        let index = jump_index(rip);
        if crossing || !self.tlb.is_global(self.progress.code_base.wrapping_add(rip)) {
            self.progress.local.push(index as u16);
            if self.progress.local.len() >= 4 * JUMPS {
                self.progress.forget();
            }
        }
        self.progress.jumps[index] = Jump { tag: rip ^ self.progress.mode, block: Some(block) };
        block
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
            self.progress.forget();
            self.progress.generation = self.shared.blocks.generation;
        }
        let mut bytes = [0xFF; PAGE as usize];
        let here = (PAGE - (gpa & (PAGE - 1))) as usize;
        self.shared.ram.read(gpa, &mut bytes[..here]);
        let bytes = &bytes[..here];
        let limit = if single { 1 } else { MAX_INSNS };
        let mut insns: Vec<Insn> = Vec::with_capacity(8);
        let mut sync = false;
        let mut at = 0;
        while insns.len() < limit && at < here {
            let Some(Decoded { insn, branches, sync: look }) = decode(bits, &bytes[at..]) else { break };
            at += usize::from(insn.len);
            insns.push(insn);
            sync = look;
            if branches || look {
                break;
            }
        }
        let mut parts = [(gpa, at as u64), (0, 0)];
        if insns.is_empty() {
            // It crosses into the next page.
            let next = va.wrapping_add(here as u64);
            let next = if self.long { next } else { next & 0xFFFF_FFFF };
            if self.long && !canonical(next) {
                return self.gp();
            }
            let second = self.translate(next, Access::Execute)?;
            let mut whole = [0xFF; 15];
            whole[..here].copy_from_slice(bytes);
            self.shared.ram.read(second, &mut whole[here..]);
            let Some(Decoded { insn, sync: look, .. }) = decode(bits, &whole) else { return self.ud() };
            sync = look;
            parts = [(gpa, here as u64), (second, u64::from(insn.len).saturating_sub(here as u64))];
            insns.push(insn);
        }
        let name = key(gpa, bits, single);
        let (block, fresh) = self.shared.blocks.insert(name, insns.into_boxed_slice(), sync, parts);
        if fresh {
            for (at, len) in parts {
                if len > 0 {
                    self.tlb.protect(at);
                }
            }
            self.progress.epoch = self.shared.blocks.epoch;
        }
        Ok(block)
    }
}

/// Kinds of interrupts from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Nmi,
    External,
}
