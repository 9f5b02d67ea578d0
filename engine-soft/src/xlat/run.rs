//! From translation to translation, by way of the run loop.

#![expect(unsafe_code, reason = "translated code is called, and calls back with the vCPU's address")]

use super::Translation;
use super::thunk::{Departure, Site, reason};
use crate::block::BlockRef;
use crate::cpu::{Cpu, control};
use crate::exec::fpu::avx;
use crate::flags::{Flags, bit};
use crate::fx::mxcsr;
use crate::insn::RIP;
use crate::run::{Left, WINDOW};
use crate::trap::Trap;

const RIP_SLOT: usize = RIP as usize;

/// Instructions that translated code counts at most before it comes back.
const STRETCH: u64 = 1 << 31;

/// A function: the frame's base and translated code.
type Enter = extern "sysv64" fn(u64, u64) -> Departure;

impl Cpu {
    /// From block to block, translated where they are warm: [`Cpu::run_blocks`] for 64-bit code.
    pub(crate) fn run_translated(&mut self) -> Left {
        let mut from = None;
        loop {
            if self.shared.blocks.translator.as_ref().is_some_and(|translator| translator.stress.is_some()) {
                from = from.filter(|_| !self.disturb());
            }
            let rip = self.gpr[RIP_SLOT];
            let generation = self.shared.blocks.generation;
            let block = match self.lookup(rip) {
                Ok(block) => block,
                Err(Trap) => return self.trapped(0),
            };
            if generation != self.shared.blocks.generation {
                from = None;
            }
            let count = u64::from(block.header().count());
            if self.progress.remaining < count {
                return self.run_partly(block, rip, count);
            }
            let Some(number) = self.translation(block, rip) else {
                from = None;
                if let Err(left) = self.execute(block, rip, count) {
                    return left;
                }
                self.progress.current = None;
                if block.header().sync && self.has_to_look() {
                    return Left::Look;
                }
                continue;
            };
            if let Some(site) = from.take() {
                self.connect(site, number);
            }
            match self.run_from(number) {
                Next::Go => {}
                Next::From(departure) => from = Some(departure),
                Next::Left(left) => return left,
            }
        }
    }

    /// Under stress: empties caches now and then. `true` if jumps are to stay unlinked.
    fn disturb(&mut self) -> bool {
        let mut happens = |once_in| {
            let translator = self.shared.blocks.translator.as_mut();
            translator.is_some_and(|translator| translator.happens(once_in))
        };
        let (unlinked, tlb, code) = (happens(4), happens(64), happens(256));
        if tlb {
            self.flush_tlb();
        }
        if code {
            self.shared.blocks.clear();
            self.progress.generation = self.shared.blocks.generation;
            self.forget_jumps();
        }
        unlinked || code
    }

    /// The number of a block's translation here; made now if it is warm.
    fn translation(&mut self, block: BlockRef, rip: u64) -> Option<usize> {
        let user = self.cpl == 3;
        let header = block.header();
        let blocks = &mut self.shared.blocks;
        let translator = blocks.translator.as_ref()?;
        if let Some(number) = translator.find(header.translation.get(), rip, user) {
            return Some(number);
        }
        let (warm, full) = (translator.warm, translator.is_full());
        if blocks.warm(block) < warm || header.crosses() || full {
            return None;
        }
        let (gpa, len) = header.place();
        if blocks.borrows(gpa) {
            // A page's translations are a library's or its own.
            blocks.give_back(gpa);
            self.notice_generation();
            return None;
        }
        let mut bytes = [0; WINDOW];
        let bytes = bytes.get_mut(..len)?;
        let translator = blocks.translator.as_mut()?;
        self.shared.ram.read(gpa, bytes).then(|| translator.make(block, bytes, rip, (user, self.model)))
    }

    /// Lets the code that came here come directly the next time. A library's code stays as it is.
    fn connect(&mut self, from: From, number: usize) {
        let Some(translator) = self.shared.blocks.translator.as_mut() else { return };
        let (From::Exit(site) | From::Dead(site)) = from;
        let left = site.translation();
        if left.min(number) < translator.borrowed() {
            return;
        }
        let (old, new) = (translator.at(left), translator.at(number));
        // By another mapping it may have come to another page.
        if (old.block.header().place().0 ^ new.block.header().place().0) >> 12 != 0 {
            return;
        }
        match from {
            From::Exit(site) => {
                let exit = old.exits[site.part()];
                if exit.target == new.rip {
                    translator.link(exit.patch, number);
                }
            }
            From::Dead(_) => {
                // In another mapping of this address the old code may be alive.
                let same = old.block.header().place().0 == new.block.header().place().0;
                if (old.block.header().is_dead() || old.replaced) && same {
                    translator.forward(left, number);
                }
            }
        }
    }

    /// Runs translated code until it leaves.
    fn run_from(&mut self, number: usize) -> Next {
        let cpu: *mut Self = self;
        let Some(translator) = self.shared.blocks.translator.as_ref() else { return Next::Go };
        let Translation { entry, rip, user, .. } = *translator.at(number);
        let enter = translator.thunks.enter;
        let global = self.code_pages.is_global(rip, self.tlb.is_user());
        self.tlb.remember_jump(rip, entry, user, global);
        let stretch = self.progress.remaining.min(STRETCH);
        self.progress.withheld = self.progress.remaining - stretch;
        self.tlb.frame.remaining = stretch;
        self.tlb.frame.flags = ax(&self.flags);
        self.tlb.frame.unchanged = 0;
        self.tell();
        self.tlb.frame.cpu = cpu.expose_provenance() as u64;
        let base = self.tlb.frame.base();
        // SAFETY: the thunk at this address is a function of that kind.
        let enter: Enter =
            unsafe { std::mem::transmute(std::ptr::with_exposed_provenance::<()>(enter as usize)) };
        self.lend_log();
        let Departure { reason, detail } = enter(base, entry);
        self.take_log();
        self.take_stack();
        self.progress.current = None;
        self.progress.remaining = self.progress.withheld + self.tlb.frame.remaining;
        let site = Site(detail as u32);
        match reason {
            reason::LOOK => return Next::Left(Left::Look),
            // The interpreter has been the last to change flags.
            reason::TRAPPED => return Next::Left(self.trapped(detail)),
            _ => {}
        }
        self.flags.set_status(from_ax(self.tlb.frame.flags));
        let Some(translator) = self.shared.blocks.translator.as_ref() else { return Next::Go };
        match reason {
            reason::LINK => {
                self.gpr[RIP_SLOT] = translator.at(site.translation()).exits[site.part()].target;
                Next::From(From::Exit(site))
            }
            reason::DEAD => {
                self.gpr[RIP_SLOT] = translator.at(site.translation()).rip;
                Next::From(From::Dead(site))
            }
            reason::BUDGET => {
                let translation = translator.at(site.translation());
                self.gpr[RIP_SLOT] = translation.rip;
                let count = translation.block.insns().len() as u64;
                self.progress.remaining = self.progress.remaining.wrapping_add(count);
                Next::Go
            }
            _ => Next::Go,
        }
    }

    /// Tells translated code which vector instructions it may execute, and where strings go, and whether an interrupt waits.
    fn tell(&mut self) {
        self.tlb.frame.due = u64::from(self.nmi_pending || self.lapic.pending().is_some());
        self.tlb.frame.backward = self.flags.control & bit::DF;
        let usable =
            self.cr0 & (control::CR0_EM | control::CR0_TS) == 0 && self.cr4 & control::CR4_OSFXSR != 0;
        let masked = self.fx.mxcsr & mxcsr::MASKS == mxcsr::MASKS;
        self.tlb.frame.no_vectors = u64::from(!usable);
        self.tlb.frame.no_floats = u64::from(!(usable && masked));
        self.tell_x87();
        self.tlb.frame.no_wide = u64::from(!(avx::is_usable(self) && masked));
    }

    /// Has the interpreter do so many instructions of a translation, from a site on, with the state as translated code has left
    /// it. Otherwise there was a trap.
    fn interpret(&mut self, site: Site, count: usize) -> Result<Done, Departure> {
        self.take_log();
        let Some(translator) = self.shared.blocks.translator.as_ref() else {
            unreachable!("translated code is running")
        };
        let Translation { block, rip, leaves, falls, .. } = *translator.at(site.translation());
        let (insns, first) = (block.insns(), site.part());
        self.gpr[RIP_SLOT] = rip.wrapping_add(translator.part(site.translation(), first).offset.into());
        self.flags.set_status(from_ax(self.tlb.frame.flags));
        self.take_stack();
        self.tlb.frame.unchanged = 0;
        self.progress.remaining = self.progress.withheld + self.tlb.frame.remaining;
        self.progress.current = Some(block);
        self.progress.entry = rip;
        let mut next = rip;
        for (n, insn) in insns.iter().enumerate().skip(first).take(count) {
            let start = self.gpr[RIP_SLOT];
            next = start.wrapping_add(insn.len.into());
            self.gpr[RIP_SLOT] = next;
            if (insn.exec)(self, insn).is_err() {
                self.gpr[RIP_SLOT] = start;
                return Err(Departure { reason: reason::TRAPPED, detail: (insns.len() - n) as u64 });
            }
        }
        self.tlb.frame.flags = ax(&self.flags);
        self.tell();
        self.lend_log();
        Ok(Done { block, leaves, falls, next })
    }

    /// One instruction of a translation.
    fn execute_site(&mut self, site: Site) -> Departure {
        let Done { block, leaves, falls, next } = match self.interpret(site, 1) {
            Ok(done) => done,
            Err(trapped) => return trapped,
        };
        let reason = match leaves && site.part() + 1 == block.insns().len() {
            false => reason::NONE,
            true if block.header().sync && self.has_to_look() => reason::LOOK,
            true if falls && self.gpr[RIP_SLOT] == next => reason::NONE,
            true => self.go_on(),
        };
        Departure { reason, detail: 0 }
    }

    /// A translation from one of its instructions on: a group of accesses was not to be had.
    fn execute_rest(&mut self, site: Site) -> Departure {
        let (group, reach) = (self.tlb.frame.scratch, self.tlb.frame.reach);
        let Done { block, .. } = match self.interpret(site, usize::MAX) {
            Ok(done) => done,
            Err(trapped) => return trapped,
        };
        let known =
            if reach & 1 == 0 { self.tlb.load(group, reach / 2) } else { self.tlb.store(group, reach / 2) };
        if known.is_none()
            && let Some(translator) = &mut self.shared.blocks.translator
        {
            translator.misfit(site.translation());
        }
        let reason = if block.header().sync && self.has_to_look() { reason::LOOK } else { self.go_on() };
        Departure { reason, detail: 0 }
    }

    /// How to go on at the instruction pointer.
    fn go_on(&mut self) -> u64 {
        let Some(code) = self.tlb.known_jump(self.gpr[RIP_SLOT], self.cpl == 3) else { return reason::JUMP };
        self.tlb.frame.resume = code;
        reason::NONE
    }
}

/// Executes one instruction by the interpreter, from translated code.
pub(super) extern "sysv64" fn execute(cpu: *mut Cpu, site: Site) -> Departure {
    // SAFETY: `run_from` has put the vCPU's address there, and nobody else uses it while translated code runs.
    let cpu = unsafe { &mut *cpu };
    cpu.execute_site(site)
}

/// Executes a translation to its end by the interpreter, from translated code.
pub(super) extern "sysv64" fn execute_rest(cpu: *mut Cpu, site: Site) -> Departure {
    // SAFETY: as in `execute`.
    let cpu = unsafe { &mut *cpu };
    cpu.execute_rest(site)
}

/// What the interpreter has done: some of a translation's instructions.
struct Done {
    block: BlockRef,
    /// As the translation has them.
    leaves: bool,
    falls: bool,
    /// Behind the last of the instructions.
    next: u64,
}

/// How to go on.
enum Next {
    /// From the instruction pointer.
    Go,
    /// As well, and the code that was left wants to be connected to what comes.
    From(From),
    /// Not here.
    Left(Left),
}

/// What leads to the next translation.
#[derive(Debug, Clone, Copy)]
enum From {
    /// A linkable exit.
    Exit(Site),
    /// A dead translation.
    Dead(Site),
}

/// Status flags as [`crate::frame::Frame::flags`] has them.
fn ax(flags: &Flags) -> u64 {
    let status = flags.status();
    (status & 0xFF) << 8 | status >> 11 & 1
}

/// An RFLAGS image of them.
fn from_ax(ax: u64) -> u64 {
    ax >> 8 & (bit::STATUS & 0xFF) | (ax & 1) << 11
}
