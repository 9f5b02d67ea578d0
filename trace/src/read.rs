//! Reading a trace.

use std::collections::HashMap;
use std::io::Read;

use crate::chunk::{self, Refusal, tag};
use crate::code::Decoder;
use crate::{BLOCK, End, Error, Event, FORMAT, Header, MAGIC, Result};

/// Reads a trace as a stream. One chunk is in memory at a time, and the call chains.
#[derive(Debug)]
pub struct Reader<R: Read> {
    from: R,
    header: Header,
    /// Where the next chunk begins.
    offset: u64,
    chunks: u32,
    events: u64,
    state: State,
    payload: Vec<u8>,
    hashes: Vec<blake3::Hasher>,
    start: Vec<[u8; 32]>,
    chains: Vec<Box<[u64]>>,
    names: HashMap<u64, Box<str>>,
}

#[derive(Debug)]
enum State {
    /// In a chunk of blocks, this far.
    Blocks(usize),
    Events(Decoder),
    End(End),
}

/// No trace has more names.
const NAMES: usize = 1 << 22;
/// Bytes of a block in a chunk: the DIMM's slot, the block's number, the block.
const ENTRY: usize = 1 + 8 + BLOCK;

impl<R: Read> Reader<R> {
    /// Opens a trace and reads its header.
    ///
    /// # Errors
    /// [`Error::Foreign`], [`Error::Version`], and what is wrong with the header.
    pub fn new(mut from: R) -> Result<Self> {
        let mut begin = Vec::new();
        let first = (MAGIC.len() + size_of_val(&FORMAT)) as u64;
        let read = from.by_ref().take(first).read_to_end(&mut begin);
        read.map_err(|source| Error::Io { offset: 0, source })?;
        let (magic, format) = begin.split_at(begin.len().min(MAGIC.len()));
        if !MAGIC.starts_with(magic) {
            return Err(Error::Foreign);
        }
        // Whoever made it may have been killed at once.
        let Ok(format) = format.try_into() else {
            return Err(Error::CutShort { offset: begin.len() as u64, events: 0 });
        };
        if u32::from_le_bytes(format) != FORMAT {
            return Err(Error::Version { found: u32::from_le_bytes(format) });
        }
        let mut reader = Self {
            from,
            header: Header::default(),
            offset: first,
            chunks: 0,
            events: 0,
            state: State::Blocks(0),
            payload: Vec::new(),
            hashes: Vec::new(),
            start: Vec::new(),
            chains: Vec::new(),
            names: HashMap::new(),
        };
        let at = reader.offset;
        if reader.chunk()? != tag::HEADER {
            return Err(reader.damaged(at, "it has no header"));
        }
        reader.header = reader.record(at, &reader.payload)?;
        reader.hashes.resize_with(reader.header.dimms.len(), blake3::Hasher::new);
        reader.payload.clear();
        Ok(reader)
    }

    /// Who ran what.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The next block of the DIMMs' files at the start that is not zero: the DIMM's slot, the number of the block.
    ///
    /// # Errors
    /// [`Error::CutShort`], [`Error::Damaged`] or [`Error::Io`].
    pub fn next_block(&mut self) -> Result<Option<(usize, u64, &[u8; BLOCK])>> {
        let State::Blocks(mut at) = self.state else { return Ok(None) };
        if at == self.payload.len() {
            let offset = self.offset;
            // Whatever goes wrong from here, of this chunk there is no block left to read.
            self.state = State::Blocks(0);
            self.payload.clear();
            at = 0;
            match self.chunk()? {
                tag::BLOCKS if self.payload.len().is_multiple_of(ENTRY) && !self.payload.is_empty() => {}
                tag => {
                    let payload = std::mem::take(&mut self.payload);
                    if tag != tag::START {
                        return Err(self.damaged(offset, "blocks or events were expected"));
                    }
                    self.begin(offset, &payload)?;
                    return Ok(None);
                }
            }
        }
        self.state = State::Blocks(at + ENTRY);
        let (offset, events) = (self.offset, self.events);
        let entry = &self.payload[at..at + ENTRY];
        let mut number = [0; 8];
        number.copy_from_slice(&entry[1..9]);
        let dimm = usize::from(entry[0]);
        let block = entry[9..].first_chunk::<BLOCK>();
        let (Some(hash), Some(block)) = (self.hashes.get_mut(dimm), block) else {
            return Err(Error::Damaged { offset, what: "a block belongs to no DIMM", events });
        };
        hash.update(&number).update(block);
        Ok(Some((dimm, u64::from_le_bytes(number), block)))
    }

    /// The blocks are over.
    fn begin(&mut self, offset: u64, start: &[u8]) -> Result<()> {
        self.start = self.record(offset, start)?;
        let hashes: Vec<[u8; 32]> = self.hashes.iter().map(|hash| *hash.finalize().as_bytes()).collect();
        if hashes != self.start {
            return Err(self.damaged(offset, "the DIMMs' content does not match its hash"));
        }
        self.state = State::Events(Decoder::new(Vec::new()));
        Ok(())
    }

    /// The next event; blocks that were not asked for are passed over. `None` at the end of a whole trace.
    ///
    /// # Errors
    /// [`Error::CutShort`], [`Error::Damaged`] or [`Error::Io`]: what came before is good all the same.
    pub fn next_event(&mut self) -> Result<Option<Event<'_>>> {
        while self.next_block()?.is_some() {}
        let (mut offset, events) = (self.offset, self.events);
        loop {
            let State::Events(decoder) = &mut self.state else { return Ok(None) };
            match decoder.settle(&mut self.chains) {
                Ok(true) => break,
                Ok(false) => {}
                Err(_) => return Err(Error::Damaged { offset, what: "its events make no sense", events }),
            }
            offset = self.offset;
            match self.chunk()? {
                tag::EVENTS => {
                    self.state = State::Events(Decoder::new(std::mem::take(&mut self.payload)));
                }
                tag::NAMES => {
                    let names: Vec<(u64, Box<str>)> = self.record(offset, &self.payload)?;
                    if self.names.len() + names.len() > NAMES {
                        return Err(self.damaged(offset, "it has more names than a kernel has code"));
                    }
                    self.names.extend(names);
                    self.payload.clear();
                }
                tag::END => {
                    let end: End = self.record(offset, &self.payload)?;
                    if end.events != self.events {
                        return Err(self.damaged(offset, "the number of events is wrong"));
                    }
                    self.state = State::End(end);
                }
                _ => return Err(self.damaged(offset, "events were expected")),
            }
        }
        let State::Events(decoder) = &mut self.state else { return Ok(None) };
        self.events += 1;
        let nonsense = |_| Error::Damaged { offset, what: "its events make no sense", events };
        decoder.event().map(Some).map_err(nonsense)
    }

    /// The return addresses of a call chain, the innermost first; none for a number that no event so far had.
    #[must_use]
    pub fn chain(&self, number: u32) -> &[u64] {
        (number as usize).checked_sub(1).and_then(|n| self.chains.get(n)).map_or(&[], |frames| frames)
    }

    /// What code at an address is called, as far as events so far have led there.
    #[must_use]
    pub fn name(&self, address: u64) -> Option<&str> {
        self.names.get(&address).map(AsRef::as_ref)
    }

    /// The hash of each DIMM's file at the start, once the blocks were read.
    #[must_use]
    pub fn start(&self) -> &[[u8; 32]] {
        &self.start
    }

    /// Events read so far.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    /// What became of the recording, once all events were read.
    #[must_use]
    pub fn end(&self) -> Option<&End> {
        if let State::End(end) = &self.state { Some(end) } else { None }
    }

    /// Reads the next chunk into the payload.
    fn chunk(&mut self) -> Result<u8> {
        let (offset, events) = (self.offset, self.events);
        let (tag, len) = chunk::open(&mut self.from, self.chunks, &mut self.payload).map_err(|refusal| {
            self.payload.clear();
            match refusal {
                Refusal::Io(source) => Error::Io { offset, source },
                Refusal::Short => Error::CutShort { offset, events },
                Refusal::Damaged(what) => Error::Damaged { offset, what, events },
            }
        })?;
        self.chunks += 1;
        self.offset += len;
        Ok(tag)
    }

    fn record<T: serde::de::DeserializeOwned>(&self, offset: u64, payload: &[u8]) -> Result<T> {
        postcard::from_bytes(payload).map_err(|_| self.damaged(offset, "a record makes no sense"))
    }

    fn damaged(&self, offset: u64, what: &'static str) -> Error {
        Error::Damaged { offset, what, events: self.events }
    }
}
