//! The run contract: what goes in and what comes out.

use crate::debug::Stop;

/// Number of a vCPU in its partition, from 0; also its initial APIC id.
pub type VcpuId = u8;

/// Width of a port or memory-mapped access in bytes: 1, 2, 4 or 8.
pub type Access = u8;

/// How to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Go on. After [`ExitKind::Idle`] guest time jumps to the deadline; a read without an answer is asked again.
    Resume,
    /// The answer to [`ExitKind::IoRead`] or [`ExitKind::MmioRead`], in the low bytes.
    Data(u64),
    /// After [`ExitKind::Idle`]: only this many nanoseconds of guest time have passed (an interrupt may be pending now).
    Elapsed(u64),
}

/// Why a processor stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The vCPU that the exit is about. For [`ExitKind::Idle`] and [`ExitKind::Kicked`]: the one that ran last.
    pub vcpu: VcpuId,
    /// The reason.
    pub kind: ExitKind,
}

/// The reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitKind {
    /// IN: answer with [`Entry::Data`].
    IoRead {
        /// I/O port.
        port: u16,
        /// Width in bytes: 1, 2 or 4.
        size: Access,
    },
    /// OUT.
    IoWrite {
        /// I/O port.
        port: u16,
        /// Width in bytes: 1, 2 or 4.
        size: Access,
        /// The value, zero-extended.
        value: u32,
    },
    /// A load where the memory map has a hole: answer with [`Entry::Data`]. Wider accesses arrive in several exits.
    MmioRead {
        /// Guest-physical address.
        addr: u64,
        /// Width in bytes.
        size: Access,
    },
    /// A store where the memory map has a hole.
    MmioWrite {
        /// Guest-physical address.
        addr: u64,
        /// Width in bytes.
        size: Access,
        /// The value, zero-extended.
        value: u64,
    },
    /// Every vCPU of this seat is halted and no interrupt is pending. Only engines that own guest time say so.
    Idle {
        /// Guest time, in nanoseconds, of the next timer event; `None` if only an outside interrupt can wake it.
        deadline: Option<u64>,
    },
    /// [`crate::Partition::kick`] was called, or a signal came. An instruction that has begun to ask or to tell the
    /// machine is first brought to its end.
    Kicked,
    /// The instruction count asked for by [`crate::Partition::stop_at`] was reached.
    InstructionLimit,
    /// The event log is full: drain it ([`crate::event::MemoryEvents::drain`]) and resume.
    EventsFull,
    /// The vCPU's next instruction makes events in a place that is not known: find the call chain in its state, tell the
    /// place ([`crate::event::MemoryEvents::learn`]) and resume. Only for those who asked to be asked.
    UnknownPlace,
    /// A debugger's business: see [`crate::debug`].
    Debug(Stop),
    /// Triple fault.
    Shutdown,
    /// The engine met something that it cannot execute (an instruction beyond the CPUID it shows, an internal error).
    /// Details are in the log; the machine cannot go on.
    Stuck {
        /// Guest instruction pointer.
        rip: u64,
        /// The first bytes of the instruction, as far as they could be fetched; zero-padded.
        bytes: [u8; 15],
    },
}
