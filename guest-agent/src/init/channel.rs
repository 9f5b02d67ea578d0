//! The agent's side of the control channel.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use guest_agent::{CHANNEL, Decoder, FromGuest, FromHost, HOST_PARAMETER, MAX_REQUEST, Request};

use super::sys;

/// The line to the host.
#[derive(Debug)]
pub struct Channel {
    line: File,
    decoder: Decoder,
}

impl Channel {
    /// Opens the line when the kernel's command line says that a host listens.
    pub fn open() -> io::Result<Option<Self>> {
        let parameters = std::fs::read_to_string("/proc/cmdline")?;
        if !parameters.split_whitespace().any(|word| word == HOST_PARAMETER) {
            return Ok(None);
        }
        let line = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY | libc::O_CLOEXEC)
            .open(CHANNEL)?;
        sys::make_raw(&line)?;
        Ok(Some(Self { line, decoder: Decoder::default() }))
    }

    /// Sends a message. The line is slower than we are, so this waits while its buffer is full.
    pub fn send(&mut self, message: &FromGuest) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        // When the host no longer listens there is nobody to tell.
        let _ = self.line.write_all(&bytes);
    }

    /// Waits until the line has carried all that was sent.
    pub fn flush(&self) {
        sys::drain(&self.line);
    }

    /// Waits for the whole request.
    pub fn request(&mut self) -> io::Result<Request> {
        let mut parts = Vec::new();
        loop {
            match self.message()? {
                Some(FromHost::Part(part)) if parts.len() + part.len() <= MAX_REQUEST => parts.extend(part),
                Some(FromHost::Run) => {
                    return Request::from_bytes(&parts)
                        .ok_or_else(|| io::Error::other("the host's request is of another version"));
                }
                _ => {}
            }
        }
    }

    /// Reads what is there, waiting when nothing is, and gives the next message if it is whole.
    pub fn message(&mut self) -> io::Result<Option<FromHost>> {
        if let Some(frame) = self.decoder.next() {
            return Ok(FromHost::decode(frame));
        }
        let mut buffer = [0; 512];
        let count = self.line.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer[..count].iter().for_each(|&byte| self.decoder.push(byte));
        Ok(self.decoder.next().and_then(FromHost::decode))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.line.as_fd()
    }
}
