//! The neutral state. Each engine converts at its edge, both ways; a snapshot holds nothing else about a partition.

mod fpu;
mod lapic;
mod partition;
mod system;

pub use fpu::Fpu;
pub use lapic::Lapic;
pub use partition::{PartitionState, Turn};
pub use system::{DescriptorTable, Segment, SystemRegisters};

use crate::VcpuId;
use crate::msr::Msrs;

/// Index of a general register in [`Registers::gpr`], as instructions encode it.
#[expect(missing_docs, reason = "the names are the registers")]
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R8: usize = 8;
    pub const R9: usize = 9;
    pub const R10: usize = 10;
    pub const R11: usize = 11;
    pub const R12: usize = 12;
    pub const R13: usize = 13;
    pub const R14: usize = 14;
    pub const R15: usize = 15;
}

/// General registers, instruction pointer and flags.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Registers {
    /// In encoding order: see [`gpr`].
    pub gpr: [u64; 16],
    /// Next instruction.
    pub rip: u64,
    /// RFLAGS; bit 1 is always set.
    pub rflags: u64,
}

/// What a vCPU is doing (SDM vol. 3, "Multiple-processor initialization").
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Activity {
    /// Executing.
    Running,
    /// After HLT.
    Halted,
    /// After INIT or at power-up of an application processor.
    WaitForSipi,
}

/// Events between instructions that are not yet delivered.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PendingEvents {
    /// An exception or interrupt whose delivery has begun: vector, error code if it has one.
    pub injected: Option<(u8, Option<u32>)>,
    /// Interrupts are held off for one instruction by STI or MOV SS.
    pub interrupt_shadow: bool,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// An NMI is being handled; further ones wait for IRET.
    pub nmi_blocked: bool,
}

/// Debug registers (SDM vol. 3, ch. 18).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DebugRegisters {
    /// DR0 to DR3.
    pub address: [u64; 4],
    /// DR6.
    pub status: u64,
    /// DR7.
    pub control: u64,
}

/// Everything architectural about one vCPU.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CpuState {
    /// General registers.
    pub registers: Registers,
    /// Segments, descriptor tables, control registers.
    pub system: SystemRegisters,
    /// Model-specific registers.
    pub msrs: Msrs,
    /// x87, MMX, SSE.
    pub fpu: Fpu,
    /// Debug registers.
    pub debug: DebugRegisters,
    /// Local APIC.
    pub lapic: Lapic,
    /// Undelivered events.
    pub events: PendingEvents,
    /// Running, halted, waiting.
    pub activity: Activity,
}

impl CpuState {
    /// Power-up state (SDM vol. 3, table 10-1): vCPU 0 is the bootstrap processor, the others wait for a SIPI.
    #[must_use]
    pub fn reset(vcpu: VcpuId) -> Self {
        let bootstrap = vcpu == 0;
        Self {
            registers: Registers { gpr: [0; 16], rip: 0xFFF0, rflags: 2 },
            system: SystemRegisters::reset(bootstrap),
            msrs: Msrs::default(),
            fpu: Fpu::default(),
            debug: DebugRegisters { address: [0; 4], status: 0xFFFF_0FF0, control: 0x400 },
            lapic: Lapic::reset(vcpu),
            events: PendingEvents {
                injected: None,
                interrupt_shadow: false,
                nmi_pending: false,
                nmi_blocked: false,
            },
            activity: if bootstrap { Activity::Running } else { Activity::WaitForSipi },
        }
    }
}
