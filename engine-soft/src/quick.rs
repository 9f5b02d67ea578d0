//! Accesses of 64-bit code through flat segments that the translation cache answers at once.
//!
//! An instruction tries these first and has done nothing if one fails: it is then executed again in its general form,
//! which knows segments, faults, watched memory and whatever else there is. So the common way is short and keeps no
//! register across a call. The `Err` of these methods has no cause in [`Cpu::cause`].

#![expect(unsafe_code, reason = "guest memory is reached by host address")]

use crate::cpu::Cpu;
use crate::flags::Flags;
use crate::insn::{Exec, Insn};
use crate::mem::{MemValue, peek, poke};
use crate::trap::{Step, Trap};

const RSP: usize = 4;

/// Executes in the general form what was tried in vain.
#[cold]
#[inline(never)]
fn again(cpu: &mut Cpu, insn: &Insn, general: Exec) -> Step {
    general(cpu, insn)
}

/// `done`, or else `general`.
#[inline(always)]
pub(crate) fn or_again(done: Step, general: Exec, cpu: &mut Cpu, insn: &Insn) -> Step {
    if done.is_ok() { Ok(()) } else { again(cpu, insn, general) }
}

/// A handler that tries the first function and falls back to the second.
macro_rules! tried {
    ($quick:expr, $general:expr) => {
        (|cpu: &mut $crate::cpu::Cpu, insn: &$crate::insn::Insn| {
            $crate::quick::or_again($quick(cpu, insn), $general, cpu, insn)
        }) as $crate::insn::Exec
    };
}

pub(crate) use tried;

impl Cpu {
    /// Address of the memory operand, for 64-bit addresses in a segment of base 0.
    #[inline(always)]
    pub(crate) fn flat(&self, insn: &Insn) -> u64 {
        self.gpr[usize::from(insn.base & 31)]
            .wrapping_add(self.gpr[usize::from(insn.index & 31)] << (insn.scale & 3))
            .wrapping_add(insn.disp)
    }

    /// Loads.
    #[inline(always)]
    pub(crate) fn try_load<T: MemValue>(&self, va: u64) -> Step<T> {
        let host = self.tlb.load(va, T::SIZE as u64).ok_or(Trap)?;
        // SAFETY: a matching read tag says that the page is guest memory and holds all of the access.
        Ok(unsafe { peek(host) })
    }

    /// Stores.
    #[inline(always)]
    pub(crate) fn try_store<T: MemValue>(&mut self, va: u64, value: T) -> Step {
        let host = self.tlb.store(va, T::SIZE as u64).ok_or(Trap)?;
        // SAFETY: a matching write tag says that the page is guest memory and holds all of the access.
        unsafe { poke(host, value) };
        Ok(())
    }

    /// Loads, changes and stores.
    #[inline(always)]
    pub(crate) fn try_modify_if<T: MemValue, R>(
        &mut self,
        va: u64,
        f: impl FnOnce(&mut Flags, T) -> (Option<T>, R),
    ) -> Step<R> {
        let host = self.tlb.store(va, T::SIZE as u64).ok_or(Trap)?;
        // SAFETY: a matching write tag says that the page is guest memory and holds all of the access.
        let (new, result) = f(&mut self.flags, unsafe { peek(host) });
        if let Some(new) = new {
            // SAFETY: as above.
            unsafe { poke(host, new) };
        }
        Ok(result)
    }

    /// Pushes.
    #[inline(always)]
    pub(crate) fn try_push<T: MemValue>(&mut self, value: T) -> Step {
        let top = self.gpr[RSP].wrapping_sub(T::SIZE as u64);
        self.try_store(top, value)?;
        self.gpr[RSP] = top;
        Ok(())
    }

    /// Pops.
    #[inline(always)]
    pub(crate) fn try_pop<T: MemValue>(&mut self) -> Step<T> {
        let value = self.try_load(self.gpr[RSP])?;
        self.gpr[RSP] = self.gpr[RSP].wrapping_add(T::SIZE as u64);
        Ok(value)
    }
}
