//! The accesses that the translation cache does not serve: the first to a page, across pages, to holes, to watched
//! memory, to code.

use engine::ExitKind;
use engine::event::{EventKind, FenceKind, FlushKind, StoreKind};
use engine::state::{Segment, SystemRegisters};

use crate::cpu::Cpu;
use crate::insn::FLAT_STACK;
use crate::mmu::{Access, canonical};
use crate::shared::Actor;
use crate::trap::{Cause, Step, Trap, vector};

impl Cpu {
    #[cold]
    #[inline(never)]
    pub(crate) fn load_slow(&mut self, seg: u8, va: u64, len: usize) -> Step<[u8; 16]> {
        self.check_linear(seg, va, len, len)?;
        let mut bytes = [0; 16];
        self.load_pieces(va, &mut bytes[..len])?;
        Ok(bytes)
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn store_slow(
        &mut self,
        seg: u8,
        va: u64,
        bytes: [u8; 16],
        len: usize,
        kind: StoreKind,
    ) -> Step {
        self.check_linear(seg, va, len, len)?;
        self.store_pieces(va, &bytes[..len], kind)
    }

    /// The old value for a read-modify-write, once it is known that the write will be possible.
    #[cold]
    #[inline(never)]
    pub(crate) fn modify_begin(&mut self, seg: u8, va: u64, len: usize) -> Step<[u8; 16]> {
        self.probe_linear(seg, va, len, true)?;
        self.load_slow(seg, va, len)
    }

    pub(crate) fn probe_linear(&mut self, seg: u8, va: u64, len: usize, write: bool) -> Step {
        self.check_linear(seg, va, len, 1)?;
        let access = if write { Access::Write } else { Access::Read };
        for (at, part) in pieces(va, len) {
            let gpa = self.translate(at, access)?;
            if write {
                self.admit(gpa, part)?;
            }
        }
        Ok(())
    }

    /// Canonical form, then alignment where it is checked.
    pub(crate) fn check_linear(&mut self, seg: u8, va: u64, len: usize, align: usize) -> Step {
        let last = va.wrapping_add(len.max(1) as u64 - 1);
        if self.long && !(canonical(va) && canonical(last)) {
            let stack = seg == FLAT_STACK || usize::from(seg) == SystemRegisters::SS;
            return self.raise(if stack { vector::SS } else { vector::GP }, Some(0));
        }
        if self.tlb.is_closed() && self.checks_alignment() && va & (align.next_power_of_two() as u64 - 1) != 0
        {
            return self.raise(vector::AC, Some(0));
        }
        Ok(())
    }

    /// Linear address of an access outside 64-bit mode.
    #[inline(never)]
    pub(crate) fn in_legacy_limits(&mut self, seg: u8, offset: u64, len: u64, write: bool) -> Step<u64> {
        let Segment { base, limit, attributes, .. } = self.segments[usize::from(seg).min(5)];
        let kind = attributes & 15;
        let (code, down, writable) = (kind & 8 != 0, kind & 12 == 4, kind & 2 != 0);
        let last = offset.saturating_add(len.max(1) - 1);
        let inside = if down {
            let top = if attributes & Segment::BIG != 0 { 0xFFFF_FFFF } else { 0xFFFF };
            offset > u64::from(limit) && last <= top
        } else {
            last <= u64::from(limit)
        };
        let usable = attributes & Segment::UNUSABLE == 0 && attributes & Segment::PRESENT != 0;
        // Real mode writes through any segment; protected mode never through code, nor reads execute-only code.
        let allowed = self.real || if write { !code && writable } else { !code || writable };
        if inside && usable && allowed {
            return Ok(base.wrapping_add(offset) & 0xFFFF_FFFF);
        }
        let stack = usize::from(seg) == SystemRegisters::SS;
        self.raise(if stack { vector::SS } else { vector::GP }, Some(0))
    }

    pub(crate) fn load_pieces(&mut self, va: u64, bytes: &mut [u8]) -> Step {
        let len = bytes.len();
        for (at, _) in pieces(va, len) {
            self.translate(at, Access::Read)?;
        }
        self.data_breakpoint(va, len, false);
        let mut rest = bytes;
        for (at, part) in pieces(va, len) {
            let gpa = self.translate(at, Access::Read)?;
            let (piece, tail) = rest.split_at_mut(part);
            self.load_physical(gpa, piece)?;
            rest = tail;
        }
        Ok(())
    }

    pub(crate) fn store_pieces(&mut self, va: u64, bytes: &[u8], kind: StoreKind) -> Step {
        let mut target = [(0, 0); 2];
        for (n, (at, part)) in pieces(va, bytes.len()).enumerate() {
            let gpa = self.translate(at, Access::Write)?;
            self.admit(gpa, part)?;
            target[n & 1] = (gpa, part);
        }
        self.data_breakpoint(va, bytes.len(), true);
        let mut rest = bytes;
        for (gpa, part) in target {
            let (piece, tail) = rest.split_at(part);
            self.commit(gpa, piece, kind);
            rest = tail;
        }
        Ok(())
    }

    /// Loads within a page.
    fn load_physical(&mut self, gpa: u64, bytes: &mut [u8]) -> Step {
        if self.shared.ram.read(gpa, bytes) {
            if self.shared.watch.is_on() && self.shared.watch.loads && self.shared.watch.covers(gpa) {
                self.open_log()?;
                let actor = self.actor();
                for (n, chunk) in bytes.chunks(64).enumerate() {
                    let addr = gpa + 64 * n as u64;
                    self.shared.record(actor, EventKind::Load { addr, len: chunk.len() as u8 });
                }
            }
            return Ok(());
        }
        let mut done = 0;
        while done < bytes.len() {
            let addr = gpa + done as u64;
            let size = access_size(addr, bytes.len() - done);
            let value = self.read_hole(addr, size as u8)?;
            bytes[done..done + size].copy_from_slice(&value.to_le_bytes()[..size]);
            done += size;
        }
        Ok(())
    }

    /// Stores within a page: page walks and the like.
    pub(crate) fn store_physical(&mut self, gpa: u64, bytes: &[u8], kind: StoreKind) -> Step {
        self.admit(gpa, bytes.len())?;
        self.commit(gpa, bytes, kind);
        Ok(())
    }

    /// A store within a page may happen now: the log has room, and what has to follow it at once can.
    fn admit(&mut self, gpa: u64, len: usize) -> Step {
        if self.shared.ram.host(gpa).is_none() || self.progress.is_running(gpa, len) {
            self.alone()?;
        }
        if self.shared.watch.is_on() && self.shared.watch.covers(gpa) {
            self.open_log()?;
        }
        Ok(())
    }

    /// An instruction is about to be logged: the log has room, and it is known where it is, or that nobody knows. What the
    /// delivery of an exception stores cannot wait.
    fn open_log(&mut self) -> Step {
        self.shared.settle();
        let actor = self.actor();
        if self.shared.is_here(actor) || self.progress.delivering {
            return Ok(());
        }
        if self.shared.log_is_full() {
            self.cause = Cause::Exit(ExitKind::EventsFull);
            return Err(Trap);
        }
        let place = self.known_place(actor.rip, 0);
        self.shared.enter_log(actor, place.unwrap_or(0));
        if place.is_none() {
            self.cause = Cause::Exit(ExitKind::UnknownPlace);
            return Err(Trap);
        }
        Ok(())
    }

    /// The number of the place of the instruction there, which is about to be executed; 0 where nobody wants to know. `now` is
    /// another number as soon as memory that is not watched may have changed; 0 where nobody knows.
    pub(crate) fn known_place(&self, rip: u64, now: u64) -> Option<u32> {
        if !self.shared.watch.places {
            return Some(0);
        }
        let mut watched = false;
        let look = |va, len| {
            let (word, gpa) = self.look(va, len)?;
            watched |= self.shared.watch.covers(gpa);
            Some(word)
        };
        let found = self.shared.places.find(rip, &self.gpr[..16], now, look)?;
        if !watched {
            self.shared.places.vouch(found, now);
        }
        Some(found.number)
    }

    /// Up to eight bytes of memory and where the last of them is, without a trace of having been looked at.
    #[inline]
    fn look(&self, va: u64, len: usize) -> Option<(u64, u64)> {
        if len == 8
            && let Some(page) = self.tlb.known(va)
            && let Ok(word) = self.try_load::<u64>(va)
        {
            return Some((word, page & !0xFFF));
        }
        let mut bytes = [0; 8];
        let len = len.min(8);
        let (mut done, mut last) = (0, 0);
        for (at, part) in pieces(va, len) {
            last = self.leads_to(at)?;
            if !self.shared.ram.read(last, &mut bytes[done..done + part]) {
                return None;
            }
            done += part;
        }
        Some((u64::from_le_bytes(bytes), last))
    }

    /// Stores within a page, after [`Cpu::admit`].
    fn commit(&mut self, gpa: u64, bytes: &[u8], kind: StoreKind) {
        if self.shared.ram.write(gpa, bytes) {
            self.shared.code_changed(gpa, bytes.len());
            self.notice_generation();
            if self.shared.watch.is_on() && self.shared.watch.covers(gpa) {
                let actor = self.actor();
                for (n, chunk) in bytes.chunks(64).enumerate() {
                    self.shared.record_store(actor, gpa + 64 * n as u64, chunk, kind);
                }
            }
            return;
        }
        let mut done = 0;
        while done < bytes.len() {
            let addr = gpa + done as u64;
            let size = access_size(addr, bytes.len() - done);
            let mut value = [0; 8];
            value[..size].copy_from_slice(&bytes[done..done + size]);
            self.write_hole(addr, size as u8, u64::from_le_bytes(value));
            done += size;
        }
    }

    fn read_hole(&mut self, addr: u64, size: u8) -> Step<u64> {
        self.ask(ExitKind::MmioRead { addr, size })
    }

    fn write_hole(&mut self, addr: u64, size: u8, value: u64) {
        self.posted.push_back(ExitKind::MmioWrite { addr, size, value });
    }

    /// The current instruction, for the log.
    #[must_use]
    pub fn actor(&self) -> Actor {
        let (rip, instruction) = self.place();
        Actor { vcpu: self.id, rip, instruction }
    }

    /// Logs a fence, while anything is watched.
    #[inline(always)]
    pub fn fence(&mut self, kind: FenceKind) {
        if self.shared.watch.is_on() {
            self.log_fence(kind);
        }
    }

    /// As [`Cpu::fence`], for an instruction that is nothing else: where it comes from is of interest, too.
    pub fn fence_alone(&mut self, kind: FenceKind) -> Step {
        if self.shared.watch.is_on() {
            self.open_log()?;
            self.log_fence(kind);
        }
        Ok(())
    }

    #[cold]
    fn log_fence(&mut self, kind: FenceKind) {
        let actor = self.actor();
        self.shared.record(actor, EventKind::Fence { kind });
    }

    /// Flushes the line of an address: checked as a one-byte load is, and logged where it is watched.
    pub fn flush_line(&mut self, seg: u8, offset: u64, kind: FlushKind) -> Step {
        let va = self.in_limits(seg, offset, 1, false)?;
        self.check_linear(seg, va, 1, 1)?;
        let gpa = self.translate(va, Access::Read)?;
        if self.shared.watch.is_on() && self.shared.watch.covers(gpa) {
            self.open_log()?;
            let actor = self.actor();
            self.shared.record(actor, EventKind::Flush { line: gpa & !63, kind });
        }
        Ok(())
    }
}

/// The largest naturally aligned access at an address within what is left.
fn access_size(addr: u64, left: usize) -> usize {
    let aligned = 1 << addr.trailing_zeros().min(3);
    let whole = 1 << left.ilog2().min(3);
    aligned.min(whole)
}

/// The parts of a stretch that lie in one page each.
fn pieces(va: u64, len: usize) -> impl Iterator<Item = (u64, usize)> {
    let first = len.min(0x1000 - (va & 0xFFF) as usize);
    let second = (len > first).then(|| (va.wrapping_add(first as u64), len - first));
    std::iter::once((va, first)).chain(second)
}
