//! What a trace shows. [`explain`] says what a power cut at a moment would leave undecided: by line, by the store that put
//! it in doubt, by the code that made the store, and by what is missing. [`report`] draws the whole run as one page.
//!
//! Both replay the trace as a stream; what is in memory is what is in doubt. Nothing but temporary files is written.

mod epoch;
mod error;
mod explain;
mod images;
mod names;
mod page;
mod replay;
#[cfg(test)]
mod tests;
mod timeline;

pub use error::{Error, Result};
pub use explain::{Cause, Explained, Explanation, Line, Place, Store, explain};
pub use images::Images;
pub use names::{callers, place};
pub use page::report;
pub use replay::Source;
pub use trace::Reached;
