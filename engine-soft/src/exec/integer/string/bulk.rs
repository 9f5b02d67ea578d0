//! Parts of repeated string instructions on plain memory, by host address.

#![expect(unsafe_code, reason = "guest memory is reached by host address")]

use super::super::operand::Int;
use super::{RAX, RDI, RSI, destination, goes_on, index, is_backward};
use crate::cpu::Cpu;
use crate::insn::Insn;

/// Elements in one page of plain memory, in the order of the repetition.
struct Run {
    first: *mut u8,
    /// From one to the next.
    stride: isize,
}

impl Run {
    /// Of the elements that RSI or RDI points at. `None` as well where it would fault: then the elements before the fault
    /// have to be done one by one.
    fn new<W: Int>(cpu: &mut Cpu, insn: &Insn, seg: u8, r: usize, count: u64, write: bool) -> Option<Self> {
        let backward = is_backward(cpu);
        let first = index(cpu, insn, r);
        let before = if backward { (count - 1) * W::BYTES as u64 } else { 0 };
        let start = first.wrapping_sub(before);
        let len = count as usize * W::BYTES;
        let span = cpu.host_span(seg, start, len, write).ok()??;
        // SAFETY: `before` is less than the span's length.
        let first = unsafe { span.add(before as usize) };
        let stride = W::BYTES as isize;
        Some(Self { first, stride: if backward { -stride } else { stride } })
    }

    fn source<W: Int>(cpu: &mut Cpu, insn: &Insn, count: u64) -> Option<Self> {
        Self::new::<W>(cpu, insn, insn.seg, RSI, count, false)
    }

    fn second<W: Int>(cpu: &mut Cpu, insn: &Insn, count: u64, write: bool) -> Option<Self> {
        let seg = destination(cpu);
        Self::new::<W>(cpu, insn, seg, RDI, count, write)
    }

    /// # Safety
    /// `n` is below the count that the run was made for.
    #[inline(always)]
    unsafe fn load<W: Int>(&self, n: u64) -> W {
        // SAFETY: the caller's promise; any alignment, any bytes.
        unsafe { self.first.offset(n as isize * self.stride).cast::<W>().read_unaligned() }
    }

    /// # Safety
    /// As [`Run::load`], and the run was made for writing.
    #[inline(always)]
    unsafe fn store<W: Int>(&self, n: u64, value: W) {
        // SAFETY: the caller's promise; any alignment.
        unsafe { self.first.offset(n as isize * self.stride).cast::<W>().write_unaligned(value) }
    }
}

pub(super) fn copy<W: Int>(cpu: &mut Cpu, insn: &Insn, count: u64) -> Option<u64> {
    let source = Run::source::<W>(cpu, insn, count)?;
    let target = Run::second::<W>(cpu, insn, count, true)?;
    let len = count as usize * W::BYTES;
    let ahead = target.first.addr().wrapping_sub(source.first.addr());
    // SAFETY: both runs have `count` elements, in memory that stays where it is; nobody has a reference into it.
    unsafe {
        // Upwards, an element store only harms loads still to come if it lies above them, within the source.
        if source.stride > 0 && ahead >= len {
            std::ptr::copy(source.first, target.first, len);
        } else {
            for n in 0..count {
                target.store::<W>(n, source.load(n));
            }
        }
    }
    Some(count)
}

pub(super) fn fill<W: Int>(cpu: &mut Cpu, insn: &Insn, count: u64) -> Option<u64> {
    let target = Run::second::<W>(cpu, insn, count, true)?;
    let value: W = cpu.get(RAX);
    let bytes = value.to_bytes();
    // SAFETY: the run has `count` elements and was made for writing.
    unsafe {
        if target.stride > 0 && bytes[..W::BYTES].iter().all(|&byte| byte == bytes[0]) {
            target.first.write_bytes(bytes[0], count as usize * W::BYTES);
        } else {
            for n in 0..count {
                target.store(n, value);
            }
        }
    }
    Some(count)
}

pub(super) fn compare<W: Int>(cpu: &mut Cpu, insn: &Insn, count: u64) -> Option<u64> {
    let a = Run::source::<W>(cpu, insn, count)?;
    let b = Run::second::<W>(cpu, insn, count, false)?;
    // SAFETY: both runs have `count` elements.
    Some(until_end(cpu, insn, count, |n| unsafe { (a.load::<W>(n), b.load::<W>(n)) }))
}

pub(super) fn scan<W: Int>(cpu: &mut Cpu, insn: &Insn, count: u64) -> Option<u64> {
    let b = Run::second::<W>(cpu, insn, count, false)?;
    let a: W = cpu.get(RAX);
    // SAFETY: the run has `count` elements.
    Some(until_end(cpu, insn, count, |n| (a, unsafe { b.load::<W>(n) })))
}

/// Compares until the prefix's condition fails; flags are those of the last comparison.
#[inline(always)]
fn until_end<W: Int>(cpu: &mut Cpu, insn: &Insn, count: u64, pair: impl Fn(u64) -> (W, W)) -> u64 {
    let while_equal = insn.prefixes & crate::insn::prefix::REP != 0;
    let differs = |n: &u64| {
        let (a, b) = pair(*n);
        (a == b) != while_equal
    };
    let last = (0..count).find(differs).unwrap_or(count - 1);
    let (a, b) = pair(last);
    cpu.flags.sub(a, b, false);
    debug_assert!(last + 1 == count || !goes_on::<super::Compare>(cpu, insn));
    last + 1
}
