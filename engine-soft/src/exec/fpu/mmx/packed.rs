//! MMX arithmetic, logic, comparisons, shuffles and shifts.
#![expect(unsafe_code, reason = "each operation is the host's own instruction")]

use std::arch::{asm, naked_asm};

use iced_x86::{Code, Instruction};

use super::{Register, Source, begin};
use crate::cpu::Cpu;
use crate::exec::fpu::{mmx_usable, sse::in_memory};
use crate::insn::{Exec, Insn};
use crate::trap::Step;

/// `op mm, mm/m`.
trait Packed {
    /// `a op b`.
    fn run(a: u64, b: u64) -> u64;
}

/// `op mm0, mm1, imm8` or `op mm0, imm8`, for every immediate.
trait Forms {
    /// 256 entries of eight bytes, each the instruction and RET.
    fn table() -> usize;
}

/// A row: code, mnemonic, memory operand.
macro_rules! packed {
    ($i:expr; $($code:ident $mnemonic:literal $memory:ty;)*) => {
        match $i.code() {
            $(Code::$code => {
                enum Op {}
                impl Packed for Op {
                    #[inline(always)]
                    fn run(mut a: u64, b: u64) -> u64 {
                        // SAFETY: the instruction works on the declared registers only; EMMS leaves the x87 as Rust
                        // expects it.
                        unsafe {
                            asm!(
                                "movq mm0, {a}",
                                "movq mm1, {b}",
                                concat!($mnemonic, " mm0, mm1"),
                                "movq {a}, mm0",
                                "emms",
                                a = inout(reg) a,
                                b = in(reg) b,
                                out("mm0") _, out("mm1") _, out("mm2") _, out("mm3") _,
                                out("mm4") _, out("mm5") _, out("mm6") _, out("mm7") _,
                                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                                options(pure, nomem, nostack, preserves_flags),
                            );
                        }
                        a
                    }
                }
                Some(if in_memory($i, 1) { packed::<Op, $memory> } else { packed::<Op, Register> })
            })*
            _ => None,
        }
    };
}

/// A row: code, the instruction's bytes before the immediate, the function that executes it.
macro_rules! forms {
    ($i:expr; $($code:ident $bytes:literal $exec:ident;)*) => {
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
                Some(if in_memory($i, 1) { $exec::<Op, u64> } else { $exec::<Op, Register> })
            })*
            _ => None,
        }
    };
}

#[rustfmt::skip]
pub fn lookup(i: &Instruction) -> Option<Exec> {
    let plain = packed! { i;
        Punpcklbw_mm_mmm32 "punpcklbw" u32;
        Punpcklwd_mm_mmm32 "punpcklwd" u32;
        Punpckldq_mm_mmm32 "punpckldq" u32;
        Packsswb_mm_mmm64 "packsswb" u64;
        Pcmpgtb_mm_mmm64 "pcmpgtb" u64;
        Pcmpgtw_mm_mmm64 "pcmpgtw" u64;
        Pcmpgtd_mm_mmm64 "pcmpgtd" u64;
        Packuswb_mm_mmm64 "packuswb" u64;
        Punpckhbw_mm_mmm64 "punpckhbw" u64;
        Punpckhwd_mm_mmm64 "punpckhwd" u64;
        Punpckhdq_mm_mmm64 "punpckhdq" u64;
        Packssdw_mm_mmm64 "packssdw" u64;
        Pcmpeqb_mm_mmm64 "pcmpeqb" u64;
        Pcmpeqw_mm_mmm64 "pcmpeqw" u64;
        Pcmpeqd_mm_mmm64 "pcmpeqd" u64;
        Psrlw_mm_mmm64 "psrlw" u64;
        Psrld_mm_mmm64 "psrld" u64;
        Psrlq_mm_mmm64 "psrlq" u64;
        Paddq_mm_mmm64 "paddq" u64;
        Pmullw_mm_mmm64 "pmullw" u64;
        Psubusb_mm_mmm64 "psubusb" u64;
        Psubusw_mm_mmm64 "psubusw" u64;
        Pminub_mm_mmm64 "pminub" u64;
        Pand_mm_mmm64 "pand" u64;
        Paddusb_mm_mmm64 "paddusb" u64;
        Paddusw_mm_mmm64 "paddusw" u64;
        Pmaxub_mm_mmm64 "pmaxub" u64;
        Pandn_mm_mmm64 "pandn" u64;
        Pavgb_mm_mmm64 "pavgb" u64;
        Psraw_mm_mmm64 "psraw" u64;
        Psrad_mm_mmm64 "psrad" u64;
        Pavgw_mm_mmm64 "pavgw" u64;
        Pmulhuw_mm_mmm64 "pmulhuw" u64;
        Pmulhw_mm_mmm64 "pmulhw" u64;
        Psubsb_mm_mmm64 "psubsb" u64;
        Psubsw_mm_mmm64 "psubsw" u64;
        Pminsw_mm_mmm64 "pminsw" u64;
        Por_mm_mmm64 "por" u64;
        Paddsb_mm_mmm64 "paddsb" u64;
        Paddsw_mm_mmm64 "paddsw" u64;
        Pmaxsw_mm_mmm64 "pmaxsw" u64;
        Pxor_mm_mmm64 "pxor" u64;
        Psllw_mm_mmm64 "psllw" u64;
        Pslld_mm_mmm64 "pslld" u64;
        Psllq_mm_mmm64 "psllq" u64;
        Pmuludq_mm_mmm64 "pmuludq" u64;
        Pmaddwd_mm_mmm64 "pmaddwd" u64;
        Psadbw_mm_mmm64 "psadbw" u64;
        Psubb_mm_mmm64 "psubb" u64;
        Psubw_mm_mmm64 "psubw" u64;
        Psubd_mm_mmm64 "psubd" u64;
        Psubq_mm_mmm64 "psubq" u64;
        Paddb_mm_mmm64 "paddb" u64;
        Paddw_mm_mmm64 "paddw" u64;
        Paddd_mm_mmm64 "paddd" u64;
        Pshufb_mm_mmm64 "pshufb" u64;
        Phaddw_mm_mmm64 "phaddw" u64;
        Phaddd_mm_mmm64 "phaddd" u64;
        Phaddsw_mm_mmm64 "phaddsw" u64;
        Pmaddubsw_mm_mmm64 "pmaddubsw" u64;
        Phsubw_mm_mmm64 "phsubw" u64;
        Phsubd_mm_mmm64 "phsubd" u64;
        Phsubsw_mm_mmm64 "phsubsw" u64;
        Psignb_mm_mmm64 "psignb" u64;
        Psignw_mm_mmm64 "psignw" u64;
        Psignd_mm_mmm64 "psignd" u64;
        Pmulhrsw_mm_mmm64 "pmulhrsw" u64;
        Pabsb_mm_mmm64 "pabsb" u64;
        Pabsw_mm_mmm64 "pabsw" u64;
        Pabsd_mm_mmm64 "pabsd" u64;
    };
    plain.or_else(|| immediate(i))
}

fn immediate(i: &Instruction) -> Option<Exec> {
    forms! { i;
        Pshufw_mm_mmm64_imm8 "0x0F, 0x70, 0xC1" with_immediate;
        Palignr_mm_mmm64_imm8 "0x0F, 0x3A, 0x0F, 0xC1" with_immediate;
        Psrlw_mm_imm8 "0x0F, 0x71, 0xD0" shift;
        Psraw_mm_imm8 "0x0F, 0x71, 0xE0" shift;
        Psllw_mm_imm8 "0x0F, 0x71, 0xF0" shift;
        Psrld_mm_imm8 "0x0F, 0x72, 0xD0" shift;
        Psrad_mm_imm8 "0x0F, 0x72, 0xE0" shift;
        Pslld_mm_imm8 "0x0F, 0x72, 0xF0" shift;
        Psrlq_mm_imm8 "0x0F, 0x73, 0xD0" shift;
        Psllq_mm_imm8 "0x0F, 0x73, 0xF0" shift;
    }
}

fn run_form<O: Forms>(imm: u64, mut a: u64, b: u64) -> u64 {
    let entry = O::table() + usize::from(imm as u8) * 8;
    // SAFETY: the call goes to one of a table's instructions and its RET, which works on the declared registers only; EMMS
    // leaves the x87 as Rust expects it.
    unsafe {
        asm!(
            "movq mm0, {a}",
            "movq mm1, {b}",
            "call {entry}",
            "movq {a}, mm0",
            "emms",
            a = inout(reg) a,
            b = in(reg) b,
            entry = in(reg) entry,
            out("mm0") _, out("mm1") _, out("mm2") _, out("mm3") _,
            out("mm4") _, out("mm5") _, out("mm6") _, out("mm7") _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            options(preserves_flags),
        );
    }
    a
}

fn packed<O: Packed, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let b = begin::<S>(cpu, insn)?;
    let a = cpu.fx.mm(insn.r[0]);
    cpu.fx.set_mm(insn.r[0], O::run(a, b));
    Ok(())
}

fn with_immediate<O: Forms, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let b = begin::<S>(cpu, insn)?;
    let a = cpu.fx.mm(insn.r[0]);
    cpu.fx.set_mm(insn.r[0], run_form::<O>(insn.imm, a, b));
    Ok(())
}

#[expect(clippy::extra_unused_type_parameters, reason = "every row of the tables names two")]
fn shift<O: Forms, S>(cpu: &mut Cpu, insn: &Insn) -> Step {
    mmx_usable(cpu)?;
    cpu.fx.enter_mmx();
    let a = cpu.fx.mm(insn.r[0]);
    cpu.fx.set_mm(insn.r[0], run_form::<O>(insn.imm, a, 0));
    Ok(())
}
