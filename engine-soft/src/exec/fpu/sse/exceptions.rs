//! Which flags MXCSR gets from an instruction that raises #XM for an overflow or underflow, lane by lane (SDM vol. 1, 11.5.3
//! and 4.9.2).
//!
//! A lane with an unmasked overflow or underflow is inexact if its result is, rounded to the operands' precision but with
//! an unbounded exponent: so its bits are counted. The steps of a dot product are instructions of their own: one with an
//! unmasked exception is the last.

use iced_x86::Code;

use super::float::{Addsd, Addss, Cvtsd2ss, Divsd, Divss, Float, Mulsd, Mulss, Subsd, Subss, masked};
use super::fused::{fused_double, fused_single};
use crate::fx::mxcsr;

/// What happens in a lane.
#[derive(Debug, Clone, Copy)]
enum Op {
    Add,
    Sub,
    Mul,
    Div,
    /// From double to single.
    Narrow,
    /// `a * b + c`.
    Fused,
}

/// Precision of a lane's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Precision {
    Single,
    Double,
}

use Op::{Add, Div, Fused, Mul, Narrow, Sub};
use Precision::{Double, Single};

impl Precision {
    fn bits(self) -> usize {
        if self == Single { 32 } else { 64 }
    }

    /// Lane `n` of a register.
    fn lane(self, register: u128, n: usize) -> u64 {
        let lane = (register >> (n * self.bits())) as u64;
        if self == Single { lane & 0xFFFF_FFFF } else { lane }
    }

    fn lanes(self) -> usize {
        128 / self.bits()
    }

    /// Bits of a significand.
    fn significand(self) -> u32 {
        if self == Single { 24 } else { 53 }
    }
}

/// An operation on some numbers.
#[derive(Debug, Clone, Copy)]
struct Lane {
    op: Op,
    a: u64,
    b: u64,
    c: u64,
}

/// The flags that an instruction sets though it is refused; `None` if it is none that can overflow or underflow. For each
/// half of its registers, `halves` has three operands: destination, first and second source; an instruction with one
/// source has it last.
#[cold]
pub fn flags(code: Code, imm: u64, halves: &[[u128; 3]], mxcsr: u32) -> Option<u32> {
    let name = format!("{:?}", code.mnemonic()).to_lowercase();
    let name = name.strip_prefix('v').unwrap_or(&name);
    let (operation, kind) = name.split_at_checked(name.len().checked_sub(2)?)?;
    let (precision, packed) = match kind {
        "ps" => (Single, true),
        "pd" => (Double, true),
        "ss" => (Single, false),
        "sd" => (Double, false),
        _ => return None,
    };
    let (halves, count) = if packed { (halves, precision.lanes()) } else { (&halves[..1], 1) };
    let vertical = |of: Precision, count, op: &dyn Fn(usize) -> Op| {
        vertical(of, halves, count, |n, [_, a, b]| Lane { op: op(n), a, b, c: 0 })
    };
    let all = |op| vertical(precision, count, &|_| op);
    let lanes = match operation {
        "add" => all(Add),
        "sub" => all(Sub),
        "mul" => all(Mul),
        "div" => all(Div),
        "addsub" => vertical(precision, count, &|n| if n % 2 == 0 { Sub } else { Add }),
        "hadd" => horizontal(precision, halves, Add),
        "hsub" => horizontal(precision, halves, Sub),
        "cvtsd2" => vertical(Double, 1, &|_| Narrow),
        "cvtpd2" => vertical(Double, 2, &|_| Narrow),
        "dp" => return Some(dot_product(precision, imm, halves, mxcsr)),
        _ => fused(precision, halves, count, operation)?,
    };
    Some(step(precision, &lanes, mxcsr).0)
}

/// Lanes of three operands each.
fn vertical(
    precision: Precision,
    halves: &[[u128; 3]],
    count: usize,
    lane: impl Fn(usize, [u64; 3]) -> Lane,
) -> Vec<Lane> {
    let of = |half: &[u128; 3], n| lane(n, half.map(|register| precision.lane(register, n)));
    halves.iter().flat_map(|half| (0..count).map(|n| of(half, n)).collect::<Vec<_>>()).collect()
}

fn horizontal(precision: Precision, halves: &[[u128; 3]], op: Op) -> Vec<Lane> {
    let pairs = |register| {
        (0..precision.lanes()).step_by(2).map(move |n| Lane {
            op,
            a: precision.lane(register, n),
            b: precision.lane(register, n + 1),
            c: 0,
        })
    };
    halves.iter().flat_map(|&[_, a, b]| pairs(a).chain(pairs(b))).collect()
}

/// FMA's operations: the order of operands is in the name, as is what is negated.
fn fused(precision: Precision, halves: &[[u128; 3]], count: usize, operation: &str) -> Option<Vec<Lane>> {
    let (operation, order) = operation.split_at_checked(operation.len().checked_sub(3)?)?;
    let sign = 1 << (precision.bits() - 1);
    let negated = operation.starts_with("fn");
    let what = operation.trim_start_matches("fn").trim_start_matches('f').strip_prefix('m')?;
    let subtracts = |n: usize| match what {
        "sub" => true,
        "addsub" => n.is_multiple_of(2),
        "subadd" => !n.is_multiple_of(2),
        _ => false,
    };
    let lane = |n, [x, y, z]: [u64; 3]| {
        let (a, b, c) = match order {
            "132" => (x, z, y),
            "213" => (y, x, z),
            _ => (y, z, x),
        };
        let flip = |on, value| if on { value ^ sign } else { value };
        Lane { op: Fused, a: flip(negated, a), b, c: flip(subtracts(n), c) }
    };
    matches!(order, "132" | "213" | "231").then(|| vertical(precision, halves, count, lane))
}

/// The products that bits 4 and up of the immediate choose, then sums of neighbours.
fn dot_product(precision: Precision, imm: u64, halves: &[[u128; 3]], mxcsr: u32) -> u32 {
    let product = |n, [_, a, b]: [u64; 3]| match imm >> (4 + n) & 1 {
        0 => Lane { op: Mul, a: 0, b: 0, c: 0 },
        _ => Lane { op: Mul, a, b, c: 0 },
    };
    let products = vertical(precision, halves, precision.lanes(), product);
    let (mut flags, mut results) = step(precision, &products, mxcsr);
    while results.len() > halves.len() && mxcsr::unmasked(flags, mxcsr) == 0 {
        let sums: Vec<Lane> =
            results.chunks_exact(2).map(|pair| Lane { op: Add, a: pair[0], b: pair[1], c: 0 }).collect();
        let (raised, sums) = step(precision, &sums, mxcsr);
        flags |= raised;
        results = sums;
    }
    flags
}

/// The flags that simultaneous operations set, and their results.
fn step(precision: Precision, lanes: &[Lane], mxcsr: u32) -> (u32, Vec<u64>) {
    let mut flags = 0;
    let results = lanes.iter().map(|lane| {
        let (result, raised) = run(precision, *lane, mxcsr);
        flags |= raised;
        result
    });
    let results = results.collect();
    (mxcsr::reported(flags, mxcsr), results)
}

/// One operation: its result and the flags that it raises.
fn run(precision: Precision, lane: Lane, mxcsr: u32) -> (u64, u32) {
    let [a, b, c] = [lane.a, lane.b, lane.c].map(u128::from);
    let (result, raised) = masked(mxcsr, |control| match (lane.op, precision) {
        (Add, Single) => Addss::run(&a, &b, control),
        (Add, Double) => Addsd::run(&a, &b, control),
        (Sub, Single) => Subss::run(&a, &b, control),
        (Sub, Double) => Subsd::run(&a, &b, control),
        (Mul, Single) => Mulss::run(&a, &b, control),
        (Mul, Double) => Mulsd::run(&a, &b, control),
        (Div, Single) => Divss::run(&a, &b, control),
        (Div, Double) => Divsd::run(&a, &b, control),
        (Narrow, _) => Cvtsd2ss::run(&a, &b, control),
        (Fused, Single) => fused_single(&a, &b, &c, control),
        (Fused, Double) => fused_double(&a, &b, &c, control),
    });
    let out_of_range = mxcsr::unmasked(raised, mxcsr) & (mxcsr::OE | mxcsr::UE) != 0;
    let inexact = if out_of_range { is_inexact(precision, lane, mxcsr) } else { raised & mxcsr::PE != 0 };
    let precise = raised & !mxcsr::PE;
    (precision.lane(result, 0), if inexact { precise | mxcsr::PE } else { precise })
}

/// A finite number: `significand`, which is odd or 0, times a power of 2.
#[derive(Debug, Clone, Copy)]
struct Number {
    negative: bool,
    significand: u128,
    exponent: i32,
}

impl Number {
    fn new(negative: bool, significand: u128, exponent: i32) -> Self {
        if significand == 0 {
            return Self { negative, significand, exponent: 0 };
        }
        let zeros = significand.trailing_zeros();
        Self { negative, significand: significand >> zeros, exponent: exponent + zeros as i32 }
    }

    /// Of a lane's bits.
    fn of(precision: Precision, bits: u64, mxcsr: u32) -> Self {
        let fraction = precision.significand() - 1;
        let biased = (bits >> fraction) as i32 & if precision == Single { 0xFF } else { 0x7FF };
        let low = u128::from(bits & ((1 << fraction) - 1));
        let significand = match biased {
            0 if mxcsr & mxcsr::DAZ != 0 => 0,
            0 => low,
            _ => low | 1 << fraction,
        };
        Self::new(bits >> (precision.bits() - 1) & 1 != 0, significand, biased.max(1))
    }

    /// Bits of the significand.
    fn len(self) -> u32 {
        128 - self.significand.leading_zeros()
    }

    fn times(self, other: Self) -> Self {
        let negative = self.negative != other.negative;
        Self::new(negative, self.significand * other.significand, self.exponent + other.exponent)
    }

    /// Bits that the exact sum takes; the most that can be told, if they are many more than a number has.
    fn len_of_sum(self, other: Self) -> u32 {
        if self.significand == 0 || other.significand == 0 {
            return self.len().max(other.len());
        }
        let (high, low) = if self.exponent > other.exponent { (self, other) } else { (other, self) };
        let ahead = high.exponent.abs_diff(low.exponent);
        if ahead.saturating_add(high.len()) > 120 {
            return 120;
        }
        let (high, low) = ((high.significand << ahead, high.negative), (low.significand, low.negative));
        let sum = if high.1 == low.1 { high.0 + low.0 } else { high.0.abs_diff(low.0) };
        Self::new(false, sum, 0).len()
    }
}

/// Whether the operation is inexact where the exponent has no bounds.
fn is_inexact(precision: Precision, lane: Lane, mxcsr: u32) -> bool {
    let source = if matches!(lane.op, Narrow) { Double } else { precision };
    let [a, b, c] = [lane.a, lane.b, lane.c].map(|bits| Number::of(source, bits, mxcsr));
    // The exponent of a product is that of a sum less the bias, for a sum to add up.
    let bias = if precision == Single { 127 + 23 } else { 1023 + 52 };
    let len = match lane.op {
        Add => a.len_of_sum(b),
        Sub => a.len_of_sum(Number { negative: !b.negative, ..b }),
        Mul => a.times(b).len(),
        Div if b.significand == 0 || a.significand % b.significand != 0 => return true,
        Div => Number::new(false, a.significand / b.significand, 0).len(),
        Narrow => b.len(),
        Fused => {
            let product = a.times(b);
            Number { exponent: product.exponent - bias, ..product }.len_of_sum(c)
        }
    };
    len > precision.significand()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_exact_results_are_counted() {
        let double = |value: f64| Number::of(Double, value.to_bits(), 0);
        assert_eq!(double(1.0).len_of_sum(double(2_f64.powi(-52))), 53);
        assert_eq!(double(1.0).len_of_sum(double(2_f64.powi(-53))), 54);
        assert_eq!(double(1.0).len_of_sum(double(-1.0)), 0);
        assert_eq!(double(1.0).len_of_sum(double(f64::from_bits(1))), 120);
        assert_eq!(double(3.0).times(double(5.0)).len(), 4);
        let exact = |op, a: f64, b: f64, c: f64| {
            let [a, b, c] = [a, b, c].map(f64::to_bits);
            !is_inexact(Double, Lane { op, a, b, c }, 0)
        };
        assert!(exact(Fused, f64::MAX, 2.0, 0.0) && exact(Fused, 2_f64.powi(1000), 2_f64.powi(100), 0.0));
        assert!(exact(Fused, 2_f64.powi(1000), 2_f64.powi(40), 2_f64.powi(1000)));
        assert!(!exact(Fused, f64::MAX, 2.0, 1.0) && !exact(Mul, f64::MAX, f64::MAX, 0.0));
        assert!(exact(Div, 2_f64.powi(1000), 2_f64.powi(-1000), 0.0) && !exact(Div, 1.0, 3.0, 0.0));
    }
}
