//! Executing the instruction itself on the host.
//!
//! The host is an x86-64 CPU too, so what an x87, MMX or SSE instruction computes is asked of it. No code is generated:
//! the instructions stand in this program, each followed by RET where an operand is encoded in the instruction (the
//! tables of x87 forms below, and one of 256 immediates for an SSE instruction in `sse::immediate`). Operands
//! are copied from the [`FxArea`] to fixed registers and memory is accessed by the interpreter before and after, so
//! that nothing here can fault. Nothing can trap either: SSE runs with every exception masked, and x87 exceptions wait for a
//! next waiting instruction, which does not come before FNINIT.
//!
//! What Intel's and AMD's CPUs compute differently is the host's: RCPPS, RSQRTPS and the transcendental x87 instructions
//! (FSIN, FYL2X and the like). A run that uses them repeats exactly only on hosts of one vendor.
#![expect(unsafe_code, reason = "the instructions are inline assembly")]

use std::arch::{asm, naked_asm};

use crate::fx::FxArea;

/// What guests are shown that this host cannot execute, if anything.
#[must_use]
pub fn missing() -> Option<&'static str> {
    macro_rules! first_missing {
        ($($feature:tt)*) => {
            [$(($feature, std::arch::is_x86_feature_detected!($feature))),*]
        };
    }
    let features = first_missing!("fxsr" "sse3" "ssse3" "sse4.1" "sse4.2");
    features.into_iter().find(|(_, present)| !present).map(|(feature, _)| feature)
}

/// Memory operand of an x87 instruction.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(16))]
pub struct Scratch(pub [u8; 16]);

/// What the host itself runs with.
pub static HOST_MXCSR: u32 = crate::fx::mxcsr::INITIAL;

/// `D8 C0` to `DF FF`: four bytes each.
#[unsafe(naked)]
extern "C" fn register_forms() {
    naked_asm!(
        ".set .Lnvsim_op, 0xD8",
        ".rept 8",
        ".set .Lnvsim_modrm, 0xC0",
        ".rept 64",
        ".byte .Lnvsim_op, .Lnvsim_modrm",
        "ret",
        "nop",
        ".set .Lnvsim_modrm, .Lnvsim_modrm + 1",
        ".endr",
        ".set .Lnvsim_op, .Lnvsim_op + 1",
        ".endr",
    )
}

/// `D8 /0 [rdx]` to `DF /7 [rdx]`: four bytes each.
#[unsafe(naked)]
extern "C" fn memory_forms() {
    naked_asm!(
        ".set .Lnvsim_op, 0xD8",
        ".rept 8",
        ".set .Lnvsim_modrm, 2",
        ".rept 8",
        ".byte .Lnvsim_op, .Lnvsim_modrm",
        "ret",
        "nop",
        ".set .Lnvsim_modrm, .Lnvsim_modrm + 8",
        ".endr",
        ".set .Lnvsim_op, .Lnvsim_op + 1",
        ".endr",
    )
}

/// The table entry of an x87 instruction: `opcode` is its first byte (D8 to DF) and its ModRM byte.
#[inline(always)]
fn x87_entry(opcode: u16) -> usize {
    let op = usize::from(opcode >> 8 & 7);
    if opcode & 0xC0 == 0xC0 {
        register_forms as *const () as usize + (op * 64 + usize::from(opcode & 0x3F)) * 4
    } else {
        memory_forms as *const () as usize + (op * 8 + usize::from(opcode >> 3 & 7)) * 4
    }
}

/// Executes the x87 instruction of `opcode` (first byte and ModRM; with a memory operand, only the latter's bits 3 to 5
/// count and `memory` is the operand). It must not be a waiting one while an exception is pending. The image's pointers
/// and FOP are left as they were.
#[inline(always)]
pub fn x87(fx: &mut FxArea, opcode: u16, memory: &mut Scratch) {
    let (fop, fip, fdp) = (fx.fop, fx.fip, fx.fdp);
    // SAFETY: `fx` is a 64-byte aligned FXSAVE image whose MXCSR has no reserved bit (FxArea::new and LDMXCSR see to it);
    // the call goes to one of the table's instructions and its RET, which touches at most the 16 bytes of `memory`. No x87
    // exception is pending before, and one that is raised is cleared by FNINIT, so none is delivered. All registers that
    // change are declared; x87 and MXCSR are left as Rust expects them.
    unsafe {
        asm!(
            "fxrstor64 [{fx}]",
            "call {entry}",
            "fxsave64 [{fx}]",
            "fninit",
            "ldmxcsr [rip + {host}]",
            fx = in(reg) fx,
            entry = in(reg) x87_entry(opcode),
            host = sym HOST_MXCSR,
            in("rdx") memory,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
        );
    }
    (fx.fop, fx.fip, fx.fdp) = (fop, fip, fdp);
    fx.mxcsr_mask = crate::fx::mxcsr::VALID;
}

/// As [`x87`] of a register form that reads or writes RFLAGS: `status` holds the status flags before and after.
pub fn x87_flags(fx: &mut FxArea, opcode: u16, status: &mut u64) {
    let (fop, fip, fdp) = (fx.fop, fx.fip, fx.fdp);
    // SAFETY: as in `x87`; only status flags are loaded into RFLAGS.
    unsafe {
        asm!(
            "fxrstor64 [{fx}]",
            "push {flags}",
            "popfq",
            "call {entry}",
            "pushfq",
            "pop {flags}",
            "fxsave64 [{fx}]",
            "fninit",
            "ldmxcsr [rip + {host}]",
            fx = in(reg) fx,
            entry = in(reg) x87_entry(opcode),
            flags = inout(reg) *status & crate::flags::bit::STATUS => *status,
            host = sym HOST_MXCSR,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
        );
    }
    *status &= crate::flags::bit::STATUS;
    (fx.fop, fx.fip, fx.fdp) = (fop, fip, fdp);
    fx.mxcsr_mask = crate::fx::mxcsr::VALID;
}
