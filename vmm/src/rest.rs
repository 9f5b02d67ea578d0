//! Processors at rest: every vCPU between two instructions, in the neutral form in which any engine goes on with them.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use engine::{CpuState, PartitionState, Processor, VcpuId};
use serde::{Deserialize, Serialize};

use crate::Result;

/// All processors of a machine between instructions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processors {
    /// What they have in common; none at power-up.
    pub partition: Option<PartitionState>,
    /// Their states, by number.
    pub vcpus: Vec<CpuState>,
}

impl Processors {
    /// At power-up: the first one is about to start the kernel, the others wait for it.
    #[must_use]
    pub fn power_up(boot: CpuState, vcpus: u8) -> Self {
        let vcpus = std::iter::once(boot).chain((1..vcpus).map(CpuState::reset)).collect();
        Self { partition: None, vcpus }
    }

    /// How far they are since power-up.
    #[must_use]
    pub fn so_far(&self) -> PartitionState {
        self.partition.unwrap_or(PartitionState { guest_time: 0, instructions: None, turn: None })
    }
}

#[derive(Debug, Default)]
struct Meeting {
    /// Seats that have not yet come to rest, nor gone.
    awaited: usize,
    /// A seat has gone without resting.
    broken: bool,
    partition: Option<PartitionState>,
    vcpus: Vec<(VcpuId, CpuState)>,
}

/// Where the seats of a session meet, so that each is saved when no other can send it anything any more.
#[derive(Debug, Default)]
pub struct Rest {
    meeting: Mutex<Meeting>,
    all: Condvar,
}

impl Rest {
    /// So many seats will come.
    pub fn expect(&self, seats: usize) {
        self.lock().awaited = seats;
    }

    /// A seat has come to rest: waits for the others. `false` if one of them will never come.
    pub fn meet(&self) -> bool {
        let mut meeting = self.lock();
        meeting.awaited = meeting.awaited.saturating_sub(1);
        self.all.notify_all();
        let waits = |meeting: &mut Meeting| meeting.awaited > 0 && !meeting.broken;
        let meeting = self.all.wait_while(meeting, waits).unwrap_or_else(PoisonError::into_inner);
        !meeting.broken
    }

    /// A seat's thread ends. Those that rest have met before.
    pub fn leave(&self) {
        let mut meeting = self.lock();
        meeting.broken |= meeting.awaited > 0;
        self.all.notify_all();
    }

    /// Saves what a seat has.
    pub fn save(&self, processor: &mut dyn Processor, vcpus: &[VcpuId]) -> Result<()> {
        let partition = processor.save_partition()?;
        let states =
            vcpus.iter().map(|&vcpu| Ok((vcpu, processor.save(vcpu)?))).collect::<Result<Vec<_>>>()?;
        let mut meeting = self.lock();
        meeting.partition = Some(partition);
        meeting.vcpus.extend(states);
        Ok(())
    }

    /// What was saved, if all rest.
    pub fn processors(self) -> Option<Processors> {
        let Meeting { partition, mut vcpus, .. } =
            self.meeting.into_inner().unwrap_or_else(PoisonError::into_inner);
        vcpus.sort_by_key(|(vcpu, _)| *vcpu);
        partition
            .map(|_| Processors { partition, vcpus: vcpus.into_iter().map(|(_, state)| state).collect() })
    }

    fn lock(&self) -> MutexGuard<'_, Meeting> {
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_one_that_is_gone() {
        let rest = Rest::default();
        rest.expect(2);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| rest.meet());
            rest.leave();
            assert!(!waiting.join().unwrap());
        });
        assert_eq!(rest.processors(), None);
    }

    #[test]
    fn all_meet() {
        let rest = Rest::default();
        rest.expect(3);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| rest.meet())).collect();
            assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
        });
        rest.leave();
    }
}
