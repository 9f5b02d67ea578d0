//! Finding the first instruction that two engines disagree on.
//!
//! [`Milestones`] is an engine that runs another one and notes the state of all vCPUs every so many instructions. Runs are
//! deterministic, so a difference is found by running again, with closer milestones where the first difference was
//! ([`first_difference`]). The notes stop nothing: a run with milestones is the run without.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use engine::event::MemoryEvents;
use engine::{
    Built, CpuState, Engine, Entry, Exit, ExitKind, GuestMemory, Msi, Partition, PartitionSpec,
    PartitionState, Processor, Result, Seat, VcpuId,
};

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
pub struct Milestone {
    /// Instructions retired.
    pub at: u64,
    /// State of every vCPU, as text.
    pub state: String,
}

/// An engine that notes the state of another one's vCPUs.
#[derive(Debug)]
pub struct Milestones {
    engine: Box<dyn Engine>,
    window: Window,
    notes: Arc<Mutex<Vec<Milestone>>>,
}

impl Milestones {
    /// Around an engine that counts instructions. The notes can be read when the machine has run.
    #[must_use]
    pub fn new(engine: Box<dyn Engine>, window: Window) -> (Self, Arc<Mutex<Vec<Milestone>>>) {
        let notes = Arc::default();
        (Self { engine, window, notes: Arc::clone(&notes) }, notes)
    }
}

impl Engine for Milestones {
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
        let next = AtomicU64::new(self.window.from.max(1));
        let road = Arc::new(Road { partition, limit: AtomicU64::new(u64::MAX), next });
        road.mark();
        let seat = |seat| {
            let (road, notes) = (Arc::clone(&road), Arc::clone(&self.notes));
            Box::new(Noting { inner: seat, road, window: self.window, notes }) as Box<dyn Seat>
        };
        Ok(Built { seats: seats.into_iter().map(seat).collect(), partition: road })
    }
}

/// The partition, whose limit is shared by the machine and the milestones.
#[derive(Debug)]
struct Road {
    partition: Arc<dyn Partition>,
    /// The machine's own.
    limit: AtomicU64,
    /// The next milestone.
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

#[derive(Debug)]
struct Noting<T: ?Sized> {
    road: Arc<Road>,
    window: Window,
    notes: Arc<Mutex<Vec<Milestone>>>,
    inner: Box<T>,
}

impl Seat for Noting<dyn Seat> {
    fn vcpus(&self) -> Vec<VcpuId> {
        self.inner.vcpus()
    }

    fn bind(self: Box<Self>) -> Result<Box<dyn Processor>> {
        let Self { road, window, notes, inner } = *self;
        let vcpus = inner.vcpus();
        let inner = inner.bind()?;
        Ok(Box::new(Walker { vcpus, noting: Noting { road, window, notes, inner } }))
    }
}

#[derive(Debug)]
struct Walker {
    vcpus: Vec<VcpuId>,
    noting: Noting<dyn Processor>,
}

impl Walker {
    /// Notes where it is, and where to stop next.
    fn note(&mut self, at: u64) -> Result<()> {
        let Noting { road, window, notes, inner } = &mut self.noting;
        let mut state = String::new();
        for &vcpu in &self.vcpus {
            state.push_str(&format!("vCPU {vcpu}: {:?}\n", inner.save(vcpu)?));
        }
        notes.lock().unwrap_or_else(PoisonError::into_inner).push(Milestone { at, state });
        let next = at.saturating_add(window.every.max(1));
        road.next.store(if next <= window.until { next } else { u64::MAX }, Ordering::Relaxed);
        road.mark();
        Ok(())
    }
}

impl Processor for Walker {
    fn run(&mut self, mut entry: Entry) -> Result<Exit> {
        loop {
            let exit = self.noting.inner.run(entry)?;
            let at = self.noting.road.instructions().unwrap_or(u64::MAX);
            if exit.kind != ExitKind::InstructionLimit || at >= self.noting.road.limit.load(Ordering::Relaxed)
            {
                return Ok(exit);
            }
            self.note(at)?;
            entry = Entry::Resume;
        }
    }

    fn save(&mut self, vcpu: VcpuId) -> Result<CpuState> {
        self.noting.inner.save(vcpu)
    }

    fn restore(&mut self, vcpu: VcpuId, state: &CpuState) -> Result<()> {
        self.noting.inner.restore(vcpu, state)
    }

    fn save_partition(&mut self) -> Result<PartitionState> {
        self.noting.inner.save_partition()
    }

    fn restore_partition(&mut self, state: &PartitionState) -> Result<()> {
        self.noting.inner.restore_partition(state)
    }
}

/// Two engines disagree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// They agree after this many instructions and not after the next one.
    pub instruction: u64,
    /// The state that they agreed on.
    pub before: String,
    /// The states after that instruction; empty where a run has ended.
    pub after: [String; 2],
}

/// The first instruction after which two runs differ, among the first `length`, at least one. `run` makes the run of one of the two with
/// milestones; it is called until they stand at every instruction.
///
/// # Errors
/// Those of `run`.
pub fn first_difference<E>(
    length: u64,
    mut run: impl FnMut(usize, Window) -> std::result::Result<Vec<Milestone>, E>,
) -> std::result::Result<Option<Difference>, E> {
    const PARTS: u64 = 1000;
    let every = (length / PARTS).max(1);
    // The last one is at the end.
    let mut window = Window { from: length.saturating_sub(1) % every + 1, every, until: length };
    loop {
        let notes = [run(0, window)?, run(1, window)?];
        let longest = notes[0].len().max(notes[1].len());
        let Some(n) = (0..longest).find(|&n| notes[0].get(n) != notes[1].get(n)) else { return Ok(None) };
        let before = n.checked_sub(1).and_then(|n| notes[0].get(n));
        if window.every == 1 {
            return Ok(Some(Difference {
                instruction: before.map_or(0, |note| note.at),
                before: before.map(|note| note.state.clone()).unwrap_or_default(),
                after: notes.map(|notes| notes.get(n).map(|note| note.state.clone()).unwrap_or_default()),
            }));
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
    fn search(length: u64, wrong: Option<u64>) -> Option<Difference> {
        let run = |which, window: Window| {
            let state = |at| {
                let apart = which == 1 && wrong.is_some_and(|wrong| at > wrong);
                format!("{}{}", at / 3, if apart { " apart" } else { "" })
            };
            let places = (window.from.max(1)..=window.until.min(length)).step_by(window.every as usize);
            Ok::<_, ()>(places.map(|at| Milestone { at, state: state(at) }).collect())
        };
        first_difference(length, run).expect("it cannot fail")
    }

    #[test]
    fn the_first_difference_is_found_to_the_instruction() {
        for wrong in [1, 999, 1000, 123_456_789, 699_999_999] {
            let found = search(700_000_000, Some(wrong)).expect("there is one");
            assert_eq!(found.instruction, wrong);
            assert_eq!(found.after[1], format!("{} apart", (wrong + 1) / 3));
            assert_eq!(found.after[0], format!("{}", (wrong + 1) / 3));
        }
    }

    #[test]
    fn equal_runs_have_none() {
        assert_eq!(search(700_000_000, None), None);
    }
}
