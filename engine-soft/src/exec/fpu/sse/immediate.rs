//! Instructions whose immediate says what they do: shuffles, shifts by a count, blends, comparisons by a predicate,
//! rounding, dot products, string comparisons. Each has a table of its 256 forms.
#![expect(unsafe_code, reason = "each operation is the host's own instruction")]

use std::arch::{asm, naked_asm};

use iced_x86::{Code, Instruction};

use super::{Register, Source, Unaligned, begin, compute_lanes, in_memory};
use crate::cpu::Cpu;
use crate::exec::fpu::{native::HOST_MXCSR, sse_usable};
use crate::flags::bit;
use crate::insn::{Exec, Insn};
use crate::trap::Step;

/// `op xmm0, xmm1, imm8` or `op xmm0, imm8`, for every immediate.
trait Forms {
    /// 256 entries of eight bytes, each the instruction and RET.
    fn table() -> usize;
}

/// A row: code, the instruction's bytes before the immediate (ModRM C1 is xmm0, xmm1; C0 to FF in steps of 8 is xmm0 with an
/// opcode extension), memory operand.
macro_rules! forms {
    ($i:expr, $exec:ident; $($code:ident $bytes:literal $memory:ty;)*) => {
        match $i.code() {
            $(Code::$code => {
                enum Op {}
                impl Forms for Op {
                    fn table() -> usize {
                        #[unsafe(naked)]
                        extern "C" fn forms() {
                            naked_asm!(
                                ".set .Lnvsim_imm, 0",
                                ".rept 256",
                                concat!(".byte ", $bytes, ", .Lnvsim_imm"),
                                "ret",
                                ".balign 8, 0xCC",
                                ".set .Lnvsim_imm, .Lnvsim_imm + 1",
                                ".endr",
                            )
                        }
                        forms as *const () as usize
                    }
                }
                Some(if in_memory($i, 1) { $exec::<Op, $memory> } else { $exec::<Op, Register> })
            })*
            _ => None,
        }
    };
}

pub fn lookup(i: &Instruction) -> Option<Exec> {
    shuffles(i).or_else(|| shifts(i)).or_else(|| arithmetic(i)).or_else(|| strings(i))
}

pub fn shuffles(i: &Instruction) -> Option<Exec> {
    forms! { i, packed;
        Pshufd_xmm_xmmm128_imm8 "0x66, 0x0F, 0x70, 0xC1" u128;
        Pshufhw_xmm_xmmm128_imm8 "0xF3, 0x0F, 0x70, 0xC1" u128;
        Pshuflw_xmm_xmmm128_imm8 "0xF2, 0x0F, 0x70, 0xC1" u128;
        Shufps_xmm_xmmm128_imm8 "0x0F, 0xC6, 0xC1" u128;
        Shufpd_xmm_xmmm128_imm8 "0x66, 0x0F, 0xC6, 0xC1" u128;
        Blendps_xmm_xmmm128_imm8 "0x66, 0x0F, 0x3A, 0x0C, 0xC1" u128;
        Blendpd_xmm_xmmm128_imm8 "0x66, 0x0F, 0x3A, 0x0D, 0xC1" u128;
        Pblendw_xmm_xmmm128_imm8 "0x66, 0x0F, 0x3A, 0x0E, 0xC1" u128;
        Palignr_xmm_xmmm128_imm8 "0x66, 0x0F, 0x3A, 0x0F, 0xC1" u128;
        Mpsadbw_xmm_xmmm128_imm8 "0x66, 0x0F, 0x3A, 0x42, 0xC1" u128;
    }
}

pub fn shifts(i: &Instruction) -> Option<Exec> {
    forms! { i, shift;
        Psrlw_xmm_imm8 "0x66, 0x0F, 0x71, 0xD0" u128;
        Psraw_xmm_imm8 "0x66, 0x0F, 0x71, 0xE0" u128;
        Psllw_xmm_imm8 "0x66, 0x0F, 0x71, 0xF0" u128;
        Psrld_xmm_imm8 "0x66, 0x0F, 0x72, 0xD0" u128;
        Psrad_xmm_imm8 "0x66, 0x0F, 0x72, 0xE0" u128;
        Pslld_xmm_imm8 "0x66, 0x0F, 0x72, 0xF0" u128;
        Psrlq_xmm_imm8 "0x66, 0x0F, 0x73, 0xD0" u128;
        Psrldq_xmm_imm8 "0x66, 0x0F, 0x73, 0xD8" u128;
        Psllq_xmm_imm8 "0x66, 0x0F, 0x73, 0xF0" u128;
        Pslldq_xmm_imm8 "0x66, 0x0F, 0x73, 0xF8" u128;
    }
}

pub fn arithmetic(i: &Instruction) -> Option<Exec> {
    forms! { i, float;
        Cmpps_xmm_xmmm128_imm8 "0x0F, 0xC2, 0xC1" u128;
        Cmppd_xmm_xmmm128_imm8 "0x66, 0x0F, 0xC2, 0xC1" u128;
        Cmpss_xmm_xmmm32_imm8 "0xF3, 0x0F, 0xC2, 0xC1" u32;
        Cmpsd_xmm_xmmm64_imm8 "0xF2, 0x0F, 0xC2, 0xC1" u64;
        Roundps_xmm_xmmm128_imm8 "0x66, 0x0F, 0x3A, 0x08, 0xC1" u128;
        Roundpd_xmm_xmmm128_imm8 "0x66, 0x0F, 0x3A, 0x09, 0xC1" u128;
        Roundss_xmm_xmmm32_imm8 "0x66, 0x0F, 0x3A, 0x0A, 0xC1" u32;
        Roundsd_xmm_xmmm64_imm8 "0x66, 0x0F, 0x3A, 0x0B, 0xC1" u64;
        Dpps_xmm_xmmm128_imm8 "0x66, 0x0F, 0x3A, 0x40, 0xC1" u128;
        Dppd_xmm_xmmm128_imm8 "0x66, 0x0F, 0x3A, 0x41, 0xC1" u128;
    }
}

fn strings(i: &Instruction) -> Option<Exec> {
    // Explicit lengths are always given as 64 bits; the 32-bit forms extend theirs.
    let index = forms! { i, string_index;
        Pcmpestri_xmm_xmmm128_imm8 "0x66, 0x48, 0x0F, 0x3A, 0x61, 0xC1" Unaligned;
        Pcmpestri64_xmm_xmmm128_imm8 "0x66, 0x48, 0x0F, 0x3A, 0x61, 0xC1" Unaligned;
        Pcmpistri_xmm_xmmm128_imm8 "0x66, 0x0F, 0x3A, 0x63, 0xC1" Unaligned;
    };
    let mask = forms! { i, string_mask;
        Pcmpestrm_xmm_xmmm128_imm8 "0x66, 0x48, 0x0F, 0x3A, 0x60, 0xC1" Unaligned;
        Pcmpestrm64_xmm_xmmm128_imm8 "0x66, 0x48, 0x0F, 0x3A, 0x60, 0xC1" Unaligned;
        Pcmpistrm_xmm_xmmm128_imm8 "0x66, 0x0F, 0x3A, 0x62, 0xC1" Unaligned;
    };
    index.or(mask)
}

/// The entry of an immediate.
#[inline(always)]
fn entry<O: Forms>(imm: u64) -> usize {
    O::table() + usize::from(imm as u8) * 8
}

#[inline(always)]
fn run(entry: usize, a: &mut u128, b: &u128) {
    // SAFETY: both are 16 bytes, aligned; the call goes to one of a table's instructions and its RET, which works on the
    // declared registers only.
    unsafe {
        asm!(
            "movdqa xmm0, [{a}]",
            "movdqa xmm1, [{b}]",
            "call {entry}",
            "movdqa [{a}], xmm0",
            a = in(reg) a,
            b = in(reg) b,
            entry = in(reg) entry,
            out("xmm0") _,
            out("xmm1") _,
            options(preserves_flags),
        );
    }
}

#[inline(always)]
fn run_float(entry: usize, a: &u128, b: &u128, mxcsr: &mut u32) -> u128 {
    let mut result = 0_u128;
    // SAFETY: as in `run`; all exceptions are masked, and MXCSR is left as Rust expects it.
    unsafe {
        asm!(
            "ldmxcsr [{mxcsr}]",
            "movdqa xmm0, [{a}]",
            "movdqa xmm1, [{b}]",
            "call {entry}",
            "stmxcsr [{mxcsr}]",
            "ldmxcsr [rip + {host}]",
            "movdqa [{result}], xmm0",
            a = in(reg) a,
            b = in(reg) b,
            entry = in(reg) entry,
            mxcsr = in(reg) mxcsr,
            result = in(reg) &raw mut result,
            host = sym HOST_MXCSR,
            out("xmm0") _,
            out("xmm1") _,
            options(preserves_flags),
        );
    }
    result
}

/// What a string comparison gives: XMM0, RCX, RFLAGS.
#[inline(always)]
fn run_string(entry: usize, a: &u128, b: &u128, lengths: [u64; 2]) -> (u128, u64, u64) {
    let mut result = 0_u128;
    let (index, rflags): (u64, u64);
    // SAFETY: as in `run`; RCX is declared.
    unsafe {
        asm!(
            "movdqa xmm0, [{a}]",
            "movdqa xmm1, [{b}]",
            "call {entry}",
            "pushfq",
            "pop {rflags}",
            "movdqa [{result}], xmm0",
            a = in(reg) a,
            b = in(reg) b,
            entry = in(reg) entry,
            result = in(reg) &raw mut result,
            rflags = out(reg) rflags,
            in("rax") lengths[0],
            in("rdx") lengths[1],
            out("rcx") index,
            out("xmm0") _,
            out("xmm1") _,
        );
    }
    (result, index, rflags)
}

fn packed<O: Forms, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let b = begin::<S>(cpu, insn)?;
    run(entry::<O>(insn.imm), cpu.fx.xmm_mut(insn.r[0]), &b);
    Ok(())
}

#[expect(clippy::extra_unused_type_parameters, reason = "every row of the tables names two")]
fn shift<O: Forms, S>(cpu: &mut Cpu, insn: &Insn) -> Step {
    sse_usable(cpu)?;
    run(entry::<O>(insn.imm), cpu.fx.xmm_mut(insn.r[0]), &0);
    Ok(())
}

fn float<O: Forms, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let b = begin::<S>(cpu, insn)?;
    let a = cpu.fx.xmm(insn.r[0]);
    let entry = entry::<O>(insn.imm);
    *cpu.fx.xmm_mut(insn.r[0]) = compute_lanes(cpu, insn, a, b, |mxcsr| run_float(entry, &a, &b, mxcsr))?;
    Ok(())
}

/// Runs a string comparison: XMM0 and RCX of it; the flags are set.
#[inline(always)]
fn string<O: Forms, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step<(u128, u64)> {
    let b = begin::<S>(cpu, insn)?;
    let a = cpu.fx.xmm(insn.r[0]);
    let wide = matches!(
        Code::try_from(usize::from(insn.code)),
        Ok(Code::Pcmpestri64_xmm_xmmm128_imm8 | Code::Pcmpestrm64_xmm_xmmm128_imm8)
    );
    let lengths = [cpu.gpr[0], cpu.gpr[2]].map(|n| if wide { n } else { n as i32 as i64 as u64 });
    let (mask, index, rflags) = run_string(entry::<O>(insn.imm), &a, &b, lengths);
    cpu.flags.set_status(rflags & bit::STATUS);
    Ok((mask, index))
}

fn string_index<O: Forms, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    cpu.gpr[1] = string::<O, S>(cpu, insn)?.1;
    Ok(())
}

fn string_mask<O: Forms, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    cpu.fx.xmm[0] = string::<O, S>(cpu, insn)?.0;
    Ok(())
}
