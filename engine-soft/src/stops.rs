//! Breakpoints and watchpoints of a debugger outside of the guest.
//!
//! On a page with a breakpoint every instruction runs alone and is looked at before; elsewhere blocks run as ever, but
//! interpreted, since only the interpreter asks before it enters a page. With watchpoints everything runs alone, and the
//! translation cache serves nothing, so that every access is seen.

use std::sync::Arc;

use engine::debug::{Points, Stop};

use crate::cpu::Cpu;

/// What one vCPU knows of them.
#[derive(Debug, Default)]
pub(crate) struct Stops {
    points: Arc<Points>,
    /// The breakpoint that was told last: the instruction there is now to be executed.
    told: Option<u64>,
    /// What the current instruction has met.
    met: Option<Stop>,
}

impl Cpu {
    /// Replaces where to stop. The caller forgets all code.
    pub(crate) fn set_points(&mut self, points: &Arc<Points>) {
        self.stops.points = Arc::clone(points);
        self.mode_changed();
        self.flush_tlb();
    }

    /// Everything has to run alone.
    pub(crate) fn has_watchpoints(&self) -> bool {
        !self.stops.points.data.is_empty()
    }

    /// Code may not be translated.
    pub(crate) fn has_breakpoints(&self) -> bool {
        !self.stops.points.instructions.is_empty()
    }

    /// Instructions of this page have to run alone.
    #[inline]
    pub(crate) fn is_near_breakpoint(&self, rip: u64) -> bool {
        self.has_breakpoints() && {
            let page = self.seg_base[1].wrapping_add(rip) >> 12;
            self.stops.points.instructions.iter().any(|at| at >> 12 == page)
        }
    }

    /// Before an instruction alone: whether to stop there. It is told once.
    pub(crate) fn stop_before(&mut self, rip: u64) -> Option<Stop> {
        let begun = !self.replay.0.is_empty();
        if !self.has_breakpoints() || begun {
            return None;
        }
        let at = self.seg_base[1].wrapping_add(rip);
        if self.stops.told.take() == Some(at) || !self.stops.points.instructions.contains(&at) {
            return None;
        }
        self.stops.told = Some(at);
        Some(Stop::Instruction)
    }

    /// Notes an access that a watchpoint is for.
    pub(crate) fn note_access(&mut self, va: u64, len: usize, store: bool) {
        let end = va.saturating_add(len as u64);
        let wanted = self.stops.points.data.iter().any(|watch| {
            let kind = if store { watch.stores } else { watch.loads };
            kind && watch.range.start < end && va < watch.range.end
        });
        if wanted {
            self.stops.met = Some(Stop::Data { address: va, store });
        }
    }

    /// After an instruction alone: what it has met.
    pub(crate) fn stop_after(&mut self) -> Option<Stop> {
        self.stops.met.take()
    }
}
