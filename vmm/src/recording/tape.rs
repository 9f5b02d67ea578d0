//! The trace that a run writes: events, the call chains that led to them, and the names of the code.

use std::collections::{HashMap, HashSet};

use engine::log::Log;
use engine::place::Place;
use engine::{CpuState, GuestMemory};
use trace::{BLOCK, End, Event, Header, Writer};

use super::coder::{self, Coder, Job, Loose, Sink};
use super::spec::RecordReport;
use crate::Result;
use crate::sight::Sight;

/// A trace to be written, if one was asked for.
#[derive(Default)]
pub struct Tape {
    stage: Stage,
    sight: Option<Sight>,
    /// Call chains, by their frames.
    chains: HashMap<Box<[u64]>, u32>,
    /// Addresses that have a name.
    named: HashSet<u64>,
    /// Instructions that were lately seen to have one.
    lately: Lately,
}

/// How far it is.
#[derive(Default)]
enum Stage {
    /// None is wanted, or it has ended.
    #[default]
    None,
    /// Where it goes, before it begins.
    Ready(Sink),
    /// What the DIMMs hold is written.
    Base(Box<Writer<Sink>>),
    /// Events are.
    Events(Coder),
}

/// Addresses, each in its slot.
struct Lately([u64; 64]);

impl Default for Lately {
    fn default() -> Self {
        Self([0; 64])
    }
}

impl Tape {
    pub fn new(to: Option<Sink>, sight: Option<Sight>) -> Self {
        Self { stage: to.map_or(Stage::None, Stage::Ready), sight, ..Self::default() }
    }

    /// A trace is wanted, and has not ended.
    pub fn is_wanted(&self) -> bool {
        !matches!(self.stage, Stage::None)
    }

    /// Call chains are wanted.
    pub fn has_sight(&self) -> bool {
        self.sight.is_some()
    }

    /// The recording begins.
    pub fn begin(&mut self, header: &Header) -> Result<()> {
        self.stage = match std::mem::take(&mut self.stage) {
            Stage::Ready(to) => Stage::Base(Box::new(Writer::new(to, header)?)),
            other => other,
        };
        Ok(())
    }

    /// What a DIMM's file holds at the begin.
    pub fn block(&mut self, dimm: usize, number: u64, block: &[u8; BLOCK]) -> Result<()> {
        match &mut self.stage {
            Stage::Base(writer) => Ok(writer.block(dimm, number, block)?),
            _ => Ok(()),
        }
    }

    /// Who codes events, once the recording has begun.
    fn coder(&mut self) -> Result<Option<&mut Coder>> {
        self.stage = match std::mem::take(&mut self.stage) {
            Stage::Base(writer) => Stage::Events(coder::start(*writer)?),
            other => other,
        };
        match &mut self.stage {
            Stage::Events(coder) => Ok(Some(coder)),
            _ => Ok(None),
        }
    }

    fn give(&mut self, job: Job) -> Result<()> {
        match self.coder()? {
            Some(coder) => Ok(coder.give(job)?),
            None => Ok(()),
        }
    }

    /// The number of a vCPU's call chain and what it can be known again by, where somebody can take it: of the calls that
    /// led to its next instruction, which itself is not part of it.
    pub fn chain(
        &mut self,
        memory: &GuestMemory,
        state: impl FnOnce() -> Result<CpuState>,
    ) -> Result<Option<Place>> {
        let (Some(sight), true) = (&mut self.sight, matches!(self.stage, Stage::Base(_) | Stage::Events(_)))
        else {
            return Ok(None);
        };
        let (chain, trail) = sight.chain(memory, &state()?);
        let callers = chain.frames.get(1..).unwrap_or_default();
        let frames: Vec<u64> = callers
            .iter()
            .map(|frame| if frame.guess { frame.ip ^ trace::GUESS } else { frame.ip })
            .collect();
        for frame in callers {
            self.name(frame.ip)?;
        }
        let known = if frames.is_empty() { Some(0) } else { self.chains.get(&frames[..]).copied() };
        let number = match known {
            Some(number) => number,
            None => {
                let number = self.chains.len() as u32 + 1;
                self.chains.insert(frames.clone().into(), number);
                self.give(Job::Chain(frames))?;
                number
            }
        };
        Ok(Some(Place { number, trail }))
    }

    /// The next event.
    pub fn event(&mut self, event: &Event<'_>) -> Result<()> {
        if self.is_wanted() {
            self.see(event.rip)?;
            self.give(Job::Event(Loose::new(event)))?;
        }
        Ok(())
    }

    /// The next events, all that an engine saw after `earlier`. The log is empty then.
    pub fn log(&mut self, log: &mut Log, earlier: (u64, u64)) -> Result<()> {
        if !log.is_empty() && self.is_wanted() {
            for rip in log.rips() {
                self.see(rip)?;
            }
            if let Some(coder) = self.coder()? {
                let room = coder.used().unwrap_or_default();
                coder.give(Job::Log(std::mem::replace(log, room), earlier))?;
            }
        }
        log.clear();
        Ok(())
    }

    /// Names the code at an instruction pointer, which comes again and again.
    fn see(&mut self, rip: u64) -> Result<()> {
        let slot = (rip ^ rip >> 6) as usize & 63;
        if self.lately.0[slot] != rip {
            self.name(rip)?;
            // What has no name now may get one.
            if self.named.contains(&rip) {
                self.lately.0[slot] = rip;
            }
        }
        Ok(())
    }

    /// Names the code at an address, where there is a name.
    fn name(&mut self, address: u64) -> Result<()> {
        if address >= symbols::KERNEL_HALF
            && !self.named.contains(&address)
            && let Some(place) = self.sight.as_ref().and_then(|sight| sight.code().place(address))
        {
            let name = place.to_string();
            self.named.insert(address);
            self.give(Job::Name(address, name))?;
        }
        Ok(())
    }

    /// Another kernel will run.
    pub fn reset(&mut self) {
        if let Some(sight) = &mut self.sight {
            sight.reset();
        }
    }

    /// The recording ends.
    pub fn finish(&mut self, end: &End, report: &mut RecordReport) -> Result<()> {
        let mut writer = match std::mem::take(&mut self.stage) {
            Stage::None | Stage::Ready(_) => return Ok(()),
            Stage::Base(writer) => *writer,
            Stage::Events(coder) => coder.finish()?,
        };
        writer.flush()?;
        report.events = writer.events();
        (report.event_bytes, report.data_bytes) = writer.coded();
        let before = writer.bytes();
        let mut to = writer.finish(end)?;
        to.flush().map_err(|source| trace::Error::Io { offset: before, source })?;
        report.bytes = before;
        Ok(())
    }
}
