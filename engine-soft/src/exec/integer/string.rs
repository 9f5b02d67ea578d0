//! MOVS, STOS, LODS, CMPS, SCAS (SDM vol. 1, 7.3.9), one element or repeated.
//!
//! A repeated one goes at most to the end of the page of either operand at a time, and then leaves RIP at itself: each
//! such part is one instruction of the run, between which interrupts are taken. Where a part ends depends on addresses
//! alone. Registers change element by element, so that a fault finds them as the processor leaves them.

use engine::event::StoreKind;
use iced_x86::{Instruction, Mnemonic as M};

use super::operand::{Int, by_width};
use crate::cpu::Cpu;
use crate::flags::bit;
use crate::insn::{Exec, FLAT, Insn, RIP, prefix};
use crate::trap::Step;

mod bulk;

const RAX: u8 = 0;
const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;
const ES: u8 = 0;

pub(super) fn lookup(i: &Instruction) -> Option<Exec> {
    if !i.is_string_instruction() {
        return None;
    }
    let width = i.memory_size().size();
    let single = !i.has_rep_prefix() && !i.has_repne_prefix();
    match i.mnemonic() {
        _ if i.op1_register().is_xmm() => None,
        M::Movsb | M::Movsw | M::Movsd | M::Movsq if single => by_width!(width, once, Move),
        M::Movsb | M::Movsw | M::Movsd | M::Movsq => by_width!(width, repeat, Move),
        M::Stosb | M::Stosw | M::Stosd | M::Stosq if single => by_width!(width, once, Fill),
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => by_width!(width, repeat, Fill),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq if single => by_width!(width, once, Load),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => by_width!(width, repeat, Load),
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq if single => by_width!(width, once, Compare),
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => by_width!(width, repeat, Compare),
        M::Scasb | M::Scasw | M::Scasd | M::Scasq if single => by_width!(width, once, Scan),
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => by_width!(width, repeat, Scan),
        _ => None,
    }
}

/// What is done with an element.
trait Element {
    /// RSI points at a source.
    const SOURCE: bool;
    /// RDI points at a destination, or at the second source.
    const DESTINATION: bool;
    /// It sets flags, and ZF ends the repetition.
    const COMPARES: bool;

    /// Does one, and nothing to RSI, RDI and RCX.
    fn one<W: Int>(cpu: &mut Cpu, insn: &Insn) -> Step;

    /// Does up to `count`, which lie in one page of each operand, and tells how many; `None` if the memory wants to be
    /// accessed element by element.
    fn bulk<W: Int>(cpu: &mut Cpu, insn: &Insn, count: u64) -> Option<u64>;
}

struct Move;
struct Fill;
struct Load;
struct Compare;
struct Scan;

/// The segment of what RDI points at.
#[inline(always)]
fn destination(cpu: &Cpu) -> u8 {
    if cpu.long { FLAT } else { ES }
}

/// All ones of the address size.
#[inline(always)]
fn mask(insn: &Insn) -> u64 {
    !0 >> (64 - 8 * u32::from(insn.addr_size & 15))
}

/// RSI, RDI or RCX, cut to the address size.
#[inline(always)]
fn index(cpu: &Cpu, insn: &Insn, r: usize) -> u64 {
    cpu.gpr[r] & mask(insn)
}

/// Adds to RSI, RDI or RCX, as wide as addresses are.
#[inline(always)]
fn add(cpu: &mut Cpu, insn: &Insn, r: usize, change: u64) {
    let new = cpu.gpr[r].wrapping_add(change);
    let mask = mask(insn);
    let keep = if insn.addr_size == 2 { cpu.gpr[r] & !mask } else { 0 };
    cpu.gpr[r] = keep | new & mask;
}

#[inline(always)]
fn is_backward(cpu: &Cpu) -> bool {
    cpu.flags.control & bit::DF != 0
}

#[inline(always)]
fn source<W: Int>(cpu: &mut Cpu, insn: &Insn) -> Step<W> {
    let offset = index(cpu, insn, RSI);
    cpu.load_at(insn.seg, offset)
}

#[inline(always)]
fn second<W: Int>(cpu: &mut Cpu, insn: &Insn) -> Step<W> {
    let offset = index(cpu, insn, RDI);
    cpu.load_at(destination(cpu), offset)
}

#[inline(always)]
fn put<W: Int>(cpu: &mut Cpu, insn: &Insn, value: W) -> Step {
    let offset = index(cpu, insn, RDI);
    cpu.store_at(destination(cpu), offset, value, StoreKind::Cached)
}

impl Element for Move {
    const SOURCE: bool = true;
    const DESTINATION: bool = true;
    const COMPARES: bool = false;

    #[inline(always)]
    fn one<W: Int>(cpu: &mut Cpu, insn: &Insn) -> Step {
        let value: W = source(cpu, insn)?;
        put(cpu, insn, value)
    }

    fn bulk<W: Int>(cpu: &mut Cpu, insn: &Insn, count: u64) -> Option<u64> {
        bulk::copy::<W>(cpu, insn, count)
    }
}

impl Element for Fill {
    const SOURCE: bool = false;
    const DESTINATION: bool = true;
    const COMPARES: bool = false;

    #[inline(always)]
    fn one<W: Int>(cpu: &mut Cpu, insn: &Insn) -> Step {
        let value: W = cpu.get(RAX);
        put(cpu, insn, value)
    }

    fn bulk<W: Int>(cpu: &mut Cpu, insn: &Insn, count: u64) -> Option<u64> {
        bulk::fill::<W>(cpu, insn, count)
    }
}

impl Element for Load {
    const SOURCE: bool = true;
    const DESTINATION: bool = false;
    const COMPARES: bool = false;

    #[inline(always)]
    fn one<W: Int>(cpu: &mut Cpu, insn: &Insn) -> Step {
        let value: W = source(cpu, insn)?;
        cpu.put(RAX, value);
        Ok(())
    }

    fn bulk<W: Int>(_: &mut Cpu, _: &Insn, _: u64) -> Option<u64> {
        None
    }
}

impl Element for Compare {
    const SOURCE: bool = true;
    const DESTINATION: bool = true;
    const COMPARES: bool = true;

    #[inline(always)]
    fn one<W: Int>(cpu: &mut Cpu, insn: &Insn) -> Step {
        // In this order: where both fault, it is the destination's fault.
        let b = second(cpu, insn)?;
        let a: W = source(cpu, insn)?;
        cpu.flags.sub(a, b, false);
        Ok(())
    }

    fn bulk<W: Int>(cpu: &mut Cpu, insn: &Insn, count: u64) -> Option<u64> {
        bulk::compare::<W>(cpu, insn, count)
    }
}

impl Element for Scan {
    const SOURCE: bool = false;
    const DESTINATION: bool = true;
    const COMPARES: bool = true;

    #[inline(always)]
    fn one<W: Int>(cpu: &mut Cpu, insn: &Insn) -> Step {
        let b: W = second(cpu, insn)?;
        let a = cpu.get(RAX);
        cpu.flags.sub(a, b, false);
        Ok(())
    }

    fn bulk<W: Int>(cpu: &mut Cpu, insn: &Insn, count: u64) -> Option<u64> {
        bulk::scan::<W>(cpu, insn, count)
    }
}

/// Moves the pointers on by so many elements.
#[inline(always)]
fn advance<W: Int, E: Element>(cpu: &mut Cpu, insn: &Insn, count: u64) {
    let forward = count.wrapping_mul(W::BYTES as u64);
    let change = if is_backward(cpu) { forward.wrapping_neg() } else { forward };
    if E::SOURCE {
        add(cpu, insn, RSI, change);
    }
    if E::DESTINATION {
        add(cpu, insn, RDI, change);
    }
}

fn once<W: Int, E: Element>(cpu: &mut Cpu, insn: &Insn) -> Step {
    E::one::<W>(cpu, insn)?;
    advance::<W, E>(cpu, insn, 1);
    Ok(())
}

/// The repetition goes on after an element, as far as ZF has a say.
#[inline(always)]
fn goes_on<E: Element>(cpu: &Cpu, insn: &Insn) -> bool {
    !E::COMPARES || cpu.flags.zf() == (insn.prefixes & prefix::REP != 0)
}

/// Flags change with the last part only: after a fault they are those from before the instruction.
fn repeat<W: Int, E: Element>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let total = index(cpu, insn, RCX);
    if total == 0 {
        return Ok(());
    }
    let before = cpu.flags;
    let part = total.min(part::<W, E>(cpu, insn));
    match if part > 1 { E::bulk::<W>(cpu, insn, part) } else { None } {
        Some(done) => {
            advance::<W, E>(cpu, insn, done);
            add(cpu, insn, RCX, done.wrapping_neg());
        }
        None => {
            if let Err(trap) = each::<W, E>(cpu, insn, part) {
                cpu.flags = before;
                return Err(trap);
            }
        }
    }
    if index(cpu, insn, RCX) != 0 && goes_on::<E>(cpu, insn) {
        cpu.flags = before;
        let again = &mut cpu.gpr[usize::from(RIP)];
        *again = again.wrapping_sub(insn.len.into());
    }
    Ok(())
}

fn each<W: Int, E: Element>(cpu: &mut Cpu, insn: &Insn, count: u64) -> Step {
    for _ in 0..count {
        E::one::<W>(cpu, insn)?;
        advance::<W, E>(cpu, insn, 1);
        add(cpu, insn, RCX, !0);
        // What the machine has to see, it sees before the next element.
        if !goes_on::<E>(cpu, insn) || !cpu.posted.is_empty() || cpu.replay.1 != 0 {
            break;
        }
    }
    Ok(())
}

/// Elements until either pointer leaves its page, or wraps around; one that crosses pages is alone. Single-stepping and
/// data breakpoints look at each.
fn part<W: Int, E: Element>(cpu: &Cpu, insn: &Insn) -> u64 {
    if cpu.flags.control & bit::TF != 0 || cpu.debug.control & 0xFF != 0 {
        return 1;
    }
    let mut part = u64::MAX;
    let backward = is_backward(cpu);
    let mut limit = |seg: u8, r: usize| {
        let offset = index(cpu, insn, r);
        let within = cpu.in_segment(seg, offset) & 0xFFF;
        let (page, wrap) = if backward {
            (within + W::BYTES as u64, offset)
        } else {
            (0x1000 - within, mask(insn) - offset)
        };
        let crosses = within + W::BYTES as u64 > 0x1000;
        let room = if crosses { 1 } else { page / W::BYTES as u64 };
        part = part.min(room).min(wrap / W::BYTES as u64 + 1);
    };
    if E::SOURCE {
        limit(insn.seg, RSI);
    }
    if E::DESTINATION {
        limit(destination(cpu), RDI);
    }
    part
}
