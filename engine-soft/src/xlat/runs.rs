//! Runs: stores past the cache that follow one another, to addresses that differ by constants. Copies to persistent memory are
//! made of them, so a run to watched memory is logged as a whole: what would be asked for each store is asked once, and each
//! costs little more than its event.
//!
//! A run comes to its first store's slow path. What cannot be logged as a whole (a page's end, a log without room for all)
//! is logged store by store, as [`super::watched`] has it.

use std::mem::offset_of;

use engine::event::StoreKind;
use engine::log::Short;
use iced_x86::{Instruction, Mnemonic, Register};

use super::body::Body;
use super::emit::{Asm, Jump, RAX, RCX, RDX, Reg, Rm, op, word};
use super::registers::{Place, place};
use super::thunk::{Departure, FLAGS, Site};
use super::watched::{AHEAD, Noted, Stored, compare_spot, have_logged, write_call};
use crate::cpu::Cpu;
use crate::frame::{Frame, QUICK, RUN, Run, Spot};
use crate::insn::Insn;
use crate::shared::{Actor, LOG_CAPACITY};

/// Bytes that a run reaches over, at most.
const REACH: i64 = 512;

/// Tells of each run's first store how many there are. The instructions are those of a block behind which code goes on.
pub(super) fn mark(forms: &[Instruction], noted: &mut [Option<Noted>]) {
    let mut first = 0;
    for n in 1..=forms.len() {
        let goes_on = n < forms.len() && n - first < RUN && are_near(&forms[first..=n]);
        if !goes_on {
            if let Some(Noted::Store(stored)) = &mut noted[first] {
                stored.run = (n - first) as u8;
            }
            first = n;
        }
    }
}

/// They are MOVNTI, with one base, and near one another.
fn are_near(forms: &[Instruction]) -> bool {
    let base = forms[0].memory_base();
    let plain = |i: &Instruction| {
        i.mnemonic() == Mnemonic::Movnti
            && i.memory_base() == base
            && i.memory_index() == Register::None
            && !matches!(i.segment_prefix(), Register::FS | Register::GS)
    };
    base.is_gpr64() && forms.iter().all(plain) && Extent::of(forms).is_some()
}

/// What a run reaches, from its base on.
#[derive(Debug, Clone, Copy)]
struct Extent {
    low: i32,
    len: i32,
}

impl Extent {
    fn of(forms: &[Instruction]) -> Option<Self> {
        let begins = forms.iter().map(|i| i.memory_displacement64() as i64);
        let ends = forms.iter().map(|i| i.memory_displacement64() as i64 + i.memory_size().size() as i64);
        let (low, high) = (begins.min()?, ends.max()?);
        let len = high.checked_sub(low).filter(|&len| len <= REACH)?;
        Some(Self { low: low.try_into().ok()?, len: len as i32 })
    }
}

/// A run to be translated.
#[derive(Debug)]
struct Form {
    base: Place,
    extent: Extent,
    stores: Vec<Store>,
}

/// One of its stores.
#[derive(Debug, Clone, Copy)]
struct Store {
    value: Place,
    size: u8,
    disp: i32,
}

impl Form {
    fn of(forms: &[Instruction]) -> Option<Self> {
        let store = |i: &Instruction| {
            let (size, disp) = (i.memory_size().size() as u8, i.memory_displacement64() as i32);
            Some(Store { value: place(i.op1_register())?, size, disp })
        };
        let stores = forms.iter().map(store).collect::<Option<_>>()?;
        Some(Self { base: place(forms[0].memory_base())?, extent: Extent::of(forms)?, stores })
    }
}

impl Body<'_> {
    /// Logs and makes a run whose first store has come to its slow path with its address in a register, and goes on behind it.
    /// What follows is for when that cannot be.
    pub(crate) fn log_run(&mut self, insn: usize, va: Reg) {
        let Some(Noted::Store(Stored { run: count @ 2.., .. })) = self.noted[insn] else { return };
        let end = insn + usize::from(count);
        let Some(run) = Form::of(&self.forms[insn..end]) else { return };
        let key = Site::new(self.number, insn).0 + 1;

        self.asm.save_flags();
        self.asm.store(FLAGS, RAX);
        let refused = self.log_all(&run, key);
        self.asm.load(RAX, FLAGS);
        self.asm.restore_flags();
        let logged = self.asm.here();
        let base = self.in_register(run.base, RAX);
        for &Store { value, size, disp } in &run.stores {
            let value = self.in_register(value, RCX);
            self.asm.modrm(op(0x89), size, value.0, Rm::Index(base, RDX, 0, disp));
        }
        self.asm.jump_to(self.behind[end - 1]);

        refused.into_iter().for_each(|jump| self.asm.land(jump));
        let base = self.in_register(run.base, RDX);
        self.asm.lea(RDX, Rm::Base(base, run.extent.low));
        self.asm.constant(RCX, key.into());
        self.asm.go(0xE8, self.thunks.record_run);
        self.asm.jump_to(logged);
        if va == RAX {
            let base = self.in_register(run.base, RAX);
            self.asm.lea(RAX, Rm::Base(base, run.stores[0].disp));
        }
    }

    /// Logs all stores of a run like those that [`Cpu::record_run`] has logged there before: in RDX is what makes host addresses
    /// then. Gives jumps for where that cannot be.
    fn log_all(&mut self, run: &Form, key: u32) -> Vec<Jump> {
        const NEXT: usize = offset_of!(Frame, log) + 8;
        let known =
            |offset: usize| word(offset_of!(Frame, runs) + key as usize % QUICK * size_of::<Run>() + offset);
        let spot = |offset: usize| known(offset_of!(Run, spot) + offset);

        self.asm.modrm(op(0x81), 4, 7, known(offset_of!(Run, key)));
        self.asm.immediate(4, key as i32);
        let mut refused = vec![self.asm.jump(0x85)];
        refused.extend(compare_spot(&mut self.asm, word(offset_of!(Frame, unchanged)), spot));
        // The offset in the page, in RCX.
        let base = self.in_register(run.base, RCX);
        self.asm.lea(RCX, Rm::Base(base, run.extent.low));
        self.asm.modrm(op(0x03), 8, RCX.0, spot(offset_of!(Spot, page)));
        self.asm.modrm(op(0x81), 8, 7, RCX);
        self.asm.immediate(8, 0x1000 - run.extent.len);
        refused.push(self.asm.jump(0x87));
        // What comes next in the log, in RDX.
        self.asm.load(RDX, word(NEXT));
        self.asm.lea(RAX, Rm::Base(RDX, (run.stores.len() * size_of::<Short>()) as i32));
        self.asm.compare(8, RAX, word(NEXT + 8));
        refused.push(self.asm.jump(0x87));
        self.asm.store(word(NEXT), RAX);
        self.asm.prefetch(Rm::Base(RDX, AHEAD));
        // `Short::left`, above the offset.
        self.asm.modrm(op(0x8B), 4, RAX.0, word(offset_of!(Frame, remaining)));
        self.asm.modrm(op(0xC1), 8, 4, RAX);
        self.asm.immediate(1, 32);
        self.asm.modrm(op(0x0B), 8, RCX.0, RAX);
        for (n, store) in run.stores.iter().enumerate() {
            let field = |offset: usize| Rm::Base(RDX, (n * size_of::<Short>() + offset) as i32);
            self.asm.modrm(op(0x8B), 4, RAX.0, known(offset_of!(Run, at) + 4 * n));
            self.asm.modrm(op(0x03), 8, RAX.0, RCX);
            self.asm.store(field(offset_of!(Short, at)), RAX);
            let value = self.in_register(store.value, RAX);
            self.asm.store(field(offset_of!(Short, data)), value);
        }
        self.asm.load(RDX, spot(offset_of!(Spot, addend)));
        refused
    }
}

// The two are written as one word.
const _: () = assert!(offset_of!(Short, left) == offset_of!(Short, at) + 4);

/// A function of translated code, as [`super::watched::write`]'s, for a run. Its address is that of the run's lowest byte.
pub(super) fn write(asm: &mut Asm) {
    write_call(asm, record);
}

extern "sysv64" fn record(cpu: *mut Cpu, key: u32, va: u64) -> Departure {
    have_logged(cpu, |cpu| cpu.record_run(Site(key.wrapping_sub(1)), va))
}

/// A store of a run that is about to be made.
#[derive(Debug, Clone, Copy)]
struct Due {
    site: Site,
    stored: Stored,
    /// Bytes from the run's lowest.
    offset: u64,
    data: u64,
}

impl Cpu {
    /// Logs all stores of a run, or none of them.
    fn record_run(&mut self, first: Site, va: u64) -> Option<u64> {
        let run = self.run_at(first)?;
        let len = run.iter().map(|due| due.offset + u64::from(due.stored.size)).max()?;
        let address = self.loggable(va, len)?;
        if self.shared.log.len() + run.len() > LOG_CAPACITY {
            return None;
        }
        let now = self.stretch();
        let stands = run.iter().map(|due| self.stand(due.site, now)).collect::<Option<Vec<_>>>()?;
        let (spot, left) = (self.spot(va, now), self.tlb.frame.remaining as u32);
        let mut at = [0; RUN];
        let mut all = true;
        for (at, (&Due { stored, offset, data, .. }, (actor, place))) in
            at.iter_mut().zip(run.iter().zip(stands))
        {
            self.shared.enter_log(actor, place);
            let what = (address + offset, data);
            match self.shared.record_short(actor, place, stored.deed(), what, left) {
                Some(short) => *at = short.at - (va & 0xFFF) as u32,
                None => {
                    all = false;
                    let bytes = &data.to_le_bytes()[..stored.size.into()];
                    self.shared.record_store(actor, address + offset, bytes, StoreKind::NonTemporal);
                }
            }
        }
        if all {
            let key = first.0 + 1;
            self.tlb.frame.runs[key as usize % QUICK] = Run { spot, key, at };
        }
        Some(self.tlb.addend(va))
    }

    /// The stores of the run that begins at a site.
    fn run_at(&self, first: Site) -> Option<Vec<Due>> {
        let Noted::Store(Stored { run, .. }) = self.noted_at(first)? else { return None };
        let block = self.shared.blocks.translator.as_ref()?.at(first.translation()).block;
        let insns = &block.insns()[first.part()..][..run.into()];
        let low = insns.iter().map(|insn| insn.disp as i64).min()?;
        let due = |(site, insn): (u32, &Insn)| {
            let Noted::Store(stored) = self.noted_at(Site(site))? else { return None };
            let (offset, data) = ((insn.disp as i64 - low) as u64, self.gpr[usize::from(insn.r[1])]);
            Some(Due { site: Site(site), stored, offset, data })
        };
        (first.0..).zip(insns).map(due).collect()
    }

    /// The instruction at a site, and the number of its place, if that is known as long as the stack is what it is.
    fn stand(&mut self, site: Site, now: u64) -> Option<(Actor, u32)> {
        let actor = self.actor_at(site)?;
        let place = self.place_of(actor.rip, now)?;
        self.is_told_by_the_stack(actor.rip, now).then_some((actor, place))
    }
}

#[cfg(test)]
mod tests;
