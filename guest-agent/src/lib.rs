//! The guest image's init, and the protocol it speaks with the host.
//!
//! The library is the protocol, in both directions; the program, PID 1 of a guest image, uses its agent's side, and the
//! `nvsim` command its host's side, [`HostSession`]. The channel is the machine's second serial port.

mod frame;
mod host;
mod message;

pub use frame::{Decoder, Frame, MAX_PAYLOAD, encode};
pub use host::{Event, HostSession};
pub use message::{
    CHANNEL, Exited, FromGuest, FromHost, Fs, HOST_PARAMETER, Hello, Job, MAX_REQUEST, Pmem, Request, VERSION,
};
