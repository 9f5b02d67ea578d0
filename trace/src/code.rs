//! How events stand in a chunk: a byte of kind and flags, then what is not as in the event before. Numbers are in base 128,
//! low digits first; differences are zigzag-coded.
//!
//! Two kinds are no events but hold for those that follow: the number of the call chain, and how far guest time is ahead
//! of the count of instructions. A third stands for the next rounds of a loop ([`crate::run`]): how many accesses it has, how
//! far each is from the round before in instructions and in addresses, how many accesses follow, and then only their bytes.

use nvdimm_model::geometry::LINE;
use nvdimm_model::medium::{FenceKind, FlushKind, StoreKind};

use crate::run::{Access, COUNT, Deed, History, Loop};
use crate::{Area, Event, Kind};

/// Flags of the first byte, above four bits of kind.
mod flag {
    /// The vCPU is that of the event before.
    pub const VCPU: u8 = 0x10;
    /// The instruction pointer is where this vCPU was last.
    pub const RIP: u8 = 0x20;
    /// The instruction count is that of the event before.
    pub const INSTRUCTION: u8 = 0x40;
    /// The address is where the last access ended.
    pub const ADDRESS: u8 = 0x80;
}

/// Kinds.
mod kind {
    pub const CACHED: u8 = 0;
    pub const LOCKED: u8 = 1;
    pub const NON_TEMPORAL: u8 = 2;
    pub const DIRECT: u8 = 3;
    pub const STRING: u8 = 4;
    pub const DEVICE: u8 = 5;
    pub const CLFLUSH: u8 = 6;
    pub const CLFLUSHOPT: u8 = 7;
    pub const CLWB: u8 = 8;
    pub const FENCE: u8 = 9;
    pub const LOAD: u8 = 10;
    pub const HINT: u8 = 11;
    pub const MARK: u8 = 12;
    pub const OTHER: u8 = 13;
    pub const CHAIN: u8 = 14;
    pub const AHEAD: u8 = 15;

    /// As a whole byte: a new call chain.
    pub const FRAMES: u8 = CHAIN | super::flag::VCPU;
    /// As a whole byte: a run.
    pub const RUN: u8 = AHEAD | super::flag::VCPU;
}

/// Kinds behind [`kind::OTHER`].
mod other {
    pub const WRITE_BACK: u8 = 0;
    pub const DROP: u8 = 1;
    pub const RESET: u8 = 2;
    pub const CALL: u8 = 3;
    pub const LABELS: u8 = 4;
    pub const STATE: u8 = 5;
}

const FENCES: [FenceKind; 6] = [
    FenceKind::Sfence,
    FenceKind::Mfence,
    FenceKind::Lfence,
    FenceKind::Locked,
    FenceKind::FailedCmpxchg,
    FenceKind::Serialising,
];

/// What the next event is told apart from.
#[derive(Debug, Clone)]
struct Before {
    vcpu: u8,
    instruction: u64,
    ahead: u64,
    chain: u32,
    /// Where the last access ended.
    address: u64,
    /// By vCPU.
    rips: Box<[u64; 256]>,
    /// The accesses before.
    history: History,
}

impl Before {
    fn start() -> Self {
        let (rips, history) = (Box::new([0; 256]), History::new());
        Self { vcpu: 0, instruction: 0, ahead: 0, chain: 0, address: 0, rips, history }
    }

    /// A run is over: the last of its accesses is the event before.
    fn catch_up(&mut self) {
        let Some(last) = self.history.last() else { return };
        (self.vcpu, self.instruction, self.ahead, self.chain) =
            (last.vcpu, last.instruction, last.ahead, last.chain);
        self.rips[usize::from(last.vcpu)] = last.rip;
        self.address = last.end().unwrap_or(self.address);
    }
}

/// A run that is not over, and how many accesses it has: so far, or yet to be read.
#[derive(Debug, Clone, Copy)]
struct Run {
    of: Loop,
    count: u64,
}

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

/// Reads the events of a chunk.
#[derive(Debug)]
pub struct Decoder {
    bytes: Vec<u8>,
    at: usize,
    before: Before,
    run: Option<Run>,
}

/// A chunk's bytes are no events.
#[derive(Debug)]
pub struct Nonsense;

type Decoded<T> = Result<T, Nonsense>;

impl Decoder {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, at: 0, before: Before::start(), run: None }
    }

    /// Takes what holds for the next events; new chains go to `chains`. Gives whether an event follows.
    pub fn settle(&mut self, chains: &mut Vec<Box<[u64]>>) -> Decoded<bool> {
        if self.run.is_some() {
            return Ok(true);
        }
        while let Some(&first) = self.bytes.get(self.at) {
            match first {
                kind::CHAIN => {
                    self.at += 1;
                    let chain = u32::try_from(self.number()?).map_err(|_| Nonsense)?;
                    if chain as usize > chains.len() {
                        return Err(Nonsense);
                    }
                    self.before.chain = chain;
                }
                kind::AHEAD => {
                    self.at += 1;
                    self.before.ahead = self.difference(self.before.ahead)?;
                }
                kind::FRAMES => {
                    self.at += 1;
                    chains.push(self.frames()?);
                }
                kind::RUN => {
                    self.at += 1;
                    self.run = Some(self.run()?);
                    return Ok(true);
                }
                _ => return Ok(true),
            }
        }
        Ok(false)
    }

    fn run(&mut self) -> Decoded<Run> {
        let period = usize::from(self.byte()?);
        let of = Loop { period, address: self.difference(0)?, instructions: self.difference(0)? };
        let count = self.number()?;
        let known = self.before.history.len();
        let makes_sense = (1..=known).contains(&period) && (1..=COUNT).contains(&count);
        makes_sense.then_some(Run { of, count }).ok_or(Nonsense)
    }

    /// The next event of a run.
    fn repeated(&mut self, Run { of, count }: Run) -> Decoded<Event<'_>> {
        let access = self.before.history.next(of);
        let (start, end) = self.bounds(access.len)?;
        self.before.history.push(access);
        self.run = (count > 1).then_some(Run { of, count: count - 1 });
        if self.run.is_none() {
            self.before.catch_up();
        }
        Ok(access.event(&self.bytes[start..end]))
    }

    fn frames(&mut self) -> Decoded<Box<[u64]>> {
        let count = self.number()?;
        // Each has a byte at least.
        if count > (self.bytes.len() - self.at) as u64 {
            return Err(Nonsense);
        }
        let mut frames = Vec::with_capacity(count as usize);
        let mut before = 0;
        for _ in 0..count {
            before = self.difference(before)?;
            frames.push(before);
        }
        Ok(frames.into())
    }

    /// The event that [`Decoder::settle`] has announced.
    pub fn event(&mut self) -> Decoded<Event<'_>> {
        if let Some(run) = self.run {
            return self.repeated(run);
        }
        let first = self.byte()?;
        let has = |flag: u8| first & flag != 0;
        let vcpu = if has(flag::VCPU) { self.before.vcpu } else { self.byte()? };
        let instruction = if has(flag::INSTRUCTION) {
            self.before.instruction
        } else {
            self.difference(self.before.instruction)?
        };
        let rip = self.before.rips[usize::from(vcpu)];
        let rip = if has(flag::RIP) { rip } else { self.difference(rip)? };
        self.before.vcpu = vcpu;
        self.before.instruction = instruction;
        self.before.rips[usize::from(vcpu)] = rip;
        let (time, chain) = (instruction.wrapping_add(self.before.ahead), self.before.chain);
        let kind = self.kind(first & 15, has(flag::ADDRESS))?;
        Ok(Event { vcpu, instruction, time, rip, chain, kind })
    }

    /// The event being read is an access: loops are made of it.
    fn remember(&mut self, deed: Deed, address: u64, len: usize) {
        let Before { vcpu, instruction, ahead, chain, .. } = self.before;
        let rip = self.before.rips[usize::from(vcpu)];
        self.before.history.push(Access { rip, instruction, ahead, address, len, chain, vcpu, deed });
    }

    fn kind(&mut self, kind: u8, same_address: bool) -> Decoded<Kind<'_>> {
        if kind <= kind::CLWB || kind == kind::LOAD {
            let address =
                if same_address { self.before.address } else { self.difference(self.before.address)? };
            return self.access(kind, address);
        }
        Ok(match kind {
            kind::FENCE => {
                let fence = *FENCES.get(usize::from(self.byte()?)).ok_or(Nonsense)?;
                self.remember(Deed::Fence(fence), 0, 0);
                Kind::Fence(fence)
            }
            kind::HINT => Kind::Hint { dimm: self.byte()? },
            kind::MARK => Kind::Mark(std::str::from_utf8(self.data()?).map_err(|_| Nonsense)?),
            kind::OTHER => match self.byte()? {
                other::WRITE_BACK => Kind::WriteBackAll,
                other::DROP => Kind::DropAll,
                other::RESET => Kind::Reset,
                other::CALL => {
                    let word = |n: u64| u32::try_from(n).map_err(|_| Nonsense);
                    Kind::Call { handle: word(self.number()?)?, function: word(self.number()?)? }
                }
                area @ (other::LABELS | other::STATE) => {
                    let (dimm, offset) = (self.byte()?, self.number()?);
                    let area = if area == other::LABELS { Area::Labels } else { Area::State };
                    Kind::Meta { dimm, area, offset, data: self.data()? }
                }
                _ => return Err(Nonsense),
            },
            _ => return Err(Nonsense),
        })
    }

    /// A kind that has an address.
    fn access(&mut self, kind: u8, address: u64) -> Decoded<Kind<'_>> {
        let flushes = match kind {
            kind::CLFLUSH => Some(FlushKind::Clflush),
            kind::CLFLUSHOPT => Some(FlushKind::Clflushopt),
            kind::CLWB => Some(FlushKind::Clwb),
            _ => None,
        };
        if let Some(kind) = flushes {
            self.before.address = address.wrapping_add(LINE);
            self.remember(Deed::Flush(kind), address, 0);
            return Ok(Kind::Flush { address, kind });
        }
        if kind == kind::LOAD {
            let len = u32::try_from(self.number()?).map_err(|_| Nonsense)?;
            self.before.address = address.wrapping_add(len.into());
            return Ok(Kind::Load { address, len });
        }
        let kind = match kind {
            kind::CACHED => StoreKind::Cached,
            kind::LOCKED => StoreKind::Locked,
            kind::NON_TEMPORAL => StoreKind::NonTemporal,
            kind::DIRECT => StoreKind::Direct64,
            kind::STRING => StoreKind::String(self.byte()?),
            _ => StoreKind::Device,
        };
        let (start, end) = self.stretch()?;
        self.before.address = address.wrapping_add((end - start) as u64);
        self.remember(Deed::Store(kind), address, end - start);
        Ok(Kind::Store { address, data: &self.bytes[start..end], kind })
    }

    fn data(&mut self) -> Decoded<&[u8]> {
        let (start, end) = self.stretch()?;
        Ok(&self.bytes[start..end])
    }

    /// Where the data lie that come next.
    fn stretch(&mut self) -> Decoded<(usize, usize)> {
        let len = usize::try_from(self.number()?).map_err(|_| Nonsense)?;
        self.bounds(len)
    }

    /// Where the next `len` bytes lie.
    fn bounds(&mut self, len: usize) -> Decoded<(usize, usize)> {
        let start = self.at;
        let end = start.checked_add(len).filter(|&end| end <= self.bytes.len()).ok_or(Nonsense)?;
        self.at = end;
        Ok((start, end))
    }

    fn difference(&mut self, before: u64) -> Decoded<u64> {
        let coded = self.number()?;
        let difference = (coded >> 1) as i64 ^ -((coded & 1) as i64);
        Ok(before.wrapping_add(difference as u64))
    }

    fn number(&mut self) -> Decoded<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let digit = u64::from(byte & 0x7f);
            if digit << shift >> shift != digit {
                return Err(Nonsense);
            }
            value |= digit << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Nonsense)
    }

    fn byte(&mut self) -> Decoded<u8> {
        let byte = *self.bytes.get(self.at).ok_or(Nonsense)?;
        self.at += 1;
        Ok(byte)
    }
}
