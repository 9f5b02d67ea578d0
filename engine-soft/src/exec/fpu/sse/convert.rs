//! Conversions between XMM and general registers.
#![expect(unsafe_code, reason = "each operation is the host's own instruction")]

use std::arch::asm;

use iced_x86::{Code, Instruction};

use super::{Register, Source, begin, compute, in_memory};
use crate::cpu::Cpu;
use crate::exec::fpu::{native::HOST_MXCSR, sse_usable};
use crate::insn::{Exec, Insn};
use crate::trap::Step;

/// A conversion; `mxcsr`, its exceptions masked, gathers flags.
trait ToInteger {
    /// Of `b`, zero-extended.
    fn run(b: &u128, mxcsr: &mut u32) -> u64;
}

/// A conversion; `mxcsr`, its exceptions masked, gathers flags.
trait FromInteger {
    /// Of `b`, into the low part of `a`.
    fn run(a: &u128, b: u64, mxcsr: &mut u32) -> u128;
}

/// A row: code, mnemonic and destination, memory operand.
macro_rules! to_integer {
    ($i:expr; $($code:ident $operation:literal $memory:ty;)*) => {
        match $i.code() {
            $(Code::$code => {
                enum Op {}
                impl ToInteger for Op {
                    #[inline(always)]
                    fn run(b: &u128, mxcsr: &mut u32) -> u64 {
                        let result: u64;
                        // SAFETY: the operand is 16 bytes, aligned; the instruction works on the declared registers only,
                        // with all exceptions masked. MXCSR is left as Rust expects it.
                        unsafe {
                            asm!(
                                "ldmxcsr [{mxcsr}]",
                                "movdqa xmm1, [{b}]",
                                concat!($operation, ", xmm1"),
                                "stmxcsr [{mxcsr}]",
                                "ldmxcsr [rip + {host}]",
                                b = in(reg) b,
                                mxcsr = in(reg) mxcsr,
                                host = sym HOST_MXCSR,
                                out("rax") result,
                                out("xmm1") _,
                                options(nostack, preserves_flags),
                            );
                        }
                        result
                    }
                }
                Some(if in_memory($i, 1) { to_integer::<Op, $memory> } else { to_integer::<Op, Register> })
            })*
            _ => None,
        }
    };
}

/// A row: code, mnemonic, source register, width.
macro_rules! from_integer {
    ($i:expr; $($code:ident $mnemonic:literal $source:literal $width:ty;)*) => {
        match $i.code() {
            $(Code::$code => {
                enum Op {}
                impl FromInteger for Op {
                    #[inline(always)]
                    fn run(a: &u128, b: u64, mxcsr: &mut u32) -> u128 {
                        let mut result = 0_u128;
                        // SAFETY: as above.
                        unsafe {
                            asm!(
                                "ldmxcsr [{mxcsr}]",
                                "movdqa xmm0, [{a}]",
                                concat!($mnemonic, " xmm0, ", $source),
                                "stmxcsr [{mxcsr}]",
                                "ldmxcsr [rip + {host}]",
                                "movdqa [{result}], xmm0",
                                a = in(reg) a,
                                mxcsr = in(reg) mxcsr,
                                result = in(reg) &raw mut result,
                                host = sym HOST_MXCSR,
                                in("rax") b,
                                out("xmm0") _,
                                options(nostack, preserves_flags),
                            );
                        }
                        result
                    }
                }
                Some(if in_memory($i, 1) { from_memory::<Op, $width> } else { from_register::<Op> })
            })*
            _ => None,
        }
    };
}

pub fn lookup(i: &Instruction) -> Option<Exec> {
    lookup_to_integer(i).or_else(|| lookup_from_integer(i))
}

fn lookup_to_integer(i: &Instruction) -> Option<Exec> {
    to_integer! { i;
        Cvttss2si_r32_xmmm32 "cvttss2si eax" u32;
        Cvttss2si_r64_xmmm32 "cvttss2si rax" u32;
        Cvttsd2si_r32_xmmm64 "cvttsd2si eax" u64;
        Cvttsd2si_r64_xmmm64 "cvttsd2si rax" u64;
        Cvtss2si_r32_xmmm32 "cvtss2si eax" u32;
        Cvtss2si_r64_xmmm32 "cvtss2si rax" u32;
        Cvtsd2si_r32_xmmm64 "cvtsd2si eax" u64;
        Cvtsd2si_r64_xmmm64 "cvtsd2si rax" u64;
    }
}

fn lookup_from_integer(i: &Instruction) -> Option<Exec> {
    from_integer! { i;
        Cvtsi2ss_xmm_rm32 "cvtsi2ss" "eax" u32;
        Cvtsi2ss_xmm_rm64 "cvtsi2ss" "rax" u64;
        Cvtsi2sd_xmm_rm32 "cvtsi2sd" "eax" u32;
        Cvtsi2sd_xmm_rm64 "cvtsi2sd" "rax" u64;
    }
}

fn to_integer<O: ToInteger, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let b = begin::<S>(cpu, insn)?;
    let result = compute(cpu, |mxcsr| O::run(&b, mxcsr))?;
    cpu.put(insn.r[0], result);
    Ok(())
}

fn from_register<O: FromInteger>(cpu: &mut Cpu, insn: &Insn) -> Step {
    sse_usable(cpu)?;
    let b = cpu.get::<u64>(insn.r[1]);
    from_integer::<O>(cpu, insn, b)
}

fn from_memory<O: FromInteger, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let b = begin::<S>(cpu, insn)?;
    from_integer::<O>(cpu, insn, b as u64)
}

#[inline(always)]
fn from_integer<O: FromInteger>(cpu: &mut Cpu, insn: &Insn, b: u64) -> Step {
    let a = cpu.fx.xmm(insn.r[0]);
    *cpu.fx.xmm_mut(insn.r[0]) = compute(cpu, |mxcsr| O::run(&a, b, mxcsr))?;
    Ok(())
}
