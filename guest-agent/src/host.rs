//! The host's side of the control channel, as a pure state machine: bytes in, events and bytes out.
//!
//! The host is silent until the agent has said hello, so what the guest sees does not depend on when the host looked.

use std::collections::VecDeque;

use crate::frame::Decoder;
use crate::message::{FromGuest, FromHost, Request, VERSION};

/// What the guest told.
pub type Event = FromGuest;

/// One run's conversation with the agent. Reboots of the guest are part of it: the request is sent anew after each hello.
#[derive(Debug)]
pub struct HostSession {
    request: Vec<u8>,
    decoder: Decoder,
    to_guest: VecDeque<u8>,
    boots: u32,
}

impl HostSession {
    /// A session that will ask for `request`.
    pub fn new(request: &Request) -> Self {
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        Self { request: bytes, decoder: Decoder::default(), to_guest: VecDeque::new(), boots: 0 }
    }

    /// A session with an agent that waits for a request: it stayed after an earlier one.
    pub fn with_waiting_agent(request: &Request) -> Self {
        let mut session = Self::new(request);
        session.ask(request);
        session
    }

    /// Asks an agent that stayed for something else.
    pub fn ask(&mut self, request: &Request) {
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        self.to_guest.extend(bytes);
    }

    /// Takes a byte that the guest wrote to the control channel. Where more than one event comes of it, the others are
    /// had from [`HostSession::next_event`].
    pub fn on_guest_byte(&mut self, byte: u8) -> Option<Event> {
        self.decoder.push(byte);
        self.next_event()
    }

    /// The next event of the bytes taken so far.
    pub fn next_event(&mut self) -> Option<Event> {
        while let Some(frame) = self.decoder.next() {
            let Some(event) = FromGuest::decode(frame) else { continue };
            if let FromGuest::Hello(hello) = &event {
                self.boots = self.boots.saturating_add(1);
                self.to_guest.clear();
                if hello.version == VERSION {
                    self.to_guest.extend(&self.request);
                }
            }
            return Some(event);
        }
        None
    }

    /// The next byte for the guest to read from the control channel.
    pub fn to_guest(&mut self) -> Option<u8> {
        self.to_guest.pop_front()
    }

    /// Whether [`HostSession::to_guest`] has a byte.
    pub fn has_bytes(&self) -> bool {
        !self.to_guest.is_empty()
    }

    /// How often the agent said hello.
    pub fn boots(&self) -> u32 {
        self.boots
    }

    /// Tells the agent that the terminal's window has a new size. Before the first hello it is not sent: the request
    /// has the size.
    pub fn resize(&mut self, rows: u16, columns: u16) {
        if self.boots > 0 {
            let mut bytes = Vec::new();
            FromHost::Resize { rows, columns }.encode(&mut bytes);
            self.to_guest.extend(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::tests::{frames, from_guest, request};
    use crate::message::{Exited, Hello, Job};
    use proptest::prelude::*;

    fn shell() -> Request {
        Request {
            pmem: Vec::new(),
            job: Job::Shell { term: "vt100".into(), rows: 24, columns: 80 },
            stay: false,
        }
    }

    fn hello(version: u32) -> Vec<u8> {
        let mut line = Vec::new();
        FromGuest::Hello(Hello { version, kernel: "6.12".into(), uptime: 1 }).encode(&mut line);
        line
    }

    fn feed(session: &mut HostSession, line: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        for &byte in line {
            events.extend(session.on_guest_byte(byte));
            while let Some(event) = session.next_event() {
                events.push(event);
            }
        }
        events
    }

    fn drain(session: &mut HostSession) -> Vec<u8> {
        std::iter::from_fn(|| session.to_guest()).collect()
    }

    #[test]
    fn nothing_is_sent_before_hello_and_all_of_it_after_each() {
        let mut session = HostSession::new(&shell());
        assert_eq!(session.to_guest(), None);
        session.resize(1, 1);
        assert_eq!(session.to_guest(), None);
        for boot in 1..=2 {
            feed(&mut session, &hello(VERSION));
            assert_eq!(session.boots(), boot);
            assert_eq!(drain(&mut session), session.request);
        }
        session.resize(50, 132);
        let sent = drain(&mut session);
        assert_eq!(
            frames(&sent).into_iter().map(FromHost::decode).collect::<Vec<_>>(),
            [Some(FromHost::Resize { rows: 50, columns: 132 })]
        );
    }

    #[test]
    fn an_agent_that_stayed_is_asked_at_once() {
        let mut session = HostSession::with_waiting_agent(&shell());
        assert_eq!(drain(&mut session), session.request);
        assert_eq!(session.boots(), 0);
    }

    #[test]
    fn an_agent_of_another_version_gets_no_request() {
        let mut session = HostSession::new(&shell());
        assert_eq!(feed(&mut session, &hello(VERSION + 1)).len(), 1);
        assert!(!session.has_bytes());
    }

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(Exited::Status(3).code(), 3);
        assert_eq!(Exited::Signal(9).code(), 137);
        assert_eq!(Exited::Signal(255).code(), 255);
    }

    proptest! {
        #[test]
        fn every_event_arrives_behind_any_boot_noise(
            noise in "[ -~\r\n]{0,200}", events in prop::collection::vec(from_guest(), 0..10), request in request(),
        ) {
            let mut line = noise.into_bytes();
            events.iter().for_each(|event| event.encode(&mut line));
            let mut session = HostSession::new(&request);
            prop_assert_eq!(feed(&mut session, &line), events);
        }
    }
}
