//! The run loop: from block to block, and what happens between instructions.

#![expect(unsafe_code, reason = "instructions are walked by pointer; see `block`")]

mod fetch;
mod progress;
#[cfg(test)]
mod tests;

use engine::ExitKind;
use engine::state::Activity;
use iced_x86::Code;

use crate::block::BlockRef;
use crate::cpu::Cpu;
use crate::flags::bit;
use crate::insn::RIP;
use crate::trap::{Cause, Step, Trap, vector};

pub(crate) use fetch::WINDOW;
pub(crate) use progress::Progress;

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

/// Why the inner loop was left.
pub(crate) enum Left {
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
        self.notice_generation();
        if self.progress.epoch != self.shared.blocks.epoch {
            self.progress.epoch = self.shared.blocks.epoch;
            self.tlb.protect_all();
        }
        self.attention = false;
        let stop = self.run_on();
        self.shared.settle();
        self.shared.retired += self.progress.budget - self.progress.remaining;
        self.progress.budget = 0;
        self.progress.remaining = 0;
        stop
    }

    /// Empties the jump caches if blocks have gone that they may lead to.
    pub(crate) fn notice_generation(&mut self) {
        if self.progress.generation != self.shared.blocks.generation {
            self.progress.generation = self.shared.blocks.generation;
            self.forget_jumps();
        }
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
            let left = if self.is_translated() { self.run_translated() } else { self.run_blocks() };
            match left {
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

    /// Code may be translated. What masks interrupts may do so at levels 0 and 3.
    fn is_translated(&self) -> bool {
        let level = matches!(self.cpl, 0 | 3);
        self.long && level && !self.has_breakpoints() && self.shared.blocks.translator.is_some()
    }

    /// Between two blocks of translated code: there is something of what [`Cpu::run_on`] looks for. If not, an interrupt shadow
    /// is over, as it has nothing to hold off: there is an instruction still, which would end it.
    pub(crate) fn has_to_look(&mut self) -> bool {
        let quiet = self.posted.is_empty()
            && !self.attention
            && self.progress.remaining > 0
            && self.activity == Activity::Running
            && self.interrupt_due().is_none()
            && !self.is_watched()
            && self.is_translated();
        self.shadow &= !quiet;
        !quiet
    }

    /// Something has to be seen after each instruction.
    fn is_watched(&self) -> bool {
        self.flags.control & (bit::TF | bit::RF) != 0
            || self.debug.control & 0xFF != 0
            || self.has_watchpoints()
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
    pub(crate) fn run_partly(&mut self, block: BlockRef, rip: u64, count: u64) -> Left {
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
    pub(crate) fn execute(&mut self, block: BlockRef, rip: u64, count: u64) -> Result<(), Left> {
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
    pub(crate) fn trapped(&mut self, undone: u64) -> Left {
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
        if let Some(stop) = self.stop_before(rip) {
            return Some(Stop::Exit(ExitKind::Debug(stop)));
        }
        let traced = self.flags.control & bit::TF != 0;
        let resuming = self.flags.control & bit::RF != 0;
        let shadowed = self.shadow;
        self.progress.debug = 0;
        self.progress.interrupted = false;
        if !resuming && let Some(status) = self.code_breakpoint(rip) {
            self.debug.status |= status;
            self.progress.remaining -= 1;
            return self.fault(vector::DB, None).err().map(Stop::Exit);
        }
        self.progress.stepping = true;
        let mut sti = false;
        let left = match self.find_in_map(rip, true) {
            Ok(block) => {
                sti = block.insns().first().is_some_and(|insn| insn.code == Code::Sti as u16);
                self.execute(block, rip, 1)
            }
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
                // MOV SS and POP SS hold a single step off as they do interrupts; STI does not.
                if traced && (!self.shadow || sti) && !self.progress.interrupted {
                    status |= 1 << 14;
                }
                if status != 0 {
                    self.debug.status |= status;
                    if let Err(exit) = self.trap(vector::DB) {
                        return Some(Stop::Exit(exit));
                    }
                }
                self.stop_after().map(|stop| Stop::Exit(ExitKind::Debug(stop)))
            }
            Err(Left::Exit(kind)) => Some(Stop::Exit(kind)),
            Err(Left::Look | Left::Alone) => None,
        }
    }
}

/// Kinds of interrupts from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Nmi,
    External,
}
