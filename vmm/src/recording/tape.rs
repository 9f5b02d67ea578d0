//! The trace that a run writes: events, the call chains that led to them, and the names of the code.

use std::io::Write;

use engine::place::Place;
use engine::{CpuState, GuestMemory};
use trace::{BLOCK, End, Event, Header, Writer};

use super::spec::RecordReport;
use crate::Result;
use crate::sight::Sight;

type Sink = Box<dyn Write + Send>;

/// A trace to be written, if one was asked for.
#[derive(Default)]
pub struct Tape {
    /// Where it goes, before it begins.
    to: Option<Sink>,
    writer: Option<Writer<Sink>>,
    sight: Option<Sight>,
    /// Instructions that were lately seen to have a name.
    named: Named,
}

/// Addresses, each in its slot.
struct Named([u64; 64]);

impl Default for Named {
    fn default() -> Self {
        Self([0; 64])
    }
}

impl Tape {
    pub fn new(to: Option<Sink>, sight: Option<Sight>) -> Self {
        Self { to, sight, ..Self::default() }
    }

    /// A trace is wanted, and has not ended.
    pub fn is_wanted(&self) -> bool {
        self.to.is_some() || self.writer.is_some()
    }

    /// Call chains are wanted.
    pub fn has_sight(&self) -> bool {
        self.sight.is_some()
    }

    /// The recording begins.
    pub fn begin(&mut self, header: &Header) -> Result<()> {
        if let Some(to) = self.to.take() {
            self.writer = Some(Writer::new(to, header)?);
        }
        Ok(())
    }

    /// What a DIMM's file holds at the begin.
    pub fn block(&mut self, dimm: usize, number: u64, block: &[u8; BLOCK]) -> Result<()> {
        self.writer.as_mut().map_or(Ok(()), |writer| Ok(writer.block(dimm, number, block)?))
    }

    /// The number of a vCPU's call chain and what it can be known again by, where somebody can take it: of the calls that
    /// led to its next instruction, which itself is not part of it.
    pub fn chain(
        &mut self,
        memory: &GuestMemory,
        state: impl FnOnce() -> Result<CpuState>,
    ) -> Result<Option<Place>> {
        let (Some(sight), Some(writer)) = (&mut self.sight, &mut self.writer) else { return Ok(None) };
        let (chain, trail) = sight.chain(memory, &state()?);
        let callers = chain.frames.get(1..).unwrap_or_default();
        let frames: Vec<u64> = callers
            .iter()
            .map(|frame| if frame.guess { frame.ip ^ trace::GUESS } else { frame.ip })
            .collect();
        for frame in callers {
            name(writer, sight, frame.ip);
        }
        let number = if frames.is_empty() { 0 } else { writer.chain(&frames)? };
        Ok(Some(Place { number, trail }))
    }

    /// The next event.
    pub fn event(&mut self, event: &Event<'_>) -> Result<()> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let slot = &mut self.named.0[(event.rip ^ event.rip >> 6) as usize & 63];
        if let Some(sight) = self.sight.as_ref().filter(|_| *slot != event.rip) {
            name(writer, sight, event.rip);
            // What has no name now may get one.
            if writer.is_named(event.rip) {
                *slot = event.rip;
            }
        }
        Ok(writer.event(event)?)
    }

    /// Another kernel will run.
    pub fn reset(&mut self) {
        if let Some(sight) = &mut self.sight {
            sight.reset();
        }
    }

    /// The recording ends.
    pub fn finish(&mut self, end: &End, report: &mut RecordReport) -> Result<()> {
        let Some(mut writer) = self.writer.take() else { return Ok(()) };
        writer.flush()?;
        (report.event_bytes, report.data_bytes) = writer.coded();
        let before = writer.bytes();
        let mut to = writer.finish(end)?;
        to.flush().map_err(|source| trace::Error::Io { offset: before, source })?;
        report.bytes = before;
        Ok(())
    }
}

/// Names the code at an address in the trace, where there is a name.
fn name<W: Write + Send + 'static>(writer: &mut Writer<W>, sight: &Sight, address: u64) {
    if address >= symbols::KERNEL_HALF
        && !writer.is_named(address)
        && let Some(place) = sight.code().place(address)
    {
        writer.name(address, place.to_string());
    }
}
