//! From instruction bytes to [`Insn`].

use engine::cpuid::CpuModel;
use iced_x86::{
    Code, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, MemorySize, OpKind, Register,
};

use crate::cpu::Cpu;
use crate::exec;
use crate::exec::fpu::avx::Avx;
use crate::insn::{Exec, FLAT, FLAT_STACK, Insn, RIP, ZERO, prefix};
use crate::trap::Step;

/// Bytes of an instruction at most.
pub(crate) const LONGEST: usize = 15;

/// A decoded instruction with what the block builder wants to know of it.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) insn: Insn,
    /// Control does not simply go on to the next instruction.
    pub(crate) branches: bool,
    /// The run loop has to look around after it.
    pub(crate) sync: bool,
}

/// A decoder of all instructions in `bytes`, for [`decode_next`].
pub(crate) fn decoder(bits: u32, bytes: &[u8]) -> Decoder<'_> {
    Decoder::with_ip(bits, bytes, 0, DecoderOptions::NONE)
}

/// Decodes the first instruction in `bytes`. `None` if they are too few for it.
pub(crate) fn decode(bits: u32, bytes: &[u8], model: CpuModel) -> Option<Decoded> {
    decode_next(&mut decoder(bits, bytes), bytes, model)
}

/// Decodes the instruction that `bytes` begin with, which is the decoder's next one. `None` if they are too few for it.
pub(crate) fn decode_next(decoder: &mut Decoder<'_>, bytes: &[u8], model: CpuModel) -> Option<Decoded> {
    let bits = decoder.bitness();
    // What is relative to RIP is kept so.
    decoder.set_ip(0);
    let i = decoder.decode();
    if i.is_invalid() {
        if decoder.last_error() == DecoderError::NoMoreBytes {
            // It may become one with the next page; there are always enough with both.
            return None;
        }
        // The decoder gives up at the fifteenth byte where there are more.
        let exec = if i.len() >= LONGEST { too_long } else { undefined };
        let insn = Insn { exec, len: bytes.len().min(LONGEST) as u8, ..blank() };
        return Some(Decoded { insn, branches: true, sync: true });
    }
    if let Some(insn) = avx(&i, bytes, bits, model) {
        return Some(Decoded { insn, branches: false, sync: false });
    }
    let known = exec::lookup(&i, model);
    if known.is_none() {
        tracing::debug!(instruction = %i, code = ?i.code(), "no such instruction here: #UD");
    }
    let insn = form(&i, known.unwrap_or(undefined), bits);
    let sync = known.is_none() || ends_block(&i);
    let branches = i.flow_control() != FlowControl::Next || is_string(&i);
    Some(Decoded { insn, branches, sync })
}

/// An AVX instruction, which needs more than the function that executes it.
fn avx(i: &Instruction, bytes: &[u8], bits: u32, model: CpuModel) -> Option<Insn> {
    let Avx { exec, host, size, wide } =
        if model == CpuModel::V3 { exec::fpu::avx::lookup(i, bytes)? } else { return None };
    let mut insn = form(i, exec, bits);
    if i.op_count() == 4 && i.op3_kind() == OpKind::Register {
        insn.imm = u64::from(number(i.op3_register()));
    }
    insn.imm |= host << 8;
    insn.op_size = size;
    if wide {
        insn.prefixes |= prefix::WIDE;
    }
    Some(insn)
}

/// #UD.
fn undefined(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.ud()
}

/// #GP(0): beyond [`LONGEST`].
fn too_long(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.gp()
}

fn blank() -> Insn {
    Insn {
        exec: undefined,
        imm: 0,
        disp: 0,
        base: ZERO,
        index: ZERO,
        scale: 0,
        seg: FLAT,
        r: [0; 3],
        len: 0,
        addr_size: 8,
        op_size: 0,
        prefixes: 0,
        code: 0,
    }
}

/// String instructions repeat by leaving RIP at themselves.
fn is_string(i: &Instruction) -> bool {
    i.is_string_instruction() && (i.has_rep_prefix() || i.has_repne_prefix())
}

/// Whether interrupts, single steps or the mode may be different after the instruction, or the run loop is wanted.
fn ends_block(i: &Instruction) -> bool {
    use FlowControl::{Call, Interrupt, Return};
    let far = matches!(
        i.flow_control(),
        Call | Return | FlowControl::IndirectBranch | FlowControl::UnconditionalBranch
    ) && (i.is_jmp_far() || i.is_jmp_far_indirect() || i.is_call_far() || i.is_call_far_indirect());
    let segment_load =
        i.op_count() > 0 && i.op0_kind() == OpKind::Register && i.op0_register().is_segment_register();
    far || segment_load
        || i.flow_control() == Interrupt
        || i.is_privileged()
            && !matches!(
                i.code(),
                Code::Swapgs | Code::Clts | Code::Cli | Code::Rdmsr | Code::Mov_r64_cr | Code::Mov_r64_dr
            )
        || matches!(
            i.code(),
            Code::Iretw
                | Code::Iretd
                | Code::Iretq
                | Code::Retfw
                | Code::Retfd
                | Code::Retfq
                | Code::Retfw_imm16
                | Code::Retfd_imm16
                | Code::Retfq_imm16
                | Code::Syscall
                | Code::Sysretd
                | Code::Sysretq
                | Code::Sysenter
                | Code::Sysexitd
                | Code::Sysexitq
                | Code::Popfw
                | Code::Popfd
                | Code::Popfq
                | Code::Sti
                | Code::Hlt
                | Code::Pause
                | Code::Lds_r16_m1616
                | Code::Lds_r32_m1632
                | Code::Les_r16_m1616
                | Code::Les_r32_m1632
                | Code::Lss_r16_m1616
                | Code::Lss_r32_m1632
                | Code::Lss_r64_m1664
                | Code::Lfs_r16_m1616
                | Code::Lfs_r32_m1632
                | Code::Lfs_r64_m1664
                | Code::Lgs_r16_m1616
                | Code::Lgs_r32_m1632
                | Code::Lgs_r64_m1664
        )
        || exec::ends_block(i)
}

/// Puts operands where [`Insn`] wants them.
fn form(i: &Instruction, exec: Exec, bits: u32) -> Insn {
    let mut insn = Insn { exec, len: i.len() as u8, code: i.code() as u16, ..blank() };
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::Register => {
                if let Some(slot) = insn.r.get_mut(n as usize) {
                    *slot = number(i.op_register(n));
                }
            }
            OpKind::Memory => memory(&mut insn, i, bits),
            OpKind::MemorySegSI | OpKind::MemorySegDI => string(&mut insn, i, 2, bits),
            OpKind::MemorySegESI | OpKind::MemorySegEDI => string(&mut insn, i, 4, bits),
            OpKind::MemorySegRSI | OpKind::MemorySegRDI => string(&mut insn, i, 8, bits),
            OpKind::MemoryESDI => insn.addr_size = 2,
            OpKind::MemoryESEDI => insn.addr_size = 4,
            OpKind::MemoryESRDI => insn.addr_size = 8,
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                let distance = i.near_branch_target().wrapping_sub(i.next_ip());
                insn.imm = match i.op_kind(n) {
                    OpKind::NearBranch16 => distance as i16 as u64,
                    OpKind::NearBranch32 => distance as i32 as u64,
                    _ => distance,
                };
            }
            OpKind::FarBranch16 => {
                insn.imm = u64::from(i.far_branch16()) | u64::from(i.far_branch_selector()) << 32;
            }
            OpKind::FarBranch32 => {
                insn.imm = u64::from(i.far_branch32()) | u64::from(i.far_branch_selector()) << 32;
            }
            OpKind::Immediate8_2nd => {
                let shift = if i.code() == Code::Enterw_imm16_imm8
                    || i.code() == Code::Enterd_imm16_imm8
                    || i.code() == Code::Enterq_imm16_imm8
                {
                    16
                } else {
                    8
                };
                insn.imm |= u64::from(i.immediate8_2nd()) << shift;
            }
            _ => insn.imm = i.immediate(n),
        }
    }
    // Branches through RCX and the like have an address size but no memory operand.
    if !(0..i.op_count()).any(|n| matches!(i.op_kind(n), OpKind::Memory)) {
        match i.code() {
            Code::Loop_rel8_16_CX
            | Code::Loope_rel8_16_CX
            | Code::Loopne_rel8_16_CX
            | Code::Jcxz_rel8_16
            | Code::Loop_rel8_32_CX
            | Code::Loope_rel8_32_CX
            | Code::Loopne_rel8_32_CX
            | Code::Jcxz_rel8_32 => {
                insn.addr_size = 2;
            }
            Code::Loop_rel8_16_ECX
            | Code::Loope_rel8_16_ECX
            | Code::Loopne_rel8_16_ECX
            | Code::Jecxz_rel8_16
            | Code::Loop_rel8_32_ECX
            | Code::Loope_rel8_32_ECX
            | Code::Loopne_rel8_32_ECX
            | Code::Jecxz_rel8_32
            | Code::Loop_rel8_64_ECX
            | Code::Loope_rel8_64_ECX
            | Code::Loopne_rel8_64_ECX
            | Code::Jecxz_rel8_64 => {
                insn.addr_size = 4;
            }
            _ => {}
        }
    }
    insn.op_size = operand_size(i);
    let memory_xchg = matches!(
        i.code(),
        Code::Xchg_rm8_r8 | Code::Xchg_rm16_r16 | Code::Xchg_rm32_r32 | Code::Xchg_rm64_r64
    ) && i.op0_kind() == OpKind::Memory;
    for (on, bit) in [
        (i.has_lock_prefix() || memory_xchg, prefix::LOCK),
        (i.has_rep_prefix(), prefix::REP),
        (i.has_repne_prefix(), prefix::REPNE),
    ] {
        if on {
            insn.prefixes |= bit;
        }
    }
    insn
}

/// An explicit memory operand.
fn memory(insn: &mut Insn, i: &Instruction, bits: u32) {
    let base = i.memory_base();
    insn.disp = i.memory_displacement64();
    insn.base = match base {
        Register::None => ZERO,
        Register::RIP | Register::EIP => {
            insn.disp = insn.disp.wrapping_sub(i.next_ip());
            if base == Register::EIP {
                insn.disp = insn.disp as i32 as u64;
            }
            RIP
        }
        register => register.number() as u8,
    };
    insn.index = match i.memory_index() {
        // XLAT's: it adds AL itself.
        Register::None | Register::AL => ZERO,
        // Of a gather it is a vector register, which the instruction knows.
        register => register.number() as u8,
    };
    insn.scale = i.memory_index_scale().trailing_zeros() as u8;
    insn.addr_size = address_size(i, bits);
    insn.seg = segment(i, bits);
}

/// Address size of an explicit memory operand in bytes.
fn address_size(i: &Instruction, bits: u32) -> u8 {
    let index = if i.memory_index().is_vector_register() { Register::None } else { i.memory_index() };
    let register = match (i.memory_base(), index) {
        (Register::None, Register::None) => {
            return match i.memory_displ_size() {
                size @ (2 | 4 | 8) => size as u8,
                _ => bits as u8 / 8,
            };
        }
        (Register::None, index) => index,
        (base, _) => base,
    };
    match register {
        Register::RIP => 8,
        Register::EIP => 4,
        other => other.size() as u8,
    }
}

/// Segment of a memory operand.
fn segment(i: &Instruction, bits: u32) -> u8 {
    let segment = i.memory_segment();
    let number = segment.number() as u8;
    if bits != 64 || number >= 4 {
        return number;
    }
    let stack = matches!(i.memory_base(), Register::RSP | Register::ESP | Register::RBP | Register::EBP);
    if stack && i.segment_prefix() == Register::None { FLAT_STACK } else { FLAT }
}

/// The source (or XLAT's, MASKMOV's) implicit memory operand.
fn string(insn: &mut Insn, i: &Instruction, size: u8, bits: u32) {
    insn.addr_size = size;
    let number = i.memory_segment().number() as u8;
    insn.seg = if bits == 64 && number < 4 { FLAT } else { number };
}

/// A register's number as [`Insn::r`] has it.
fn number(register: Register) -> u8 {
    if !register.is_gpr8() {
        return register.number() as u8;
    }
    let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
    (register.full_register().number() as u8) << 1 | u8::from(high)
}

/// Operand size in bytes.
fn operand_size(i: &Instruction) -> u8 {
    let of_memory = |size: MemorySize| size.size().min(64) as u8;
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::Register if i.op_register(n).is_gpr() => return i.op_register(n).size() as u8,
            OpKind::Register => {}
            OpKind::Immediate8 | OpKind::Immediate8_2nd => {}
            OpKind::Immediate16 | OpKind::Immediate8to16 | OpKind::NearBranch16 | OpKind::FarBranch16 => {
                return 2;
            }
            OpKind::Immediate32 | OpKind::Immediate8to32 | OpKind::NearBranch32 | OpKind::FarBranch32 => {
                return 4;
            }
            OpKind::Immediate64 | OpKind::Immediate8to64 | OpKind::Immediate32to64 | OpKind::NearBranch64 => {
                return 8;
            }
            _ => return of_memory(i.memory_size()),
        }
    }
    0
}
