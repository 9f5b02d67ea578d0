//! What a run does to its NV-DIMMs: recorded into a trace, followed by the model, and ended by a power cut.
//!
//! The session hands over everything in the order in which it happened: after each exit first what the engine saw since
//! the last one, then what the exit itself did (a mark, a flush hint, a call, a device's write). The moment of a power cut
//! is found in that order of events, not in the engine: what the guest has done beyond it, until the next exit, is undone
//! in the DIMMs, and nobody else has seen it.

mod floor;
mod live;
mod mark;
mod offline;
mod spec;

use std::collections::BTreeSet;
use std::io::Write;
use std::ops::Range;

use engine::event::{EventKind, FenceKind, FlushKind, StoreKind};
use engine::{Exit, ExitKind, GuestMemory, Partition, Processor, VcpuId};
use nvdimm_model::geometry::LINE;
use nvdimm_model::medium;
use trace::{Area, BLOCK, Cutter, Due, End, Event, Header, Kind, Verdict, Writer};
use vm_memory::{Bytes, GuestAddress};

pub use mark::mark_name;
pub use offline::cut;
pub use spec::{CutReport, CutSpec, RecordReport, RecordSpec, Window, survivors_name};

use self::floor::Floor;
pub(crate) use self::floor::nameless;
use self::live::Live;
use crate::nvdimm::{Deed, Nvdimms};
use crate::sight::Sight;
use crate::{Error, Result};

/// Where a recording is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Its window has not opened.
    Before,
    /// It goes on.
    Open,
    /// Its window has closed, or the power is cut.
    Over,
}

/// Where a vCPU was at its last event, and the number of its call chain there.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    rip: u64,
    chain: u32,
}

/// Where and when something happens.
#[derive(Debug, Clone, Copy)]
struct At {
    vcpu: VcpuId,
    instruction: u64,
    time: u64,
    rip: u64,
    chain: u32,
}

/// Records a run.
pub struct Recorder {
    spec: RecordSpec,
    header: Header,
    phase: Phase,
    opens: Option<Cutter>,
    closes: Option<Cutter>,
    writer: Option<Writer<Box<dyn Write + Send>>>,
    cutter: Option<Cutter>,
    live: Option<Live>,
    /// Instructions and guest time of earlier boots.
    earlier: (u64, u64),
    places: [Place; 8],
    /// Whether a vCPU has flushed or posted something that no fence has followed.
    unfenced: [bool; 8],
    /// Something was done to the DIMMs.
    touched: bool,
    /// Events recorded.
    events: u64,
    /// Where the power went.
    reached: Option<At>,
    /// Lines stored to after that.
    late: BTreeSet<u64>,
    /// Marks that the exit which is being answered has set.
    marks: Vec<String>,
    /// Where the run ends in any case, in instructions since the engine was built.
    run_limit: Option<u64>,
    /// What the engine was told.
    limit: Option<u64>,
    memory: GuestMemory,
    batch: Vec<engine::event::Event>,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder")
            .field("spec", &self.spec)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

impl Recorder {
    /// A recorder of what was asked for. `machine` has what the machine knows for the header.
    pub fn new(spec: RecordSpec, machine: Header, memory: GuestMemory) -> Self {
        let made_by = spec.trace.as_ref().map(|(_, header)| header.clone()).unwrap_or_default();
        let Header { nvsim, image, image_hash, kernel, .. } = made_by;
        let header = Header { nvsim, image, image_hash, kernel, loads: spec.loads, ..machine };
        Self {
            opens: spec.window.as_ref().map(|window| Cutter::new(&window.from)),
            closes: spec.window.as_ref().map(|window| Cutter::new(&window.to)),
            cutter: spec.cut.as_ref().map(|cut| Cutter::new(&cut.when)),
            spec,
            header,
            phase: Phase::Before,
            writer: None,
            live: None,
            earlier: (0, 0),
            places: [Place::default(); 8],
            unfenced: [false; 8],
            touched: false,
            events: 0,
            reached: None,
            late: BTreeSet::new(),
            marks: Vec::new(),
            run_limit: None,
            limit: None,
            memory,
            batch: Vec::new(),
        }
    }

    /// The guest begins to run, or goes on after a reset: `earlier` has the instructions and guest time before, and the run
    /// ends in any case after `run_limit` instructions from now.
    ///
    /// # Errors
    /// The engine cannot see what has to be recorded, or a file cannot be written.
    pub fn attach(
        &mut self,
        partition: &dyn Partition,
        nvdimms: &mut Nvdimms,
        earlier: (u64, u64),
        run_limit: Option<u64>,
    ) -> Result<()> {
        // Moments are told by instruction counts, so an engine that sees stores but does not count will not do.
        if partition.memory_events().is_none() || partition.instructions().is_none() {
            return Err(Error::Record(
                "this engine does not tell at which instruction a store is made; give --engine soft"
                    .to_owned(),
            ));
        }
        self.earlier = earlier;
        self.run_limit = run_limit;
        self.limit = run_limit;
        nvdimms.keep_journal(true);
        if self.phase == Phase::Before && self.opens.is_none() {
            let at = At { vcpu: 0, instruction: earlier.0, time: earlier.1, rip: 0, chain: 0 };
            self.open(at, nvdimms)?;
        }
        self.watch(partition);
        Ok(())
    }

    /// Tells the engine what to look at.
    fn watch(&self, partition: &dyn Partition) {
        let Some(events) = partition.memory_events() else { return };
        let ranges: Vec<Range<u64>> = match self.phase {
            Phase::Open => self.header.zones.iter().map(|zone| zone.start..zone.end).collect(),
            Phase::Before | Phase::Over => Vec::new(),
        };
        events.stop_at_places(self.spec.sight.is_some());
        events.watch(&ranges, self.spec.loads);
    }

    /// The recording begins: what the DIMMs hold now is its base.
    fn open(&mut self, at: At, nvdimms: &Nvdimms) -> Result<()> {
        self.phase = Phase::Open;
        self.header.instruction = at.instruction;
        self.header.time = at.time;
        if let Some((to, _)) = self.spec.trace.take() {
            self.writer = Some(Writer::new(to, &self.header)?);
        }
        let floor = match &self.spec.cut {
            Some(_) => Some(Floor::new(&self.header, nvdimms.nameless_files()?)),
            None => None,
        };
        let (writer, kept) = (&mut self.writer, &floor);
        nvdimms.each_block(&mut |dimm, number, block: &[u8; BLOCK]| {
            if let Some(writer) = writer {
                writer.block(dimm, number, block)?;
            }
            if let Some(floor) = kept {
                floor.block(dimm, number, block).map_err(Error::Floor)?;
            }
            Ok(())
        })?;
        if let (Some(floor), Some(cut)) = (floor, &self.spec.cut) {
            self.live = Some(Live::new(&self.header, cut.rules, floor));
        }
        Ok(())
    }

    /// Before each run: has the engine stop where a moment comes, whatever the guest does.
    pub fn limit(&mut self, partition: &dyn Partition) {
        let (earlier, earlier_time) = self.earlier;
        let now = partition.now();
        let retired = partition.instructions().unwrap_or(0);
        let own = self
            .dues()
            .map(|due| match due {
                Due::Instruction(n) => n.saturating_sub(earlier),
                // An instruction is a nanosecond, and what is skipped is seen at the next exit.
                Due::Time(t) => retired.saturating_add(t.saturating_sub(earlier_time).saturating_sub(now)),
            })
            .min();
        let limit = own.into_iter().chain(self.run_limit).min();
        if limit != self.limit {
            self.limit = limit;
            partition.stop_at(limit);
        }
    }

    /// Whether the run ends here in any case.
    pub fn is_at_limit(&self, partition: &dyn Partition) -> bool {
        self.run_limit.is_some_and(|limit| partition.instructions().is_some_and(|now| now >= limit))
    }

    fn dues(&self) -> impl Iterator<Item = Due> {
        let (before, open) = (self.phase == Phase::Before, self.phase == Phase::Open);
        let waits = [
            self.opens.as_ref().filter(|_| before),
            self.closes.as_ref().filter(|_| open),
            self.cutter.as_ref().filter(|_| open),
        ];
        waits.into_iter().flatten().filter_map(Cutter::due)
    }

    /// After each exit, before it is answered: takes what the engine saw. Gives whether the power is cut: then the exit
    /// does not happen.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn after_run(
        &mut self,
        exit: Exit,
        partition: &dyn Partition,
        processor: &mut dyn Processor,
        nvdimms: &Nvdimms,
    ) -> Result<bool> {
        self.drain(exit, partition, processor)?;
        let at = self.at(exit.vcpu, partition);
        let passed = |cutter: &Option<Cutter>| {
            cutter.as_ref().and_then(Cutter::due).is_some_and(|due| due.is_reached(at.instruction, at.time))
        };
        if self.phase == Phase::Before && passed(&self.opens) {
            self.open(at, nvdimms)?;
            self.watch(partition);
        }
        if self.phase == Phase::Open && passed(&self.cutter) {
            self.cut_here(at);
        }
        if self.phase == Phase::Open && passed(&self.closes) {
            self.phase = Phase::Over;
            self.watch(partition);
        }
        Ok(self.reached.is_some())
    }

    /// Now, at the begin of the next instruction.
    fn at(&self, vcpu: VcpuId, partition: &dyn Partition) -> At {
        At {
            vcpu,
            instruction: self.earlier.0 + partition.instructions().unwrap_or(0),
            time: self.earlier.1 + partition.now(),
            rip: 0,
            chain: 0,
        }
    }

    fn drain(&mut self, exit: Exit, partition: &dyn Partition, processor: &mut dyn Processor) -> Result<()> {
        let Some(events) = partition.memory_events() else { return Ok(()) };
        let mut batch = std::mem::take(&mut self.batch);
        events.drain(&mut |event| batch.push(event.clone()));
        // Right after an instruction from a new place its processor still tells who called.
        let last = batch.last().map(|event| (event.vcpu, event.instruction, event.rip));
        let fresh = last.filter(|&(vcpu, instruction, _)| {
            exit.kind == ExitKind::EventsFull
                && vcpu == exit.vcpu
                && partition.instructions() == Some(instruction + 1)
        });
        let mut arrived = None;
        if let (Some((vcpu, instruction, rip)), true) = (fresh, self.reached.is_none()) {
            arrived = self.chain(vcpu, processor)?.map(|chain| (vcpu, instruction, Place { rip, chain }));
        }
        for event in &batch {
            let place = &mut self.places[usize::from(event.vcpu & 7)];
            match arrived {
                Some((vcpu, instruction, new)) if (vcpu, instruction) == (event.vcpu, event.instruction) => {
                    *place = new;
                }
                _ => {}
            }
            let at = At {
                vcpu: event.vcpu,
                instruction: self.earlier.0 + event.instruction,
                time: self.earlier.1 + event.time,
                rip: event.rip,
                chain: if place.rip == event.rip { place.chain } else { 0 },
            };
            self.observe(at, kind(&event.kind))?;
        }
        batch.clear();
        self.batch = batch;
        Ok(())
    }

    /// The number of the call chain of a vCPU, where somebody can take it.
    fn chain(&mut self, vcpu: VcpuId, processor: &mut dyn Processor) -> Result<Option<u32>> {
        let (Some(sight), Some(writer)) = (&mut self.spec.sight, &mut self.writer) else { return Ok(None) };
        let chain = sight.chain(&self.memory, &processor.save(vcpu)?);
        let frames: Vec<u64> = chain
            .frames
            .iter()
            .map(|frame| if frame.guess { frame.ip ^ trace::GUESS } else { frame.ip })
            .collect();
        for frame in &chain.frames {
            name(writer, sight, frame.ip);
        }
        Ok(Some(if frames.is_empty() { 0 } else { writer.chain(&frames)? }))
    }

    /// Something happens, in its order.
    fn observe(&mut self, at: At, kind: Kind<'_>) -> Result<()> {
        if self.reached.is_some() {
            if let Kind::Store { address, data, .. } = kind {
                let last = address.saturating_add(data.len().max(1) as u64 - 1);
                self.late.extend((address / LINE..=last / LINE).map(|line| line * LINE));
            }
            return Ok(());
        }
        if self.phase != Phase::Open {
            return Ok(());
        }
        if !self.counts(at.vcpu, &kind) {
            return Ok(());
        }
        let At { vcpu, instruction, time, rip, chain } = at;
        let event = Event { vcpu, instruction, time, rip, chain, kind };
        let verdict = self.cutter.as_mut().map_or(Verdict::GoOn, |cutter| cutter.see(&event));
        if verdict == Verdict::Before {
            self.cut_here(at);
            return self.observe(at, kind);
        }
        if let Some(writer) = &mut self.writer {
            if let Some(sight) = &self.spec.sight {
                name(writer, sight, rip);
            }
            writer.event(&event)?;
        }
        if let Some(live) = &mut self.live {
            live.apply(&event)?;
        }
        self.events += 1;
        if verdict == Verdict::After {
            self.cut_here(At { instruction: instruction + 1, ..at });
        }
        Ok(())
    }

    /// Whether an event belongs into a trace. A fence does not that orders nothing: neither one by the way (locked and
    /// serialising instructions) without a flush or a posted store of its vCPU before it, nor any before the DIMMs were
    /// touched. So a run from a boot snapshot has the events of one from power-up.
    fn counts(&mut self, vcpu: VcpuId, kind: &Kind<'_>) -> bool {
        let unfenced = &mut self.unfenced[usize::from(vcpu & 7)];
        match kind {
            Kind::Store { kind, .. } => {
                self.touched = true;
                let posted = matches!(kind, medium::StoreKind::NonTemporal | medium::StoreKind::Direct64);
                *unfenced |= posted;
                true
            }
            Kind::Flush { .. } => {
                self.touched = true;
                *unfenced = true;
                true
            }
            Kind::Fence(medium::FenceKind::FailedCmpxchg | medium::FenceKind::Serialising) => *unfenced,
            Kind::Fence(medium::FenceKind::Locked) => std::mem::take(unfenced),
            Kind::Fence(_) => {
                *unfenced = false;
                self.touched
            }
            Kind::WriteBackAll | Kind::DropAll => self.touched,
            _ => true,
        }
    }

    fn cut_here(&mut self, at: At) {
        self.reached = Some(at);
        self.phase = Phase::Over;
    }

    /// The exit that is being answered sets a mark.
    pub fn mark(&mut self, name: String) {
        self.marks.push(name);
    }

    /// What an exit did, after it was answered: marks of the guest, and what its DIMMs were asked for. Gives whether the
    /// power is cut.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn after_answer(
        &mut self,
        exit: Exit,
        partition: &dyn Partition,
        processor: &mut dyn Processor,
        nvdimms: &mut Nvdimms,
    ) -> Result<bool> {
        let deeds = nvdimms.take_journal();
        let marks = std::mem::take(&mut self.marks);
        if deeds.is_empty() && marks.is_empty() {
            return Ok(self.reached.is_some());
        }
        let mut at = self.at(exit.vcpu, partition);
        at.instruction = at.instruction.saturating_sub(1);
        if self.phase == Phase::Open {
            at.rip = processor.save(exit.vcpu)?.registers.rip;
            at.chain = self.chain(exit.vcpu, processor)?.unwrap_or(0);
        }
        for deed in &deeds {
            let kind = match *deed {
                Deed::Hint(dimm) => Kind::Hint { dimm: dimm as u8 },
                Deed::Call { handle, function } => Kind::Call { handle, function },
                Deed::Labels { dimm, offset, ref data } => {
                    Kind::Meta { dimm: dimm as u8, area: Area::Labels, offset, data }
                }
                Deed::State { dimm, offset, ref data } => {
                    Kind::Meta { dimm: dimm as u8, area: Area::State, offset, data }
                }
            };
            self.observe(at, kind)?;
        }
        for name in &marks {
            self.set_mark(at, name, partition, nvdimms)?;
        }
        Ok(self.reached.is_some())
    }

    /// A mark may open the recording, then is the first of it, and may close it, then is the last.
    fn set_mark(&mut self, at: At, name: &str, partition: &dyn Partition, nvdimms: &Nvdimms) -> Result<()> {
        let At { vcpu, instruction, time, rip, chain } = at;
        let event = Event { vcpu, instruction, time, rip, chain, kind: Kind::Mark(name) };
        let comes = |cutter: &mut Option<Cutter>| {
            cutter.as_mut().is_some_and(|cutter| cutter.see(&event) == Verdict::After)
        };
        let (closes, opens) = (comes(&mut self.closes), comes(&mut self.opens));
        if self.phase == Phase::Before && opens {
            self.open(at, nvdimms)?;
            self.watch(partition);
        }
        let was_open = self.phase == Phase::Open;
        self.observe(at, event.kind)?;
        if was_open && closes && !opens {
            self.phase = Phase::Over;
            self.watch(partition);
        }
        Ok(())
    }

    /// A device has written guest memory.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn device_wrote(&mut self, range: &Range<u64>, partition: &dyn Partition) -> Result<()> {
        let at = self.at(0, partition);
        let zones: Vec<Range<u64>> = self.header.zones.iter().map(|zone| zone.start..zone.end).collect();
        for zone in zones {
            let (mut from, to) = (range.start.max(zone.start), range.end.min(zone.end));
            while from < to {
                let mut data = vec![0; (to - from).min(Kind::MAX_DATA as u64) as usize];
                self.memory.read_slice(&mut data, GuestAddress(from))?;
                let store = Kind::Store { address: from, data: &data, kind: medium::StoreKind::Device };
                self.observe(at, store)?;
                from += data.len() as u64;
            }
        }
        Ok(())
    }

    /// The guest was reset, after so many instructions and nanoseconds: the caches were written back, as the guest will find all of its stores.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn reset(&mut self, (instruction, time): (u64, u64)) -> Result<()> {
        if let Some(sight) = &mut self.spec.sight {
            sight.reset();
        }
        self.observe(At { vcpu: 0, instruction, time, rip: 0, chain: 0 }, Kind::Reset)
    }

    /// The run is over. If the power was cut, the DIMMs get what is left of their content.
    ///
    /// # Errors
    /// A file cannot be written, or the survivors that were asked for cannot be had.
    pub fn finish(&mut self, nvdimms: &mut Nvdimms, outcome: &str, end: (u64, u64)) -> Result<RecordReport> {
        let mut report = RecordReport { events: self.events, ..RecordReport::default() };
        if let Some(window) = &self.spec.window {
            report.open_end = match self.phase {
                Phase::Before => Some(format!("the window did not open: {} never came", window.from)),
                Phase::Open => Some(format!("the window did not close: {} never came", window.to)),
                Phase::Over => None,
            };
        }
        let asked = self.spec.cut.as_ref().filter(|_| self.reached.is_none());
        report.never_came = asked.map(|cut| cut.when.to_string());
        let remains = self.cut_power(nvdimms);
        if let Some(mut writer) = self.writer.take() {
            writer.flush()?;
            (report.event_bytes, report.data_bytes) = writer.coded();
            let (instruction, time) = self.reached.map_or(end, |at| (at.instruction, at.time));
            let end = End { instruction, time, outcome: outcome.to_owned(), events: 0 };
            let before = writer.bytes();
            let mut to = writer.finish(&end)?;
            to.flush().map_err(|source| trace::Error::Io { offset: before, source })?;
            report.bytes = before;
        }
        nvdimms.keep_journal(false);
        report.cut = remains?;
        Ok(report)
    }

    fn cut_power(&mut self, nvdimms: &mut Nvdimms) -> Result<Option<CutReport>> {
        let (Some(at), Some(live), Some(cut)) = (self.reached, &self.live, &self.spec.cut) else {
            return Ok(None);
        };
        let remains = live.remains(&cut.survivors)?;
        for &address in remains.in_doubt.iter().chain(&self.late) {
            let content = remains.lines.get(&address).copied();
            let content = content.unwrap_or_else(|| medium::Base::line(live.floor(), address));
            let mut now = [0; LINE as usize];
            let place = GuestAddress(address);
            self.memory.read_slice(&mut now, place)?;
            if now != content {
                self.memory.write_slice(&content, place)?;
            }
        }
        live.floor().check().map_err(Error::Floor)?;
        nvdimms.sync()?;
        nvdimms.power_cut()?;
        Ok(Some(CutReport {
            at: cut.when.to_string(),
            survivors: survivors_name(&cut.survivors),
            events: self.events,
            instruction: at.instruction,
            time: at.time,
            lines_in_doubt: remains.in_doubt.len() as u64,
            images: remains.images,
            outcome: remains.name.to_string(),
        }))
    }
}

/// Names the code at an address in the trace, where there is a name.
fn name<W: Write>(writer: &mut Writer<W>, sight: &Sight, address: u64) {
    if address >= symbols::KERNEL_HALF
        && !writer.is_named(address)
        && let Some(place) = sight.code().place(address)
    {
        writer.name(address, place.to_string());
    }
}

/// An engine's event in the trace's words.
fn kind(event: &EventKind) -> Kind<'_> {
    match event {
        EventKind::Store { addr, data, len, kind } => Kind::Store {
            address: *addr,
            data: &data[..usize::from(*len).min(data.len())],
            kind: match kind {
                StoreKind::Cached => medium::StoreKind::Cached,
                StoreKind::NonTemporal => medium::StoreKind::NonTemporal,
                StoreKind::Locked => medium::StoreKind::Locked,
            },
        },
        EventKind::Load { addr, len } => Kind::Load { address: *addr, len: (*len).into() },
        EventKind::Flush { line, kind } => Kind::Flush {
            address: *line,
            kind: match kind {
                FlushKind::Clflush => medium::FlushKind::Clflush,
                FlushKind::Clflushopt => medium::FlushKind::Clflushopt,
                FlushKind::Clwb => medium::FlushKind::Clwb,
            },
        },
        EventKind::Fence { kind } => match kind {
            FenceKind::Sfence => Kind::Fence(medium::FenceKind::Sfence),
            FenceKind::Mfence => Kind::Fence(medium::FenceKind::Mfence),
            FenceKind::Locked => Kind::Fence(medium::FenceKind::Locked),
            FenceKind::LockedFailed => Kind::Fence(medium::FenceKind::FailedCmpxchg),
            FenceKind::Serialising => Kind::Fence(medium::FenceKind::Serialising),
            FenceKind::Wbinvd => Kind::WriteBackAll,
            FenceKind::Invd => Kind::DropAll,
        },
    }
}
