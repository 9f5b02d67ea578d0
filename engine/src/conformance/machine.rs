//! The machine as a case drives it: what it starts from, what it must do next.

use std::time::Duration;

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::bench::Failure;
use super::crew::{self, Crew, PATIENCE};
use super::scene::{self, END, Mode, Scene, TRAP};
use super::trap::Trap;
use crate::cpuid::CpuModel;
use crate::state::{Activity, CpuState, Lapic, gpr};
use crate::{Engine, Entry, Exit, ExitKind, GuestMemory, Msi, Partition, VcpuId};

/// A guest that is silent for so long may be asleep.
const NAP: Duration = Duration::from_millis(10);

/// The machine.
pub(super) struct Machine<'e> {
    engines: Vec<&'e dyn Engine>,
    turn: usize,
    moving: bool,
    vcpus: u8,
    model: CpuModel,
    mode: Mode,
    pub(super) memory: GuestMemory,
    crew: Crew,
    /// What the vCPUs start with; taken at the first run.
    start: Vec<CpuState>,
    last: Option<Exit>,
}

/// Before it runs.
impl<'e> Machine<'e> {
    pub(super) fn new(
        engines: Vec<&'e dyn Engine>,
        moving: bool,
        vcpus: u8,
        model: CpuModel,
        scene: Scene,
    ) -> Result<Self, Failure> {
        let Scene { mode, memory, state } = scene;
        let crew = Crew::new(engines[0], vcpus, model, &memory)?;
        let start = std::iter::once(state).chain((1..vcpus).map(CpuState::reset)).collect();
        Ok(Self { engines, turn: 0, moving, vcpus, model, mode, memory, crew, start, last: None })
    }

    /// Changes vCPU 0's state at the start.
    pub(super) fn with(mut self, change: impl FnOnce(&mut CpuState)) -> Self {
        self.start.first_mut().map(change);
        self
    }

    /// Sets a general register at the start.
    pub(super) fn given(self, register: usize, value: u64) -> Self {
        self.with(|state| state.registers.gpr[register] = value)
    }

    /// The other vCPUs start as vCPU 0 does, but at this program.
    pub(super) fn all_at(mut self, rip: u64) -> Self {
        let [first, others @ ..] = &mut self.start[..] else { return self };
        for (vcpu, state) in (1_u32..).zip(others) {
            *state = first.clone();
            state.registers.rip = rip;
            state.registers.gpr[gpr::RSP] -= u64::from(vcpu) * 0x400;
            state.system.apic_base &= !0x100;
            state.lapic.set(Lapic::ID, vcpu << 24);
        }
        self
    }

    /// Is never carried to another partition: its accesses come in several exits.
    pub(super) fn staying(mut self) -> Self {
        self.moving = false;
        self
    }

    fn begin(&mut self) -> Result<(), Failure> {
        for (vcpu, state) in (0..).zip(std::mem::take(&mut self.start)) {
            self.crew.restore(vcpu, &state)?;
        }
        Ok(())
    }
}

/// What the outside does to it.
impl<'e> Machine<'e> {
    pub(super) fn partition(&self) -> &dyn Partition {
        &*self.crew.partition
    }

    /// The frequency that the guest was told.
    pub(super) fn tsc_khz(&self) -> u32 {
        crew::tsc_khz(self.engines[self.turn])
    }

    pub(super) fn send(&self, address: u64, data: u32) -> Result<(), Failure> {
        Ok(self.partition().send_msi(Msi { address, data })?)
    }

    pub(super) fn read<T: ByteValued>(&self, address: u64) -> Result<T, Failure> {
        self.memory
            .read_obj(GuestAddress(address))
            .map_err(|error| Failure(format!("guest memory at {address:#x}: {error}")))
    }

    pub(super) fn write<T: ByteValued>(&self, address: u64, value: T) -> Result<(), Failure> {
        self.write_bytes(address, value.as_slice())
    }

    pub(super) fn write_bytes(&self, address: u64, bytes: &[u8]) -> Result<(), Failure> {
        scene::put(&self.memory, address, bytes)?;
        self.partition().memory_written(address..address + bytes.len() as u64);
        Ok(())
    }

    /// Lays down another program.
    pub(super) fn program(
        &self,
        address: u64,
        bits: u32,
        program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<(), Failure> {
        self.write_bytes(address, &scene::assemble(bits, address, program)?)
    }

    /// Answers the last exit.
    pub(super) fn answer(&mut self, value: u64) {
        let vcpu = self.last.map_or(0, |exit| exit.vcpu);
        if let Some(entry) = self.crew.entry(vcpu) {
            *entry = Entry::Data(value);
        }
    }

    /// Stops every vCPU that still runs.
    pub(super) fn stop(&mut self) -> Result<(), Failure> {
        self.crew.stop()
    }

    /// The state of a vCPU that is not running.
    pub(super) fn save(&mut self, vcpu: VcpuId) -> Result<CpuState, Failure> {
        self.crew.save(vcpu)
    }

    /// Replaces the state of a vCPU that is not running.
    pub(super) fn restore(&mut self, vcpu: VcpuId, state: &CpuState) -> Result<(), Failure> {
        self.crew.restore(vcpu, state)
    }

    /// Continues in a fresh partition of the next engine, with the state saved now. A read in hand is asked again there.
    pub(super) fn transplant(&mut self) -> Result<(), Failure> {
        let mut states = Vec::new();
        let mut entries = Vec::new();
        for vcpu in 0..self.vcpus {
            states.push(self.crew.save(vcpu)?);
            entries.push(self.crew.entry(vcpu).map_or(Entry::Resume, |entry| *entry));
        }
        self.turn = (self.turn + 1) % self.engines.len();
        self.crew = Crew::new(self.engines[self.turn], self.vcpus, self.model, &self.memory)?;
        for (vcpu, state) in (0..).zip(&states) {
            self.crew.restore(vcpu, state)?;
        }
        for (vcpu, entry) in (0..).zip(entries) {
            if let (Entry::Data(_), Some(last)) = (entry, self.last) {
                self.crew.resume()?;
                let again = self.crew.wait(PATIENCE)?;
                if again != Some(last) {
                    return Err(Failure(format!("moved at {last:x?}, it asks {again:x?} instead")));
                }
            }
            if let Some(place) = self.crew.entry(vcpu) {
                *place = entry;
            }
        }
        Ok(())
    }
}

/// What it must do.
impl Machine<'_> {
    /// Lets every vCPU run, without waiting for an exit.
    pub(super) fn go(&mut self) -> Result<(), Failure> {
        self.begin()?;
        self.crew.resume()
    }

    /// Lets every vCPU run until one leaves; exits that are no part of a case's story are resumed.
    pub(super) fn next_exit(&mut self) -> Result<Exit, Failure> {
        if self.moving && self.last.is_some() {
            self.transplant()?;
        }
        loop {
            self.go()?;
            let Some(exit) = self.crew.wait(PATIENCE)? else { return Err(self.hung()) };
            if !matches!(exit.kind, ExitKind::Kicked | ExitKind::Idle { deadline: Some(_) }) {
                self.last = Some(exit);
                return Ok(exit);
            }
        }
    }

    /// The next exit's kind.
    pub(super) fn next(&mut self) -> Result<ExitKind, Failure> {
        self.next_exit().map(|exit| exit.kind)
    }

    /// The next exit must be this.
    pub(super) fn expect(&mut self, want: ExitKind) -> Result<(), Failure> {
        let got = self.next()?;
        if got == want {
            return Ok(());
        }
        Err(Failure(format!("exit {}, not {want:x?}", self.describe(got))))
    }

    /// The next exit must be this read; it is answered at the next run.
    pub(super) fn expect_read(&mut self, want: ExitKind, answer: u64) -> Result<(), Failure> {
        self.expect(want)?;
        self.answer(answer);
        Ok(())
    }

    /// The program must end here; gives the final state.
    pub(super) fn end(&mut self) -> Result<CpuState, Failure> {
        let exit = self.next_exit()?;
        match exit.kind {
            ExitKind::IoWrite { port, .. } if port == u16::from(END) => self.save(exit.vcpu),
            other => Err(Failure(format!("exit {}, not the program's end", self.describe(other)))),
        }
    }

    /// A handler must report this vector and error code; gives its frame.
    pub(super) fn expect_trap(&mut self, vector: u8, error: Option<u32>) -> Result<Trap, Failure> {
        let exit = self.next_exit()?;
        let trap = match exit.kind {
            ExitKind::IoWrite { port, .. } if port == u16::from(TRAP) => {
                Trap::read(self.mode, &self.memory, self.crew.save(exit.vcpu)?)?
            }
            other => return Err(Failure(format!("exit {}, not vector {vector}", self.describe(other)))),
        };
        if (trap.vector, trap.error) == (vector, error) {
            return Ok(trap);
        }
        Err(Failure(format!("{}, not vector {vector} with {error:x?}", told(&trap))))
    }

    /// Runs until vCPU 0 sleeps: told so by engines that own time, halted and silent on others.
    pub(super) fn sleep(&mut self) -> Result<(), Failure> {
        for _ in 0..PATIENCE.as_millis() / NAP.as_millis() {
            self.go()?;
            match self.crew.wait(NAP)? {
                Some(Exit { kind: ExitKind::Idle { deadline: None }, .. }) => return Ok(()),
                Some(exit) => {
                    return Err(Failure(format!("exit {}, not asleep", self.describe(exit.kind))));
                }
                None => self.crew.interrupt()?,
            }
            if self.crew.save(0)?.activity == Activity::Halted {
                return self.crew.resume();
            }
        }
        Err(Failure("it never sleeps".into()))
    }

    /// Runs until a kick ends it.
    pub(super) fn kicked(&mut self) -> Result<(), Failure> {
        self.go()?;
        match self.crew.wait(PATIENCE)? {
            Some(Exit { kind: ExitKind::Kicked, .. }) => Ok(()),
            Some(exit) => Err(Failure(format!("exit {}, not kicked", self.describe(exit.kind)))),
            None => Err(self.hung()),
        }
    }

    /// Where a program hangs.
    fn hung(&mut self) -> Failure {
        // What does not even stop has no state to be told.
        let _ = self.crew.stop();
        let mut places = Vec::new();
        for vcpu in 0..self.vcpus {
            if let Ok(state) = self.crew.save(vcpu) {
                places.push(format!(
                    "vCPU {vcpu} {:?} at {:#x}, rflags {:#x}",
                    state.activity, state.registers.rip, state.registers.rflags
                ));
            }
        }
        Failure(format!("no exit within {} s: {}", PATIENCE.as_secs(), places.join("; ")))
    }

    /// An exit in words; a trap with its vector.
    fn describe(&mut self, kind: ExitKind) -> String {
        let vcpu = self.last.map_or(0, |exit| exit.vcpu);
        match (kind, self.crew.save(vcpu)) {
            (ExitKind::IoWrite { port, .. }, Ok(state)) if port == u16::from(TRAP) => {
                Trap::read(self.mode, &self.memory, state)
                    .map_or_else(|failure| failure.0, |trap| told(&trap))
            }
            (ExitKind::IoWrite { port, .. }, _) if port == u16::from(END) => "by the program's end".into(),
            (_, Ok(state)) => format!("{kind:x?} at {:#x}", state.registers.rip),
            (_, Err(_)) => format!("{kind:x?}"),
        }
    }
}

fn told(trap: &Trap) -> String {
    format!(
        "vector {} with error code {:x?} at {:#x}, cr2 {:#x}",
        trap.vector, trap.error, trap.rip, trap.state.system.cr2
    )
}
