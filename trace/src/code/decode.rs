//! Bytes become events.

use nvdimm_model::geometry::LINE;
use nvdimm_model::medium::{FlushKind, StoreKind};

use super::{Before, FENCES, Run, flag, kind, other};
use crate::run::{Access, COUNT, Deed, Loop};
use crate::{Area, Event, Kind};

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
