//! Finding the first instruction that two engines disagree on.
//!
//! [`Stopping`] is an engine that runs another one and stops it at chosen instructions, where a hook looks at its vCPUs; the run
//! is the same as without. [`milestones`] are stops that note the state of all vCPUs every so many instructions. Runs are
//! deterministic, so a difference is found by running again, with closer milestones where the first difference was
//! ([`first_difference`]).

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use engine::event::MemoryEvents;
use engine::{
    Built, CpuState, Engine, Entry, Exit, ExitKind, GuestMemory, Msi, Partition, PartitionSpec,
    PartitionState, Processor, Result, Seat, VcpuId,
};

/// Looks at the vCPUs after so many retired instructions, and says after how many it wants to look again.
///
/// # Errors
/// Those of the engine: they end the run.
pub type Hook = Box<dyn FnMut(u64, &mut dyn Processor, &[VcpuId]) -> Result<Option<u64>> + Send>;

/// An engine that stops another one for a hook.
pub struct Stopping {
    engine: Box<dyn Engine>,
    first: u64,
    hook: Arc<Mutex<Hook>>,
}

impl Stopping {
    /// Around an engine that counts instructions; the hook is called after `first` of them, at least one.
    #[must_use]
    pub fn new(engine: Box<dyn Engine>, first: u64, hook: Hook) -> Self {
        Self { engine, first: first.max(1), hook: Arc::new(Mutex::new(hook)) }
    }
}

impl fmt::Debug for Stopping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stopping").field("engine", &self.engine).field("first", &self.first).finish()
    }
}

impl Engine for Stopping {
    fn name(&self) -> &'static str {
        self.engine.name()
    }

    fn tsc_khz(&self, preferred: u32) -> u32 {
        self.engine.tsc_khz(preferred)
    }

    fn repeats(&self) -> bool {
        self.engine.repeats()
    }

    fn build(&self, spec: &PartitionSpec, memory: &GuestMemory) -> Result<Built> {
        let Built { partition, seats } = self.engine.build(spec, memory)?;
        let (limit, next) = (AtomicU64::new(u64::MAX), AtomicU64::new(self.first));
        let road = Arc::new(Road { partition, limit, next });
        road.mark();
        let seat = |inner| {
            let (road, hook) = (Arc::clone(&road), Arc::clone(&self.hook));
            Box::new(Place { inner, road, hook }) as Box<dyn Seat>
        };
        Ok(Built { seats: seats.into_iter().map(seat).collect(), partition: road })
    }
}

/// The partition, whose limit is shared by the machine and the hook.
#[derive(Debug)]
struct Road {
    partition: Arc<dyn Partition>,
    /// The machine's own.
    limit: AtomicU64,
    /// The next stop.
    next: AtomicU64,
}

impl Road {
    fn mark(&self) {
        let stop = self.limit.load(Ordering::Relaxed).min(self.next.load(Ordering::Relaxed));
        self.partition.stop_at((stop != u64::MAX).then_some(stop));
    }
}

impl Partition for Road {
    fn send_msi(&self, msi: Msi) -> Result<()> {
        self.partition.send_msi(msi)
    }

    fn memory_written(&self, range: std::ops::Range<u64>) {
        self.partition.memory_written(range);
    }

    fn kick(&self) {
        self.partition.kick();
    }

    fn now(&self) -> u64 {
        self.partition.now()
    }

    fn instructions(&self) -> Option<u64> {
        self.partition.instructions()
    }

    fn memory_events(&self) -> Option<&dyn MemoryEvents> {
        self.partition.memory_events()
    }

    fn stop_at(&self, instructions: Option<u64>) -> bool {
        self.limit.store(instructions.unwrap_or(u64::MAX), Ordering::Relaxed);
        self.mark();
        true
    }
}

struct Place<T: ?Sized> {
    road: Arc<Road>,
    hook: Arc<Mutex<Hook>>,
    inner: Box<T>,
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Place<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("road", &self.road).field("inner", &self.inner).finish()
    }
}

impl Seat for Place<dyn Seat> {
    fn vcpus(&self) -> Vec<VcpuId> {
        self.inner.vcpus()
    }

    fn bind(self: Box<Self>) -> Result<Box<dyn Processor>> {
        let Self { road, hook, inner } = *self;
        let vcpus = inner.vcpus();
        let inner = inner.bind()?;
        Ok(Box::new(Walker { vcpus, place: Place { road, hook, inner } }))
    }
}

#[derive(Debug)]
struct Walker {
    vcpus: Vec<VcpuId>,
    place: Place<dyn Processor>,
}

impl Processor for Walker {
    fn run(&mut self, mut entry: Entry) -> Result<Exit> {
        let Self { vcpus, place: Place { road, hook, inner } } = self;
        loop {
            let exit = inner.run(entry)?;
            let at = road.instructions().unwrap_or(u64::MAX);
            if exit.kind != ExitKind::InstructionLimit || at >= road.limit.load(Ordering::Relaxed) {
                return Ok(exit);
            }
            let next = hook.lock().unwrap_or_else(PoisonError::into_inner)(at, inner.as_mut(), vcpus)?;
            road.next.store(next.unwrap_or(u64::MAX), Ordering::Relaxed);
            road.mark();
            entry = Entry::Resume;
        }
    }

    fn save(&mut self, vcpu: VcpuId) -> Result<CpuState> {
        self.place.inner.save(vcpu)
    }

    fn restore(&mut self, vcpu: VcpuId, state: &CpuState) -> Result<()> {
        self.place.inner.restore(vcpu, state)
    }

    fn save_partition(&mut self) -> Result<PartitionState> {
        self.place.inner.save_partition()
    }

    fn restore_partition(&mut self, state: &PartitionState) -> Result<()> {
        self.place.inner.restore_partition(state)
    }
}

/// Where milestones stand, in retired instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The first one.
    pub from: u64,
    /// From each to the next.
    pub every: u64,
    /// None behind this.
    pub until: u64,
}

/// What was found at a milestone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Milestone<S = Vec<CpuState>> {
    /// Instructions retired.
    pub at: u64,
    /// State of every vCPU.
    pub state: S,
}

/// An engine that notes the state of another one's vCPUs at milestones and says with `passed` that it is at one. The notes can
/// be read when the machine has run.
#[must_use]
pub fn milestones(
    engine: Box<dyn Engine>,
    window: Window,
    mut passed: impl FnMut(u64) + Send + 'static,
) -> (Stopping, Arc<Mutex<Vec<Milestone>>>) {
    let notes: Arc<Mutex<Vec<Milestone>>> = Arc::default();
    let book = Arc::clone(&notes);
    let hook: Hook = Box::new(move |at, processor, vcpus| {
        let state = vcpus.iter().map(|&vcpu| processor.save(vcpu)).collect::<Result<_>>()?;
        book.lock().unwrap_or_else(PoisonError::into_inner).push(Milestone { at, state });
        passed(at);
        let next = at.saturating_add(window.every.max(1));
        Ok((next <= window.until).then_some(next))
    });
    (Stopping::new(engine, window.from, hook), notes)
}

/// Two runs differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference<S = Vec<CpuState>> {
    /// The last milestone at which they agreed; none: they never did.
    pub before: Option<Milestone<S>>,
    /// What each has at the next one, an instruction later; none: it has ended.
    pub after: [Option<S>; 2],
}

/// The first instruction after which two runs differ, among the first `length`, at least one. `run` makes both runs, with
/// milestones; it is called until they stand at every instruction.
///
/// # Errors
/// Those of `run`.
pub fn first_difference<S: PartialEq + Clone, E>(
    length: u64,
    mut run: impl FnMut(Window) -> std::result::Result<[Vec<Milestone<S>>; 2], E>,
) -> std::result::Result<Option<Difference<S>>, E> {
    const PARTS: u64 = 1000;
    let every = (length / PARTS).max(1);
    // The last one is at the end.
    let mut window = Window { from: length.saturating_sub(1) % every + 1, every, until: length };
    loop {
        let notes = run(window)?;
        let longest = notes[0].len().max(notes[1].len());
        let Some(n) = (0..longest).find(|&n| notes[0].get(n) != notes[1].get(n)) else { return Ok(None) };
        let before = n.checked_sub(1).and_then(|n| notes[0].get(n)).cloned();
        if window.every == 1 {
            let after = notes.map(|notes| notes.get(n).map(|note| note.state.clone()));
            return Ok(Some(Difference { before, after }));
        }
        let from = before.map_or(1, |note| note.at);
        let until = from + 2 * window.every;
        window = Window { from, every: (window.every / PARTS).max(1), until };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs of so many instructions that are equal up to one of them.
    fn search(length: u64, wrong: Option<u64>) -> Option<Difference<String>> {
        let run = |window: Window| {
            let state = |which, at| {
                let apart = which == 1 && wrong.is_some_and(|wrong| at > wrong);
                format!("{}{}", at / 3, if apart { " apart" } else { "" })
            };
            let places = |which| {
                let places = (window.from.max(1)..=window.until.min(length)).step_by(window.every as usize);
                places.map(|at| Milestone { at, state: state(which, at) }).collect()
            };
            Ok::<_, ()>([places(0), places(1)])
        };
        first_difference(length, run).expect("it cannot fail")
    }

    #[test]
    fn the_first_difference_is_found_to_the_instruction() {
        for wrong in [1, 999, 1000, 123_456_789, 699_999_999] {
            let found = search(700_000_000, Some(wrong)).expect("there is one");
            assert_eq!(found.before.map(|note| note.at), Some(wrong));
            assert_eq!(found.after[1], Some(format!("{} apart", (wrong + 1) / 3)));
            assert_eq!(found.after[0], Some(format!("{}", (wrong + 1) / 3)));
        }
    }

    #[test]
    fn equal_runs_have_none() {
        assert_eq!(search(700_000_000, None), None);
    }
}
