//! Writing a trace.

use std::io::Write;

use crate::chunk::{self, tag};
use crate::code::Encoder;
use crate::press::Press;
use crate::run::Loop;
use crate::{BLOCK, End, Error, Event, FORMAT, Header, Kind, MAGIC, Result};

/// Writes a trace: first the blocks of the DIMMs' files, then events, then the end.
#[derive(Debug)]
pub struct Writer<W: Write + Send + 'static> {
    press: Press<W>,
    /// Bytes of the file when it was last flushed.
    offset: u64,
    events: u64,
    /// Blocks that wait for their chunk.
    blocks: Vec<u8>,
    hashes: Vec<blake3::Hasher>,
    /// The start is written: events may follow.
    started: bool,
    encoder: Encoder,
    /// For the next chunk.
    room: Vec<u8>,
    /// Call chains so far.
    chains: u32,
    /// Names that wait for their chunk.
    names: Vec<(u64, String)>,
    /// Bytes of the coded events before compression, and of the data in them.
    coded: u64,
    data: u64,
}

impl<W: Write + Send + 'static> Writer<W> {
    /// Begins a trace.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::TooLarge`] for a header beyond all reason.
    pub fn new(to: W, header: &Header) -> Result<Self> {
        let mut writer = Self {
            press: Press::new(to)?,
            offset: 0,
            events: 0,
            blocks: Vec::new(),
            hashes: vec![blake3::Hasher::new(); header.dimms.len()],
            started: false,
            encoder: Encoder::new(),
            room: Vec::new(),
            chains: 0,
            names: Vec::new(),
            coded: 0,
            data: 0,
        };
        writer.press.plain(&[&MAGIC[..], &FORMAT.to_le_bytes()].concat())?;
        writer.record(tag::HEADER, header)?;
        // So that it is known for what it is from the begin.
        writer.flush()?;
        Ok(writer)
    }

    /// A block of a DIMM's file at the start. Blocks of zeroes may be left out; those of a DIMM come in rising order.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::TooLarge`] for a DIMM that the header does not have, or once events have begun.
    pub fn block(&mut self, dimm: usize, number: u64, block: &[u8; BLOCK]) -> Result<()> {
        if self.started {
            return Err(Error::TooLarge { what: "A block after the first event" });
        }
        if block.iter().all(|&byte| byte == 0) {
            return Ok(());
        }
        let hash = self.hashes.get_mut(dimm).ok_or(Error::TooLarge { what: "A block of no DIMM" })?;
        hash.update(&number.to_le_bytes()).update(block);
        self.blocks.push(dimm as u8);
        self.blocks.extend(number.to_le_bytes());
        self.blocks.extend_from_slice(block);
        if self.blocks.len() >= chunk::FULL { self.flush_blocks() } else { Ok(()) }
    }

    fn flush_blocks(&mut self) -> Result<()> {
        let blocks = std::mem::take(&mut self.blocks);
        if !blocks.is_empty() {
            self.blocks = self.press.chunk(tag::BLOCKS, blocks)?;
        }
        Ok(())
    }

    /// All blocks are there.
    fn start(&mut self) -> Result<()> {
        if self.started {
            return Ok(());
        }
        self.flush_blocks()?;
        let hashes: Vec<[u8; 32]> = self.hashes.iter().map(|hash| *hash.finalize().as_bytes()).collect();
        self.started = true;
        self.record(tag::START, &hashes)
    }

    /// A call chain: return addresses, the innermost first. Gives its number: chains are counted from 1.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::TooLarge`] for a chain of more than 4096 frames.
    pub fn chain(&mut self, frames: &[u64]) -> Result<u32> {
        if frames.len() > 4096 {
            return Err(Error::TooLarge { what: "A call chain of more than 4096 frames" });
        }
        self.start()?;
        self.chains += 1;
        self.encoder.chain(frames);
        self.break_chunk()?;
        Ok(self.chains)
    }

    /// What code at an address is called, from the chunk on that is being filled. An address has one name.
    pub fn name(&mut self, address: u64, name: String) {
        self.names.push((address, name));
    }

    /// The next event.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::TooLarge`] for more data or a longer name than an event can have, and for a chain that
    /// [`Writer::chain`] has not given.
    pub fn event(&mut self, event: &Event<'_>) -> Result<()> {
        let data = match event.kind {
            Kind::Store { data, .. } | Kind::Meta { data, .. } if data.len() > Kind::MAX_DATA => {
                return Err(Error::TooLarge { what: "A store of more than 64 KiB" });
            }
            Kind::Mark(name) if name.len() > Kind::MAX_NAME => {
                return Err(Error::TooLarge { what: "A mark of more than 255 bytes" });
            }
            Kind::Store { data, .. } | Kind::Meta { data, .. } => data.len(),
            Kind::Mark(name) => name.len(),
            _ => 0,
        };
        if event.chain > self.chains {
            return Err(Error::TooLarge { what: "An event with an unknown call chain" });
        }
        self.start()?;
        self.encoder.event(event);
        self.events += 1;
        self.data += data as u64;
        self.break_chunk()
    }

    /// Next, a loop goes on whose last round were the last events: `count` events as it foretells them, at most
    /// [`Loop::COUNT`], whose bytes `tell` appends. It is [`Writer::event`] for each of them, only faster. Gives `false`, and
    /// nothing is written, where too little is known of the loop, as at the begin of a chunk, or where the bytes are not as many
    /// as are stored.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn rounds(&mut self, of: Loop, count: u64, tell: impl FnOnce(&mut Vec<u8>)) -> Result<bool> {
        let mut data = 0;
        let told = self.encoder.rounds(of, count, |bytes| {
            let before = bytes.len();
            tell(bytes);
            data = bytes.len() - before;
        });
        if !told {
            return Ok(false);
        }
        self.events += count;
        self.data += data as u64;
        self.break_chunk()?;
        Ok(true)
    }

    fn break_chunk(&mut self) -> Result<()> {
        if self.encoder.len() >= chunk::FULL { self.end_chunk() } else { Ok(()) }
    }

    /// What waits becomes chunks.
    fn end_chunk(&mut self) -> Result<()> {
        let names = std::mem::take(&mut self.names);
        if !names.is_empty() {
            self.start()?;
            self.record(tag::NAMES, &names)?;
        }
        let events = self.encoder.take(std::mem::take(&mut self.room));
        if !events.is_empty() {
            self.coded += events.len() as u64;
            self.room = self.press.chunk(tag::EVENTS, events)?;
        }
        Ok(())
    }

    /// Puts what was written so far beyond the fate of this process.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn flush(&mut self) -> Result<()> {
        self.end_chunk()?;
        self.offset = self.press.flush()?;
        Ok(())
    }

    /// Ends the trace and gives the writer back.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(mut self, end: &End) -> Result<W> {
        self.start()?;
        self.flush()?;
        self.record(tag::END, &End { events: self.events, ..end.clone() })?;
        self.press.flush()?;
        self.press.finish()
    }

    /// Events so far.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Bytes of the file, when it was last flushed.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.offset
    }

    /// Bytes that all events so far took before compression, and how many of them are their data.
    #[must_use]
    pub fn coded(&self) -> (u64, u64) {
        (self.coded + self.encoder.len() as u64, self.data)
    }

    fn record(&mut self, tag: u8, record: &impl serde::Serialize) -> Result<()> {
        let too_large = Error::TooLarge { what: "A record that cannot be coded" };
        let Ok(bytes) = postcard::to_stdvec(record) else { return Err(too_large) };
        if bytes.len() > chunk::MAX {
            return Err(too_large);
        }
        self.press.chunk(tag, bytes)?;
        Ok(())
    }
}
