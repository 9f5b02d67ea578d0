//! The decoded form of an instruction.

use crate::cpu::Cpu;
use crate::trap::Step;

/// Executes one instruction. At entry [`Cpu::rip`] is already that of the next instruction; a branch replaces it. On
/// `Err` nothing that re-execution would see has changed, and the caller sets RIP back.
pub type Exec = fn(&mut Cpu, &Insn) -> Step;

/// A register number in [`Insn::base`] and [`Insn::index`] that is always 0.
pub const ZERO: u8 = 16;
/// A register number in [`Insn::base`] that is the next instruction's RIP.
pub const RIP: u8 = 17;
/// A number in [`Insn::seg`] of a segment whose base is 0: DS, ES, SS, CS in 64-bit mode.
pub const FLAT: u8 = 6;
/// As [`FLAT`], of the stack: a non-canonical address is #SS.
pub const FLAT_STACK: u8 = 7;

/// A decoded instruction: operands by position, at most one of them memory.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Insn {
    /// Executes it.
    pub exec: Exec,
    /// Immediate, extended as the instruction wants it; for near branches the displacement, sign-extended. ENTER's and
    /// EXTRQ's second immediate is in bits 16.. (resp. 8..). Of AVX instructions the host's own code is in bits 8.., and
    /// a register of operand 3 in bits 0 to 3.
    pub imm: u64,
    /// Displacement of the memory operand, sign-extended; the address itself for moffs.
    pub disp: u64,
    /// Base register in [`Cpu::gpr`], or [`ZERO`], or [`RIP`].
    pub base: u8,
    /// Index register, or [`ZERO`].
    pub index: u8,
    /// Shift of the index: 0 to 3.
    pub scale: u8,
    /// Segment of the memory operand: 0..6 as encoded, or [`FLAT`], [`FLAT_STACK`].
    pub seg: u8,
    /// Register number of operand 0, 1, 2 where it is a register: 0..16 (8-bit registers: twice the number, plus 1 for
    /// AH, CH, DH, BH; so AL is 0, AH 1, CL 2); XMM, MM, ST, segment, control, debug registers by number.
    pub r: [u8; 3],
    /// Length in bytes.
    pub len: u8,
    /// Address size in bytes: 2, 4 or 8.
    pub addr_size: u8,
    /// Operand size in bytes where the opcode has one: 1, 2, 4, 8.
    pub op_size: u8,
    /// [`prefix`] bits.
    pub prefixes: u8,
    /// `iced_x86::Code`, for the rare paths that want to know.
    pub code: u16,
}

/// Bits of [`Insn::prefixes`].
pub mod prefix {
    /// LOCK, or XCHG with memory.
    pub const LOCK: u8 = 1;
    /// REP or REPE.
    pub const REP: u8 = 2;
    /// REPNE.
    pub const REPNE: u8 = 4;
    /// VEX.L: 256 bits.
    pub const WIDE: u8 = 8;
}

impl std::fmt::Debug for Insn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Insn")
            .field("code", &self.code)
            .field("len", &self.len)
            .field("r", &self.r)
            .finish_non_exhaustive()
    }
}
