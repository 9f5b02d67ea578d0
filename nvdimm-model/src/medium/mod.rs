//! What survives a power cut: of every line of every DIMM, which stores are sure to be there, and which may be.
//!
//! A *line* is 64 bytes, a *chunk* eight: the unit that never tears. The stores to a line are its steps. A line has a
//! *floor*, the step that is sure with all before it, and a *top*, the newest; it is undecided when they differ. Lines
//! choose independently. Posted (non-temporal) stores choose chunk by chunk; a line with such has a floor for each chunk
//! until all of it is decided, and so does, to be on the safe side, one in which cached and posted stores meet.
//!
//! Rules: Intel SDM vol. 1, 11.12 and vol. 2; Raad et al., "Persistency semantics of the Intel-x86 architecture" (POPL
//! 2020); docs/persistence-model.md lists them by number.

mod cut;
mod descent;
mod event;
mod log;
mod name;
mod reach;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

pub use cut::{Cut, Image, Pick, Survivors};
pub use descent::ChunkWrite;
pub use event::{FenceKind, FlushKind, Operation, Rules, StoreKind};
pub use name::ImageName;
pub use reach::{Base, Content, Missing, Undecided, Writer};

use self::log::{Class, Log, NONE, StepId};
use crate::geometry::{ALIGN, LINE};
use crate::{Domain, Error};

const LINE_BYTES: usize = LINE as usize;

/// A range of guest-physical addresses on the medium, dealt out to its DIMMs in pieces of 2 MiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// The addresses.
    pub range: Range<u64>,
    /// Indexes of the DIMMs, in the order of the pieces.
    pub dimms: Vec<usize>,
}

/// A line's marks.
#[derive(Debug, Clone, Copy)]
struct Marks {
    top: StepId,
    floor: StepId,
}

/// What a fence, or a hint, makes sure.
#[derive(Debug, Clone, Copy)]
struct Raise {
    line: u64,
    step: StepId,
    what: Sure,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sure {
    /// The line's cached steps up to this one.
    Cached,
    /// This posted step.
    Posted,
    /// All of the line's steps up to this one.
    All,
}

/// The medium: all DIMMs of a machine, from a moment on at which everything was durable.
#[derive(Debug, Clone)]
pub struct Medium {
    rules: Rules,
    zones: Vec<Zone>,
    /// By DIMM.
    domains: Vec<Domain>,
    log: Log,
    lines: HashMap<u64, Marks, BuildHasherDefault<LineHasher>>,
    /// Floors by chunk, of lines where they differ.
    chunked: HashMap<u64, [StepId; 8], BuildHasherDefault<LineHasher>>,
    /// What each vCPU's next fence makes sure.
    remembered: Vec<Vec<Raise>>,
    /// What each DIMM's next hint makes sure.
    fenced: Vec<Vec<Raise>>,
    any_posted: bool,
    /// Lines whose floor is not their top.
    in_doubt: usize,
    events: u64,
    /// The name of the base, if it is not that of the start.
    settled: ImageName,
    warnings: Warnings,
}

/// What a guest did that it should not have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Warnings {
    /// Cached and posted stores met undecided in one line: the model allows more than the hardware may.
    pub mixed: u64,
    /// INVD was executed.
    pub dropped: u64,
}

impl Medium {
    /// A medium in which everything is durable. `domains` has what each DIMM keeps; zones name DIMMs by index.
    pub fn new(rules: Rules, zones: Vec<Zone>, domains: Vec<Domain>) -> Self {
        let fenced = vec![Vec::new(); domains.len()];
        Self {
            rules,
            zones,
            domains,
            log: Log::default(),
            lines: HashMap::default(),
            chunked: HashMap::default(),
            remembered: Vec::new(),
            fenced,
            any_posted: false,
            in_doubt: 0,
            events: 0,
            settled: ImageName::default(),
            warnings: Warnings::default(),
        }
    }

    /// The next event. Gives its number; what does not concern the medium counts, too.
    ///
    /// # Errors
    /// [`Error::MediumFull`] after about four thousand million steps or 4 GiB of data.
    pub fn apply(&mut self, vcpu: u8, operation: Operation<'_>) -> Result<u64, Error> {
        let event = self.events;
        match operation {
            Operation::Store { address, data, kind } => self.store(vcpu, address, data, kind)?,
            Operation::Flush { address, kind } => self.flush(vcpu, address / LINE, kind),
            Operation::Fence(kind) if self.rules.fences(kind) => self.fence(vcpu),
            Operation::Fence(_) => {}
            Operation::WriteBackAll => self.write_back_all(),
            Operation::DropAll => self.warnings.dropped += 1,
            Operation::Hint { dimm } => self.hint(dimm),
        }
        self.events += 1;
        Ok(event)
    }

    /// Number of events so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Number of steps recorded: stores, counted once for each line that they touch.
    pub fn steps(&self) -> u64 {
        self.log.count()
    }

    /// Number of lines in doubt now.
    pub fn lines_in_doubt(&self) -> usize {
        self.in_doubt
    }

    /// Whether the line at an address is in doubt now.
    pub fn is_in_doubt(&self, address: u64) -> bool {
        self.lines.get(&(address / LINE)).is_some_and(|marks| marks.floor != marks.top)
    }

    /// What a guest did that it should not have.
    pub fn warnings(&self) -> Warnings {
        self.warnings
    }

    /// Bytes of memory held.
    pub fn memory(&self) -> usize {
        let entry = size_of::<(u64, Marks)>() + 1;
        let chunked = size_of::<(u64, [StepId; 8])>() + 1;
        let raises: usize = self.remembered.iter().chain(&self.fenced).map(Vec::capacity).sum();
        // A hash table has room for an eighth more than it says.
        self.log.memory()
            + self.lines.capacity() * 8 / 7 * entry
            + self.chunked.capacity() * 8 / 7 * chunked
            + raises * size_of::<Raise>()
    }

    /// The DIMM that holds an address.
    fn dimm_of(&self, address: u64) -> Option<usize> {
        let zone = self.zones.iter().find(|zone| zone.range.contains(&address))?;
        let piece = (address - zone.range.start) / ALIGN;
        zone.dimms.get((piece % zone.dimms.len().max(1) as u64) as usize).copied()
    }

    fn domain_of(&self, line: u64) -> Option<(usize, Domain)> {
        let dimm = self.dimm_of(line * LINE)?;
        Some((dimm, *self.domains.get(dimm)?))
    }

    fn store(&mut self, vcpu: u8, address: u64, data: &[u8], kind: StoreKind) -> Result<(), Error> {
        if kind == StoreKind::Locked && self.rules.locked_fences {
            self.fence(vcpu);
        }
        let element = match kind {
            StoreKind::String(size) => usize::from(size.max(1)),
            StoreKind::NonTemporal => LINE_BYTES,
            _ => data.len().max(1),
        };
        let mut at = address;
        for part in data.chunks(element) {
            let mut rest = part;
            while !rest.is_empty() {
                let room = (LINE - at % LINE) as usize;
                let (own, next) = rest.split_at(rest.len().min(room));
                self.step(vcpu, at, own, kind)?;
                rest = next;
                let Some(after) = at.checked_add(own.len() as u64) else { return Ok(()) };
                at = after;
            }
        }
        Ok(())
    }

    /// A store's part in one line.
    fn step(&mut self, vcpu: u8, address: u64, data: &[u8], kind: StoreKind) -> Result<(), Error> {
        let line = address / LINE;
        let Some((_, domain)) = self.domain_of(line) else { return Ok(()) };
        let class = match kind {
            StoreKind::NonTemporal => Class::Posted,
            StoreKind::Direct64 if data.len() == LINE_BYTES => Class::PostedWhole,
            StoreKind::Direct64 => Class::Posted,
            _ => Class::Cached,
        };
        let entry = self.lines.entry(line).or_insert(Marks { top: NONE, floor: NONE });
        let before = *entry;
        let event = u32::try_from(self.events).map_err(|_| Error::MediumFull { stores: self.log.count() })?;
        let top = self.log.push(before.top, event, vcpu, class, (address % LINE) as u8, data)?;
        entry.top = top;

        let undecided = before.floor != before.top;
        self.in_doubt += usize::from(!undecided);
        // The newest step tells of what class the undecided ones are; where nothing was ever posted, all are cached.
        let posted = self.any_posted || class != Class::Cached;
        let meets = undecided && posted && self.log.step(before.top).class != class;
        self.any_posted = posted;
        let by_chunks = class == Class::Posted || meets || !self.rules.line_order;
        if by_chunks {
            self.chunked.entry(line).or_insert([before.floor; 8]);
            // Chunks that choose for themselves are what such stores never show.
            let too_much = (meets && self.rules.line_order) || class == Class::PostedWhole;
            self.warnings.mixed += u64::from(too_much);
        }
        if class != Class::Cached {
            self.remember(vcpu, Raise { line, step: top, what: Sure::Posted });
        } else if kind == StoreKind::Device {
            self.raise(Raise { line, step: top, what: Sure::Cached });
        } else if domain == Domain::Eadr {
            // Only this store is sure: what is posted below other chunks stays in doubt.
            self.raise(Raise { line, step: top, what: Sure::Cached });
        }
        Ok(())
    }

    fn flush(&mut self, vcpu: u8, line: u64, kind: FlushKind) {
        let Some(marks) = self.lines.get(&line).filter(|marks| marks.floor != marks.top) else { return };
        let raise = Raise { line, step: marks.top, what: Sure::Cached };
        match kind {
            FlushKind::Clflush => self.commit(raise),
            FlushKind::Clflushopt | FlushKind::Clwb => self.remember(vcpu, raise),
        }
    }

    fn remember(&mut self, vcpu: u8, raise: Raise) {
        let vcpu = usize::from(vcpu);
        if self.remembered.len() <= vcpu {
            self.remembered.resize_with(vcpu + 1, Vec::new);
        }
        self.remembered[vcpu].push(raise);
    }

    fn fence(&mut self, vcpu: u8) {
        let Some(own) = self.remembered.get_mut(usize::from(vcpu)) else { return };
        let mut raises = std::mem::take(own);
        for raise in raises.drain(..) {
            self.commit(raise);
        }
        // Keeps its room for the next.
        self.remembered[usize::from(vcpu)] = raises;
    }

    fn write_back_all(&mut self) {
        let undecided: Vec<_> =
            self.lines.iter().filter(|(_, m)| m.floor != m.top).map(|(&l, m)| (l, m.top)).collect();
        for (line, step) in undecided {
            self.commit(Raise { line, step, what: Sure::All });
        }
    }

    fn hint(&mut self, dimm: usize) {
        let Some(own) = self.fenced.get_mut(dimm) else { return };
        for raise in std::mem::take(own) {
            self.raise(raise);
        }
    }

    /// Something has left the vCPUs: it is sure now, or where hints rule, with the DIMM's next hint.
    fn commit(&mut self, raise: Raise) {
        match self.domain_of(raise.line) {
            Some((dimm, Domain::Hint)) => self.fenced[dimm].push(raise),
            _ => self.raise(raise),
        }
    }

    fn raise(&mut self, raise: Raise) {
        let Some(marks) = self.lines.get_mut(&raise.line) else { return };
        let undecided = marks.floor != marks.top;
        let Some(floors) = self.chunked.get_mut(&raise.line) else {
            // All undecided steps of such a line are of one class.
            let applies = match raise.what {
                Sure::Cached => !self.log.step(raise.step).is_posted(),
                Sure::Posted | Sure::All => true,
            };
            if applies {
                marks.floor = marks.floor.max(raise.step);
                self.in_doubt -= usize::from(undecided && marks.floor == marks.top);
            }
            return;
        };
        let mut open = 0xffu8;
        match raise.what {
            Sure::Posted => set_floors(floors, self.log.step(raise.step).chunks(), raise.step),
            Sure::Cached | Sure::All => {
                for (id, step) in self.log.back(marks.top, marks.floor) {
                    let counts = id <= raise.step && (raise.what == Sure::All || !step.is_posted());
                    if counts && step.chunks() & open != 0 {
                        set_floors(floors, step.chunks() & open, id);
                        open &= !step.chunks();
                    }
                }
            }
        }
        if newest_by_chunk(&self.log, *marks).iter().zip(floors.iter()).all(|(newest, floor)| newest <= floor)
        {
            marks.floor = marks.top;
            self.in_doubt -= usize::from(undecided);
            self.chunked.remove(&raise.line);
        }
    }
}

fn set_floors(floors: &mut [StepId; 8], chunks: u8, step: StepId) {
    for (chunk, floor) in floors.iter_mut().enumerate() {
        if chunks >> chunk & 1 == 1 {
            *floor = (*floor).max(step);
        }
    }
}

/// The newest step above the line's floor that touches each chunk.
fn newest_by_chunk(log: &Log, marks: Marks) -> [StepId; 8] {
    let mut newest = [NONE; 8];
    let mut open = 0xffu8;
    for (id, step) in log.back(marks.top, marks.floor) {
        set_floors(&mut newest, step.chunks() & open, id);
        open &= !step.chunks();
        if open == 0 {
            break;
        }
    }
    newest
}

/// Spreads line numbers; they are not chosen by an enemy who could gain from slow tables.
#[derive(Debug, Clone, Copy, Default)]
struct LineHasher(u64);

impl Hasher for LineHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    /// Sixteen neighbours come to stand side by side, as stores mostly do; the topmost bits, by which the table tells
    /// neighbours apart, are mixed from the whole number.
    fn write_u64(&mut self, value: u64) {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        const TAG: u64 = 0xfe << 56;
        let value = self.0 ^ value;
        let group = (value >> 4).wrapping_mul(ODD);
        let place = (group ^ group >> 32) << 4 | value & 15;
        self.0 = value.wrapping_mul(ODD) & TAG | place & !TAG;
    }
}
