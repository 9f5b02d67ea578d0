//! One vCPU on its thread: entries in, exits out (Linux Documentation/virt/kvm/api.rst, section 5).
//!
//! KVM finishes an instruction that left for a port or memory access at the next KVM_RUN. So a state saved at a read is
//! that of before the instruction; at a write, that of after it.
#![expect(unsafe_code, reason = "the run page is shared with the kernel")]

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use engine::state::Activity;
use engine::{CpuState, Entry, Error, Exit, ExitKind, PartitionState, Processor, Result, Seat, VcpuId};
use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_EXIT_IO_OUT,
    KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, kvm_run,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use crate::access::{Place, Transfer};
use crate::kick::{self, Kick};
use crate::partition::KvmPartition;
use crate::step::{Events, NAP, Stepper, Taken, Watch};
use crate::{refused, state};

/// An instruction makes no more accesses than this before KVM sees `immediate_exit`.
const ACCESSES_PER_INSTRUCTION: usize = 64;

/// What EFAULT of KVM_RUN means.
const NO_MEMORY: &str =
    "KVM_RUN: the host has no room for a page of the guest (is the disk of a DIMM's file full?)";

/// A vCPU that no thread runs yet.
#[derive(Debug)]
pub(crate) struct VcpuSeat {
    pub(crate) id: VcpuId,
    pub(crate) fd: VcpuFd,
    pub(crate) kick: Arc<Kick>,
    pub(crate) partition: Arc<KvmPartition>,
}

impl Seat for VcpuSeat {
    fn vcpus(&self) -> Vec<VcpuId> {
        vec![self.id]
    }

    fn bind(mut self: Box<Self>) -> Result<Box<dyn Processor>> {
        let byte = (&raw mut self.fd.get_kvm_run().immediate_exit).cast::<AtomicU8>();
        // SAFETY: the run page stays mapped as long as `fd`, and Vcpu's drop releases the binding before.
        unsafe { self.kick.bind(byte) };
        Ok(Box::new(Vcpu {
            seat: *self,
            transfer: None,
            unfinished: false,
            stepper: None,
            shift: 0,
            turn: None,
        }))
    }
}

/// A vCPU bound to its thread.
#[derive(Debug)]
struct Vcpu {
    seat: VcpuSeat,
    /// The access that the machine is taking.
    transfer: Option<Transfer>,
    /// KVM still has to finish the instruction of the last access.
    unfinished: bool,
    /// While something is watched.
    stepper: Option<Stepper>,
    /// By how much its counter is ahead of what it was when it was made.
    shift: u64,
    /// Kept after an instruction from a new place, until the state has been saved that tells who called.
    turn: Option<Taken>,
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.seat.kick.release();
    }
}

impl Processor for Vcpu {
    fn run(&mut self, entry: Entry) -> Result<Exit> {
        let mut kind = self.go_on(entry);
        while kind.is_none() {
            kind = self.enter()?;
        }
        let kind = kind.unwrap_or(ExitKind::Kicked);
        Ok(Exit { vcpu: self.seat.id, kind })
    }

    fn save(&mut self, vcpu: VcpuId) -> Result<CpuState> {
        self.check(vcpu)?;
        if self.transfer.as_ref().is_none_or(|t| t.write && t.handed_out()) {
            self.finish_instruction()?;
        }
        let mut state = state::save(&self.seat.fd)?;
        if self.stepper.as_ref().is_some_and(|stepper| stepper.halted) {
            state.activity = Activity::Halted;
        }
        if self.stepper.is_some() {
            let (events, khz) = (&self.seat.partition.events, self.seat.partition.tsc_khz);
            let time = events.time();
            state.msrs.tsc = time.tsc(events.number(), khz).unwrap_or(state.msrs.tsc);
            state.msrs.tsc_deadline = time.deadline(vcpu);
        }
        self.turn = None;
        Ok(state)
    }

    fn restore(&mut self, vcpu: VcpuId, state: &CpuState) -> Result<()> {
        self.check(vcpu)?;
        for _ in 0..ACCESSES_PER_INSTRUCTION {
            if !self.unfinished {
                break;
            }
            self.finish_instruction()?;
        }
        self.transfer = None;
        if let Some(stepper) = self.stepper.take() {
            stepper.end(&mut self.seat.fd)?;
        }
        state::restore(&self.seat.fd, state)?;
        if vcpu == 0 {
            let partition = &self.seat.partition;
            let asked = state.msrs.tsc;
            partition.clock.follow(asked, state::tsc(&self.seat.fd)?, partition.tsc_khz);
        }
        Ok(())
    }

    fn save_partition(&mut self) -> Result<PartitionState> {
        Ok(PartitionState { guest_time: self.seat.partition.guest_time(), instructions: None, turn: None })
    }

    fn restore_partition(&mut self, _state: &PartitionState) -> Result<()> {
        // Guest time comes with vCPU 0's time-stamp counter.
        Ok(())
    }
}

impl Vcpu {
    fn check(&self, vcpu: VcpuId) -> Result<()> {
        if vcpu == self.seat.id { Ok(()) } else { Err(Error::NoSuchVcpu(vcpu)) }
    }

    /// The next piece of an access that is not over yet.
    fn go_on(&mut self, entry: Entry) -> Option<ExitKind> {
        let mut transfer = self.transfer.take()?;
        let bytes = run_page(&mut self.seat, &transfer);
        match entry {
            Entry::Data(value) => transfer.answer(bytes, value),
            // A read that nobody answered is asked again.
            _ if transfer.asks() => {}
            _ => transfer.answer(bytes, 0),
        }
        let kind = transfer.next(bytes);
        self.transfer = kind.is_some().then_some(transfer);
        kind
    }

    /// Enters the guest; `None` asks to enter again.
    fn enter(&mut self) -> Result<Option<ExitKind>> {
        let partition = Arc::clone(&self.seat.partition);
        let watch = partition.events.watch();
        let free = if watch.ranges.is_empty() {
            self.stop_stepping()?;
            let free = partition.events.set_free(self.seat.id);
            if free.is_none() {
                return Ok(None);
            }
            free
        } else {
            if self.stepper.is_some() || self.start_stepping()? {
                return self.step(&watch);
            }
            if self.transfer.is_some() {
                return Ok(self.go_on(Entry::Resume));
            }
            None
        };
        let outcome = self.seat.fd.run().map(drop);
        drop(free);
        match outcome {
            Ok(()) => Ok(self.exited()),
            Err(errno) => match errno.errno() {
                libc::EINTR => {
                    self.unfinished = false;
                    self.seat.kick.take();
                    Ok(Some(ExitKind::Kicked))
                }
                // A vCPU that waited for its INIT has got it.
                libc::EAGAIN => Ok(None),
                libc::EFAULT => Err(refused(NO_MEMORY)(errno)),
                _ => Err(refused(format!("KVM_RUN of vCPU {}", self.seat.id))(errno)),
            },
        }
    }

    /// Lets KVM end the instruction of the last access, without executing another one.
    fn finish_instruction(&mut self) -> Result<()> {
        if !self.unfinished {
            return Ok(());
        }
        self.transfer = None;
        self.seat.kick.hold(true);
        let outcome = self.seat.fd.run().map(drop);
        self.seat.kick.hold(false);
        match outcome {
            // The instruction makes another access: the machine gets it at the next run.
            Ok(()) => {
                self.exited();
                self.transfer.iter_mut().for_each(Transfer::rewind);
                Ok(())
            }
            Err(errno) if matches!(errno.errno(), libc::EINTR | libc::EAGAIN) => {
                self.unfinished = false;
                Ok(())
            }
            Err(errno) => Err(refused(format!("KVM_RUN of vCPU {}", self.seat.id))(errno)),
        }
    }

    /// Is the vCPU one that can be stepped? Then it is from now on. Not one that waits to be started, nor one whose
    /// instruction has another access for the machine.
    fn start_stepping(&mut self) -> Result<bool> {
        self.finish_instruction()?;
        if self.transfer.is_some() {
            return Ok(false);
        }
        kick::admit_break(&self.seat.fd)
            .map_err(|source| Error::Host { what: "KVM_SET_SIGNAL_MASK".into(), source })?;
        self.stepper = Stepper::begin(&mut self.seat.fd, self.seat.id, &self.seat.partition.memory)?;
        if self.stepper.is_some() {
            let (fd, partition) = (&self.seat.fd, &self.seat.partition);
            self.shift = set_back(fd, self.shift, partition.events.time().shift())?;
            partition.begin_time(fd)?;
            partition.events.time().arm(self.seat.id, state::deadline(fd)?);
            state::set_deadline(fd, 0)?;
        }
        Ok(self.stepper.is_some())
    }

    /// Has the vCPU run, or wait, as before, but in the time that it has come to.
    fn stop_stepping(&mut self) -> Result<()> {
        self.turn = None;
        let (id, partition) = (self.seat.id, &self.seat.partition);
        let stepper = self.stepper.take();
        // Nobody is within an instruction that has been told the time.
        let changes = stepper.is_some() || partition.events.time().has_begun();
        let turn = changes.then(|| Events::take_turn(partition));
        let shift = partition.end_time(&self.seat.fd)?;
        self.shift = set_back(&self.seat.fd, self.shift, shift)?;
        if let Some(stepper) = stepper {
            let deadline = partition.events.time().arm(id, 0);
            state::set_deadline(&self.seat.fd, deadline)?;
            stepper.end(&mut self.seat.fd)?;
        }
        drop(turn);
        Ok(())
    }

    /// Executes one instruction, or a part of it up to an access that the machine answers.
    fn step(&mut self, watch: &Watch) -> Result<Option<ExitKind>> {
        let partition = Arc::clone(&self.seat.partition);
        let events = &partition.events;
        if events.is_full() {
            return Ok(Some(ExitKind::EventsFull));
        }
        if events.is_at_limit() {
            return Ok(Some(ExitKind::InstructionLimit));
        }
        self.turn = None;
        let turn = Events::take_turn(&partition);
        // Somebody may have ended the window meanwhile, and time with it.
        if events.watch().ranges.is_empty() {
            return Ok(None);
        }
        if self.unfinished {
            self.finish_instruction()?;
            if self.transfer.is_some() {
                return Ok(self.go_on(Entry::Resume));
            }
        }
        let Some(mut stepper) = self.stepper.take() else { return Ok(None) };
        let stepped = self.step_with(&mut stepper, watch);
        let naps = stepper.halted;
        self.stepper = Some(stepper);
        if matches!(stepped, Ok(Some(ExitKind::UnknownPlace))) {
            self.turn = Some(turn);
            return stepped;
        }
        drop(turn);
        if naps && matches!(stepped, Ok(None)) {
            std::thread::sleep(NAP);
        }
        stepped
    }

    fn step_with(&mut self, stepper: &mut Stepper, watch: &Watch) -> Result<Option<ExitKind>> {
        let (id, partition) = (self.seat.id, Arc::clone(&self.seat.partition));
        let events = &partition.events;
        stepper.complete(&self.seat.fd, (id, partition.guest_time()), events)?;
        if self.seat.kick.take() {
            return Ok(Some(ExitKind::Kicked));
        }
        stepper.tell_time(&self.seat.fd, events, partition.tsc_khz)?;
        if stepper.looks_for_interrupt(events) {
            stepper.open(&self.seat.fd)?;
            kick::break_off();
            let outcome = self.seat.fd.run().map(drop);
            kick::broken_off();
            match outcome {
                Err(errno) if matches!(errno.errno(), libc::EINTR | libc::EAGAIN) => {}
                Err(errno) => return Err(refused(format!("KVM_RUN of vCPU {id}"))(errno)),
                Ok(()) => return Ok(self.exited()),
            }
            stepper.accept(&self.seat.fd)?;
        }
        if stepper.halted {
            stepper.wait(events, partition.tsc_khz);
            return Ok(None);
        }
        if !stepper.prepare(&self.seat.fd, watch, events)? {
            return Ok(None);
        }
        if stepper.is_lost(id, watch, events) {
            return Ok(Some(ExitKind::UnknownPlace));
        }
        match self.seat.fd.run().map(drop) {
            Ok(()) => {
                let kind = self.exited();
                if kind.is_none() {
                    stepper.complete(&self.seat.fd, (id, partition.guest_time()), events)?;
                }
                Ok(kind)
            }
            Err(errno) if matches!(errno.errno(), libc::EINTR | libc::EAGAIN) => {
                stepper.abandon();
                Ok(None)
            }
            Err(errno) => Err(refused(format!("KVM_RUN of vCPU {id}"))(errno)),
        }
    }

    /// Makes sense of the run page.
    fn exited(&mut self) -> Option<ExitKind> {
        self.unfinished = false;
        let run = self.seat.fd.get_kvm_run();
        let transfer = match run.exit_reason {
            KVM_EXIT_IO => {
                // SAFETY: the exit reason says which member of the union holds.
                let io = unsafe { run.__bindgen_anon_1.io };
                let place = Place::Port { port: io.port, size: io.size };
                let len = usize::from(io.size) * io.count as usize;
                Transfer::new(place, u32::from(io.direction) == KVM_EXIT_IO_OUT, io.data_offset as usize, len)
            }
            KVM_EXIT_MMIO => {
                // SAFETY: the exit reason says which member of the union holds.
                let mmio = unsafe { run.__bindgen_anon_1.mmio };
                let offset = offset_of!(kvm_run, __bindgen_anon_1.mmio.data);
                let place = Place::Memory { addr: mmio.phys_addr };
                Transfer::new(place, mmio.is_write != 0, offset, (mmio.len as usize).min(mmio.data.len()))
            }
            // A step's end.
            KVM_EXIT_DEBUG => return None,
            KVM_EXIT_SHUTDOWN => return Some(ExitKind::Shutdown),
            reason => return Some(self.stuck(reason)),
        };
        self.unfinished = true;
        self.transfer = Some(transfer);
        self.go_on(Entry::Resume)
    }

    /// Tells what is known of a vCPU that cannot go on.
    fn stuck(&mut self, reason: u32) -> ExitKind {
        let rip = self.seat.fd.get_regs().map_or(0, |regs| regs.rip);
        let run = self.seat.fd.get_kvm_run();
        let mut bytes = [0; 15];
        match reason {
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: the exit reason says which members of the union hold; both are plain numbers.
                let (error, failure) =
                    unsafe { (run.__bindgen_anon_1.internal, run.__bindgen_anon_1.emulation_failure) };
                tracing::info!(
                    vcpu = self.seat.id,
                    "KVM internal error {} at {rip:#x}: {:x?}",
                    error.suberror,
                    &error.data[..(error.ndata as usize).min(error.data.len())]
                );
                if error.suberror == KVM_INTERNAL_ERROR_EMULATION
                    && error.ndata > 0
                    && failure.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0
                {
                    // SAFETY: the flag says that the bytes are there.
                    bytes = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1.insn_bytes };
                }
            }
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: the exit reason says which member of the union holds.
                let entry = unsafe { run.__bindgen_anon_1.fail_entry };
                tracing::info!(
                    vcpu = self.seat.id,
                    "the processor refused to enter the guest: reason {:#x}, at {rip:#x}",
                    entry.hardware_entry_failure_reason
                );
            }
            _ => tracing::info!(vcpu = self.seat.id, "unknown KVM exit reason {reason} at {rip:#x}"),
        }
        if bytes == [0; 15] {
            self.fetch(rip, &mut bytes);
        }
        ExitKind::Stuck { rip, bytes }
    }

    /// Reads what is at the instruction pointer, as far as it is mapped.
    fn fetch(&self, rip: u64, bytes: &mut [u8]) {
        let Ok(sregs) = self.seat.fd.get_sregs() else { return };
        let linear = if sregs.cs.l != 0 { rip } else { sregs.cs.base.wrapping_add(rip) };
        for (n, byte) in (0..).zip(bytes) {
            let Ok(place) = self.seat.fd.translate_gva(linear.wrapping_add(n)) else { return };
            let Ok(found) = self.seat.partition.memory.read_obj(GuestAddress(place.physical_address)) else {
                return;
            };
            *byte = found;
        }
    }
}

/// Has a counter that is ahead by `from` ticks ahead by `to`, which is given.
fn set_back(fd: &VcpuFd, from: u64, to: u64) -> Result<u64> {
    if from != to {
        state::shift_counter(fd, to.wrapping_sub(from))?;
    }
    Ok(to)
}

/// The bytes of an access in the run page; none if the kernel's offsets left it.
fn run_page<'a>(seat: &'a mut VcpuSeat, transfer: &Transfer) -> &'a mut [u8] {
    let inside = transfer.offset.checked_add(transfer.len).is_some_and(|end| end <= seat.partition.run_size);
    let len = if inside { transfer.len } else { 0 };
    let start = (&raw mut *seat.fd.get_kvm_run()).cast::<u8>();
    // SAFETY: within the mapping of `run_size` bytes, which lives as long as `fd`, and KVM touches it in KVM_RUN only.
    unsafe { std::slice::from_raw_parts_mut(start.add(if inside { transfer.offset } else { 0 }), len) }
}
