//! Guest memory as instructions use it: by operand, by segment and offset, all or nothing.
//!
//! Every access tries the translation cache inline and leaves the rest to [`crate::slow`].

#![expect(unsafe_code, reason = "guest memory is reached by host address")]

use engine::event::{FenceKind, StoreKind};
use engine::state::{Segment, SystemRegisters};
use engine::{Access as Size, ExitKind};

use crate::cpu::Cpu;
use crate::flags::Flags;
use crate::insn::{FLAT, FLAT_STACK, Insn, prefix};
use crate::mmu::Access;
use crate::trap::{Cause, Step, Trap};
use crate::width::Width;

/// RSP in [`Cpu::gpr`].
const RSP: usize = 4;
/// SS in [`Insn::seg`].
const SS: u8 = SystemRegisters::SS as u8;

/// What one access can carry.
pub trait MemValue: Copy + 'static {
    /// Bytes.
    const SIZE: usize;
    /// From the first [`Self::SIZE`] little-endian bytes.
    fn from_bytes(bytes: &[u8; 16]) -> Self;
    /// Little-endian, zero-extended.
    fn to_bytes(self) -> [u8; 16];
}

macro_rules! mem_value {
    ($($int:ty),*) => {$(
        impl MemValue for $int {
            const SIZE: usize = size_of::<$int>();

            #[inline(always)]
            fn from_bytes(bytes: &[u8; 16]) -> Self {
                u128::from_le_bytes(*bytes) as $int
            }

            #[inline(always)]
            fn to_bytes(self) -> [u8; 16] {
                u128::from(self).to_le_bytes()
            }
        }
    )*};
}

mem_value!(u8, u16, u32, u64, u128);

/// Loads from a host address that a tag of the translation cache vouches for.
///
/// # Safety
/// `T::SIZE` bytes at `host` are guest memory.
#[inline(always)]
pub(crate) unsafe fn peek<T: MemValue>(host: u64) -> T {
    // SAFETY: the caller's promise; guest memory is plain bytes of any alignment.
    unsafe { std::ptr::with_exposed_provenance::<T>(host as usize).read_unaligned() }
}

/// Stores to such an address.
///
/// # Safety
/// `T::SIZE` bytes at `host` are guest memory.
#[inline(always)]
pub(crate) unsafe fn poke<T: MemValue>(host: u64, value: T) {
    // SAFETY: the caller's promise; guest memory is plain bytes of any alignment.
    unsafe { std::ptr::with_exposed_provenance_mut::<T>(host as usize).write_unaligned(value) }
}

impl Cpu {
    /// Loads the memory operand.
    #[inline(always)]
    pub fn load<T: MemValue>(&mut self, insn: &Insn) -> Step<T> {
        let offset = self.offset(insn);
        self.load_at(insn.seg, offset)
    }

    /// Stores to the memory operand.
    #[inline(always)]
    pub fn store<T: MemValue>(&mut self, insn: &Insn, value: T) -> Step {
        self.store_kind(insn, value, StoreKind::Cached)
    }

    /// As [`Cpu::store`], telling how.
    #[inline(always)]
    pub fn store_kind<T: MemValue>(&mut self, insn: &Insn, value: T, kind: StoreKind) -> Step {
        let offset = self.offset(insn);
        self.store_at(insn.seg, offset, value, kind)
    }

    /// Loads from a segment.
    #[inline(always)]
    pub fn load_at<T: MemValue>(&mut self, seg: u8, offset: u64) -> Step<T> {
        let va = self.in_limits(seg, offset, T::SIZE as u64, false)?;
        self.load_linear(seg, va)
    }

    /// Stores to a segment.
    #[inline(always)]
    pub fn store_at<T: MemValue>(&mut self, seg: u8, offset: u64, value: T, kind: StoreKind) -> Step {
        let va = self.in_limits(seg, offset, T::SIZE as u64, true)?;
        self.store_linear(seg, va, value, kind)
    }

    /// Loads from a linear address; `seg` chooses between #GP and #SS.
    #[inline(always)]
    pub(crate) fn load_linear<T: MemValue>(&mut self, seg: u8, va: u64) -> Step<T> {
        if let Some(host) = self.tlb.load(va, T::SIZE as u64) {
            // SAFETY: a matching read tag says that the page is guest memory and holds all of the access.
            return Ok(unsafe { peek(host) });
        }
        self.load_slow(seg, va, T::SIZE).map(|bytes| T::from_bytes(&bytes))
    }

    /// Stores to a linear address.
    #[inline(always)]
    pub(crate) fn store_linear<T: MemValue>(&mut self, seg: u8, va: u64, value: T, kind: StoreKind) -> Step {
        if let Some(host) = self.tlb.store(va, T::SIZE as u64) {
            // SAFETY: a matching write tag says that the page is guest memory and holds all of the access.
            unsafe { poke(host, value) };
            return Ok(());
        }
        self.store_slow(seg, va, value.to_bytes(), T::SIZE, kind)
    }

    /// Loads, changes and stores the memory operand. Faults as a store does, before anything is read.
    #[inline(always)]
    pub fn modify<W: Width + MemValue, R>(
        &mut self,
        insn: &Insn,
        f: impl FnOnce(&mut Flags, W) -> (W, R),
    ) -> Step<R> {
        self.modify_if(insn, |flags, old| {
            let (new, result) = f(flags, old);
            (Some(new), result)
        })
    }

    /// As [`Cpu::modify`], where `None` stores nothing: a compare and exchange that failed.
    #[inline(always)]
    pub fn modify_if<W: Width + MemValue, R>(
        &mut self,
        insn: &Insn,
        f: impl FnOnce(&mut Flags, W) -> (Option<W>, R),
    ) -> Step<R> {
        let offset = self.offset(insn);
        let va = self.in_limits(insn.seg, offset, W::BYTES as u64, true)?;
        let locked = insn.prefixes & prefix::LOCK != 0;
        if let Some(host) = self.tlb.store(va, W::BYTES as u64) {
            // SAFETY: a matching write tag says that the page is guest memory and holds all of the access.
            let old = unsafe { peek(host) };
            let (new, result) = f(&mut self.flags, old);
            if let Some(new) = new {
                // SAFETY: as above.
                unsafe { poke(host, new) };
            }
            if locked {
                self.fence(if new.is_some() { FenceKind::Locked } else { FenceKind::LockedFailed });
            }
            return Ok(result);
        }
        let old = W::from_bytes(&self.modify_begin(insn.seg, va, W::BYTES)?);
        let before = self.flags;
        let (new, result) = f(&mut self.flags, old);
        if let Some(new) = new {
            let kind = if locked { StoreKind::Locked } else { StoreKind::Cached };
            if let Err(trap) = self.store_slow(insn.seg, va, new.to_bytes(), W::BYTES, kind) {
                self.flags = before;
                return Err(trap);
            }
        }
        if locked {
            self.fence(if new.is_some() { FenceKind::Locked } else { FenceKind::LockedFailed });
        }
        Ok(result)
    }

    /// Faults exactly as an access would, and changes nothing but accessed and dirty bits.
    pub fn probe(&mut self, seg: u8, offset: u64, len: usize, write: bool) -> Step {
        let va = self.in_limits(seg, offset, len as u64, write)?;
        self.probe_linear(seg, va, len, write)
    }

    /// Loads bytes, all or nothing.
    pub fn load_bytes(&mut self, seg: u8, offset: u64, bytes: &mut [u8]) -> Step {
        let va = self.in_limits(seg, offset, bytes.len() as u64, false)?;
        self.check_linear(seg, va, bytes.len(), 1)?;
        self.load_pieces(va, bytes)
    }

    /// Stores bytes, all or nothing.
    pub fn store_bytes(&mut self, seg: u8, offset: u64, bytes: &[u8], kind: StoreKind) -> Step {
        let va = self.in_limits(seg, offset, bytes.len() as u64, true)?;
        self.check_linear(seg, va, bytes.len(), 1)?;
        self.store_pieces(va, bytes, kind)
    }

    /// Host address of a stretch of one page that is plain memory: nobody watches it, and for writing it holds no code.
    /// `None` where the access has to go element by element.
    ///
    /// The address stays good until the next call of anything that accesses memory.
    pub fn host_span(&mut self, seg: u8, offset: u64, len: usize, write: bool) -> Step<Option<*mut u8>> {
        let va = self.in_limits(seg, offset, len as u64, write)?;
        if len == 0 || (va & 0xFFF) + len as u64 > 0x1000 {
            return Ok(None);
        }
        let hit = |cpu: &Self| if write { cpu.tlb.store(va, 1) } else { cpu.tlb.load(va, 1) };
        let mut host = hit(self);
        if host.is_none() {
            self.check_linear(seg, va, len, 1)?;
            self.translate(va, if write { Access::Write } else { Access::Read })?;
            host = hit(self);
        }
        Ok(host.map(|host| std::ptr::with_exposed_provenance_mut(host as usize)))
    }

    /// Loads with supervisor rights whatever the privilege level: descriptor tables, task state.
    pub fn load_system<T: MemValue>(&mut self, va: u64) -> Step<T> {
        let user = self.tlb.enter_supervisor();
        let value = self.load_linear(FLAT, va);
        self.tlb.leave_supervisor(user);
        value
    }

    /// Stores with supervisor rights.
    pub fn store_system<T: MemValue>(&mut self, va: u64, value: T) -> Step {
        let user = self.tlb.enter_supervisor();
        let done = self.store_linear(FLAT, va, value, StoreKind::Cached);
        self.tlb.leave_supervisor(user);
        done
    }

    /// Linear address of an access, checked against its segment.
    #[inline(always)]
    pub(crate) fn in_limits(&mut self, seg: u8, offset: u64, len: u64, write: bool) -> Step<u64> {
        if seg >= FLAT {
            Ok(offset)
        } else if self.long {
            Ok(self.seg_base[usize::from(seg & 7)].wrapping_add(offset))
        } else {
            self.in_legacy_limits(seg, offset, len, write)
        }
    }

    /// The segment of the stack, as [`Insn::seg`] has it.
    #[inline(always)]
    #[must_use]
    pub fn stack(&self) -> u8 {
        if self.long { FLAT_STACK } else { SS }
    }

    /// Mask of the stack pointer's width.
    #[inline(always)]
    #[must_use]
    pub fn stack_mask(&self) -> u64 {
        if self.long {
            !0
        } else if self.segments[SystemRegisters::SS].attributes & Segment::BIG != 0 {
            0xFFFF_FFFF
        } else {
            0xFFFF
        }
    }

    /// Replaces the stack pointer, as wide as the stack is.
    #[inline(always)]
    pub fn set_stack_pointer(&mut self, value: u64) {
        let mask = self.stack_mask();
        // A 32-bit stack pointer clears the upper half as any 32-bit write does; a 16-bit one keeps the rest.
        let keep = if mask == 0xFFFF { self.gpr[RSP] & !mask } else { 0 };
        self.gpr[RSP] = keep | value & mask;
    }

    /// Pushes. The stack pointer changes last.
    #[inline(always)]
    pub fn push<W: Width + MemValue>(&mut self, value: W) -> Step {
        let top = self.gpr[RSP].wrapping_sub(W::BYTES as u64) & self.stack_mask();
        self.store_at(self.stack(), top, value, StoreKind::Cached)?;
        self.set_stack_pointer(top);
        Ok(())
    }

    /// Pops.
    #[inline(always)]
    pub fn pop<W: Width + MemValue>(&mut self) -> Step<W> {
        let value = self.peek(0)?;
        self.set_stack_pointer(self.gpr[RSP].wrapping_add(W::BYTES as u64));
        Ok(value)
    }

    /// The value this many bytes above the stack pointer.
    #[inline(always)]
    pub fn peek<W: Width + MemValue>(&mut self, depth: u64) -> Step<W> {
        let at = self.gpr[RSP].wrapping_add(depth) & self.stack_mask();
        self.load_at(self.stack(), at)
    }

    /// IN: the machine answers and the instruction runs again.
    pub fn io_read(&mut self, port: u16, size: Size) -> Step<u32> {
        self.ask(ExitKind::IoRead { port, size }).map(|value| value as u32)
    }

    /// OUT: the machine sees it when the instruction is done.
    pub fn io_write(&mut self, port: u16, size: Size, value: u32) -> Step {
        self.alone()?;
        self.posted.push_back(ExitKind::IoWrite { port, size, value });
        Ok(())
    }

    /// The machine's answer to what the current instruction reads next.
    pub(crate) fn ask(&mut self, question: ExitKind) -> Step<u64> {
        let (answers, used) = &mut self.replay;
        if let Some(&answer) = answers.get(*used) {
            *used += 1;
            return Ok(answer);
        }
        self.cause = Cause::Exit(question);
        Err(Trap)
    }

    /// Sees to it that nothing follows the current instruction before the run loop has looked around.
    pub(crate) fn alone(&mut self) -> Step {
        if self.progress.stepping {
            return Ok(());
        }
        self.cause = Cause::Restart;
        Err(Trap)
    }
}
