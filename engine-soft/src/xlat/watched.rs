//! Stores and flushes of translated code that concern watched memory.
//!
//! A watched page has no store tag, so a store there comes to its slow path. An instruction that stores its whole operand
//! once, whatever it finds, is then logged from there and goes on as if there had been a tag: the host's instruction makes
//! the store. What it stores is told beforehand where that is easy ([`Stored::told`]); else the event's bytes are read from
//! memory when somebody next has to do with the log ([`crate::shared::Shared::settle`]). An instruction that flushes a line
//! comes here always. All else is the interpreter's: pages crossed, code changed, a log that is full, a place that is not known.
//!
//! What has been logged once is logged by a few host instructions from then on, as long as nothing but watched memory changes
//! and the stack is where it was ([`Quick`]).

#![expect(unsafe_code, reason = "translated code calls with the vCPU's address")]

use std::mem::offset_of;

use engine::event::{EventKind, FlushKind, StoreKind};
use engine::log::{Deed, Short};
use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::body::Body;
use super::emit::{Asm, CPU, Jump, RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP, Reg, Rm, op, op2, word};
use super::memory::Address;
use super::registers::{GUEST_RSP, PLACES, Place, place};
use super::thunk::{Departure, FLAGS, HOST_STACK, RESUME, Site, home};
use crate::cpu::Cpu;
use crate::frame::{Frame, QUICK, Quick, Spot};
use crate::mmu::property;
use crate::shared::{Actor, LOG_CAPACITY};

/// What an instruction does that can be logged from translated code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Noted {
    /// It stores.
    Store(Stored),
    /// It flushes a line.
    Flush(FlushKind),
}

/// RSP and RBP, as general registers are numbered,
const STACK: [u8; 2] = [4, 5];
/// and where they are.
const STACK_PLACES: [Reg; 2] = [GUEST_RSP, RBP];

/// A store that an instruction makes of all its memory operand, or of the word that it pushes, whatever it finds there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Bytes: at most 32.
    pub(crate) size: u8,
    /// Past the cache.
    pub(crate) posted: bool,
    /// It is in [`Frame::value`] what is stored.
    pub(crate) told: bool,
    /// So many follow one another that are logged as a whole ([`super::runs`]), of which it is the first; or 1.
    pub(crate) run: u8,
}

impl Stored {
    pub(super) fn deed(self) -> Deed {
        Deed::Store(self.size, if self.posted { StoreKind::NonTemporal } else { StoreKind::Cached })
    }
}

/// What each instruction of a block does, if it is such a one. Code does not go on behind the last one of a block with `sync`.
pub(crate) fn noted(forms: &[Instruction], sync: bool) -> Vec<Option<Noted>> {
    let mut all: Vec<_> = forms.iter().map(noted_of).collect();
    super::runs::mark(&forms[..forms.len() - usize::from(sync)], &mut all);
    all
}

fn noted_of(i: &Instruction) -> Option<Noted> {
    let posted = matches!(
        i.mnemonic(),
        M::Movnti | M::Movntdq | M::Movntps | M::Movntpd | M::Vmovntdq | M::Vmovntps | M::Vmovntpd
    );
    let word = Noted::Store(Stored { size: 8, posted: false, told: false, run: 1 });
    let whole = posted
        || match i.mnemonic() {
            M::Clflush => return Some(Noted::Flush(FlushKind::Clflush)),
            M::Clflushopt => return Some(Noted::Flush(FlushKind::Clflushopt)),
            M::Clwb => return Some(Noted::Flush(FlushKind::Clwb)),
            M::Push | M::Call => return Some(word),
            M::Mov | M::Add | M::Or | M::Adc | M::Sbb | M::And | M::Sub | M::Xor => true,
            M::Inc | M::Dec | M::Not | M::Neg => true,
            M::Movups | M::Movupd | M::Movaps | M::Movapd | M::Movdqu | M::Movdqa => true,
            M::Vmovups | M::Vmovupd | M::Vmovaps | M::Vmovapd | M::Vmovdqu | M::Vmovdqa => true,
            _ => false,
        };
    let size = i.memory_size().size();
    let plain = whole && !i.has_lock_prefix() && i.op0_kind() == OpKind::Memory && (1..=32).contains(&size);
    plain.then_some(Noted::Store(Stored { size: size as u8, posted, told: tells(i), run: 1 }))
}

/// What an instruction stores is an operand: a general register or an immediate.
fn tells(i: &Instruction) -> bool {
    matches!(i.mnemonic(), M::Mov | M::Movnti)
        && (i.op1_kind() != OpKind::Register || place(i.op1_register()).is_some())
}

impl Body<'_> {
    /// Calls for an instruction to be logged, whose address is in a register. Gives a jump for where it was: in RDX is what makes
    /// a host address then.
    pub(crate) fn log(&mut self, insn: usize, va: Reg) -> Jump {
        let i = self.forms[insn];
        if matches!(self.noted[insn], Some(Noted::Store(Stored { told: true, .. }))) {
            const VALUE: Rm = word(offset_of!(Frame, value));
            let from = match place(i.op1_register()) {
                Some(place) => self.in_register(place, RCX),
                None => {
                    self.asm.constant(RCX, i.immediate(1));
                    RCX
                }
            };
            self.asm.store(VALUE, from);
        }
        self.asm.load(RDX, va);
        self.asm.constant(RCX, u64::from(Site::new(self.number, insn).0) + 1);
        self.asm.go(0xE8, self.thunks.record);
        self.asm.jump(0xE9)
    }

    /// An instruction that flushes a line, where those of watched memory are logged.
    pub(crate) fn flushes(&mut self, i: &Instruction) -> Option<()> {
        let va = match self.address(i)? {
            Address::In(reg) => reg,
            Address::Known(_) => RAX,
        };
        let done = self.log(self.current, va);
        self.slow();
        self.asm.land(done);
        Some(())
    }
}

/// A word of the frame within a function that translated code has called.
fn inner(offset: usize) -> Rm {
    Rm::Base(RSP, offset as i32 - Frame::BASE as i32 + 8)
}

/// Bytes between an event of the log and what is fetched meanwhile: whoever has read the log before has these lines.
pub(super) const AHEAD: i32 = 512;

/// Bytes of the jump behind a call of [`write()`]'s function.
const JUMP: i8 = 5;

/// A function of translated code: called with a site's number and one in ECX and a linear address in RDX, it logs what the
/// instruction does there, and gives what the address lacks to a host address in RDX. Or nothing has happened, and it
/// returns behind the jump that follows its call. RCX is lost.
pub(super) fn write(asm: &mut Asm) {
    const KEPT: usize = offset_of!(Frame, kept);
    const NEXT: usize = offset_of!(Frame, log) + 8;
    // An entry of `Frame::sites`, whose offset there is in RBX.
    let quick = |offset: usize| {
        let disp = (offset_of!(Frame, sites) + offset) as i32 - Frame::BASE as i32 + 8;
        Rm::Index(RSP, RBX, 0, disp)
    };

    asm.store(inner(KEPT), RAX);
    asm.save_flags();
    asm.store(inner(KEPT + 8), RBX);
    // movzx ebx, cl; shl ebx, 6
    asm.modrm_byte(op2(0xB6), 4, RBX.0, RCX.into());
    asm.modrm(op(0xC1), 4, 4, RBX);
    asm.immediate(1, size_of::<Quick>().trailing_zeros() as i32);
    asm.compare(4, RCX, quick(offset_of!(Quick, key)));
    let unknown = asm.jump(0x85);
    let spot = |offset: usize| quick(offset_of!(Quick, spot) + offset);
    let mut refused = compare_spot(asm, inner(offset_of!(Frame, unchanged)), spot).to_vec();
    // What comes next in the log, in RCX, and there the event.
    asm.load(RCX, inner(NEXT));
    asm.compare(8, RCX, inner(NEXT + 8));
    refused.push(asm.jump(0x84));
    let field = |offset: usize| Rm::Base(RCX, offset as i32);
    asm.prefetch(Rm::Base(RCX, AHEAD));
    // The offset in the page, in RDX: it is taken back below.
    asm.modrm(op(0x03), 8, RDX.0, spot(offset_of!(Spot, page)));
    asm.compare(8, RDX, quick(offset_of!(Quick, limit)));
    let beyond = asm.jump(0x87);
    asm.modrm(op(0x03), 4, RDX.0, quick(offset_of!(Quick, at)));
    asm.modrm(op(0x89), 4, RDX.0, field(offset_of!(Short, at)));
    asm.modrm(op(0x8B), 4, RDX.0, inner(offset_of!(Frame, remaining)));
    asm.modrm(op(0x89), 4, RDX.0, field(offset_of!(Short, left)));
    asm.load(RDX, inner(offset_of!(Frame, value)));
    asm.store(field(offset_of!(Short, data)), RDX);
    asm.lea(RCX, field(size_of::<Short>()));
    asm.store(inner(NEXT), RCX);
    asm.load(RDX, spot(offset_of!(Spot, addend)));
    asm.load(RBX, inner(KEPT + 8));
    asm.restore_flags();
    asm.load(RAX, inner(KEPT));
    asm.raw(&[0xC3]);

    asm.land(beyond);
    // sub rdx, page
    asm.modrm(op(0x2B), 8, RDX.0, spot(offset_of!(Spot, page)));
    refused.into_iter().for_each(|jump| asm.land(jump));
    asm.modrm(op(0x8B), 4, RCX.0, quick(offset_of!(Quick, key)));
    asm.land(unknown);
    asm.load(RBX, inner(KEPT + 8));
    asm.store(inner(offset_of!(Frame, flags)), RAX);
    write_call(asm, record);
}

/// Compares where an event was logged, of which `spot` gives the words, with what is now. RCX is lost. Gives jumps for where it
/// is not the same.
pub(super) fn compare_spot(asm: &mut Asm, unchanged: Rm, spot: impl Fn(usize) -> Rm) -> [Jump; 3] {
    asm.load(RCX, unchanged);
    asm.compare(8, RCX, spot(offset_of!(Spot, unchanged)));
    let changed = asm.jump(0x85);
    let [sp, bp] = [0, 1].map(|n| {
        asm.compare(8, STACK_PLACES[n], spot(offset_of!(Spot, stack) + 8 * n));
        asm.jump(0x85)
    });
    [changed, sp, bp]
}

/// Has what translated code is about to do logged: the key of its site, and its linear address. Gives 1 and what is to be
/// added to the address, or 0.
pub(super) type Record = extern "sysv64" fn(*mut Cpu, u32, u64) -> Departure;

/// The rest of that function, where another one decides. The status flags are in [`Frame::flags`].
pub(super) fn write_call(asm: &mut Asm, record: Record) {
    // The return address off the stack first: words are found from where it points.
    asm.modrm(op(0x8F), 4, 0, RESUME);
    asm.load(RAX, CPU);
    for (n, place) in PLACES.into_iter().enumerate() {
        if let Place::Host(reg) = place {
            asm.store(home(RAX, n), reg);
        }
    }
    // RBX is at home now.
    for (n, place) in PLACES.into_iter().enumerate() {
        if let Place::Slot(_) = place {
            asm.load(RBX, place.rm());
            asm.store(home(RAX, n), RBX);
        }
    }
    asm.load(RDI, RAX);
    asm.modrm(op(0x8B), 4, RSI.0, RCX);
    asm.load(RBX, RSP);
    asm.load(RSP, HOST_STACK);
    asm.constant(RAX, record as usize as u64);
    asm.modrm(op(0xFF), 4, 2, RAX);
    asm.load(RSP, RBX);
    // Where it was not logged, behind the jump: xor eax, 1; imul eax, eax, JUMP; add resume, rax
    asm.modrm(op(0x83), 4, 6, RAX);
    asm.immediate(1, 1);
    asm.modrm(op(0x6B), 4, RAX.0, RAX);
    asm.immediate(1, JUMP.into());
    asm.modrm(op(0x01), 8, RAX.0, RESUME);
    asm.load(RBX, CPU);
    // What a function need not keep; RBX last.
    for (n, place) in PLACES.into_iter().enumerate() {
        if let Place::Host(reg) = place
            && (matches!(reg, RSI | RDI) || (8..12).contains(&reg.0))
        {
            asm.load(reg, home(RBX, n));
        }
    }
    asm.load(RBX, home(RBX, usize::from(RBX.0)));
    asm.modrm(op2(0xB7), 4, RAX.0, FLAGS);
    asm.restore_flags();
    asm.load(RAX, word(offset_of!(Frame, kept)));
    asm.modrm(op(0xFF), 4, 4, RESUME);
}

extern "sysv64" fn record(cpu: *mut Cpu, key: u32, va: u64) -> Departure {
    have_logged(cpu, |cpu| cpu.record_site(Site(key.wrapping_sub(1)), va))
}

/// Has something logged by a function that gives what is to be added to its address.
pub(super) fn have_logged(cpu: *mut Cpu, record: impl FnOnce(&mut Cpu) -> Option<u64>) -> Departure {
    // SAFETY: `run_from` has put the vCPU's address there, and nobody else uses it while translated code runs.
    let cpu = unsafe { &mut *cpu };
    cpu.take_log();
    let addend = record(cpu);
    cpu.lend_log();
    Departure { reason: addend.is_some().into(), detail: addend.unwrap_or(0) }
}

impl Cpu {
    /// Translated code may fill the log.
    pub(super) fn lend_log(&mut self) {
        if !self.shared.watch.is_on() {
            return;
        }
        let room = self.shared.log.room(LOG_CAPACITY).as_mut_ptr_range();
        let (begin, end) = (room.start.expose_provenance() as u64, room.end.expose_provenance() as u64);
        // Who waits for its bytes has to be seen to first.
        let end = if self.shared.is_ahead() { begin } else { end };
        self.tlb.frame.log = [begin, begin, end];
    }

    /// It is the log's again, with what was written there.
    pub(super) fn take_log(&mut self) {
        let [begin, next, _] = std::mem::take(&mut self.tlb.frame.log);
        if next != begin {
            self.shared.log.advance((next - begin) as usize / size_of::<Short>());
        }
    }

    /// Logs what translated code is about to do. Its registers are here, but for RIP and the flags. Gives host address minus
    /// linear address.
    fn record_site(&mut self, site: Site, va: u64) -> Option<u64> {
        let now = self.stretch();
        let (deed, told) = match self.noted_at(site)? {
            Noted::Flush(kind) => (Deed::Flush(kind), true),
            Noted::Store(stored) => (stored.deed(), stored.told),
        };
        let size = match deed {
            Deed::Store(size, _) => size.into(),
            Deed::Flush(_) => 0,
        };
        let address = self.loggable(va, size)?;
        let actor = self.actor_at(site)?;
        let place = self.place_of(actor.rip, now)?;
        self.shared.enter_log(actor, place);
        let short = told.then(|| {
            let (what, left) = ((address, self.tlb.frame.value), self.tlb.frame.remaining as u32);
            self.shared.record_short(actor, place, deed, what, left)
        });
        match (short.flatten(), deed) {
            (None, Deed::Store(size, kind)) => self.shared.record_ahead(actor, address, size, kind),
            (None, Deed::Flush(kind)) => {
                self.shared.record(actor, EventKind::Flush { line: address & !63, kind });
            }
            (Some(short), _) => {
                if self.is_told_by_the_stack(actor.rip, now) {
                    let key = site.0 + 1;
                    self.tlb.frame.sites[key as usize % QUICK] = Quick {
                        spot: self.spot(va, now),
                        key,
                        at: short.at - (va & 0xFFF) as u32,
                        limit: 0x1000 - size.max(1),
                    };
                }
            }
        }
        Some(self.tlb.addend(va))
    }

    /// The physical address of so many bytes to be stored, or of none and a line to be flushed, if translated code may log that:
    /// they are watched, in one page, and none of them is code, and the log is not full.
    pub(super) fn loggable(&self, va: u64, size: u64) -> Option<u64> {
        let needs = if size == 0 { 0 } else { property::WRITE };
        let page = self.tlb.known(va).filter(|page| page & needs == needs)? & !0xFFF;
        let may = (va & 0xFFF) + size <= 0x1000
            && self.shared.watch.covers(page)
            && !(size != 0 && self.shared.has_code(page))
            && !self.shared.log_is_full();
        may.then_some(page | va & 0xFFF)
    }

    /// What the instruction at a site does, if it can log that itself.
    pub(super) fn noted_at(&self, site: Site) -> Option<Noted> {
        self.shared.blocks.translator.as_ref()?.part(site.translation(), site.part()).noted
    }

    /// The instruction at a site, which is about to be executed.
    pub(super) fn actor_at(&self, site: Site) -> Option<Actor> {
        let translator = self.shared.blocks.translator.as_ref()?;
        let translation = translator.at(site.translation());
        let part = translator.part(site.translation(), site.part());
        let undone = (translation.block.insns().len() - site.part()) as u64;
        let remaining = self.progress.withheld + self.tlb.frame.remaining;
        Some(Actor {
            vcpu: self.id,
            rip: translation.rip.wrapping_add(part.offset.into()),
            instruction: self.shared.retired + self.progress.budget - remaining - undone,
        })
    }

    /// The number of an instruction's place.
    pub(super) fn place_of(&mut self, rip: u64, now: u64) -> Option<u32> {
        let recalled = self.shared.places.recall(rip, &self.gpr[..16], now).map(|found| found.number);
        recalled.or_else(|| self.known_place(rip, now))
    }

    /// Where an event at this address is, to translated code.
    pub(super) fn spot(&self, va: u64, now: u64) -> Spot {
        Spot {
            unchanged: now,
            stack: STACK.map(|n| self.gpr[usize::from(n)]),
            page: (va & !0xFFF).wrapping_neg(),
            addend: self.tlb.addend(va),
        }
    }

    /// The place of an instruction is the same as long as nothing but watched memory changes and RSP and RBP are what they are.
    pub(super) fn is_told_by_the_stack(&self, rip: u64, now: u64) -> bool {
        let places = &self.shared.places;
        let recalled = || places.recall(rip, &self.gpr[..16], now);
        !self.shared.watch.places || recalled().is_some_and(|found| places.is_told_by(found, &STACK))
    }

    /// The number of the stretch in which nothing but watched memory changes, as far as translated code is concerned. What the
    /// interpreter does ends it, and so does a store of translated code that has a tag.
    pub(super) fn stretch(&mut self) -> u64 {
        if self.tlb.frame.unchanged == 0 {
            self.shared.stretches += 1;
            self.tlb.frame.unchanged = self.shared.stretches;
        }
        self.tlb.frame.unchanged
    }
}

#[cfg(test)]
mod tests;
