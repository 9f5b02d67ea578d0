//! Stores of translated code to watched memory.
//!
//! A watched page has no store tag, so a store there comes to its slow path. An instruction that stores its whole operand
//! once, whatever it finds, is then logged from there and goes on as if there had been a tag: the host's instruction makes
//! the store, and the event's bytes are read from memory when somebody next has to do with the log
//! ([`crate::shared::Shared::settle`]). All else is the interpreter's: pages crossed, code changed, a log that is full, a
//! place that is not known.

#![expect(unsafe_code, reason = "translated code calls with the vCPU's address")]

use engine::event::StoreKind;
use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::emit::{Asm, CPU, RAX, RBX, RCX, RDI, RSI, RSP, op, op2, word};
use super::registers::{PLACES, Place};
use super::thunk::{Departure, FLAGS, HOST_STACK, RESUME, Site, home};
use crate::cpu::Cpu;
use crate::frame::Frame;
use crate::mmu::property;
use crate::shared::Actor;

/// A store that an instruction makes of all its memory operand, or of the word that it pushes, whatever it finds there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Bytes: at most 32.
    pub(crate) size: u8,
    /// Past the cache.
    pub(crate) posted: bool,
}

/// What an instruction stores, if it is such a one.
pub(crate) fn stored(i: &Instruction) -> Option<Stored> {
    let posted = matches!(
        i.mnemonic(),
        M::Movnti | M::Movntdq | M::Movntps | M::Movntpd | M::Vmovntdq | M::Vmovntps | M::Vmovntpd
    );
    let whole = posted
        || match i.mnemonic() {
            M::Push => return Some(Stored { size: 8, posted: false }),
            M::Call => return Some(Stored { size: 8, posted: false }),
            M::Mov | M::Add | M::Or | M::Adc | M::Sbb | M::And | M::Sub | M::Xor => true,
            M::Inc | M::Dec | M::Not | M::Neg => true,
            M::Movups | M::Movupd | M::Movaps | M::Movapd | M::Movdqu | M::Movdqa => true,
            M::Vmovups | M::Vmovupd | M::Vmovaps | M::Vmovapd | M::Vmovdqu | M::Vmovdqa => true,
            _ => false,
        };
    let size = i.memory_size().size();
    let plain = whole && !i.has_lock_prefix() && i.op0_kind() == OpKind::Memory && (1..=32).contains(&size);
    plain.then_some(Stored { size: size as u8, posted })
}

/// A function of translated code: called with a site in ECX and a linear address in RDX, it logs a store there and gives
/// what the address lacks to a host address in RDX, and 1 in RCX. Or it gives 0 there, and nothing has happened.
pub(super) fn write(asm: &mut Asm) {
    const KEPT: super::emit::Rm = word(std::mem::offset_of!(Frame, kept));
    // The return address off the stack first: words are found from where it points.
    asm.modrm(op(0x8F), 4, 0, RESUME);
    asm.store(KEPT, RAX);
    asm.save_flags();
    asm.store(FLAGS, RAX);
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
    asm.constant(RAX, record as extern "sysv64" fn(_, _, _) -> _ as usize as u64);
    asm.modrm(op(0xFF), 4, 2, RAX);
    asm.load(RSP, RBX);
    asm.load(RCX, RAX);
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
    asm.load(RAX, KEPT);
    asm.modrm(op(0xFF), 4, 4, RESUME);
}

/// Has the store of an instruction logged: gives 1 and what is to be added to its address, or 0.
extern "sysv64" fn record(cpu: *mut Cpu, site: Site, va: u64) -> Departure {
    // SAFETY: `run_from` has put the vCPU's address there, and nobody else uses it while translated code runs.
    let cpu = unsafe { &mut *cpu };
    let addend = cpu.record_site(site, va);
    Departure { reason: addend.is_some().into(), detail: addend.unwrap_or(0) }
}

impl Cpu {
    /// Logs a store that translated code is about to make. Its registers are here, but for RIP and the flags. Gives host
    /// address minus linear address.
    fn record_site(&mut self, site: Site, va: u64) -> Option<u64> {
        let now = self.stretch();
        let translator = self.shared.blocks.translator.as_ref()?;
        let translation = translator.at(site.translation());
        let part = translator.part(site.translation(), site.part());
        let Stored { size, posted } = part.stored?;
        let undone = translation.block.insns().len() - site.part();
        let rip = translation.rip.wrapping_add(part.offset.into());
        let page = self.tlb.known(va).filter(|page| page & property::WRITE != 0)? & !0xFFF;
        if (va & 0xFFF) + u64::from(size) > 0x1000
            || !self.shared.watch.covers(page)
            || self.shared.has_code(page)
            || self.shared.log_is_full()
        {
            return None;
        }
        let recalled = self.shared.places.recall(rip, &self.gpr[..16], now);
        let place = recalled.or_else(|| self.known_place(rip, now))?;
        let remaining = self.progress.withheld + self.tlb.frame.remaining;
        let instruction = self.shared.retired + self.progress.budget - remaining - undone as u64;
        let actor = Actor { vcpu: self.id, rip, instruction };
        let kind = if posted { StoreKind::NonTemporal } else { StoreKind::Cached };
        self.shared.enter_log(actor, place);
        self.shared.record_ahead(actor, page | va & 0xFFF, size, kind);
        Some(self.tlb.addend(va))
    }

    /// The number of the stretch in which nothing but watched memory changes, as far as translated code is concerned. What the
    /// interpreter does ends it, and so does a store of translated code that has a tag.
    fn stretch(&mut self) -> u64 {
        if self.tlb.frame.unchanged == 0 {
            self.shared.stretches += 1;
            self.tlb.frame.unchanged = self.shared.stretches;
        }
        self.tlb.frame.unchanged
    }
}

#[cfg(test)]
mod tests;
