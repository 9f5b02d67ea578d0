//! What a run does to its NV-DIMMs: recorded into a trace, followed by the model, and ended by a power cut.
//!
//! The session hands over everything in the order in which it happened: after each exit first what the engine saw since
//! the last one, then what the exit itself did (a mark, a flush hint, a call, a device's write). The moment of a power cut
//! is found in that order of events, not in the engine: what the guest has done beyond it, until the next exit, is undone
//! in the DIMMs, and nobody else has seen it.
//!
//! [`Recorder`] follows the run; the tape writes the trace, which is coded by a thread of its own; the cutting waits for its moment and leaves what is left;
//! [`cut()`] does the same from a trace alone.

mod coder;
mod cutting;
mod mark;
mod offline;
mod recorder;
mod spec;
mod survey;
mod tape;
#[cfg(test)]
mod tests;
mod words;

pub use mark::mark_name;
pub use offline::cut;
pub use recorder::Recorder;
pub use spec::{CutReport, CutSpec, RecordReport, RecordSpec, Window, survivors_name};
