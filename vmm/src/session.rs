//! From power-on, or where a machine rested, to power-off, reset or rest: a host thread for each seat, and what they
//! share.
//!
//! With a single seat everything happens on the calling thread, in an order that only the guest decides.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use engine::{Entry, Exit, ExitKind, Partition, Processor, Seat, VcpuId};

use crate::board::Board;
use crate::devices::Action;
use crate::gdb::Gdb;
use crate::layout::port;
use crate::outcome::{Mark, Outcome, Statistics};
use crate::recording::{Recorder, mark_name};
use crate::remote::{Remote, StopReason};
use crate::rest::{Processors, Rest};
use crate::sight::Stand;
use crate::snapshot::Witness;
use crate::{Error, Result};

/// How a session ended.
#[derive(Debug)]
pub enum End {
    /// The guest reset the machine.
    Reset,
    /// The run is over.
    Over(Outcome),
}

/// A seat's thread ends: so does the session, if nothing else has ended it, and nobody waits for this seat any more.
struct EndsAll<'s, 'a>(&'s Session<'a>);

impl Drop for EndsAll<'_, '_> {
    fn drop(&mut self) {
        self.0.over(Outcome::Stopped);
        self.0.rest.leave();
    }
}

/// Whoever waits for guest time that goes slowly looks no more often.
const SHORTEST_NAP: Duration = Duration::from_millis(1);

/// Values of [`Session::ended`]: its seats run, come to rest between two instructions, or come out wherever they are.
const RUNS: u8 = 0;
const RESTS: u8 = 1;
const OVER: u8 = 2;

/// What the seats share.
#[derive(Debug)]
pub struct Session<'a> {
    pub board: Mutex<&'a mut Board>,
    pub partition: Arc<dyn Partition>,
    pub remote: &'a Remote,
    /// Idle time passes as it does for the host, so that a person can type; else it is skipped.
    pub interactive: bool,
    /// Sees what is done to the NV-DIMMs, and may cut their power. Locked before the board.
    pub recorder: Option<Mutex<&'a mut Recorder>>,
    marks: Mutex<Vec<Mark>>,
    end: Mutex<Option<Result<End>>>,
    ended: AtomicU8,
    rest: Rest,
    /// Who debugs the one seat, if anybody does.
    gdb: Mutex<Option<&'a mut Gdb>>,
    /// Sees what the guest learns of its NV-DIMMs, where nobody records.
    witness: Option<Mutex<&'a mut Witness>>,
}

impl<'a> Session<'a> {
    /// A session about to begin.
    pub fn new(
        board: &'a mut Board,
        partition: Arc<dyn Partition>,
        remote: &'a Remote,
        interactive: bool,
        recorder: Option<&'a mut Recorder>,
    ) -> Self {
        Self {
            board: Mutex::new(board),
            partition,
            remote,
            interactive,
            recorder: recorder.map(Mutex::new),
            marks: Mutex::default(),
            end: Mutex::default(),
            ended: AtomicU8::new(RUNS),
            rest: Rest::default(),
            gdb: Mutex::new(None),
            witness: None,
        }
    }

    /// With a debugger, which needs all vCPUs in one seat.
    pub fn debugged(self, gdb: Option<&'a mut Gdb>) -> Self {
        Self { gdb: Mutex::new(gdb), ..self }
    }

    /// With a witness.
    pub fn witnessed(self, witness: Option<&'a mut Witness>) -> Self {
        Self { witness: witness.map(Mutex::new), ..self }
    }

    /// Runs all seats from a start to the end and adds to the statistics. Gives the processors where they can go on.
    pub fn run(
        self,
        seats: Vec<Box<dyn Seat>>,
        start: &Processors,
        statistics: &mut Statistics,
    ) -> Result<(End, Option<Processors>)> {
        self.rest.expect(seats.len());
        self.remote.attach(Some(Arc::clone(&self.partition)));
        let mut seats = seats.into_iter();
        let first = seats.next();
        let counted: Vec<Statistics> = std::thread::scope(|scope| {
            let spawned: Vec<_> = seats
                .map(|seat| {
                    let name = format!("seat {:?}", seat.vcpus());
                    std::thread::Builder::new().name(name).spawn_scoped(scope, || self.occupy(seat, start))
                })
                .collect();
            for error in spawned.iter().filter_map(|thread| thread.as_ref().err()) {
                self.end(Err(Error::Thread(error.kind().into())));
                self.rest.leave();
            }
            let own = first.map(|seat| self.occupy(seat, start));
            let join = |thread: ScopedJoinHandle<'_, Statistics>| {
                thread.join().unwrap_or_else(|panic| resume_unwind(panic))
            };
            own.into_iter().chain(spawned.into_iter().flatten().map(join)).collect()
        });
        self.remote.attach(None);
        statistics.processors.clear();
        counted.iter().for_each(|one| statistics.absorb(one));
        let before = start.so_far();
        statistics.guest_time += self.partition.now().saturating_sub(before.guest_time);
        if let Some(instructions) = self.partition.instructions() {
            *statistics.instructions.get_or_insert(0) += instructions - before.instructions.unwrap_or(0);
        }
        statistics.marks.append(&mut self.marks.into_inner().unwrap_or_else(PoisonError::into_inner));
        let end = self.end.into_inner().unwrap_or_else(PoisonError::into_inner);
        // Without a seat nothing runs, and nothing ever wakes.
        Ok((end.unwrap_or(Ok(End::Over(Outcome::Halted)))?, self.rest.processors()))
    }

    /// A thread's work. However it ends, the other threads come out too.
    fn occupy(&self, seat: Box<dyn Seat>, start: &Processors) -> Statistics {
        let _ends_all = EndsAll(self);
        let mut statistics = Statistics::default();
        if let Err(error) = self.drive(seat, start, &mut statistics) {
            self.end(Err(error));
        }
        statistics
    }

    fn drive(&self, seat: Box<dyn Seat>, start: &Processors, statistics: &mut Statistics) -> Result<()> {
        let vcpus = seat.vcpus();
        let mut processor = seat.bind()?;
        if let Some(partition) = &start.partition {
            processor.restore_partition(partition)?;
        }
        for (vcpu, state) in (0..).zip(&start.vcpus).filter(|(vcpu, _)| vcpus.contains(vcpu)) {
            processor.restore(vcpu, state)?;
        }
        let mut gdb = self.gdb.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(gdb) = &mut gdb {
            gdb.attach(&mut *processor, &*self.partition, &vcpus)?;
        }
        let went = self.go(&mut *processor, &vcpus, statistics, gdb);
        if went.is_ok() && self.ended.load(Ordering::Acquire) == RESTS && self.rest.meet() {
            self.rest.save(&mut *processor, &vcpus)?;
        }
        if statistics.processors.is_empty() {
            statistics.processors = self.stand(&mut *processor, &vcpus);
        }
        went
    }

    fn go(
        &self,
        processor: &mut dyn Processor,
        vcpus: &[VcpuId],
        statistics: &mut Statistics,
        mut gdb: Option<&mut Gdb>,
    ) -> Result<()> {
        let mut last = 0;
        let mut entry = Entry::Resume;
        loop {
            let ended = self.ended.load(Ordering::Acquire);
            if ended == OVER {
                return Ok(());
            }
            if ended == RUNS
                && entry == Entry::Resume
                && let Some(gdb) = gdb.as_mut().filter(|gdb| gdb.is_called())
            {
                gdb.stopped(processor, &*self.partition, vcpus, last, None)?;
            }
            if ended == RUNS && self.remote.is_rung() {
                self.answer()?;
                continue;
            }
            if let Some(mut recorder) = self.recorder() {
                let alarm = recorder.limit(&*self.partition);
                drop(recorder);
                if let Some(left) = alarm {
                    self.ring_after(left);
                }
            }
            let exit = processor.run(entry)?;
            if let Some(mut witness) = self.witness() {
                witness.after_run(exit, &*self.partition, processor, self.board().memory())?;
                // What only it wants to know is no exit of the machine's.
                if matches!(exit.kind, ExitKind::UnknownPlace | ExitKind::EventsFull) {
                    entry = Entry::Resume;
                    continue;
                }
            }
            statistics.count(&exit.kind);
            last = exit.vcpu;
            if let Some(mut recorder) = self.recorder()
                && recorder.after_run(exit, &*self.partition, processor, self.board().nvdimms())?
            {
                // The exit itself happens no more.
                self.over(Outcome::PowerCut);
                continue;
            }
            if ended == RESTS && exit.kind == ExitKind::Kicked {
                return Ok(());
            }
            if let (ExitKind::Debug(stop), Some(gdb)) = (exit.kind, gdb.as_mut()) {
                gdb.stopped(processor, &*self.partition, vcpus, exit.vcpu, Some(stop))?;
                entry = Entry::Resume;
                continue;
            }
            self.name_mark(exit, processor)?;
            entry = self.handle(exit.kind)?;
            if let Some(mut recorder) = self.recorder()
                && recorder.after_answer(exit, &*self.partition, processor, self.board().nvdimms_mut())?
            {
                self.over(Outcome::PowerCut);
            }
            // A kernel that panics may go far before the run ends.
            if statistics.processors.is_empty() && self.remote.is_panicked() {
                statistics.processors = self.stand(processor, vcpus);
            }
        }
    }

    fn recorder(&self) -> Option<MutexGuard<'_, &'a mut Recorder>> {
        self.recorder.as_ref().map(|recorder| recorder.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn witness(&self) -> Option<MutexGuard<'_, &'a mut Witness>> {
        self.witness.as_ref().map(|witness| witness.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Somebody rings when so much guest time has passed; where the run is over by then, nobody hears. It passes no faster than
    /// the host's, and more slowly while an engine steps.
    fn ring_after(&self, nanoseconds: u64) {
        let remote = self.remote.clone();
        let partition = Arc::downgrade(&self.partition);
        let until = self.partition.now().saturating_add(nanoseconds);
        let rings = move || {
            let mut left = Duration::from_nanos(nanoseconds);
            while !left.is_zero() {
                std::thread::sleep(left);
                let Some(partition) = partition.upgrade() else { return };
                left = match until.saturating_sub(partition.now()) {
                    0 => Duration::ZERO,
                    left => Duration::from_nanos(left).max(SHORTEST_NAP),
                };
            }
            remote.wake();
        };
        if let Err(error) = std::thread::Builder::new().name("alarm".to_owned()).spawn(rings) {
            self.end(Err(Error::Thread(error)));
        }
    }

    /// The guest may have set a mark whose name is in its memory.
    fn name_mark(&self, exit: Exit, processor: &mut dyn Processor) -> Result<()> {
        if let ExitKind::IoWrite { port: port::NAMED_MARK, size: 4, value } = exit.kind {
            let state = processor.save(exit.vcpu)?;
            let name = mark_name(&state, self.board().memory(), value);
            match name {
                Some(name) => self.mark(name, self.partition.now()),
                None => tracing::warn!(value, "a mark has no name that could be read"),
            }
        }
        Ok(())
    }

    fn mark(&self, name: String, now: u64) {
        if let Some(mut recorder) = self.recorder() {
            recorder.mark(name.clone());
        }
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        if marks.len() < Statistics::MARKS {
            marks.push(Mark { name, guest_time: now, instructions: self.partition.instructions() });
        }
    }

    fn handle(&self, kind: ExitKind) -> Result<Entry> {
        let now = self.partition.now();
        let mut entry = Entry::Resume;
        match kind {
            ExitKind::IoRead { port, size } => entry = Entry::Data(self.board().read_port(port, size, now)),
            ExitKind::IoWrite { port, size, value } => {
                let action = self.board().write_port(port, size, value.into(), now);
                self.act(action, now);
            }
            ExitKind::MmioRead { addr, size } => {
                entry = Entry::Data(self.board().read_memory(addr, size, now));
            }
            ExitKind::MmioWrite { addr, size, value } => {
                let action = self.board().write_memory(addr, size, value, now);
                self.act(action, now);
            }
            ExitKind::Idle { deadline } => return self.idle(deadline, now),
            ExitKind::Kicked => self.answer()?,
            // The recorder may only have wanted to look.
            ExitKind::InstructionLimit
                if self.recorder().is_some_and(|r| !r.is_at_limit(&*self.partition)) => {}
            ExitKind::InstructionLimit => self.over(Outcome::InstructionLimit),
            // Whoever watches has taken them, or has told.
            ExitKind::EventsFull | ExitKind::UnknownPlace => {}
            // Nobody asked for it who is not asked before.
            ExitKind::Debug(_) => {}
            ExitKind::Shutdown => self.over(Outcome::TripleFault),
            ExitKind::Stuck { rip, bytes } => self.over(Outcome::Stuck { rip, bytes }),
        }
        self.deliver()?;
        Ok(entry)
    }

    fn act(&self, action: Action, now: u64) {
        match action {
            Action::None => {}
            Action::Reset => self.end(Ok(End::Reset)),
            Action::PowerOff => self.over(Outcome::PowerOff),
            Action::Exit(code) => self.over(Outcome::Exit(code)),
            Action::Mark(value) => self.mark(value.to_string(), now),
        }
    }

    /// Somebody rang: stop, or look for input.
    fn answer(&self) -> Result<()> {
        match self.remote.take() {
            None => {
                self.board().pump();
                self.deliver()?;
            }
            Some(StopReason::Timeout) => self.over(Outcome::Timeout),
            Some(StopReason::Stopped) => self.over(Outcome::Stopped),
            Some(StopReason::Panic) => self.over(Outcome::Panic),
            Some(StopReason::Paused) => self.over(Outcome::Paused),
        }
        Ok(())
    }

    /// Nothing to execute before `deadline`.
    fn idle(&self, deadline: Option<u64>, now: u64) -> Result<Entry> {
        if self.board().pump() {
            self.deliver()?;
            return Ok(Entry::Elapsed(0));
        }
        if !self.interactive {
            if deadline.is_none() {
                self.over(Outcome::Halted);
            }
            return Ok(Entry::Resume);
        }
        let wait = deadline.map(|deadline| deadline.saturating_sub(now));
        let started = Instant::now();
        self.remote.wait(wait.map(Duration::from_nanos));
        let elapsed = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Ok(match wait {
            Some(wait) if elapsed >= wait => Entry::Resume,
            _ => Entry::Elapsed(elapsed),
        })
    }

    /// Tells the engine what the devices wrote, then what they pulsed.
    fn deliver(&self) -> Result<()> {
        let touched = self.board().take_touched();
        for range in touched {
            if let Some(mut recorder) = self.recorder() {
                recorder.device_wrote(&range, &*self.partition)?;
            }
            if let Some(mut witness) = self.witness() {
                witness.device_wrote(&range);
            }
            self.partition.memory_written(range);
        }
        for message in self.board().interrupts() {
            self.partition.send_msi(message)?;
        }
        Ok(())
    }

    fn over(&self, outcome: Outcome) {
        self.end(Ok(End::Over(outcome)));
    }

    /// The first end counts, but for a failure on the way to rest; every seat comes out.
    fn end(&self, end: Result<End>) {
        let mut first = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() || matches!((&*first, &end), (Some(Ok(_)), Err(_))) {
            let rests = matches!(&end, Ok(End::Over(outcome)) if outcome.can_go_on());
            self.ended.store(if rests { RESTS } else { OVER }, Ordering::Release);
            *first = Some(end);
        }
        drop(first);
        self.partition.kick();
    }

    fn board(&self) -> MutexGuard<'_, &'a mut Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where processors stand; an engine that has failed may not know.
    fn stand(&self, processor: &mut dyn Processor, vcpus: &[VcpuId]) -> Vec<Stand> {
        let board = self.board();
        let stand = |&vcpu: &VcpuId| Some(Stand::new(vcpu, processor.save(vcpu).ok()?, board.memory()));
        vcpus.iter().filter_map(stand).collect()
    }
}
