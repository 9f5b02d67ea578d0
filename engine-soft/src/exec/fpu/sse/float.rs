//! Floating-point arithmetic and conversions between XMM registers, under the guest's MXCSR (SDM vol. 1, ch. 11.5).
#![expect(unsafe_code, reason = "each operation is the host's own instruction")]

use std::arch::asm;

use iced_x86::{Code, Instruction};

use super::{Register, Source, begin, exceptions, in_memory};
use crate::cpu::Cpu;
use crate::exec::fpu::{native::HOST_MXCSR, settle};
use crate::fx::mxcsr;
use crate::insn::{Exec, Insn};
use crate::trap::Step;

/// `op xmm, xmm/m` that MXCSR concerns.
pub trait Float {
    /// `a op b`; `mxcsr`, its exceptions masked, gathers flags.
    fn run(a: &u128, b: &u128, mxcsr: &mut u32) -> u128;
}

/// A [`Float`] by its mnemonic.
macro_rules! operation {
    ($vis:vis $name:ident $mnemonic:literal) => {
        $vis enum $name {}

        impl Float for $name {
            #[inline(always)]
            fn run(a: &u128, b: &u128, mxcsr: &mut u32) -> u128 {
                let mut result = 0_u128;
                // SAFETY: the operands are 16 bytes, aligned; the instruction works on the declared registers only, with all
                // exceptions masked. MXCSR is left as Rust expects it.
                unsafe {
                    asm!(
                        "ldmxcsr [{mxcsr}]",
                        "movdqa xmm0, [{a}]",
                        "movdqa xmm1, [{b}]",
                        concat!($mnemonic, " xmm0, xmm1"),
                        "stmxcsr [{mxcsr}]",
                        "ldmxcsr [rip + {host}]",
                        "movdqa [{result}], xmm0",
                        a = in(reg) a,
                        b = in(reg) b,
                        mxcsr = in(reg) mxcsr,
                        result = in(reg) &raw mut result,
                        host = sym HOST_MXCSR,
                        out("xmm0") _,
                        out("xmm1") _,
                        options(nostack, preserves_flags),
                    );
                }
                result
            }
        }
    };
}

operation!(pub Addss "addss");
operation!(pub Addsd "addsd");
operation!(pub Subss "subss");
operation!(pub Subsd "subsd");
operation!(pub Mulss "mulss");
operation!(pub Mulsd "mulsd");
operation!(pub Divss "divss");
operation!(pub Divsd "divsd");
operation!(pub Cvtsd2ss "cvtsd2ss");
operation!(pub Cvtdq2ps "cvtdq2ps");
operation!(pub Cvtdq2pd "cvtdq2pd");
operation!(pub Cvtps2dq "cvtps2dq");
operation!(pub Cvtpd2dq "cvtpd2dq");
operation!(pub Cvttps2dq "cvttps2dq");
operation!(pub Cvttpd2dq "cvttpd2dq");

/// A row: code, mnemonic, memory operand.
macro_rules! float {
    ($i:expr; $($code:ident $mnemonic:literal $memory:ty;)*) => {
        match $i.code() {
            $(Code::$code => {
                operation!(Op $mnemonic);
                Some(if in_memory($i, 1) { float::<Op, $memory> } else { float::<Op, Register> })
            })*
            _ => None,
        }
    };
}

#[rustfmt::skip]
pub fn lookup(i: &Instruction) -> Option<Exec> {
    float! { i;
        Sqrtps_xmm_xmmm128 "sqrtps" u128;
        Sqrtpd_xmm_xmmm128 "sqrtpd" u128;
        Sqrtss_xmm_xmmm32 "sqrtss" u32;
        Sqrtsd_xmm_xmmm64 "sqrtsd" u64;
        Rsqrtps_xmm_xmmm128 "rsqrtps" u128;
        Rsqrtss_xmm_xmmm32 "rsqrtss" u32;
        Rcpps_xmm_xmmm128 "rcpps" u128;
        Rcpss_xmm_xmmm32 "rcpss" u32;
        Addps_xmm_xmmm128 "addps" u128;
        Addpd_xmm_xmmm128 "addpd" u128;
        Addss_xmm_xmmm32 "addss" u32;
        Addsd_xmm_xmmm64 "addsd" u64;
        Mulps_xmm_xmmm128 "mulps" u128;
        Mulpd_xmm_xmmm128 "mulpd" u128;
        Mulss_xmm_xmmm32 "mulss" u32;
        Mulsd_xmm_xmmm64 "mulsd" u64;
        Cvtps2pd_xmm_xmmm64 "cvtps2pd" u64;
        Cvtpd2ps_xmm_xmmm128 "cvtpd2ps" u128;
        Cvtss2sd_xmm_xmmm32 "cvtss2sd" u32;
        Cvtsd2ss_xmm_xmmm64 "cvtsd2ss" u64;
        Cvtdq2ps_xmm_xmmm128 "cvtdq2ps" u128;
        Cvtps2dq_xmm_xmmm128 "cvtps2dq" u128;
        Cvttps2dq_xmm_xmmm128 "cvttps2dq" u128;
        Subps_xmm_xmmm128 "subps" u128;
        Subpd_xmm_xmmm128 "subpd" u128;
        Subss_xmm_xmmm32 "subss" u32;
        Subsd_xmm_xmmm64 "subsd" u64;
        Minps_xmm_xmmm128 "minps" u128;
        Minpd_xmm_xmmm128 "minpd" u128;
        Minss_xmm_xmmm32 "minss" u32;
        Minsd_xmm_xmmm64 "minsd" u64;
        Divps_xmm_xmmm128 "divps" u128;
        Divpd_xmm_xmmm128 "divpd" u128;
        Divss_xmm_xmmm32 "divss" u32;
        Divsd_xmm_xmmm64 "divsd" u64;
        Maxps_xmm_xmmm128 "maxps" u128;
        Maxpd_xmm_xmmm128 "maxpd" u128;
        Maxss_xmm_xmmm32 "maxss" u32;
        Maxsd_xmm_xmmm64 "maxsd" u64;
        Haddpd_xmm_xmmm128 "haddpd" u128;
        Haddps_xmm_xmmm128 "haddps" u128;
        Hsubpd_xmm_xmmm128 "hsubpd" u128;
        Hsubps_xmm_xmmm128 "hsubps" u128;
        Addsubpd_xmm_xmmm128 "addsubpd" u128;
        Addsubps_xmm_xmmm128 "addsubps" u128;
        Cvttpd2dq_xmm_xmmm128 "cvttpd2dq" u128;
        Cvtdq2pd_xmm_xmmm64 "cvtdq2pd" u64;
        Cvtpd2dq_xmm_xmmm128 "cvtpd2dq" u128;
    }
}

fn float<O: Float, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let b = begin::<S>(cpu, insn)?;
    let a = cpu.fx.xmm(insn.r[0]);
    *cpu.fx.xmm_mut(insn.r[0]) = compute_lanes(cpu, insn, a, b, |mxcsr| O::run(&a, &b, mxcsr))?;
    Ok(())
}

/// Runs an operation under the guest's MXCSR, all exceptions masked, and settles what it raised. For operations whose
/// results cannot overflow or underflow.
#[inline(always)]
pub fn compute<T>(cpu: &mut Cpu, run: impl Fn(&mut u32) -> T) -> Step<T> {
    let mut control = cpu.fx.mxcsr & !mxcsr::FLAGS | mxcsr::MASKS;
    let result = run(&mut control);
    settle(cpu, control & mxcsr::FLAGS, |_| None)?;
    Ok(result)
}

/// As [`compute`], of an instruction that may overflow or underflow, for `a` and `b`.
#[inline(always)]
pub fn compute_lanes(
    cpu: &mut Cpu,
    insn: &Insn,
    a: u128,
    b: u128,
    run: impl Fn(&mut u32) -> u128,
) -> Step<u128> {
    let (result, raised) = masked(cpu.fx.mxcsr, run);
    let code = Code::try_from(usize::from(insn.code)).unwrap_or_default();
    settle(cpu, raised, |mxcsr| exceptions::flags(code, insn.imm, &[[0, a, b]], mxcsr))?;
    Ok(result)
}

/// Runs an operation with all exceptions masked: its result and what it raises.
#[inline(always)]
pub fn masked<T>(mxcsr: u32, run: impl Fn(&mut u32) -> T) -> (T, u32) {
    let mut control = mxcsr & !mxcsr::FLAGS | mxcsr::MASKS;
    if mxcsr & mxcsr::UE << mxcsr::MASK_SHIFT == 0 {
        return masked_strictly(control, run);
    }
    let result = run(&mut control);
    (result, control & mxcsr::FLAGS)
}

/// With underflow unmasked every tiny result underflows, exact or not, and none is flushed to zero. What flush-to-zero would
/// flush tells which are tiny.
#[cold]
fn masked_strictly<T>(control: u32, run: impl Fn(&mut u32) -> T) -> (T, u32) {
    let (mut gradual, mut flushed) = (control & !mxcsr::FTZ, control | mxcsr::FTZ);
    let result = run(&mut gradual);
    run(&mut flushed);
    (result, gradual & mxcsr::FLAGS | flushed & mxcsr::UE)
}
