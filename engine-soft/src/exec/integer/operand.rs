//! Operand kinds as types: where a handler takes a value from and puts it, settled when it is compiled.

use iced_x86::{CodeSize, Instruction, Mnemonic, Register};

use crate::cpu::Cpu;
use crate::flags::Flags;
use crate::insn::Insn;
use crate::mem::MemValue;
use crate::trap::Step;
use crate::width::Width;

/// An operand width that memory has too: all four.
pub trait Int: Width + MemValue {}
impl<W: Width + MemValue> Int for W {}

/// An operand that can be read.
pub trait Source {
    /// Its value.
    fn read<W: Int>(cpu: &mut Cpu, insn: &Insn) -> Step<W>;
}

/// An operand that can be written.
pub trait Place: Source {
    /// It is the memory operand.
    const IS_MEMORY: bool;

    /// Replaces it.
    fn write<W: Int>(cpu: &mut Cpu, insn: &Insn, value: W) -> Step;

    /// Computes its new value from the old one; `None` leaves it.
    fn modify_if<W: Int, R>(
        cpu: &mut Cpu,
        insn: &Insn,
        f: impl FnOnce(&mut Flags, W) -> (Option<W>, R),
    ) -> Step<R>;

    /// Computes its new value from the old one.
    #[inline(always)]
    fn modify<W: Int, R>(cpu: &mut Cpu, insn: &Insn, f: impl FnOnce(&mut Flags, W) -> (W, R)) -> Step<R> {
        Self::modify_if(cpu, insn, |flags, old| {
            let (new, result) = f(flags, old);
            (Some(new), result)
        })
    }
}

/// The register of operand `N`.
pub struct Reg<const N: usize>;

/// The memory operand.
pub struct Mem;

/// The memory operand, tried in the way that suits 64-bit code (see [`crate::quick`]).
pub struct Flat;

/// The immediate.
pub struct Imm;

impl<const N: usize> Source for Reg<N> {
    #[inline(always)]
    fn read<W: Int>(cpu: &mut Cpu, insn: &Insn) -> Step<W> {
        Ok(cpu.get(insn.r[N]))
    }
}

impl<const N: usize> Place for Reg<N> {
    const IS_MEMORY: bool = false;

    #[inline(always)]
    fn write<W: Int>(cpu: &mut Cpu, insn: &Insn, value: W) -> Step {
        cpu.put(insn.r[N], value);
        Ok(())
    }

    #[inline(always)]
    fn modify_if<W: Int, R>(
        cpu: &mut Cpu,
        insn: &Insn,
        f: impl FnOnce(&mut Flags, W) -> (Option<W>, R),
    ) -> Step<R> {
        let old = cpu.get(insn.r[N]);
        let (new, result) = f(&mut cpu.flags, old);
        if let Some(new) = new {
            cpu.put(insn.r[N], new);
        }
        Ok(result)
    }
}

impl Source for Mem {
    #[inline(always)]
    fn read<W: Int>(cpu: &mut Cpu, insn: &Insn) -> Step<W> {
        cpu.load(insn)
    }
}

impl Place for Mem {
    const IS_MEMORY: bool = true;

    #[inline(always)]
    fn write<W: Int>(cpu: &mut Cpu, insn: &Insn, value: W) -> Step {
        cpu.store(insn, value)
    }

    #[inline(always)]
    fn modify_if<W: Int, R>(
        cpu: &mut Cpu,
        insn: &Insn,
        f: impl FnOnce(&mut Flags, W) -> (Option<W>, R),
    ) -> Step<R> {
        cpu.modify_if(insn, f)
    }
}

impl Source for Flat {
    #[inline(always)]
    fn read<W: Int>(cpu: &mut Cpu, insn: &Insn) -> Step<W> {
        cpu.try_load(cpu.flat(insn))
    }
}

impl Place for Flat {
    const IS_MEMORY: bool = true;

    #[inline(always)]
    fn write<W: Int>(cpu: &mut Cpu, insn: &Insn, value: W) -> Step {
        cpu.try_store(cpu.flat(insn), value)
    }

    #[inline(always)]
    fn modify_if<W: Int, R>(
        cpu: &mut Cpu,
        insn: &Insn,
        f: impl FnOnce(&mut Flags, W) -> (Option<W>, R),
    ) -> Step<R> {
        cpu.try_modify_if(cpu.flat(insn), f)
    }
}

/// The memory operand can be [`Flat`]: 64-bit code, a segment of base 0, 64-bit addresses; and nothing is to be told of
/// the access.
pub fn is_flat(i: &Instruction) -> bool {
    let wide = |r: Register| r.is_gpr64() || r == Register::RIP;
    let (base, index) = (i.memory_base(), i.memory_index());
    let address = match (base, index) {
        (Register::None, Register::None) => i.memory_displ_size() == 8,
        (Register::None, _) => wide(index),
        _ => wide(base),
    };
    let segment = !matches!(i.memory_segment(), Register::FS | Register::GS);
    i.code_size() == CodeSize::Code64
        && segment
        && address
        && !i.has_lock_prefix()
        && i.mnemonic() != Mnemonic::Xchg
}

impl Source for Imm {
    #[inline(always)]
    fn read<W: Int>(_: &mut Cpu, insn: &Insn) -> Step<W> {
        Ok(W::of(insn.imm))
    }
}

/// Picks the instance of a handler by a width in bytes, which is its first type argument: `by_width!(4, push, Mem)` is
/// `push::<u32, Mem>`.
macro_rules! by_width {
    ($width:expr, $f:ident $(, $argument:ty)*) => {
        match $width {
            1 => Some($f::<u8 $(, $argument)*> as $crate::insn::Exec),
            2 => Some($f::<u16 $(, $argument)*> as $crate::insn::Exec),
            4 => Some($f::<u32 $(, $argument)*> as $crate::insn::Exec),
            8 => Some($f::<u64 $(, $argument)*> as $crate::insn::Exec),
            _ => None,
        }
    };
}

/// As [`by_width`], without the 8-bit instance.
macro_rules! by_word {
    ($width:expr, $f:ident $(, $argument:ty)*) => {
        match $width {
            2 => Some($f::<u16 $(, $argument)*> as $crate::insn::Exec),
            4 => Some($f::<u32 $(, $argument)*> as $crate::insn::Exec),
            8 => Some($f::<u64 $(, $argument)*> as $crate::insn::Exec),
            _ => None,
        }
    };
}

/// As [`by_width`], for a handler with a memory operand, whose type argument comes after the semicolon.
macro_rules! by_memory {
    ($i:expr, $width:expr, $f:ident $(, $before:ty)* ; Mem $(, $after:ty)*) => {
        match $width {
            1 if is_flat($i) => {
                Some(tried!($f::<u8 $(, $before)*, Flat $(, $after)*>, $f::<u8 $(, $before)*, Mem $(, $after)*>))
            }
            2 if is_flat($i) => {
                Some(tried!($f::<u16 $(, $before)*, Flat $(, $after)*>, $f::<u16 $(, $before)*, Mem $(, $after)*>))
            }
            4 if is_flat($i) => {
                Some(tried!($f::<u32 $(, $before)*, Flat $(, $after)*>, $f::<u32 $(, $before)*, Mem $(, $after)*>))
            }
            8 if is_flat($i) => {
                Some(tried!($f::<u64 $(, $before)*, Flat $(, $after)*>, $f::<u64 $(, $before)*, Mem $(, $after)*>))
            }
            width => by_width!(width, $f $(, $before)*, Mem $(, $after)*),
        }
    };
}

/// Picks by width and by the kind of operand 0, which is the last type argument.
macro_rules! by_place {
    ($i:expr, $f:ident $(, $argument:ty)*) => {{
        let width = $crate::exec::integer::width($i);
        match $i.op0_kind() {
            iced_x86::OpKind::Register => by_width!(width, $f $(, $argument)*, Reg<0>),
            _ => by_memory!($i, width, $f $(, $argument)*; Mem),
        }
    }};
}

/// Picks by width and by the kinds of operands 0 and 1, which are the last two type arguments.
macro_rules! by_places {
    ($i:expr, $f:ident $(, $argument:ty)?) => {{
        use iced_x86::OpKind as K;
        let width = $crate::exec::integer::width($i);
        match ($i.op0_kind(), $i.op1_kind()) {
            (K::Register, K::Register) => by_width!(width, $f $(, $argument)?, Reg<0>, Reg<1>),
            (K::Register, K::Memory) => by_memory!($i, width, $f $(, $argument)?, Reg<0>; Mem),
            (K::Register, _) => by_width!(width, $f $(, $argument)?, Reg<0>, Imm),
            (_, K::Register) => by_memory!($i, width, $f $(, $argument)?; Mem, Reg<1>),
            _ => by_memory!($i, width, $f $(, $argument)?; Mem, Imm),
        }
    }};
}

pub(super) use crate::quick::tried;
pub(super) use {by_memory, by_place, by_places, by_width, by_word};
