//! A recorded run played again on the medium, up to a moment.

use std::fs::File;
use std::io::Read;

use nvdimm_model::Medium;
use nvdimm_model::medium::Rules;
use serde::Serialize;

use crate::{Contents, Cutter, Due, Event, Floor, Reader, Result, Verdict, When};

/// A trace that is played: where its reader is, and what the DIMMs hold there.
#[derive(Debug)]
pub struct Replay<R: Read> {
    trace: Reader<R>,
    contents: Contents,
}

/// A moment of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Reached {
    /// Events before, from the begin of the recording.
    pub events: u64,
    /// Instructions retired before.
    pub instruction: u64,
    /// Guest time in nanoseconds.
    pub time: u64,
}

impl Reached {
    /// The moment itself, which lies before this, where something else has shown that it is over.
    fn due(self, due: Due) -> Self {
        match due {
            Due::Instruction(instruction) => Self { instruction, ..self },
            Due::Time(time) => Self { time, ..self },
        }
    }
}

impl<R: Read> Replay<R> {
    /// A trace at its begin. `files` are empty, one for each of its DIMMs: they hold what is sure.
    ///
    /// # Errors
    /// What is wrong with the trace, or [`crate::Error::Floor`].
    pub fn new(mut trace: Reader<R>, rules: Rules, files: Vec<File>) -> Result<Self> {
        let floor = Floor::new(trace.header(), files)?;
        floor.fill(&mut trace)?;
        let contents = Contents::new(trace.header(), rules, floor);
        Ok(Self { trace, contents })
    }

    /// The trace; it knows the chains and names of what was played, and its end if that was reached.
    #[must_use]
    pub fn trace(&self) -> &Reader<R> {
        &self.trace
    }

    /// What the DIMMs hold.
    #[must_use]
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Plays up to a moment, or to the end; shows each event, with its number and the medium after it. `None` if the moment
    /// never comes. A random moment must have been [drawn](When::drawn_from).
    ///
    /// # Errors
    /// What is wrong with the trace so far, or [`crate::Error::Floor`].
    pub fn play(
        &mut self,
        when: Option<&When>,
        mut visit: impl FnMut(u64, &Event<'_>, &Medium),
    ) -> Result<Option<Reached>> {
        let mut cutter = when.map(Cutter::new);
        let mut events = 0;
        while let Some(event) = self.trace.next_event()? {
            let Event { instruction, time, .. } = event;
            let verdict = cutter.as_mut().map_or(Verdict::GoOn, |cutter| cutter.see(&event));
            if verdict == Verdict::Before {
                let reached = Reached { events, instruction, time };
                let due = cutter.as_ref().and_then(Cutter::due);
                return Ok(Some(due.map_or(reached, |due| reached.due(due))));
            }
            self.contents.apply(&event)?;
            events += 1;
            visit(events, &event, self.contents.medium());
            if verdict == Verdict::After {
                return Ok(Some(Reached { events, instruction: instruction + 1, time }));
            }
        }
        let Some(end) = self.trace.end() else { return Ok(None) };
        let reached = Reached { events, instruction: end.instruction, time: end.time };
        let Some(cutter) = cutter else { return Ok(Some(reached)) };
        // Nothing more happened, but the run went on.
        let due = cutter.due().filter(|due| due.is_reached(reached.instruction, reached.time));
        Ok(due.map(|due| reached.due(due)))
    }
}
