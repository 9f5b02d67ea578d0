//! Executing an AVX instruction on the host: the instruction itself, its operands in fixed places.
//!
//! It is encoded again with operand `n` in register `8 + n` (or memory at RDI) and a RET behind it, once for each encoding,
//! immediates included: so there are no more of them than some ten thousand. The code is in memory of its own, never
//! writable and executable at once, for as long as the process lives.
#![expect(unsafe_code, reason = "calls host code that is written here")]

use std::arch::asm;
use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use iced_x86::{Instruction, OpKind};

use crate::exec::fpu::native::HOST_MXCSR;
use crate::vex::{Tail, Vex};
use crate::xlat::arena::Arena;
use crate::xlat::emit::{Asm, RDI, Reg, Rm};

/// Bytes of code, 16 an instruction: more than there are encodings.
const SIZE: usize = 8 << 20;

/// The operands' places, before and after.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(32))]
pub(crate) struct Operands {
    /// Of operand `n`, where it is a vector register.
    pub(crate) vector: [[u128; 2]; 4],
    /// The memory operand.
    pub(crate) memory: [u8; 32],
    /// After: YMM0.
    pub(crate) mask: [u128; 2],
    /// Of operand `n`, where it is a general register.
    pub(crate) general: [u64; 3],
    /// Before: RAX, RDX.
    pub(crate) lengths: [u64; 2],
    /// After: RCX.
    pub(crate) index: u64,
    /// After: RFLAGS.
    pub(crate) flags: u64,
    /// The memory operand is one.
    pub(crate) from_memory: bool,
}

/// The code that there is.
struct Forge {
    arena: Arena,
    known: HashMap<Vec<u8>, u64>,
}

fn forge() -> Option<&'static Mutex<Forge>> {
    static FORGE: OnceLock<Option<Mutex<Forge>>> = OnceLock::new();
    let made = FORGE.get_or_init(|| {
        let arena = Arena::new(SIZE).ok()?;
        Some(Mutex::new(Forge { arena, known: HashMap::new() }))
    });
    made.as_ref()
}

/// What this host lacks to execute these instructions.
#[must_use]
pub fn missing() -> Vec<&'static str> {
    let mut missing = Vec::new();
    for (name, there) in [
        ("AVX", std::arch::is_x86_feature_detected!("avx")),
        ("AVX2", std::arch::is_x86_feature_detected!("avx2")),
        ("FMA", std::arch::is_x86_feature_detected!("fma")),
        ("F16C", std::arch::is_x86_feature_detected!("f16c")),
        ("BMI1", std::arch::is_x86_feature_detected!("bmi1")),
        ("BMI2", std::arch::is_x86_feature_detected!("bmi2")),
        ("LZCNT", std::arch::is_x86_feature_detected!("lzcnt")),
        ("memory for code", forge().is_some()),
    ] {
        if !there {
            missing.push(name);
        }
    }
    missing
}

/// Host code for an instruction; `bytes` begin with it.
pub(crate) fn code(i: &Instruction, bytes: &[u8]) -> Option<u64> {
    let (vex, fields, tail) = Vex::of(bytes, i)?;
    let place = |operand: usize| 8 + operand as u8;
    let rm = if i.op_kind(fields.rm as u32) == OpKind::Memory {
        Rm::Base(RDI, 0)
    } else {
        Rm::Reg(Reg(place(fields.rm)))
    };
    let mut asm = Asm::new(0);
    asm.vex(vex, fields.reg.map_or_else(|group| group, place), fields.vvvv.map_or(0, place), rm);
    match tail {
        Tail::Nothing => {}
        Tail::Byte(byte) => asm.raw(&[byte]),
        Tail::Register => asm.raw(&[place(3) << 4]),
    }
    asm.raw(&[0xC3]);
    let mut forge = forge()?.lock().unwrap_or_else(PoisonError::into_inner);
    let Forge { arena, known } = &mut *forge;
    if let Some(&code) = known.get(asm.bytes()) {
        return Some(code);
    }
    if arena.room() < 2 * asm.bytes().len() {
        return None;
    }
    let code = arena.next();
    arena.add(asm.bytes());
    known.insert(asm.bytes().to_vec(), code);
    Some(code)
}

/// Runs an instruction's code, which [`code`] gave; `mxcsr`, its exceptions masked, gathers flags.
#[inline(always)]
pub(crate) fn run(code: u64, operands: &mut Operands, mxcsr: &mut u32) {
    let o: *mut Operands = operands;
    let [rax, rdx] = operands.lengths;
    // SAFETY: the code is one VEX instruction and RET. Its operands are registers 8 to 11 and at most 32 bytes of `memory`;
    // besides them it writes RCX, YMM0 and flags. All exceptions are masked. MXCSR and the upper halves are left as Rust
    // expects them.
    unsafe {
        asm!(
            "ldmxcsr [{mxcsr}]",
            "vmovdqa ymm8, [{o}]",
            "vmovdqa ymm9, [{o} + 32]",
            "vmovdqa ymm10, [{o} + 64]",
            "vmovdqa ymm11, [{o} + 96]",
            "mov r8, [{o} + 192]",
            "mov r9, [{o} + 200]",
            "mov r10, [{o} + 208]",
            "call {code}",
            "vmovdqa [{o}], ymm8",
            "vmovdqa [{o} + 160], ymm0",
            "mov [{o} + 192], r8",
            "mov [{o} + 232], rcx",
            "pushfq",
            "pop qword ptr [{o} + 240]",
            "vzeroupper",
            "stmxcsr [{mxcsr}]",
            "ldmxcsr [rip + {host}]",
            code = in(reg) code,
            o = in(reg) o,
            mxcsr = in(reg) mxcsr,
            host = sym HOST_MXCSR,
            in("rdi") o.cast::<u8>().wrapping_add(128),
            inout("rax") rax => _,
            inout("rdx") rdx => _,
            out("rcx") _,
            out("r8") _, out("r9") _, out("r10") _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
            out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
        );
    }
}

const _: () = {
    use std::mem::offset_of;
    assert!(offset_of!(Operands, memory) == 128 && offset_of!(Operands, mask) == 160);
    assert!(offset_of!(Operands, general) == 192 && offset_of!(Operands, flags) == 240);
    assert!(offset_of!(Operands, index) == 232);
};
