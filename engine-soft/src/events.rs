//! The memory-event source as the machine sees it: what to watch goes in, the log comes out.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use engine::event::MemoryEvents;
use engine::log::Log;
use engine::place::Place;
use engine::{Partition, VcpuId};

use crate::partition::Common;
use crate::shared::{LOG_CAPACITY, Shared, Watch};

/// Between the machine's threads and the one that runs vCPUs.
#[derive(Debug, Default)]
pub(crate) struct Events {
    /// What to watch from the next run on.
    wanted: Mutex<Option<Watch>>,
    /// What has been logged and not yet drained.
    log: Mutex<Log>,
    /// Whether to ask for places.
    places: AtomicBool,
    /// Places that the machine has told of since the last run.
    told: Mutex<Vec<(VcpuId, Place)>>,
}

impl Events {
    /// Before a run: takes what is wanted over. `true` if that changed anything.
    pub(crate) fn adopt(&self, shared: &mut Shared) -> bool {
        let Some(watch) = self.wanted.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return false;
        };
        shared.begin_watching(watch);
        true
    }

    /// Before a run, after [`Events::adopt`]: hands on what the machine has told.
    pub(crate) fn hand_on(&self, shared: &mut Shared) {
        for (vcpu, place) in self.told.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            shared.learn(vcpu, place);
        }
    }

    /// After a run: makes its events drainable.
    pub(crate) fn publish(&self, shared: &mut Shared) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.is_empty() {
            std::mem::swap(&mut *log, &mut shared.log);
        } else {
            log.append(&mut shared.log);
        }
    }

    /// Nobody has drained since the log was full.
    pub(crate) fn is_full(&self) -> bool {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).len() >= LOG_CAPACITY
    }
}

impl MemoryEvents for Common {
    fn watch(&self, ranges: &[Range<u64>], loads: bool) {
        let ranges = ranges.iter().filter(|range| range.start < range.end).cloned().collect();
        let places = self.events.places.load(Ordering::Relaxed);
        *self.events.wanted.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Watch { ranges, loads, places });
    }

    fn ask_places(&self, on: bool) -> bool {
        self.events.places.store(on, Ordering::Relaxed);
        true
    }

    fn learn(&self, vcpu: VcpuId, place: Place) {
        self.events.told.lock().unwrap_or_else(PoisonError::into_inner).push((vcpu, place));
    }

    fn number(&self) -> u64 {
        Partition::instructions(self).unwrap_or(0)
    }

    fn stop_at(&self, number: Option<u64>) {
        let _ = Partition::stop_at(self, number);
    }

    fn drain(&self, log: &mut Log) {
        log.clear();
        std::mem::swap(&mut *self.events.log.lock().unwrap_or_else(PoisonError::into_inner), log);
    }
}

#[cfg(test)]
mod tests;
