//! Integer arithmetic, logic, comparisons and fixed shuffles on whole XMM registers: nothing that MXCSR concerns.
#![expect(unsafe_code, reason = "each operation is the host's own instruction")]

use std::arch::asm;

use iced_x86::{Code, Instruction};

use super::{Register, Source, begin, in_memory};
use crate::cpu::Cpu;
use crate::insn::{Exec, Insn};
use crate::trap::Step;

/// `op xmm, xmm/m`.
trait Packed {
    /// `a` becomes `a op b`.
    fn run(a: &mut u128, b: &u128);
}

/// A row: code, mnemonic, memory operand.
macro_rules! packed {
    ($i:expr; $($code:ident $mnemonic:literal $memory:ty;)*) => {
        match $i.code() {
            $(Code::$code => {
                enum Op {}
                impl Packed for Op {
                    #[inline(always)]
                    fn run(a: &mut u128, b: &u128) {
                        // SAFETY: both are 16 bytes, aligned; the instruction works on the declared registers only.
                        unsafe {
                            asm!(
                                "movdqa xmm0, [{a}]",
                                "movdqa xmm1, [{b}]",
                                concat!($mnemonic, " xmm0, xmm1"),
                                "movdqa [{a}], xmm0",
                                a = in(reg) a,
                                b = in(reg) b,
                                out("xmm0") _,
                                out("xmm1") _,
                                options(nostack, preserves_flags),
                            );
                        }
                    }
                }
                Some(if in_memory($i, 1) { packed::<Op, $memory> } else { packed::<Op, Register> })
            })*
            _ => None,
        }
    };
}

#[rustfmt::skip]
pub fn lookup(i: &Instruction) -> Option<Exec> {
    packed! { i;
        Movsldup_xmm_xmmm128 "movsldup" u128;
        Movddup_xmm_xmmm64 "movddup" u64;
        Unpcklps_xmm_xmmm128 "unpcklps" u128;
        Unpcklpd_xmm_xmmm128 "unpcklpd" u128;
        Unpckhps_xmm_xmmm128 "unpckhps" u128;
        Unpckhpd_xmm_xmmm128 "unpckhpd" u128;
        Movshdup_xmm_xmmm128 "movshdup" u128;
        Andps_xmm_xmmm128 "andps" u128;
        Andpd_xmm_xmmm128 "andpd" u128;
        Andnps_xmm_xmmm128 "andnps" u128;
        Andnpd_xmm_xmmm128 "andnpd" u128;
        Orps_xmm_xmmm128 "orps" u128;
        Orpd_xmm_xmmm128 "orpd" u128;
        Xorps_xmm_xmmm128 "xorps" u128;
        Xorpd_xmm_xmmm128 "xorpd" u128;
        Punpcklbw_xmm_xmmm128 "punpcklbw" u128;
        Punpcklwd_xmm_xmmm128 "punpcklwd" u128;
        Punpckldq_xmm_xmmm128 "punpckldq" u128;
        Packsswb_xmm_xmmm128 "packsswb" u128;
        Pcmpgtb_xmm_xmmm128 "pcmpgtb" u128;
        Pcmpgtw_xmm_xmmm128 "pcmpgtw" u128;
        Pcmpgtd_xmm_xmmm128 "pcmpgtd" u128;
        Packuswb_xmm_xmmm128 "packuswb" u128;
        Punpckhbw_xmm_xmmm128 "punpckhbw" u128;
        Punpckhwd_xmm_xmmm128 "punpckhwd" u128;
        Punpckhdq_xmm_xmmm128 "punpckhdq" u128;
        Packssdw_xmm_xmmm128 "packssdw" u128;
        Punpcklqdq_xmm_xmmm128 "punpcklqdq" u128;
        Punpckhqdq_xmm_xmmm128 "punpckhqdq" u128;
        Pcmpeqb_xmm_xmmm128 "pcmpeqb" u128;
        Pcmpeqw_xmm_xmmm128 "pcmpeqw" u128;
        Pcmpeqd_xmm_xmmm128 "pcmpeqd" u128;
        Psrlw_xmm_xmmm128 "psrlw" u128;
        Psrld_xmm_xmmm128 "psrld" u128;
        Psrlq_xmm_xmmm128 "psrlq" u128;
        Paddq_xmm_xmmm128 "paddq" u128;
        Pmullw_xmm_xmmm128 "pmullw" u128;
        Psubusb_xmm_xmmm128 "psubusb" u128;
        Psubusw_xmm_xmmm128 "psubusw" u128;
        Pminub_xmm_xmmm128 "pminub" u128;
        Pand_xmm_xmmm128 "pand" u128;
        Paddusb_xmm_xmmm128 "paddusb" u128;
        Paddusw_xmm_xmmm128 "paddusw" u128;
        Pmaxub_xmm_xmmm128 "pmaxub" u128;
        Pandn_xmm_xmmm128 "pandn" u128;
        Pavgb_xmm_xmmm128 "pavgb" u128;
        Psraw_xmm_xmmm128 "psraw" u128;
        Psrad_xmm_xmmm128 "psrad" u128;
        Pavgw_xmm_xmmm128 "pavgw" u128;
        Pmulhuw_xmm_xmmm128 "pmulhuw" u128;
        Pmulhw_xmm_xmmm128 "pmulhw" u128;
        Psubsb_xmm_xmmm128 "psubsb" u128;
        Psubsw_xmm_xmmm128 "psubsw" u128;
        Pminsw_xmm_xmmm128 "pminsw" u128;
        Por_xmm_xmmm128 "por" u128;
        Paddsb_xmm_xmmm128 "paddsb" u128;
        Paddsw_xmm_xmmm128 "paddsw" u128;
        Pmaxsw_xmm_xmmm128 "pmaxsw" u128;
        Pxor_xmm_xmmm128 "pxor" u128;
        Psllw_xmm_xmmm128 "psllw" u128;
        Pslld_xmm_xmmm128 "pslld" u128;
        Psllq_xmm_xmmm128 "psllq" u128;
        Pmuludq_xmm_xmmm128 "pmuludq" u128;
        Pmaddwd_xmm_xmmm128 "pmaddwd" u128;
        Psadbw_xmm_xmmm128 "psadbw" u128;
        Psubb_xmm_xmmm128 "psubb" u128;
        Psubw_xmm_xmmm128 "psubw" u128;
        Psubd_xmm_xmmm128 "psubd" u128;
        Psubq_xmm_xmmm128 "psubq" u128;
        Paddb_xmm_xmmm128 "paddb" u128;
        Paddw_xmm_xmmm128 "paddw" u128;
        Paddd_xmm_xmmm128 "paddd" u128;
        Pshufb_xmm_xmmm128 "pshufb" u128;
        Phaddw_xmm_xmmm128 "phaddw" u128;
        Phaddd_xmm_xmmm128 "phaddd" u128;
        Phaddsw_xmm_xmmm128 "phaddsw" u128;
        Pmaddubsw_xmm_xmmm128 "pmaddubsw" u128;
        Phsubw_xmm_xmmm128 "phsubw" u128;
        Phsubd_xmm_xmmm128 "phsubd" u128;
        Phsubsw_xmm_xmmm128 "phsubsw" u128;
        Psignb_xmm_xmmm128 "psignb" u128;
        Psignw_xmm_xmmm128 "psignw" u128;
        Psignd_xmm_xmmm128 "psignd" u128;
        Pmulhrsw_xmm_xmmm128 "pmulhrsw" u128;
        Pabsb_xmm_xmmm128 "pabsb" u128;
        Pabsw_xmm_xmmm128 "pabsw" u128;
        Pabsd_xmm_xmmm128 "pabsd" u128;
        Pmovsxbw_xmm_xmmm64 "pmovsxbw" u64;
        Pmovsxbd_xmm_xmmm32 "pmovsxbd" u32;
        Pmovsxbq_xmm_xmmm16 "pmovsxbq" u16;
        Pmovsxwd_xmm_xmmm64 "pmovsxwd" u64;
        Pmovsxwq_xmm_xmmm32 "pmovsxwq" u32;
        Pmovsxdq_xmm_xmmm64 "pmovsxdq" u64;
        Pmuldq_xmm_xmmm128 "pmuldq" u128;
        Pcmpeqq_xmm_xmmm128 "pcmpeqq" u128;
        Packusdw_xmm_xmmm128 "packusdw" u128;
        Pmovzxbw_xmm_xmmm64 "pmovzxbw" u64;
        Pmovzxbd_xmm_xmmm32 "pmovzxbd" u32;
        Pmovzxbq_xmm_xmmm16 "pmovzxbq" u16;
        Pmovzxwd_xmm_xmmm64 "pmovzxwd" u64;
        Pmovzxwq_xmm_xmmm32 "pmovzxwq" u32;
        Pmovzxdq_xmm_xmmm64 "pmovzxdq" u64;
        Pcmpgtq_xmm_xmmm128 "pcmpgtq" u128;
        Pminsb_xmm_xmmm128 "pminsb" u128;
        Pminsd_xmm_xmmm128 "pminsd" u128;
        Pminuw_xmm_xmmm128 "pminuw" u128;
        Pminud_xmm_xmmm128 "pminud" u128;
        Pmaxsb_xmm_xmmm128 "pmaxsb" u128;
        Pmaxsd_xmm_xmmm128 "pmaxsd" u128;
        Pmaxuw_xmm_xmmm128 "pmaxuw" u128;
        Pmaxud_xmm_xmmm128 "pmaxud" u128;
        Pmulld_xmm_xmmm128 "pmulld" u128;
        Phminposuw_xmm_xmmm128 "phminposuw" u128;
    }
}

fn packed<O: Packed, S: Source>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let b = begin::<S>(cpu, insn)?;
    O::run(cpu.fx.xmm_mut(insn.r[0]), &b);
    Ok(())
}
