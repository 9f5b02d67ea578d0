//! One lane of FMA, `a * b + c`, for who wants to know what it raises.
#![expect(unsafe_code, reason = "each operation is the host's own instruction")]

use std::arch::asm;

use crate::exec::fpu::native::HOST_MXCSR;

/// A function by its mnemonic; `mxcsr`, its exceptions masked, gathers flags. The host has FMA: the guest would not be shown
/// it otherwise.
macro_rules! fused {
    ($name:ident $mnemonic:literal) => {
        pub fn $name(a: &u128, b: &u128, c: &u128, mxcsr: &mut u32) -> u128 {
            let mut result = 0_u128;
            // SAFETY: the operands are 16 bytes, aligned; the instructions work on the declared registers only, with all
            // exceptions masked. MXCSR and the upper halves are left as Rust expects them.
            unsafe {
                asm!(
                    "ldmxcsr [{mxcsr}]",
                    "vmovdqa xmm0, [{a}]",
                    "vmovdqa xmm1, [{b}]",
                    "vmovdqa xmm2, [{c}]",
                    concat!($mnemonic, " xmm0, xmm1, xmm2"),
                    "stmxcsr [{mxcsr}]",
                    "ldmxcsr [rip + {host}]",
                    "vmovdqa [{result}], xmm0",
                    "vzeroupper",
                    a = in(reg) a,
                    b = in(reg) b,
                    c = in(reg) c,
                    mxcsr = in(reg) mxcsr,
                    result = in(reg) &raw mut result,
                    host = sym HOST_MXCSR,
                    out("xmm0") _,
                    out("xmm1") _,
                    out("xmm2") _,
                    options(nostack, preserves_flags),
                );
            }
            result
        }
    };
}

fused!(fused_single "vfmadd213ss");
fused!(fused_double "vfmadd213sd");
