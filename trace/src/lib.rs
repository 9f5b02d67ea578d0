//! The trace of a run: everything that was done to persistent memory, in the order in which it was done, and what the
//! memory held before. From it alone follows what a power cut at any moment leaves.
//!
//! A file is a magic number and a format number, then chunks, each compressed and with a checksum of its own:
//!
//! | tag | chunk | |
//! |---|---|---|
//! | `H` | [`Header`] | who ran what, on which DIMMs |
//! | `B` | blocks | the DIMMs' files at the start: each block of 4 KiB that is not zero |
//! | `S` | start | the hash of each DIMM's file at the start |
//! | `N` | names | what code at some addresses is called: `(address, name)`, before the events that lead there |
//! | `E` | events | see [`Event`]; coded by difference to the one before or as what a loop foretells, anew in each chunk |
//! | `Z` | [`End`] | totals; a file without it was cut short |
//!
//! So a trace needs no other file, can be written and read as a stream of any length, and one that is cut short or damaged
//! says where, and is good up to there.
//!
//! [`Replay`] plays a trace on the medium, and [`Contents`] is what the DIMMs of a run hold, live or played.

mod chunk;
mod code;
mod contents;
mod error;
mod event;
mod floor;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod header;
mod press;
mod read;
mod replay;
mod run;
#[cfg(test)]
mod tests;
mod when;
mod worker;
mod write;

/// A frame's address, and whether it is no more than likely ([`GUESS`]).
#[must_use]
pub fn frame(frame: u64) -> (u64, bool) {
    let guess = (frame >> 62 ^ frame >> 63) & 1 == 1;
    (if guess { frame ^ GUESS } else { frame }, guess)
}

pub use contents::{Contents, Remains, in_short};
pub use error::{Error, Result};
pub use event::{Area, Event, Kind};
pub use floor::Floor;
pub use header::{DimmHeader, End, Header, ZoneHeader};
pub use nvdimm_model::medium;
pub use read::Reader;
pub use replay::{Reached, Replay};
pub use run::Loop;
pub use when::{Cutter, Due, Moment, Verdict, When};
pub use worker::{Jobs, Queue, Worker};
pub use write::Writer;

/// Bytes of a block of a DIMM's file.
pub const BLOCK: usize = 4096;
/// Bytes of what a DIMM says of itself ([`Area::State`]); it is recorded without the zeroes at its end.
pub const STATE: usize = 32 << 10;
/// The format that this crate writes and reads.
pub const FORMAT: u32 = 3;
/// A frame of a call chain that is no more than likely has this bit the other way round: an address of which bits 62 and 63
/// differ is none that a processor takes.
pub const GUESS: u64 = 1 << 62;
/// How a trace begins.
pub const MAGIC: &[u8; 16] = b"nvsim trace\r\n\x1a\0\0";
