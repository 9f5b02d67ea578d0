//! Random encodings of a form (`iced_x86::Code`): its registers, its memory operand in every addressing mode, its
//! immediates and prefixes.

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, Instruction, OpCodeOperandKind as Kind, OpKind, Register,
};

use super::draw::Draw;
use super::machine::{CODE, Mode};

/// A form's bytes, and what the decoder says they are.
#[derive(Debug, Clone)]
pub struct Encoding {
    /// As decoded at [`CODE`].
    pub instruction: Instruction,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Draws an encoding of `code`; `None` if this mode has none, or none was found.
pub fn draw(code: Code, mode: Mode, draw: &mut Draw) -> Option<Encoding> {
    let info = code.op_code();
    let valid = match mode {
        Mode::Long => info.mode64(),
        Mode::Protected32 => info.mode32(),
        Mode::Protected16 => info.mode16(),
    };
    if !valid || !info.is_instruction() {
        return None;
    }
    (0..16).find_map(|_| attempt(code, mode, draw))
}

fn attempt(code: Code, mode: Mode, draw: &mut Draw) -> Option<Encoding> {
    let info = code.op_code();
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    for n in 0..info.op_count() {
        operand(&mut instruction, n, info.op_kind(n), mode, draw)?;
    }
    let memory = (0..info.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory);
    if memory && info.can_use_lock_prefix() && instruction.op0_kind() == OpKind::Memory {
        instruction.set_has_lock_prefix(draw.once_in(3));
    }
    if info.can_use_rep_prefix() {
        instruction.set_has_rep_prefix(draw.once_in(2));
    }
    if info.can_use_repne_prefix() && !instruction.has_rep_prefix() {
        instruction.set_has_repne_prefix(draw.once_in(2));
    }
    let mut encoder = Encoder::new(mode.bits());
    let ip = CODE - mode.bases().0;
    encoder.encode(&instruction, ip).ok()?;
    let bytes = encoder.take_buffer();
    let decoded = Decoder::with_ip(mode.bits(), &bytes, ip, DecoderOptions::NONE).decode();
    (decoded.code() == code && decoded.len() == bytes.len())
        .then_some(Encoding { instruction: decoded, bytes })
}

fn operand(i: &mut Instruction, n: u32, kind: Kind, mode: Mode, draw: &mut Draw) -> Option<()> {
    let mut register = |register| i.set_op_register(n, register);
    match kind {
        Kind::r8_or_mem
        | Kind::r16_or_mem
        | Kind::r32_or_mem
        | Kind::r64_or_mem
        | Kind::mm_or_mem
        | Kind::xmm_or_mem
        | Kind::ymm_or_mem
            if draw.once_in(2) =>
        {
            memory(i, n, mode, draw);
        }
        Kind::r8_or_mem | Kind::r8_reg | Kind::r8_opcode => register(among(Register::AL, 20, 8, mode, draw)),
        Kind::r16_or_mem | Kind::r16_reg | Kind::r16_reg_mem | Kind::r16_rm | Kind::r16_opcode => {
            register(among(Register::AX, 16, 8, mode, draw));
        }
        Kind::r32_or_mem | Kind::r32_reg | Kind::r32_reg_mem | Kind::r32_rm | Kind::r32_opcode => {
            register(among(Register::EAX, 16, 8, mode, draw));
        }
        Kind::r64_or_mem | Kind::r64_reg | Kind::r64_reg_mem | Kind::r64_rm | Kind::r64_opcode => {
            register(among(Register::RAX, 16, 16, mode, draw));
        }
        Kind::mm_or_mem | Kind::mm_reg | Kind::mm_rm => register(among(Register::MM0, 8, 8, mode, draw)),
        Kind::xmm_or_mem | Kind::xmm_reg | Kind::xmm_rm | Kind::xmm_vvvv | Kind::xmm_is4 => {
            register(among(Register::XMM0, 16, 8, mode, draw));
        }
        Kind::ymm_or_mem | Kind::ymm_reg | Kind::ymm_rm | Kind::ymm_vvvv | Kind::ymm_is4 => {
            register(among(Register::YMM0, 16, 8, mode, draw));
        }
        Kind::r32_vvvv => register(among(Register::EAX, 16, 8, mode, draw)),
        Kind::r64_vvvv => register(among(Register::RAX, 16, 16, mode, draw)),
        Kind::mem_vsib32x | Kind::mem_vsib64x => indexed(i, n, Register::XMM0, mode, draw),
        Kind::mem_vsib32y | Kind::mem_vsib64y => indexed(i, n, Register::YMM0, mode, draw),
        Kind::st0 => register(Register::ST0),
        Kind::sti_opcode => register(among(Register::ST0, 8, 8, mode, draw)),
        Kind::seg_reg => register(draw.of(&[
            Register::ES,
            Register::CS,
            Register::SS,
            Register::DS,
            Register::FS,
            Register::GS,
        ])),
        Kind::es => register(Register::ES),
        Kind::cs => register(Register::CS),
        Kind::ss => register(Register::SS),
        Kind::ds => register(Register::DS),
        Kind::fs => register(Register::FS),
        Kind::gs => register(Register::GS),
        Kind::al => register(Register::AL),
        Kind::cl => register(Register::CL),
        Kind::ax => register(Register::AX),
        Kind::dx => register(Register::DX),
        Kind::eax => register(Register::EAX),
        Kind::rax => register(Register::RAX),
        Kind::mem => memory(i, n, mode, draw),
        Kind::mem_offs => {
            i.set_op_kind(n, OpKind::Memory);
            let size = if mode == Mode::Long { draw.of(&[8, 4]) } else { address_size(mode, draw) };
            absolute(i, mode, size, draw);
        }
        Kind::imm8 => immediate(i, n, OpKind::Immediate8, draw.value() & 0xFF),
        Kind::imm8_const_1 => immediate(i, n, OpKind::Immediate8, 1),
        Kind::imm8sex16 => immediate(i, n, OpKind::Immediate8to16, draw.value() as i8 as u64),
        Kind::imm8sex32 => immediate(i, n, OpKind::Immediate8to32, draw.value() as i8 as u64),
        Kind::imm8sex64 => immediate(i, n, OpKind::Immediate8to64, draw.value() as i8 as u64),
        Kind::imm16 => immediate(i, n, OpKind::Immediate16, draw.value() & 0xFFFF),
        Kind::imm32 => immediate(i, n, OpKind::Immediate32, draw.value() & 0xFFFF_FFFF),
        Kind::imm32sex64 => immediate(i, n, OpKind::Immediate32to64, draw.value() as i32 as u64),
        Kind::imm64 => immediate(i, n, OpKind::Immediate64, draw.value()),
        Kind::seg_rSI | Kind::es_rDI | Kind::seg_rDI => {
            let wide = string_address_size(i, n, mode, draw);
            i.set_op_kind(
                n,
                match (kind, wide) {
                    (Kind::seg_rSI, 8) => OpKind::MemorySegRSI,
                    (Kind::seg_rSI, _) => OpKind::MemorySegESI,
                    (Kind::es_rDI, 8) => OpKind::MemoryESRDI,
                    (Kind::es_rDI, _) => OpKind::MemoryESEDI,
                    (_, 8) => OpKind::MemorySegRDI,
                    _ => OpKind::MemorySegEDI,
                },
            );
        }
        Kind::seg_rBX_al => {
            i.set_op_kind(n, OpKind::Memory);
            i.set_memory_base(match address_size(mode, draw) {
                8 => Register::RBX,
                4 => Register::EBX,
                _ => Register::BX,
            });
            i.set_memory_index(Register::AL);
        }
        Kind::br32_1 | Kind::br32_4 | Kind::br16_1 | Kind::br16_2 | Kind::br64_1 | Kind::br64_4 => {
            let target = CODE + 16 + draw.below(96);
            i.set_near_branch64(target.wrapping_sub(mode.bases().0));
            i.set_op_kind(
                n,
                match (kind, mode) {
                    (Kind::br16_1 | Kind::br16_2, Mode::Protected16) => OpKind::NearBranch16,
                    // In wider modes these cut the instruction pointer.
                    (Kind::br16_1 | Kind::br16_2, _) => return None,
                    (_, Mode::Long) => OpKind::NearBranch64,
                    _ => OpKind::NearBranch32,
                },
            );
        }
        _ => return None,
    }
    Some(())
}

fn immediate(i: &mut Instruction, n: u32, kind: OpKind, value: u64) {
    // ENTER and EXTRQ have a second one.
    let second =
        n > 0 && (0..n).any(|m| i.op_kind(m) == OpKind::Immediate16 || i.op_kind(m) == OpKind::Immediate8);
    let kind = if second { OpKind::Immediate8_2nd } else { kind };
    i.set_op_kind(n, kind);
    i.set_immediate_u64(n, value);
}

fn among(first: Register, long: u32, protected: u32, mode: Mode, draw: &mut Draw) -> Register {
    let count = if mode == Mode::Long { long } else { protected };
    first + draw.below(u64::from(count)) as u32
}

/// Bytes of an address.
fn address_size(mode: Mode, draw: &mut Draw) -> u32 {
    match mode {
        Mode::Long => draw.of(&[8, 8, 8, 4]),
        Mode::Protected32 => 4,
        Mode::Protected16 => draw.of(&[2, 4]),
    }
}

/// As [`address_size`] of a string operand: both have the same.
fn string_address_size(i: &Instruction, n: u32, mode: Mode, draw: &mut Draw) -> u32 {
    match i.op_kind(0) {
        _ if n == 0 => address_size(mode, draw),
        OpKind::MemorySegRSI | OpKind::MemoryESRDI | OpKind::MemorySegRDI => 8,
        OpKind::MemorySegESI | OpKind::MemoryESEDI | OpKind::MemorySegEDI => 4,
        OpKind::MemorySegSI | OpKind::MemoryESDI | OpKind::MemorySegDI => 2,
        _ => address_size(mode, draw),
    }
}

/// A memory operand without registers.
fn absolute(i: &mut Instruction, mode: Mode, size: u32, draw: &mut Draw) {
    let offset = draw.target(8).wrapping_sub(mode.bases().1);
    i.set_memory_displ_size(size);
    i.set_memory_displacement64(offset & !0 >> (64 - 8 * size));
}

fn memory(i: &mut Instruction, n: u32, mode: Mode, draw: &mut Draw) {
    i.set_op_kind(n, OpKind::Memory);
    if draw.once_in(16) {
        i.set_segment_prefix(draw.of(&[Register::FS, Register::GS]));
    }
    let size = address_size(mode, draw);
    let shape = draw.below(16);
    if shape == 0 {
        return absolute(i, mode, size, draw);
    }
    if shape == 1 && mode == Mode::Long {
        i.set_memory_base(if size == 8 { Register::RIP } else { Register::EIP });
        i.set_memory_displ_size(size);
        i.set_memory_displacement64(draw.target(8));
        return;
    }
    if size == 2 {
        short_registers(i, draw);
    } else {
        let count = if mode == Mode::Long { 16 } else { 8 };
        let first = if size == 8 { Register::RAX } else { Register::EAX };
        if shape != 2 {
            i.set_memory_base(first + draw.below(count) as u32);
        }
        let index = draw.below(count) as u32;
        if shape < 9 && index != 4 {
            i.set_memory_index(first + index);
            i.set_memory_index_scale(1 << draw.below(4));
        }
        if i.memory_base() == Register::None && i.memory_index() == Register::None {
            return absolute(i, mode, size, draw);
        }
    }
    let disp: i64 = match draw.below(3) {
        0 => 0,
        1 => (draw.bits() as i8).into(),
        _ => (draw.bits() as i32 >> 12).into(),
    };
    if i.memory_base() == Register::None {
        i.set_memory_displ_size(size);
    } else if disp != 0 {
        i.set_memory_displ_size(if i8::try_from(disp).is_ok() { 1 } else { size });
    }
    i.set_memory_displacement64(disp as u64 & !0 >> (64 - 8 * size));
}

/// A memory operand whose index is a vector register.
fn indexed(i: &mut Instruction, n: u32, first: Register, mode: Mode, draw: &mut Draw) {
    i.set_op_kind(n, OpKind::Memory);
    let base = if address_size(mode, draw) == 8 { Register::RAX } else { Register::EAX };
    i.set_memory_base(among(base, 16, 8, mode, draw));
    i.set_memory_index(among(first, 16, 8, mode, draw));
    i.set_memory_index_scale(1 << draw.below(4));
    i.set_memory_displ_size(1);
    i.set_memory_displacement64(draw.bits() as i8 as u64);
}

/// The eight combinations of 16-bit addresses.
fn short_registers(i: &mut Instruction, draw: &mut Draw) {
    use Register::{BP, BX, DI, None, SI};
    let (base, index) =
        draw.of(&[(BX, SI), (BX, DI), (BP, SI), (BP, DI), (SI, None), (DI, None), (BP, None), (BX, None)]);
    i.set_memory_base(base);
    i.set_memory_index(index);
}
