//! Events become bytes.

use nvdimm_model::geometry::LINE;
use nvdimm_model::medium::{FlushKind, StoreKind};

use super::{Before, FENCES, Run, flag, kind, other};
use crate::run::{Access, COUNT, Loop};
use crate::{Area, Event, Kind};

/// Codes events into a chunk.
#[derive(Debug)]
pub struct Encoder {
    bytes: Vec<u8>,
    before: Before,
    /// The loop that the last access may belong to.
    guess: Option<Loop>,
    run: Option<Run>,
    /// What the run's accesses have stored.
    stored: Vec<u8>,
}

/// What comes before an event's own bytes: at most seven numbers and four bytes.
#[derive(Debug)]
struct Head {
    bytes: [u8; 80],
    len: usize,
}

impl Default for Head {
    fn default() -> Self {
        Self { bytes: [0; 80], len: 0 }
    }
}

impl Head {
    #[inline]
    fn byte(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    #[inline]
    fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.byte(value as u8 | 0x80);
            value >>= 7;
        }
        self.byte(value as u8);
    }

    #[inline]
    fn difference(&mut self, value: u64, before: u64) {
        self.number(zigzag(value, before));
    }
}

fn zigzag(value: u64, before: u64) -> u64 {
    let difference = value.wrapping_sub(before) as i64;
    (difference << 1 ^ difference >> 63) as u64
}

/// A kind with the address that it concerns, and how many bytes there.
fn of(event: &Kind<'_>) -> (u8, Option<(u64, u64)>) {
    match *event {
        Kind::Store { address, data, kind } => {
            let kind = match kind {
                StoreKind::Cached => kind::CACHED,
                StoreKind::Locked => kind::LOCKED,
                StoreKind::NonTemporal => kind::NON_TEMPORAL,
                StoreKind::Direct64 => kind::DIRECT,
                StoreKind::String(_) => kind::STRING,
                StoreKind::Device => kind::DEVICE,
            };
            (kind, Some((address, data.len() as u64)))
        }
        Kind::Flush { address, kind } => {
            let kind = match kind {
                FlushKind::Clflush => kind::CLFLUSH,
                FlushKind::Clflushopt => kind::CLFLUSHOPT,
                FlushKind::Clwb => kind::CLWB,
            };
            // Lines are flushed one after the other.
            (kind, Some((address, LINE)))
        }
        Kind::Load { address, len } => (kind::LOAD, Some((address, len.into()))),
        Kind::Fence(_) => (kind::FENCE, None),
        Kind::Hint { .. } => (kind::HINT, None),
        Kind::Mark(_) => (kind::MARK, None),
        Kind::WriteBackAll | Kind::DropAll | Kind::Reset | Kind::Call { .. } | Kind::Meta { .. } => {
            (kind::OTHER, None)
        }
    }
}

impl Encoder {
    pub fn new() -> Self {
        let (bytes, stored) = (Vec::new(), Vec::new());
        Self { bytes, before: Before::start(), guess: None, run: None, stored }
    }

    /// Gives the coded events and begins anew, in this room.
    pub fn take(&mut self, room: Vec<u8>) -> Vec<u8> {
        self.end_run();
        self.before = Before::start();
        self.guess = None;
        std::mem::replace(&mut self.bytes, room)
    }

    /// Bytes so far, as good as.
    pub fn len(&self) -> usize {
        self.bytes.len() + self.stored.len()
    }

    /// Appends an event. The caller has seen to it that data and names are not too long.
    #[inline]
    pub fn event(&mut self, event: &Event<'_>) {
        let access = Access::of(event);
        let of = self.run.as_ref().map(|run| run.of).or(self.guess);
        if let (Some((access, data)), Some(of)) = (access, of)
            && self.before.history.next(of) == access
        {
            match &mut self.run {
                Some(run) => run.count += 1,
                None => self.run = Some(Run { of, count: 1 }),
            }
            self.before.history.push(access);
            match <[u8; 8]>::try_from(data) {
                Ok(word) => self.stored.extend(word),
                Err(_) => self.stored.extend_from_slice(data),
            }
            if self.run.is_some_and(|run| run.count >= COUNT) {
                self.end_run();
            }
            return;
        }
        self.end_run();
        self.single(event);
        if let Some((access, _)) = access {
            self.guess = self.before.history.guess(&access);
            self.before.history.push(access);
        }
    }

    /// So many accesses that are what a loop foretells, at most [`COUNT`]; `tell` appends their bytes. Gives whether there are such.
    pub fn rounds(&mut self, of: Loop, count: u64, tell: impl FnOnce(&mut Vec<u8>)) -> bool {
        let known = 1..=self.before.history.len();
        if !known.contains(&of.period) || !(1..=COUNT).contains(&count) {
            return false;
        }
        if self.run.is_some_and(|run| run.of != of || run.count + count > COUNT) {
            self.end_run();
        }
        let before = self.stored.len();
        tell(&mut self.stored);
        if (self.stored.len() - before) as u64 != self.before.history.bytes(of, count) {
            self.stored.truncate(before);
            return false;
        }
        self.run.get_or_insert(Run { of, count: 0 }).count += count;
        self.before.history.advance(of, count);
        true
    }

    /// What was in a run is told.
    fn end_run(&mut self) {
        let Some(Run { of: Loop { period, address, instructions }, count }) = self.run.take() else { return };
        self.bytes.extend([kind::RUN, period as u8]);
        self.difference(address, 0);
        self.difference(instructions, 0);
        self.number(count);
        self.bytes.append(&mut self.stored);
        self.before.catch_up();
    }

    /// An event by itself.
    fn single(&mut self, event: &Event<'_>) {
        let mut head = Head::default();
        let before = &mut self.before;
        let ahead = event.time.wrapping_sub(event.instruction);
        if event.chain != before.chain {
            head.byte(kind::CHAIN);
            head.number(event.chain.into());
            before.chain = event.chain;
        }
        if ahead != before.ahead {
            head.byte(kind::AHEAD);
            head.difference(ahead, before.ahead);
            before.ahead = ahead;
        }
        let (mut first, target) = of(&event.kind);
        let rip = &mut before.rips[usize::from(event.vcpu)];
        let flags = [
            (event.vcpu == before.vcpu, flag::VCPU),
            (event.rip == *rip, flag::RIP),
            (event.instruction == before.instruction, flag::INSTRUCTION),
            (target.is_none_or(|(address, _)| address == before.address), flag::ADDRESS),
        ];
        for (holds, flag) in flags {
            first |= if holds { flag } else { 0 };
        }
        head.byte(first);
        if first & flag::VCPU == 0 {
            head.byte(event.vcpu);
            before.vcpu = event.vcpu;
        }
        if first & flag::INSTRUCTION == 0 {
            head.difference(event.instruction, before.instruction);
            before.instruction = event.instruction;
        }
        if first & flag::RIP == 0 {
            head.difference(event.rip, *rip);
            *rip = event.rip;
        }
        if let Some((address, len)) = target {
            if first & flag::ADDRESS == 0 {
                head.difference(address, before.address);
            }
            before.address = address.wrapping_add(len);
        }
        self.bytes.extend_from_slice(&head.bytes[..head.len]);
        self.rest(&event.kind);
    }

    /// What only this kind has.
    fn rest(&mut self, kind: &Kind<'_>) {
        match *kind {
            Kind::Store { data, kind, .. } => {
                if let StoreKind::String(element) = kind {
                    self.bytes.push(element);
                }
                self.data(data);
            }
            Kind::Flush { .. } => {}
            Kind::Fence(fence) => {
                self.bytes.push(FENCES.iter().position(|&known| known == fence).unwrap_or_default() as u8);
            }
            Kind::Load { len, .. } => self.number(len.into()),
            Kind::Hint { dimm } => self.bytes.push(dimm),
            Kind::Mark(name) => self.data(name.as_bytes()),
            Kind::WriteBackAll => self.bytes.push(other::WRITE_BACK),
            Kind::DropAll => self.bytes.push(other::DROP),
            Kind::Reset => self.bytes.push(other::RESET),
            Kind::Call { handle, function } => {
                self.bytes.push(other::CALL);
                self.number(handle.into());
                self.number(function.into());
            }
            Kind::Meta { dimm, area, offset, data } => {
                self.bytes.push(if area == Area::Labels { other::LABELS } else { other::STATE });
                self.bytes.push(dimm);
                self.number(offset);
                self.data(data);
            }
        }
    }

    /// Appends a new call chain; its number is that of the chains before it, and one.
    pub fn chain(&mut self, frames: &[u64]) {
        self.end_run();
        self.bytes.push(kind::FRAMES);
        self.number(frames.len() as u64);
        let mut before = 0;
        for &frame in frames {
            self.difference(frame, before);
            before = frame;
        }
    }

    fn data(&mut self, data: &[u8]) {
        self.number(data.len() as u64);
        self.bytes.extend_from_slice(data);
    }

    fn difference(&mut self, value: u64, before: u64) {
        self.number(zigzag(value, before));
    }

    fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }
}
