//! AVX, AVX2, FMA, F16C (SDM vol. 1, ch. 14).
//!
//! What computes is done by the host's own instruction, encoded again with its operands in fixed registers ([`host`]); what
//! accesses memory in its own way ([`masked`], [`gather`]) is written out.

mod exceptions;
mod gather;
mod half;
pub(crate) mod host;
mod masked;
mod moves;

use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Mnemonic as M, OpKind};

use super::{image, nontemporal, settle, sse};
use crate::cpu::Cpu;
use crate::cpu::control::{CR0_TS, CR4_OSXSAVE};
use crate::flags::bit;
use crate::insn::{Exec, Insn};
use crate::trap::{Step, vector};
use engine::cpuid::xsave::{AVX, SSE};
use host::Operands;
pub use host::missing;

/// How an AVX instruction is executed.
#[derive(Debug, Clone, Copy)]
pub struct Avx {
    /// By this function.
    pub exec: Exec,
    /// Host code that it runs, or 0.
    pub host: u64,
    /// Bytes of its memory operand.
    pub size: u8,
    /// VEX.L.
    pub wide: bool,
}

/// Whether it is an instruction of this family.
#[must_use]
pub fn is_avx(i: &Instruction) -> bool {
    let known = |feature| {
        matches!(feature, CpuidFeature::AVX | CpuidFeature::AVX2 | CpuidFeature::FMA | CpuidFeature::F16C)
    };
    i.encoding() == EncodingKind::VEX && i.cpuid_features().iter().all(|&feature| known(feature))
}

/// How to execute an instruction of this family; `bytes` begin with it.
#[must_use]
pub fn lookup(i: &Instruction, bytes: &[u8]) -> Option<Avx> {
    if !is_avx(i) {
        return None;
    }
    let size = i.memory_size().size() as u8;
    let ymm = |n: u32| i.op_kind(n) == OpKind::Register && i.op_register(n).is_ymm();
    let wide = (0..i.op_count()).any(ymm) || i.memory_index().is_ymm();
    let own = match i.mnemonic() {
        M::Vzeroupper => Some(zeroupper as Exec),
        M::Vzeroall => Some(zeroall as Exec),
        M::Vldmxcsr => Some(ldmxcsr as Exec),
        M::Vstmxcsr => Some(stmxcsr as Exec),
        M::Vmaskmovdqu => Some(maskmovdqu as Exec),
        _ => moves::lookup(i).or_else(|| masked::lookup(i)).or_else(|| gather::lookup(i)),
    };
    if let Some(exec) = own {
        return Some(Avx { exec, host: 0, size, wide });
    }
    Some(Avx { exec: computes(i), host: host::code(i, bytes)?, size, wide })
}

/// The function for an instruction that the host computes, by its operands.
fn computes(i: &Instruction) -> Exec {
    let from_memory = (1..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
    macro_rules! by_source {
        ($f:ident) => {
            if from_memory { $f::<true> } else { $f::<false> }
        };
    }
    match i.mnemonic() {
        M::Vptest | M::Vtestps | M::Vtestpd | M::Vcomiss | M::Vcomisd | M::Vucomiss | M::Vucomisd => {
            by_source!(to_flags)
        }
        M::Vpcmpestri | M::Vpcmpestri64 | M::Vpcmpistri => by_source!(to_index),
        M::Vpcmpestrm | M::Vpcmpestrm64 | M::Vpcmpistrm => by_source!(to_mask),
        _ => match i.op0_kind() {
            OpKind::Memory => to_memory,
            _ if i.op0_register().is_gpr() => by_source!(to_general),
            _ => by_source!(to_vector),
        },
    }
}

/// What every AVX instruction asks first.
#[inline(always)]
fn usable(cpu: &mut Cpu) -> Step {
    if is_usable(cpu) && !cpu.real { Ok(()) } else { unusable(cpu) }
}

/// No AVX instruction of protected mode faults for what control registers say.
#[inline(always)]
pub(crate) fn is_usable(cpu: &Cpu) -> bool {
    is_on(cpu) && cpu.cr0 & CR0_TS == 0
}

#[inline(always)]
fn is_on(cpu: &Cpu) -> bool {
    cpu.cr4 & CR4_OSXSAVE != 0 && cpu.xcr0 & (SSE | AVX) == SSE | AVX
}

#[cold]
fn unusable(cpu: &mut Cpu) -> Step {
    if is_on(cpu) && !cpu.real { cpu.raise(vector::NM, None) } else { cpu.ud() }
}

impl Cpu {
    /// A YMM register, its lower half first.
    #[inline(always)]
    #[must_use]
    pub fn ymm(&self, r: u8) -> [u128; 2] {
        [self.fx.xmm(r), self.upper[usize::from(r & 15)]]
    }

    /// Writes a YMM register.
    #[inline(always)]
    pub fn set_ymm(&mut self, r: u8, [low, high]: [u128; 2]) {
        *self.fx.xmm_mut(r) = low;
        self.upper[usize::from(r & 15)] = high;
    }
}

/// Registers of all operands, whatever they are, and the memory operand.
#[inline(always)]
fn operands<const FROM_MEMORY: bool>(cpu: &mut Cpu, insn: &Insn) -> Step<Operands> {
    usable(cpu)?;
    let [a, b, c] = insn.r;
    let mut operands = Operands {
        vector: [cpu.ymm(a), cpu.ymm(b), cpu.ymm(c), cpu.ymm(insn.imm as u8)],
        general: insn.r.map(|r| cpu.gpr[usize::from(r & 15)]),
        lengths: [cpu.gpr[0], cpu.gpr[2]],
        ..Operands::default()
    };
    if FROM_MEMORY {
        operands.memory = moves::load(cpu, insn)?;
        operands.from_memory = true;
    }
    Ok(operands)
}

/// Runs the host's instruction under the guest's MXCSR, all exceptions masked, and settles what it raised. A store comes
/// after that, as it does on CPUs.
#[inline(always)]
fn compute(cpu: &mut Cpu, insn: &Insn, operands: &Operands) -> Step<Operands> {
    let run = |control: &mut u32| {
        let mut copy = *operands;
        host::run(insn.imm >> 8, &mut copy, control);
        copy
    };
    let (result, mut raised) = sse::masked(cpu.fx.mxcsr, run);
    raised |= half::tiny(insn, operands, cpu.fx.mxcsr);
    settle(cpu, raised, |mxcsr| exceptions::flags(insn, operands, mxcsr))?;
    Ok(result)
}

fn to_vector<const FROM_MEMORY: bool>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let operands = operands::<FROM_MEMORY>(cpu, insn)?;
    let result = compute(cpu, insn, &operands)?;
    cpu.set_ymm(insn.r[0], result.vector[0]);
    Ok(())
}

fn to_general<const FROM_MEMORY: bool>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let operands = operands::<FROM_MEMORY>(cpu, insn)?;
    let result = compute(cpu, insn, &operands)?;
    cpu.put(insn.r[0], result.general[0]);
    Ok(())
}

fn to_memory(cpu: &mut Cpu, insn: &Insn) -> Step {
    let operands = operands::<false>(cpu, insn)?;
    let result = compute(cpu, insn, &operands)?;
    moves::store(cpu, insn, &result.memory, engine::event::StoreKind::Cached)
}

fn to_flags<const FROM_MEMORY: bool>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let operands = operands::<FROM_MEMORY>(cpu, insn)?;
    let result = compute(cpu, insn, &operands)?;
    cpu.flags.set_status(result.flags & bit::STATUS);
    Ok(())
}

fn to_index<const FROM_MEMORY: bool>(cpu: &mut Cpu, insn: &Insn) -> Step {
    const RCX: u8 = 1;
    let operands = operands::<FROM_MEMORY>(cpu, insn)?;
    let result = compute(cpu, insn, &operands)?;
    cpu.put(RCX, result.index);
    cpu.flags.set_status(result.flags & bit::STATUS);
    Ok(())
}

fn to_mask<const FROM_MEMORY: bool>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let operands = operands::<FROM_MEMORY>(cpu, insn)?;
    let result = compute(cpu, insn, &operands)?;
    cpu.set_ymm(0, result.mask);
    cpu.flags.set_status(result.flags & bit::STATUS);
    Ok(())
}

/// Registers beyond the eighth are left outside 64-bit mode.
fn zeroupper(cpu: &mut Cpu, _: &Insn) -> Step {
    usable(cpu)?;
    let count = if cpu.long { 16 } else { 8 };
    cpu.upper[..count].fill(0);
    Ok(())
}

fn zeroall(cpu: &mut Cpu, insn: &Insn) -> Step {
    zeroupper(cpu, insn)?;
    let count = if cpu.long { 16 } else { 8 };
    cpu.fx.xmm[..count].fill(0);
    Ok(())
}

fn ldmxcsr(cpu: &mut Cpu, insn: &Insn) -> Step {
    usable(cpu)?;
    image::load_mxcsr(cpu, insn)
}

fn stmxcsr(cpu: &mut Cpu, insn: &Insn) -> Step {
    usable(cpu)?;
    cpu.store(insn, cpu.fx.mxcsr)
}

fn maskmovdqu(cpu: &mut Cpu, insn: &Insn) -> Step {
    usable(cpu)?;
    nontemporal::store_bytes_by_mask(cpu, insn)
}

/// The instruction behind [`Insn::code`].
fn code(insn: &Insn) -> Code {
    Code::try_from(usize::from(insn.code)).unwrap_or_default()
}
