//! Operand kinds as types: where a handler takes a value from and puts it, settled when it is compiled.

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

/// Picks by width and by the kind of operand 0, which is the last type argument.
macro_rules! by_place {
    ($i:expr, $f:ident $(, $argument:ty)*) => {
        match $i.op0_kind() {
            iced_x86::OpKind::Register => by_width!($crate::exec::integer::width($i), $f $(, $argument)*, Reg<0>),
            _ => by_width!($crate::exec::integer::width($i), $f $(, $argument)*, Mem),
        }
    };
}

/// Picks by width and by the kinds of operands 0 and 1, which are the last two type arguments.
macro_rules! by_places {
    ($i:expr, $f:ident $(, $argument:ty)?) => {{
        use iced_x86::OpKind as K;
        let width = $crate::exec::integer::width($i);
        match ($i.op0_kind(), $i.op1_kind()) {
            (K::Register, K::Register) => by_width!(width, $f $(, $argument)?, Reg<0>, Reg<1>),
            (K::Register, K::Memory) => by_width!(width, $f $(, $argument)?, Reg<0>, Mem),
            (K::Register, _) => by_width!(width, $f $(, $argument)?, Reg<0>, Imm),
            (_, K::Register) => by_width!(width, $f $(, $argument)?, Mem, Reg<1>),
            _ => by_width!(width, $f $(, $argument)?, Mem, Imm),
        }
    }};
}

pub(super) use {by_place, by_places, by_width, by_word};
