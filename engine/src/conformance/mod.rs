//! The conformance suite: the same guest snippets on every engine.
//!
//! A case is a little program, the state and memory that it starts from, and what must come out: exits, registers, memory.
//! Expectations are the architecture's (Intel SDM), never what some engine once did, so the suite decides that engines
//! agree. [`run`] runs cases as they are; [`run_moving`] also saves the state at every exit and carries it into a
//! fresh partition, of the same engine or of another one.

mod bench;
mod crew;
mod journal;
mod machine;
mod scene;
mod trap;

mod apic;
mod atomics;
mod code;
mod events;
mod exceptions;
mod fpu;
mod mmio;
mod modes;
mod paging;
mod ports;
mod privilege;
mod smp;
mod snapshot;
mod strings;
mod system;
mod watch;
mod wide;

pub use bench::{Bench, Case, Failure, Outcome, Report, Selection};

use crate::Engine;

/// All cases, by topic.
#[must_use]
pub fn cases() -> Vec<Case> {
    [
        ports::CASES,
        mmio::CASES,
        exceptions::CASES,
        paging::CASES,
        strings::CASES,
        atomics::CASES,
        code::CASES,
        fpu::CASES,
        system::CASES,
        privilege::CASES,
        modes::CASES,
        events::CASES,
        apic::CASES,
        smp::CASES,
        snapshot::CASES,
        watch::CASES,
        wide::CASES,
    ]
    .concat()
}

/// Runs every case on an engine.
pub fn run_all(engine: &dyn Engine) -> Report {
    run(engine, &Selection::default())
}

/// Runs chosen cases on an engine.
pub fn run(engine: &dyn Engine, selection: &Selection) -> Report {
    Report::of(&Bench::new(engine), selection)
}

/// Runs chosen cases while carrying their vCPU from partition to partition at its exits: from the first engine to the
/// second, and so on in turn. Cases of several vCPUs stay where they are.
pub fn run_moving(engines: &[&dyn Engine], selection: &Selection) -> Report {
    Report::of(&Bench::moving(engines), selection)
}
