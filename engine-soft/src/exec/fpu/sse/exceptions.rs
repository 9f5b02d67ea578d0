//! Which flags MXCSR gets from an instruction that raises #XM for an overflow or underflow, lane by lane (SDM vol. 1, 11.5.3
//! and 4.9.2).
//!
//! A lane with an unmasked overflow or underflow is inexact if its result is, rounded to the operands' precision but with
//! an unbounded exponent. The x87's exponent is as good as unbounded, and its precision can be set: it is asked. The steps
//! of a dot product are instructions of their own: one with an unmasked exception is the last.

use iced_x86::Code;

use super::float::{Addsd, Addss, Cvtsd2ss, Divsd, Divss, Float, Mulsd, Mulss, Subsd, Subss, masked};
use crate::exec::fpu::native::{self, Scratch};
use crate::fx::{FxArea, fcw, mxcsr};
use crate::insn::Insn;

/// What happens in a lane.
#[derive(Debug, Clone, Copy)]
enum Op {
    Add,
    Sub,
    Mul,
    Div,
    /// From double to single.
    Narrow,
}

/// Precision of a lane's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Precision {
    Single,
    Double,
}

use Op::{Add, Div, Mul, Narrow, Sub};
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
}

/// An operation on one pair of numbers.
#[derive(Debug, Clone, Copy)]
struct Lane {
    op: Op,
    a: u64,
    b: u64,
}

/// The flags that the instruction sets though it is refused; `None` if it is none that can overflow or underflow.
#[cold]
pub fn flags(insn: &Insn, a: u128, b: u128, mxcsr: u32) -> Option<u32> {
    let code = Code::try_from(usize::from(insn.code)).ok()?;
    let packed = |op, precision: Precision| vertical(precision, a, b, precision.lanes(), |_| op);
    let scalar = |op, precision| vertical(precision, a, b, 1, |_| op);
    let alternating = |n| if n % 2 == 0 { Sub } else { Add };
    let (precision, lanes) = match code {
        Code::Addps_xmm_xmmm128 => (Single, packed(Add, Single)),
        Code::Addpd_xmm_xmmm128 => (Double, packed(Add, Double)),
        Code::Addss_xmm_xmmm32 => (Single, scalar(Add, Single)),
        Code::Addsd_xmm_xmmm64 => (Double, scalar(Add, Double)),
        Code::Subps_xmm_xmmm128 => (Single, packed(Sub, Single)),
        Code::Subpd_xmm_xmmm128 => (Double, packed(Sub, Double)),
        Code::Subss_xmm_xmmm32 => (Single, scalar(Sub, Single)),
        Code::Subsd_xmm_xmmm64 => (Double, scalar(Sub, Double)),
        Code::Mulps_xmm_xmmm128 => (Single, packed(Mul, Single)),
        Code::Mulpd_xmm_xmmm128 => (Double, packed(Mul, Double)),
        Code::Mulss_xmm_xmmm32 => (Single, scalar(Mul, Single)),
        Code::Mulsd_xmm_xmmm64 => (Double, scalar(Mul, Double)),
        Code::Divps_xmm_xmmm128 => (Single, packed(Div, Single)),
        Code::Divpd_xmm_xmmm128 => (Double, packed(Div, Double)),
        Code::Divss_xmm_xmmm32 => (Single, scalar(Div, Single)),
        Code::Divsd_xmm_xmmm64 => (Double, scalar(Div, Double)),
        Code::Addsubps_xmm_xmmm128 => (Single, vertical(Single, a, b, 4, alternating)),
        Code::Addsubpd_xmm_xmmm128 => (Double, vertical(Double, a, b, 2, alternating)),
        Code::Haddps_xmm_xmmm128 => (Single, horizontal(Single, a, b, Add)),
        Code::Haddpd_xmm_xmmm128 => (Double, horizontal(Double, a, b, Add)),
        Code::Hsubps_xmm_xmmm128 => (Single, horizontal(Single, a, b, Sub)),
        Code::Hsubpd_xmm_xmmm128 => (Double, horizontal(Double, a, b, Sub)),
        Code::Cvtsd2ss_xmm_xmmm64 => (Single, vertical(Double, 0, b, 1, |_| Narrow)),
        Code::Cvtpd2ps_xmm_xmmm128 => (Single, vertical(Double, 0, b, 2, |_| Narrow)),
        Code::Dpps_xmm_xmmm128_imm8 => return Some(dot_product(Single, insn.imm, a, b, mxcsr)),
        Code::Dppd_xmm_xmmm128_imm8 => return Some(dot_product(Double, insn.imm, a, b, mxcsr)),
        _ => return None,
    };
    Some(step(precision, &lanes, mxcsr).0)
}

fn vertical(precision: Precision, a: u128, b: u128, count: usize, op: impl Fn(usize) -> Op) -> Vec<Lane> {
    let lane = |n| Lane { op: op(n), a: precision.lane(a, n), b: precision.lane(b, n) };
    (0..count).map(lane).collect()
}

fn horizontal(precision: Precision, a: u128, b: u128, op: Op) -> Vec<Lane> {
    let pairs = |register| {
        (0..precision.lanes()).step_by(2).map(move |n| Lane {
            op,
            a: precision.lane(register, n),
            b: precision.lane(register, n + 1),
        })
    };
    pairs(a).chain(pairs(b)).collect()
}

/// The products that bits 4 and up of the immediate choose, then sums of neighbours.
fn dot_product(precision: Precision, imm: u64, a: u128, b: u128, mxcsr: u32) -> u32 {
    let products: Vec<Lane> = vertical(precision, a, b, precision.lanes(), |_| Mul)
        .into_iter()
        .enumerate()
        .map(|(n, lane)| if imm >> (4 + n) & 1 != 0 { lane } else { Lane { a: 0, b: 0, ..lane } })
        .collect();
    let (mut flags, mut results) = step(precision, &products, mxcsr);
    while results.len() > 1 && mxcsr::unmasked(flags, mxcsr) == 0 {
        let sums: Vec<Lane> =
            results.chunks_exact(2).map(|pair| Lane { op: Add, a: pair[0], b: pair[1] }).collect();
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
    let (a, b) = (u128::from(lane.a), u128::from(lane.b));
    let run = match (lane.op, precision) {
        (Add, Single) => Addss::run,
        (Add, Double) => Addsd::run,
        (Sub, Single) => Subss::run,
        (Sub, Double) => Subsd::run,
        (Mul, Single) => Mulss::run,
        (Mul, Double) => Mulsd::run,
        (Div, Single) => Divss::run,
        (Div, Double) => Divsd::run,
        (Narrow, _) => Cvtsd2ss::run,
    };
    let (result, raised) = masked(mxcsr, |control| run(&a, &b, control));
    let out_of_range = mxcsr::unmasked(raised, mxcsr) & (mxcsr::OE | mxcsr::UE) != 0;
    let inexact =
        if out_of_range { inexact_unbounded(precision, lane, mxcsr) } else { raised & mxcsr::PE != 0 };
    let precise = raised & !mxcsr::PE;
    (precision.lane(result, 0), if inexact { precise | mxcsr::PE } else { precise })
}

/// Whether the operation is inexact where the exponent has no bounds.
fn inexact_unbounded(precision: Precision, lane: Lane, mxcsr: u32) -> bool {
    const SINGLE: u16 = 0;
    const DOUBLE: u16 = 2 << 8;
    const PE: u16 = 1 << 5;
    let control = if precision == Single { SINGLE } else { DOUBLE };
    let rounding = ((mxcsr & mxcsr::ROUNDING) >> 3) as u16;
    let mut fx = FxArea::default();
    fx.fcw = fcw::MASKS | fcw::ONE | control | rounding;
    let narrow = matches!(lane.op, Narrow);
    let (load, exponent) =
        if precision == Single && !narrow { (0xD900, 0xFF << 23) } else { (0xDD00, 0x7FF << 52) };
    let mut push = |value: u64| {
        let zeroed = mxcsr & mxcsr::DAZ != 0 && value & exponent == 0;
        let mut memory = Scratch(u128::from(if zeroed { 0 } else { value }).to_le_bytes());
        native::x87(&mut fx, load, &mut memory);
    };
    // A conversion is a multiplication by one.
    let (a, b) = if narrow { (1.0_f64.to_bits(), lane.b) } else { (lane.a, lane.b) };
    push(b);
    push(a);
    let operation = match lane.op {
        Add => 0xD8C1,
        Mul | Narrow => 0xD8C9,
        Sub => 0xD8E1,
        Div => 0xD8F1,
    };
    fx.fsw &= !PE;
    native::x87(&mut fx, operation, &mut Scratch([0; 16]));
    fx.fsw & PE != 0
}
