//! The run loop: from block to block, and what happens between instructions.

#![expect(unsafe_code, reason = "blocks are held by pointer; see `block`")]

use engine::ExitKind;
use engine::state::{Activity, SystemRegisters};

use crate::block::{BlockRef, MAX_INSNS, key};
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
        self.current.is_some_and(|block| block.header().touches(gpa, len))
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
        let mut rip = self.gpr[RIP_SLOT];
        let mut block = match self.lookup(rip) {
            Ok(block) => block,
            Err(Trap) => return self.trapped(0),
        };
        loop {
            let count = u64::from(block.header().count());
            if self.progress.remaining < count {
                if !block.header().is_dead() {
                    return self.run_partly(block, rip, count);
                }
                block = match self.lookup(rip) {
                    Ok(block) => block,
                    Err(Trap) => return self.trapped(0),
                };
                continue;
            }
            if let Err(left) = self.execute(block, rip, count) {
                return left;
            }
            if block.header().sync {
                self.progress.current = None;
                return Left::Look;
            }
            let next = self.gpr[RIP_SLOT];
            let ahead = next.wrapping_sub(rip);
            rip = next;
            block = match block.header().next(ahead) {
                Some(block) => block,
                None => match self.follow(block, ahead, rip) {
                    Ok(next) => next,
                    Err(Trap) => return self.trapped(0),
                },
            };
        }
    }

    /// The block that comes after another one.
    #[inline(always)]
    fn follow(&mut self, block: BlockRef, ahead: u64, rip: u64) -> Step<BlockRef> {
        let generation = self.progress.generation;
        let next = self.lookup(rip)?;
        // Making room for the next block may have freed this one.
        if generation == self.progress.generation {
            block.header().set_next(ahead, next);
        }
        Ok(next)
    }

    /// As much of a block as the budget covers.
    #[cold]
    #[inline(never)]
    fn run_partly(&mut self, block: BlockRef, rip: u64, count: u64) -> Left {
        let affordable = self.progress.remaining;
        if affordable == 0 {
            self.progress.current = None;
            return Left::Look;
        }
        self.progress.unpaid = count - affordable;
        let partly = self.execute(block, rip, affordable);
        self.progress.unpaid = 0;
        self.progress.current = None;
        partly.err().unwrap_or(Left::Look)
    }

    /// The first `count` instructions of a block, at least one. Afterwards the block is still the current one, if no
    /// instruction trapped.
    #[inline(always)]
    fn execute(&mut self, block: BlockRef, rip: u64, count: u64) -> Result<(), Left> {
        self.progress.remaining -= count;
        self.progress.current = Some(block);
        self.progress.entry = rip;
        let first = block.first();
        // SAFETY: a block has as many instructions as it says.
        let end = unsafe { first.add(count as usize) };
        let mut at = first;
        let mut next = rip;
        loop {
            // SAFETY: between `first` and `end`, and blocks are not freed while they run.
            let insn = unsafe { &*at };
            next = next.wrapping_add(u64::from(insn.len));
            self.gpr[RIP_SLOT] = next;
            // SAFETY: as above; at most `end`.
            at = unsafe { at.add(1) };
            if (insn.exec)(self, insn).is_err() {
                self.gpr[RIP_SLOT] = next.wrapping_sub(u64::from(insn.len));
                // SAFETY: both are in the same block.
                let undone = unsafe { end.offset_from(at) } as u64 + 1;
                return Err(self.trapped(undone));
            }
            if at == end {
                return Ok(());
            }
        }
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
        let left = match self.find_in_map(rip, true) {
            Ok(block) => self.execute(block, rip, 1),
            Err(Trap) => Err(self.trapped(0)),
        };
        self.progress.current = None;
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

    /// The live block at an instruction pointer.
    #[inline(always)]
    fn lookup(&mut self, rip: u64) -> Step<BlockRef> {
        let jump = &self.progress.jumps[jump_index(rip)];
        if jump.tag == rip ^ self.progress.mode
            && let Some(block) = jump.block
            && !block.header().is_dead()
        {
            return Ok(block);
        }
        self.find(rip)
    }

    /// The block at an instruction pointer, from the map or made now; it goes into the jump cache.
    #[cold]
    #[inline(never)]
    fn find(&mut self, rip: u64) -> Step<BlockRef> {
        // A walk on the way, or building, is nobody's instruction.
        self.progress.current = None;
        let block = self.find_in_map(rip, false)?;
        let index = jump_index(rip);
        if block.header().crosses() || !self.tlb.is_global(self.progress.code_base.wrapping_add(rip)) {
            self.progress.local.push(index as u16);
            if self.progress.local.len() >= 4 * JUMPS {
                self.progress.forget();
            }
        }
        self.progress.jumps[index] = Jump { tag: rip ^ self.progress.mode, block: Some(block) };
        Ok(block)
    }

    fn find_in_map(&mut self, rip: u64, single: bool) -> Step<BlockRef> {
        let va = self.code_address(rip)?;
        let gpa = self.translate(va, Access::Execute)?;
        let bits = self.code_bits();
        let Some(block) = self.shared.blocks.find(key(gpa, bits, single)) else {
            return self.build(va, gpa, bits, single);
        };
        if block.header().crosses() {
            // Its second page may be mapped elsewhere by now.
            let next = va.wrapping_add(PAGE) & !(PAGE - 1);
            let second =
                self.translate(if self.long { next } else { next & 0xFFFF_FFFF }, Access::Execute)?;
            if !block.header().continues_at(second) {
                self.shared.blocks.changed(gpa, 1);
                return self.build(va, gpa, bits, single);
            }
        }
        Ok(block)
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
        let (mut here_bytes, mut other) = (at, (0, 0));
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

/// Kinds of interrupts from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Nmi,
    External,
}
