//! The guest as gdb sees it while it stands still: vCPUs are threads, memory is virtual, seen through the page tables of
//! the thread that asks.

use std::num::NonZeroUsize;
use std::ops::Range;

use engine::debug::{Points, Watchpoint};
use engine::state::{Fpu, gpr};
use engine::{CpuState, GuestMemory, VcpuId};
use gdbstub::common::{Signal, Tid};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint,
    SwBreakpointOps, WatchKind,
};
use gdbstub::target::{Target, TargetError, TargetResult};
use gdbstub_arch::x86::X86_64_SSE;
use gdbstub_arch::x86::reg::X86_64CoreRegs;
use symbols::Memory;
use vm_memory::{Bytes, GuestAddress};

use crate::layout::PAGE;
use crate::sight::VirtualMemory;

/// gdb's order of the first eight general registers, in the order of their encoding numbers.
const ORDER: [usize; 8] = [gpr::RAX, gpr::RBX, gpr::RCX, gpr::RDX, gpr::RSI, gpr::RDI, gpr::RBP, gpr::RSP];

/// A copy of the vCPUs, and what gdb has changed.
#[derive(Debug)]
pub struct Guest {
    /// The vCPUs by number.
    pub vcpus: Vec<CpuState>,
    /// Those that were changed.
    pub changed: Vec<VcpuId>,
    /// Guest-physical memory that was written.
    pub written: Vec<Range<u64>>,
    /// Where to stop.
    pub points: Points,
    /// The vCPU that is to do one instruction.
    pub step: Option<VcpuId>,
    memory: GuestMemory,
}

/// The thread of a vCPU.
pub fn tid(vcpu: VcpuId) -> Tid {
    NonZeroUsize::MIN.saturating_add(vcpu.into())
}

fn vcpu(tid: Tid) -> VcpuId {
    u8::try_from(tid.get() - 1).unwrap_or(u8::MAX)
}

impl Guest {
    /// Of a machine's memory, without any vCPU yet.
    pub fn new(memory: GuestMemory) -> Self {
        Self {
            vcpus: Vec::new(),
            changed: Vec::new(),
            written: Vec::new(),
            points: Points::default(),
            step: None,
            memory,
        }
    }

    fn state(&mut self, tid: Tid) -> TargetResult<&mut CpuState, Self> {
        self.vcpus.get_mut(usize::from(vcpu(tid))).ok_or(TargetError::NonFatal)
    }
}

impl Target for Guest {
    type Arch = X86_64_SSE;
    type Error = std::convert::Infallible;

    fn base_ops(&mut self) -> BaseOps<'_, Self::Arch, Self::Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
}

/// Little-endian bytes of an FXSAVE image.
fn word<const N: usize>(image: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&image[at..at + N]);
    bytes
}

impl MultiThreadBase for Guest {
    fn read_registers(&mut self, regs: &mut X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let CpuState { registers, system, fpu, .. } = self.state(tid)?;
        for (n, encoded) in ORDER.into_iter().enumerate() {
            regs.regs[n] = registers.gpr[encoded];
        }
        regs.regs[8..].copy_from_slice(&registers.gpr[8..]);
        regs.rip = registers.rip;
        regs.eflags = registers.rflags as u32;
        let [es, cs, ss, ds, fs, gs] = system.segments.map(|segment| u32::from(segment.selector));
        let into = &mut regs.segments;
        (into.cs, into.ss, into.ds, into.es, into.fs, into.gs) = (cs, ss, ds, es, fs, gs);
        let image = fpu.bytes();
        let half = |at| u32::from(u16::from_le_bytes(word(&image, at)));
        let fpu = &mut regs.fpu;
        (fpu.fctrl, fpu.fstat, fpu.ftag, fpu.fop) = (half(0), half(2), u32::from(image[4]), half(6));
        for n in 0..8 {
            regs.st[n] = word(&image, 32 + 16 * n);
        }
        for n in 0..16 {
            regs.xmm[n] = u128::from_le_bytes(word(&image, 160 + 16 * n));
        }
        regs.mxcsr = u32::from_le_bytes(word(&image, 24));
        Ok(())
    }

    /// General registers, instruction pointer, flags and SSE; the rest stays as it is.
    fn write_registers(&mut self, regs: &X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let CpuState { registers, fpu, .. } = self.state(tid)?;
        for (n, encoded) in ORDER.into_iter().enumerate() {
            registers.gpr[encoded] = regs.regs[n];
        }
        registers.gpr[8..].copy_from_slice(&regs.regs[8..]);
        registers.rip = regs.rip;
        registers.rflags = registers.rflags & !0xFFFF_FFFF | u64::from(regs.eflags);
        let mut image = fpu.bytes();
        for n in 0..16 {
            image[160 + 16 * n..][..16].copy_from_slice(&regs.xmm[n].to_le_bytes());
        }
        image[24..28].copy_from_slice(&regs.mxcsr.to_le_bytes());
        *fpu = Fpu::new(&image).with_upper(fpu.upper);
        self.changed.push(vcpu(tid));
        Ok(())
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let state = self.state(tid)?.clone();
        let mut memory = VirtualMemory::new(&self.memory, &state);
        // As far as it is mapped, page by page.
        let mut done = 0;
        while done < data.len() {
            let at = start.wrapping_add(done as u64);
            let piece = (data.len() - done).min((PAGE - at % PAGE) as usize);
            if !memory.read(at, &mut data[done..done + piece]) {
                break;
            }
            done += piece;
        }
        if done == 0 { Err(TargetError::NonFatal) } else { Ok(done) }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let state = self.state(tid)?.clone();
        let mut done = 0;
        while done < data.len() {
            let at = start.wrapping_add(done as u64);
            let piece = (data.len() - done).min((PAGE - at % PAGE) as usize);
            let place =
                VirtualMemory::new(&self.memory, &state).translate(at).ok_or(TargetError::NonFatal)?;
            let bytes = &data[done..done + piece];
            self.memory.write_slice(bytes, GuestAddress(place)).map_err(|_| TargetError::NonFatal)?;
            self.written.push(place..place + piece as u64);
            done += piece;
        }
        Ok(())
    }

    fn list_active_threads(&mut self, register: &mut dyn FnMut(Tid)) -> Result<(), Self::Error> {
        (0..self.vcpus.len()).for_each(|n| register(tid(n as VcpuId)));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadResume for Guest {
    fn resume(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), Self::Error> {
        self.step = None;
        Ok(())
    }

    fn set_resume_action_continue(&mut self, _tid: Tid, _signal: Option<Signal>) -> Result<(), Self::Error> {
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

/// A step moves its vCPU alone anyway; when one goes on, all do, since they wait for one another.
impl MultiThreadSchedulerLocking for Guest {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
}

impl MultiThreadSingleStep for Guest {
    fn set_resume_action_step(&mut self, tid: Tid, _signal: Option<Signal>) -> Result<(), Self::Error> {
        self.step = Some(vcpu(tid));
        Ok(())
    }
}

impl Breakpoints for Guest {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

/// Both kinds are the engine's: nothing is written into guest memory.
impl SwBreakpoint for Guest {
    fn add_sw_breakpoint(&mut self, at: u64, _kind: usize) -> TargetResult<bool, Self> {
        self.points.instructions.push(at);
        Ok(true)
    }

    fn remove_sw_breakpoint(&mut self, at: u64, _kind: usize) -> TargetResult<bool, Self> {
        let place = self.points.instructions.iter().position(|known| *known == at);
        Ok(place.map(|n| self.points.instructions.swap_remove(n)).is_some())
    }
}

impl HwBreakpoint for Guest {
    fn add_hw_breakpoint(&mut self, at: u64, kind: usize) -> TargetResult<bool, Self> {
        self.add_sw_breakpoint(at, kind)
    }

    fn remove_hw_breakpoint(&mut self, at: u64, kind: usize) -> TargetResult<bool, Self> {
        self.remove_sw_breakpoint(at, kind)
    }
}

fn watchpoint(at: u64, len: u64, kind: WatchKind) -> Watchpoint {
    let (loads, stores) = match kind {
        WatchKind::Write => (false, true),
        WatchKind::Read => (true, false),
        WatchKind::ReadWrite => (true, true),
    };
    Watchpoint { range: at..at.saturating_add(len), loads, stores }
}

impl HwWatchpoint for Guest {
    fn add_hw_watchpoint(&mut self, at: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        self.points.data.push(watchpoint(at, len, kind));
        Ok(true)
    }

    fn remove_hw_watchpoint(&mut self, at: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        let wanted = watchpoint(at, len, kind);
        let place = self.points.data.iter().position(|known| *known == wanted);
        Ok(place.map(|n| self.points.data.swap_remove(n)).is_some())
    }
}
