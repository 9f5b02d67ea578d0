//! COMISx, UCOMISx, PTEST: comparisons that set RFLAGS.
#![expect(unsafe_code, reason = "each operation is the host's own instruction")]

use std::arch::asm;

use iced_x86::{Code, Instruction};

use super::{Register, Source, begin, compute, in_memory};
use crate::cpu::Cpu;
use crate::exec::fpu::native::HOST_MXCSR;
use crate::flags::bit;
use crate::insn::{Exec, Insn};
use crate::trap::Step;

/// A comparison of two XMM registers.
trait Compare {
    /// RFLAGS after it; `mxcsr`, its exceptions masked, gathers flags.
    fn run(a: &u128, b: &u128, mxcsr: &mut u32) -> u64;
}

/// A row: code, mnemonic, memory operand.
macro_rules! compare {
    ($i:expr; $($code:ident $mnemonic:literal $memory:ty;)*) => {
        match $i.code() {
            $(Code::$code => {
                enum Op {}
                impl Compare for Op {
                    #[inline(always)]
                    fn run(a: &u128, b: &u128, mxcsr: &mut u32) -> u64 {
                        let rflags: u64;
                        // SAFETY: the operands are 16 bytes, aligned; the instruction changes nothing but flags, with all
                        // exceptions masked. MXCSR is left as Rust expects it.
                        unsafe {
                            asm!(
                                "ldmxcsr [{mxcsr}]",
                                "movdqa xmm0, [{a}]",
                                "movdqa xmm1, [{b}]",
                                concat!($mnemonic, " xmm0, xmm1"),
                                "pushfq",
                                "pop {rflags}",
                                "stmxcsr [{mxcsr}]",
                                "ldmxcsr [rip + {host}]",
                                a = in(reg) a,
                                b = in(reg) b,
                                mxcsr = in(reg) mxcsr,
                                rflags = out(reg) rflags,
                                host = sym HOST_MXCSR,
                                out("xmm0") _,
                                out("xmm1") _,
                            );
                        }
                        rflags
                    }
                }
                Some(if in_memory($i, 1) { compare::<Op, $memory> } else { compare::<Op, Register> })
            })*
            _ => None,
        }
    };
}

pub fn lookup(i: &Instruction) -> Option<Exec> {
    compare! { i;
        Ucomiss_xmm_xmmm32 "ucomiss" u32;
        Ucomisd_xmm_xmmm64 "ucomisd" u64;
        Comiss_xmm_xmmm32 "comiss" u32;
        Comisd_xmm_xmmm64 "comisd" u64;
        Ptest_xmm_xmmm128 "ptest" u128;
    }
}

fn compare<O: Compare, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let b = begin::<S>(cpu, insn)?;
    let a = cpu.fx.xmm(insn.r[0]);
    let rflags = compute(cpu, |mxcsr| O::run(&a, &b, mxcsr))?;
    cpu.flags.set_status(rflags & bit::STATUS);
    Ok(())
}
