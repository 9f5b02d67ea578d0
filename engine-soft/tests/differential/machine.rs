//! What every executor of one instruction has in common: where code and data lie, the registers, the outcome.
//!
//! Addresses are below 4 GiB so that 32-bit code reaches them too, and are the same for all executors.

use std::fmt;

/// Where the instruction's first byte lies. The rest of its page is INT3.
pub const CODE: u64 = 0x2000_0800;
/// Start of the memory that operands lie in; unmapped for at least [`GUARD`] on both sides.
pub const SCRATCH: u64 = 0x1000_0000;
/// Bytes of it: two pages.
pub const SCRATCH_LEN: usize = 0x2000;
/// Reserved, inaccessible bytes before and after the scratch memory.
pub const GUARD: u64 = 0x10_0000;

/// What the code segment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// 64-bit.
    Long,
    /// 32-bit, all segments flat.
    Protected32,
    /// 16-bit: the code segment starts at the code's page, the others at the scratch memory and end with it.
    Protected16,
}

/// Limit of the 16-bit code segment.
pub const CODE_LIMIT: u32 = 0xFFF;

impl Mode {
    /// For the decoder.
    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Self::Long => 64,
            Self::Protected32 => 32,
            Self::Protected16 => 16,
        }
    }

    /// CS, and what DS, ES and SS are; as Linux gives them to programs, of 16 bits in a local descriptor table.
    #[must_use]
    pub fn selectors(self) -> (u16, u16) {
        match self {
            Self::Long => (0x33, 0x2B),
            Self::Protected32 => (0x23, 0x2B),
            Self::Protected16 => (0x07, 0x0F),
        }
    }

    /// Bases of the code and the data segments.
    #[must_use]
    pub fn bases(self) -> (u64, u64) {
        if self == Self::Protected16 { (CODE & !0xFFF, SCRATCH) } else { (0, 0) }
    }
}

/// The registers of an unprivileged program.
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct State {
    /// FXSAVE64 image.
    pub fx: [u8; 512],
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8..R15.
    pub gpr: [u64; 16],
    /// Next instruction; ignored on entry.
    pub rip: u64,
    /// RFLAGS. On entry only the status flags and DF count.
    pub rflags: u64,
    /// Upper halves of YMM registers; 0 where there are none.
    pub upper: [u128; 16],
}

impl Default for State {
    fn default() -> Self {
        let mut fx = [0; 512];
        fx[0..2].copy_from_slice(&0x37F_u16.to_le_bytes());
        fx[24..28].copy_from_slice(&0x1F80_u32.to_le_bytes());
        Self { fx, gpr: [0; 16], rip: CODE, rflags: 2, upper: [0; 16] }
    }
}

/// Names for messages.
pub const GPR: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in GPR.iter().zip(self.gpr) {
            write!(f, "{name}={value:x} ")?;
        }
        write!(f, "rip={:x} rflags={:x}", self.rip, self.rflags)
    }
}

/// An exception that the instruction raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Vector.
    pub vector: u8,
    /// Error code; 0 where there is none.
    pub code: u32,
    /// CR2, for a page fault.
    pub address: Option<u64>,
}

/// What one instruction left. Memory is read from [`Executor::scratch`].
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Registers; at a fault, those that the handler would see.
    pub state: State,
    /// The exception, if it raised one.
    pub fault: Option<Fault>,
}

/// Runs single instructions: the host CPU, the interpreter, a translator.
pub trait Executor {
    /// Puts an instruction at [`CODE`], to be run many times.
    fn load(&mut self, mode: Mode, code: &[u8]);
    /// The memory at [`SCRATCH`].
    fn scratch(&mut self) -> &mut [u8; SCRATCH_LEN];
    /// Runs it once, REP to the end.
    fn run(&mut self, before: &State) -> Outcome;
}
