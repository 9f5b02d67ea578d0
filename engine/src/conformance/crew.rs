//! The threads of a partition: a seat each, told what to do and heard by one listener.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use super::bench::Failure;
use crate::cpuid::{CpuModel, CpuidTable};
use crate::state::CpuState;
use crate::{Built, Engine, Entry, Exit, ExitKind, GuestMemory, Partition, PartitionSpec, Seat, VcpuId};

/// A vCPU that makes no exit for so long hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

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

type Letter = (usize, Result<Answer, crate::Error>);

/// A seat on its thread.
struct Runner {
    orders: Sender<Order>,
    vcpus: Vec<VcpuId>,
    /// From an order to run until its exit was heard.
    running: bool,
    /// How to go on.
    entry: Entry,
}

/// A partition and its threads.
pub(super) struct Crew {
    pub(super) partition: Arc<dyn Partition>,
    runners: Vec<Runner>,
    letters: Receiver<Letter>,
    /// Exits that came while something else was waited for.
    unheard: VecDeque<(usize, Exit)>,
}

/// The frequency that guests of an engine are told.
pub(super) fn tsc_khz(engine: &dyn Engine) -> u32 {
    engine.tsc_khz(2_000_000)
}

impl Crew {
    pub(super) fn new(
        engine: &dyn Engine,
        vcpus: u8,
        model: CpuModel,
        memory: &GuestMemory,
    ) -> Result<Self, Failure> {
        let tsc_khz = tsc_khz(engine);
        let cpuid = CpuidTable::new(model, vcpus, tsc_khz);
        let Built { partition, seats } =
            engine.build(&PartitionSpec { vcpus, cpuid, tsc_khz, seed: 1 }, memory)?;
        let (sender, letters) = channel();
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
        Ok(Self { partition, runners, letters, unheard: VecDeque::new() })
    }

    /// How a vCPU's seat will go on.
    pub(super) fn entry(&mut self, vcpu: VcpuId) -> Option<&mut Entry> {
        let runner = self.runners.iter_mut().find(|runner| runner.vcpus.contains(&vcpu))?;
        Some(&mut runner.entry)
    }

    /// Lets every seat run that does not.
    pub(super) fn resume(&mut self) -> Result<(), Failure> {
        for runner in self.runners.iter_mut().filter(|runner| !runner.running) {
            let entry = std::mem::replace(&mut runner.entry, Entry::Resume);
            runner.orders.send(Order::Run(entry)).map_err(|_| Failure("a seat's thread died".into()))?;
            runner.running = true;
        }
        Ok(())
    }

    /// The first exit of any seat.
    pub(super) fn wait(&mut self, patience: Duration) -> Result<Option<Exit>, Failure> {
        let (seat, exit) = match self.unheard.pop_front() {
            Some(unheard) => unheard,
            None => match self.letters.recv_timeout(patience) {
                Ok((seat, Ok(Answer::Exit(exit)))) => (seat, exit),
                Ok((_, Ok(_))) => return Err(Failure("a seat answered out of turn".into())),
                Ok((seat, Err(error))) => {
                    self.runners[seat].running = false;
                    return Err(error.into());
                }
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure("the seats' threads died".into()));
                }
            },
        };
        self.runners[seat].running = false;
        Ok(Some(exit))
    }

    /// Stops every seat that runs.
    pub(super) fn stop(&mut self) -> Result<(), Failure> {
        self.partition.kick();
        while self.runners.iter().any(|runner| runner.running) {
            if self.wait(PATIENCE)?.is_none() {
                return Err(Failure("a kicked vCPU does not stop".into()));
            }
        }
        Ok(())
    }

    /// Stops the one seat that runs, whose guest is silent.
    pub(super) fn interrupt(&mut self) -> Result<(), Failure> {
        self.partition.kick();
        match self.wait(PATIENCE)? {
            Some(Exit { kind: ExitKind::Kicked, .. }) => Ok(()),
            other => Err(Failure(format!("{other:x?} after a kick"))),
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

    fn order(&mut self, vcpu: VcpuId, order: Order) -> Result<Answer, Failure> {
        let seat = self.runners.iter().position(|runner| runner.vcpus.contains(&vcpu));
        let Some(seat) = seat else { return Err(Failure(format!("no seat holds vCPU {vcpu}"))) };
        if self.runners[seat].running {
            return Err(Failure(format!("vCPU {vcpu} is running")));
        }
        self.runners[seat].orders.send(order).map_err(|_| Failure("a seat's thread died".into()))?;
        loop {
            match self.letters.recv_timeout(PATIENCE) {
                Ok((from, answer)) if from == seat => return Ok(answer?),
                Ok((from, Ok(Answer::Exit(exit)))) => self.unheard.push_back((from, exit)),
                _ => return Err(Failure(format!("vCPU {vcpu} gave no state"))),
            }
        }
    }
}

fn serve(index: usize, seat: Box<dyn Seat>, inbox: &Receiver<Order>, outbox: &Sender<Letter>) {
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

impl Drop for Crew {
    /// Nobody may stay in a guest that has lost its case.
    fn drop(&mut self) {
        self.partition.kick();
    }
}
