//! A partition with its threads, as a case drives it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::bench::Failure;
use super::scene::{self, END, Mode, Scene, TRAP};
use crate::cpuid::CpuidTable;
use crate::state::{CpuState, gpr};
use crate::{Built, Engine, Entry, Exit, ExitKind, GuestMemory, Msi, Partition, PartitionSpec, Seat, VcpuId};

/// A program that makes no exit for so long hangs.
const PATIENCE: Duration = Duration::from_secs(5);
/// A vCPU that is silent for so long sleeps.
const NAP: Duration = Duration::from_millis(30);

/// What a seat's thread is told to do; it ends when nobody can tell it anything.
enum Order {
    Run(Entry),
    Save(VcpuId),
    Restore(VcpuId, Box<CpuState>),
}

/// What it answers.
enum Answer {
    Exit(Exit),
    State(Box<CpuState>),
    Restored,
}

/// A seat on its thread.
struct Runner {
    orders: Sender<Order>,
    vcpus: Vec<VcpuId>,
    /// In [`crate::Processor::run`].
    running: bool,
    /// How to go on.
    entry: Entry,
}

/// What was on the stack when a handler reported (SDM vol. 3, figure 6-9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trap {
    pub(super) vector: u8,
    pub(super) error: Option<u32>,
    pub(super) rip: u64,
    pub(super) cs: u16,
    pub(super) rflags: u64,
    /// The interrupted stack pointer, which only 64-bit mode always pushes.
    pub(super) rsp: u64,
    pub(super) ss: u16,
    /// Where the frame's instruction pointer is, to edit it.
    pub(super) frame: u64,
    /// The whole state in the handler.
    pub(super) state: CpuState,
}

/// The machine.
pub(super) struct Machine<'e> {
    engines: Vec<&'e dyn Engine>,
    turn: usize,
    moving: bool,
    vcpus: u8,
    mode: Mode,
    pub(super) memory: GuestMemory,
    partition: Arc<dyn Partition>,
    runners: Vec<Runner>,
    answers: Receiver<(usize, Result<Answer, crate::Error>)>,
    /// What vCPU 0 starts with; taken at the first run.
    start: Option<Box<CpuState>>,
    last: Option<Exit>,
}

impl<'e> Machine<'e> {
    pub(super) fn new(
        engines: Vec<&'e dyn Engine>,
        moving: bool,
        vcpus: u8,
        scene: Scene,
    ) -> Result<Self, Failure> {
        let Scene { mode, memory, state } = scene;
        let (partition, runners, answers) = build(engines[0], vcpus, &memory)?;
        let start = Some(Box::new(state));
        Ok(Self {
            engines,
            turn: 0,
            moving,
            vcpus,
            mode,
            memory,
            partition,
            runners,
            answers,
            start,
            last: None,
        })
    }

    /// Changes the state at the start.
    pub(super) fn with(mut self, change: impl FnOnce(&mut CpuState)) -> Self {
        if let Some(start) = &mut self.start {
            change(start);
        }
        self
    }

    /// Sets a general register at the start.
    pub(super) fn given(self, register: usize, value: u64) -> Self {
        self.with(|state| state.registers.gpr[register] = value)
    }

    /// Is never carried to another partition: its accesses come in several exits.
    pub(super) fn staying(mut self) -> Self {
        self.moving = false;
        self
    }

    pub(super) fn partition(&self) -> &dyn Partition {
        &*self.partition
    }

    pub(super) fn engine(&self) -> &'e dyn Engine {
        self.engines[self.turn]
    }

    /// The frequency that the guest was told.
    pub(super) fn tsc_khz(&self) -> u32 {
        tsc_khz(self.engine())
    }

    pub(super) fn send(&self, address: u64, data: u32) -> Result<(), Failure> {
        Ok(self.partition.send_msi(Msi { address, data })?)
    }

    pub(super) fn read<T: ByteValued>(&self, address: u64) -> Result<T, Failure> {
        self.memory
            .read_obj(GuestAddress(address))
            .map_err(|error| Failure(format!("guest memory at {address:#x}: {error}")))
    }

    pub(super) fn write<T: ByteValued>(&self, address: u64, value: T) -> Result<(), Failure> {
        scene::put(&self.memory, address, value.as_slice())
    }

    /// Lets every vCPU run until one leaves; exits that are no part of a case's story are resumed.
    pub(super) fn next_exit(&mut self) -> Result<Exit, Failure> {
        self.begin()?;
        self.relocate()?;
        loop {
            self.resume()?;
            let Some(exit) = self.wait(PATIENCE)? else { return Err(self.hung()) };
            match exit.kind {
                ExitKind::Kicked | ExitKind::Idle { deadline: Some(_) } => {}
                _ => {
                    self.last = Some(exit);
                    return Ok(exit);
                }
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

    /// Answers the last exit.
    pub(super) fn answer(&mut self, value: u64) {
        let vcpu = self.last.map_or(0, |exit| exit.vcpu);
        if let Some(runner) = self.runners.iter_mut().find(|runner| runner.vcpus.contains(&vcpu)) {
            runner.entry = Entry::Data(value);
        }
    }

    /// The program must end here; gives the final state.
    pub(super) fn end(&mut self) -> Result<CpuState, Failure> {
        let exit = self.next_exit()?;
        match exit.kind {
            ExitKind::IoWrite { port, .. } if port == u16::from(END) => self.save(exit.vcpu),
            other => Err(Failure(format!("exit {}, not the program's end", self.describe(other)))),
        }
    }

    /// A handler must report here; gives its frame.
    pub(super) fn trap(&mut self) -> Result<Trap, Failure> {
        let exit = self.next_exit()?;
        match exit.kind {
            ExitKind::IoWrite { port, .. } if port == u16::from(TRAP) => {
                let state = self.save(exit.vcpu)?;
                self.frame(state)
            }
            other => Err(Failure(format!("exit {}, not an exception or interrupt", self.describe(other)))),
        }
    }

    /// A handler must report this vector and error code.
    pub(super) fn expect_trap(&mut self, vector: u8, error: Option<u32>) -> Result<Trap, Failure> {
        let trap = self.trap()?;
        if (trap.vector, trap.error) == (vector, error) {
            return Ok(trap);
        }
        Err(Failure(format!(
            "vector {} with error code {:x?} at {:#x}, not vector {vector} with {error:x?}",
            trap.vector, trap.error, trap.rip
        )))
    }

    /// Runs until all vCPUs sleep: told so by engines that own time, silent for a while on others.
    pub(super) fn sleep(&mut self) -> Result<(), Failure> {
        self.begin()?;
        self.resume()?;
        match self.wait(NAP)? {
            None | Some(Exit { kind: ExitKind::Idle { deadline: None }, .. }) => Ok(()),
            Some(exit) => Err(Failure(format!("exit {}, not asleep", self.describe(exit.kind)))),
        }
    }

    /// Runs until a kick from another thread ends it.
    pub(super) fn kicked(&mut self) -> Result<(), Failure> {
        self.begin()?;
        self.resume()?;
        match self.wait(PATIENCE)? {
            Some(Exit { kind: ExitKind::Kicked, .. }) => Ok(()),
            Some(exit) => Err(Failure(format!("exit {}, not kicked", self.describe(exit.kind)))),
            None => Err(self.hung()),
        }
    }

    /// The state of a vCPU that is not running.
    pub(super) fn save(&mut self, vcpu: VcpuId) -> Result<CpuState, Failure> {
        match self.order(vcpu, Order::Save(vcpu))? {
            Answer::State(state) => Ok(*state),
            _ => Err(Failure(format!("vCPU {vcpu} answered a save with something else"))),
        }
    }

    /// Replaces the state of a vCPU that is not running.
    pub(super) fn restore(&mut self, vcpu: VcpuId, state: &CpuState) -> Result<(), Failure> {
        match self.order(vcpu, Order::Restore(vcpu, Box::new(state.clone())))? {
            Answer::Restored => Ok(()),
            _ => Err(Failure(format!("vCPU {vcpu} answered a restore with something else"))),
        }
    }

    /// Continues in a fresh partition of the next engine, with the state saved now. A read in hand is asked again there.
    pub(super) fn transplant(&mut self) -> Result<(), Failure> {
        let states: Vec<_> = (0..self.vcpus).map(|vcpu| self.save(vcpu)).collect::<Result<_, _>>()?;
        let entries: Vec<_> = self.runners.iter().map(|runner| runner.entry).collect();
        self.turn = (self.turn + 1) % self.engines.len();
        let (partition, runners, answers) = build(self.engine(), self.vcpus, &self.memory)?;
        (self.partition, self.runners, self.answers) = (partition, runners, answers);
        for (vcpu, state) in (0..).zip(&states) {
            self.restore(vcpu, state)?;
        }
        for (index, entry) in entries.into_iter().enumerate() {
            if let (Entry::Data(_), Some(last)) = (entry, self.last) {
                self.resume()?;
                match self.wait(PATIENCE)? {
                    Some(again) if again == last => {}
                    other => {
                        return Err(Failure(format!("moved at {last:x?}, it asks {other:x?} instead")));
                    }
                }
            }
            if let Some(runner) = self.runners.get_mut(index) {
                runner.entry = entry;
            }
        }
        Ok(())
    }

    fn relocate(&mut self) -> Result<(), Failure> {
        if self.moving && self.last.is_some() { self.transplant() } else { Ok(()) }
    }

    fn begin(&mut self) -> Result<(), Failure> {
        let Some(start) = self.start.take() else { return Ok(()) };
        self.restore(0, &start)?;
        for vcpu in 1..self.vcpus {
            let mut state = scene::waiting(vcpu);
            state.msrs.tsc = start.msrs.tsc;
            self.restore(vcpu, &state)?;
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<(), Failure> {
        for runner in self.runners.iter_mut().filter(|runner| !runner.running) {
            let entry = std::mem::replace(&mut runner.entry, Entry::Resume);
            runner.orders.send(Order::Run(entry)).map_err(|_| Failure("a seat's thread died".into()))?;
            runner.running = true;
        }
        Ok(())
    }

    /// The first exit of any seat.
    fn wait(&mut self, patience: Duration) -> Result<Option<Exit>, Failure> {
        match self.answers.recv_timeout(patience) {
            Ok((seat, answer)) => {
                self.runners[seat].running = false;
                match answer? {
                    Answer::Exit(exit) => Ok(Some(exit)),
                    _ => Err(Failure("a seat answered out of turn".into())),
                }
            }
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(Failure("the seats' threads died".into())),
        }
    }

    fn order(&mut self, vcpu: VcpuId, order: Order) -> Result<Answer, Failure> {
        let seat = self.runners.iter().position(|runner| runner.vcpus.contains(&vcpu));
        let Some(seat) = seat else { return Err(Failure(format!("no seat holds vCPU {vcpu}"))) };
        if self.runners[seat].running {
            return Err(Failure(format!("vCPU {vcpu} is running")));
        }
        self.runners[seat].orders.send(order).map_err(|_| Failure("a seat's thread died".into()))?;
        match self.answers.recv_timeout(PATIENCE) {
            Ok((from, answer)) if from == seat => Ok(answer?),
            _ => Err(Failure(format!("vCPU {vcpu} gave no state"))),
        }
    }

    /// Where a program hangs.
    fn hung(&mut self) -> Failure {
        self.partition.kick();
        let mut places = Vec::new();
        while let Ok(Some(_)) = self.wait(Duration::from_secs(1)) {
            if self.runners.iter().all(|runner| !runner.running) {
                break;
            }
        }
        for vcpu in 0..self.vcpus {
            if let Ok(state) = self.save(vcpu) {
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
        match (kind, self.save(vcpu)) {
            (ExitKind::IoWrite { port, .. }, Ok(state)) if port == u16::from(TRAP) => match self.frame(state)
            {
                Ok(trap) => format!(
                    "by vector {} with error code {:x?} at {:#x}, cr2 {:#x}",
                    trap.vector, trap.error, trap.rip, trap.state.system.cr2
                ),
                Err(failure) => failure.0,
            },
            (ExitKind::IoWrite { port, .. }, _) if port == u16::from(END) => "by the program's end".into(),
            (_, Ok(state)) => format!("{kind:x?} at {:#x}", state.registers.rip),
            (_, Err(_)) => format!("{kind:x?}"),
        }
    }

    fn frame(&self, state: CpuState) -> Result<Trap, Failure> {
        let wide: u64 = match self.mode {
            Mode::Real => 2,
            Mode::Protected => 4,
            Mode::Long => 8,
        };
        let base = state.system.segments[crate::state::SystemRegisters::SS].base;
        let top = base + state.registers.gpr[gpr::RSP];
        let word = |n: u64| -> Result<u64, Failure> {
            let at = top + n * wide;
            Ok(match self.mode {
                Mode::Real => self.read::<u16>(at)?.into(),
                Mode::Protected => self.read::<u32>(at)?.into(),
                Mode::Long => self.read::<u64>(at)?,
            })
        };
        let vector = word(0)? as u8;
        let coded = scene::has_error_code(vector) && self.mode != Mode::Real;
        let error = if coded { Some(word(1)? as u32) } else { None };
        let first = 1 + u64::from(coded);
        let long = self.mode == Mode::Long;
        Ok(Trap {
            vector,
            error,
            rip: word(first)?,
            cs: word(first + 1)? as u16,
            rflags: word(first + 2)?,
            rsp: if long { word(first + 3)? } else { 0 },
            ss: if long { word(first + 4)? as u16 } else { 0 },
            frame: top + first * wide,
            state,
        })
    }
}

fn tsc_khz(engine: &dyn Engine) -> u32 {
    engine.tsc_khz(2_000_000)
}

type Parts = (Arc<dyn Partition>, Vec<Runner>, Receiver<(usize, Result<Answer, crate::Error>)>);

fn build(engine: &dyn Engine, vcpus: u8, memory: &GuestMemory) -> Result<Parts, Failure> {
    let tsc_khz = tsc_khz(engine);
    let cpuid = CpuidTable::x86_64_v2(vcpus, tsc_khz);
    let Built { partition, seats } =
        engine.build(&PartitionSpec { vcpus, cpuid, tsc_khz, seed: 1 }, memory)?;
    let (sender, answers) = channel();
    let mut runners = Vec::new();
    for (index, seat) in seats.into_iter().enumerate() {
        let (orders, inbox) = channel();
        let vcpus = seat.vcpus();
        let outbox = sender.clone();
        thread::Builder::new()
            .name(format!("seat {index}"))
            .spawn(move || serve(index, seat, &inbox, &outbox))
            .map_err(|error| Failure(format!("no thread: {error}")))?;
        runners.push(Runner { orders, vcpus, running: false, entry: Entry::Resume });
    }
    Ok((partition, runners, answers))
}

fn serve(
    index: usize,
    seat: Box<dyn Seat>,
    inbox: &Receiver<Order>,
    outbox: &Sender<(usize, Result<Answer, crate::Error>)>,
) {
    let mut processor = match seat.bind() {
        Ok(processor) => processor,
        Err(error) => {
            // The case may already be over.
            let _ = outbox.send((index, Err(error)));
            return;
        }
    };
    for order in inbox {
        let answer = match order {
            Order::Run(entry) => processor.run(entry).map(Answer::Exit),
            Order::Save(vcpu) => processor.save(vcpu).map(|state| Answer::State(Box::new(state))),
            Order::Restore(vcpu, state) => processor.restore(vcpu, &state).map(|()| Answer::Restored),
        };
        if outbox.send((index, answer)).is_err() {
            return;
        }
    }
}

impl Drop for Machine<'_> {
    /// Nobody may stay in a guest that has lost its case.
    fn drop(&mut self) {
        self.partition.kick();
    }
}
