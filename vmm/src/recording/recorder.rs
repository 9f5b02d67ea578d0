//! Follows a run: takes what the engine saw after each exit and what the exit did, in order, and hands it on to the trace
//! and to the power cut that is waited for.

use std::ops::Range;

use engine::log::Log;
use engine::place::Place;
use engine::{Exit, ExitKind, GuestMemory, Partition, Processor, VcpuId};
use nvdimm_model::medium;
use trace::{Area, BLOCK, Contents, Cutter, Due, End, Event, Header, Kind, Reached, Verdict};
use vm_memory::{Bytes, GuestAddress};

use super::cutting::Cutting;
use super::spec::{CutReport, RecordReport, RecordSpec, Window};
use super::survey::{self, Halted};
use super::tape::Tape;
use super::words::{self, Sieve};
use crate::nvdimm::{Deed, Nvdimms};
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

/// Where and when something happens.
#[derive(Debug, Clone, Copy)]
struct At {
    vcpu: VcpuId,
    instruction: u64,
    time: u64,
    rip: u64,
    chain: u32,
}

impl At {
    /// At no instruction: before one, or where the machine itself does something.
    fn moment(vcpu: VcpuId, (instruction, time): (u64, u64)) -> Self {
        Self { vcpu, instruction, time, rip: 0, chain: 0 }
    }

    fn of(event: &Event<'_>) -> Self {
        let Event { vcpu, instruction, time, rip, chain, .. } = *event;
        Self { vcpu, instruction, time, rip, chain }
    }

    fn event(self, kind: Kind<'_>) -> Event<'_> {
        let Self { vcpu, instruction, time, rip, chain } = self;
        Event { vcpu, instruction, time, rip, chain, kind }
    }
}

/// A window, with what opens and what closes it.
#[derive(Debug)]
struct Shutters {
    window: Window,
    opens: Cutter,
    closes: Cutter,
}

/// Records a run.
pub struct Recorder {
    header: Header,
    phase: Phase,
    shutters: Option<Shutters>,
    tape: Tape,
    cutting: Option<Cutting>,
    sieve: Sieve,
    /// The engine counts all instructions, and so can see all of the run.
    sees_all: bool,
    /// It sees no stores: what the DIMMs hold is looked at.
    surveys: bool,
    /// Instructions and guest time of earlier boots.
    earlier: (u64, u64),
    /// The number of the next instruction, as far as is known.
    number: u64,
    /// Events recorded, as far as a power cut is waited for.
    events: u64,
    /// What the engine has logged last; its room is used again.
    log: Log,
    /// Marks that the exit which is being answered has set.
    marks: Vec<String>,
    /// Where the run ends in any case, in instructions since the engine was built.
    run_limit: Option<u64>,
    /// What the engine was told.
    limit: Option<u64>,
    /// The time at which somebody will ring.
    alarm: Option<u64>,
    memory: GuestMemory,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder")
            .field("phase", &self.phase)
            .field("shutters", &self.shutters)
            .field("events", &self.events)
            .finish_non_exhaustive()
    }
}

impl Recorder {
    /// A recorder of what was asked for. `machine` has what the machine knows for the header.
    pub fn new(spec: RecordSpec, machine: Header, memory: GuestMemory) -> Self {
        let RecordSpec { trace, window, loads, cut, sight } = spec;
        let (to, made_by) = trace.unzip();
        let Header { nvsim, image, image_hash, kernel, .. } = made_by.unwrap_or_default();
        let shutters = |window: Window| Shutters {
            opens: Cutter::new(&window.from),
            closes: Cutter::new(&window.to),
            window,
        };
        Self {
            header: Header { nvsim, image, image_hash, kernel, loads, ..machine },
            phase: Phase::Before,
            shutters: window.map(shutters),
            tape: Tape::new(to, sight),
            cutting: cut.map(Cutting::new),
            sieve: Sieve::default(),
            sees_all: true,
            surveys: false,
            earlier: (0, 0),
            number: 0,
            alarm: None,
            events: 0,
            log: Log::default(),
            marks: Vec::new(),
            run_limit: None,
            limit: None,
            memory,
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
        if partition.memory_events().is_none() {
            return Err(Error::Record(
                "this engine sees no stores (KVM can where Linux is 5.16 or newer); give --engine soft"
                    .to_owned(),
            ));
        }
        self.sees_all = partition.instructions().is_some();
        self.earlier = earlier;
        if !self.sees_all {
            let (window, cut) = (self.shutters.as_ref().map(|s| &s.window), &self.cutting);
            let cut = cut.as_ref().map(Cutting::spec);
            survey::check(window, self.tape.is_wanted(), cut, &self.header)?;
            self.surveys = window.is_none();
            // Its numbers begin anew with each partition, and those of a trace do not.
            self.earlier.0 = self.number;
        }
        self.run_limit = run_limit.filter(|_| self.sees_all);
        self.limit = self.run_limit;
        self.alarm = None;
        nvdimms.keep_journal(true);
        if self.phase == Phase::Before && self.shutters.is_none() {
            return self.open(At::moment(0, self.earlier), partition, nvdimms);
        }
        self.watch(partition);
        Ok(())
    }

    /// Tells the engine what to look at.
    fn watch(&self, partition: &dyn Partition) {
        let Some(events) = partition.memory_events() else { return };
        let sees = self.phase == Phase::Open && !self.surveys;
        let ranges = if sees { self.zones() } else { Vec::new() };
        events.ask_places(self.tape.has_sight());
        events.watch(&ranges, self.header.loads);
    }

    /// Where the DIMMs are.
    fn zones(&self) -> Vec<Range<u64>> {
        self.header.zones.iter().map(|zone| zone.start..zone.end).collect()
    }

    /// The recording begins: what the DIMMs hold now is its base.
    fn open(&mut self, at: At, partition: &dyn Partition, nvdimms: &Nvdimms) -> Result<()> {
        self.phase = Phase::Open;
        // No vCPU stores anything any more that is neither in the base nor an event.
        self.watch(partition);
        self.header.instruction = at.instruction;
        self.header.time = at.time;
        self.tape.begin(&self.header)?;
        if let Some(cutting) = &mut self.cutting {
            cutting.begin(&self.header, nvdimms)?;
        }
        let (tape, cutting) = (&mut self.tape, &self.cutting);
        nvdimms.each_block(&mut |dimm, number, block: &[u8; BLOCK]| {
            tape.block(dimm, number, block)?;
            cutting.as_ref().map_or(Ok(()), |cutting| cutting.block(dimm, number, block))
        })
    }

    /// Before each run: has the engine stop where a moment comes, whatever the guest does. Gives how much guest time is left
    /// until then where the engine does not count that in instructions, once for each moment: who drives it is to see to
    /// it that there is an exit.
    pub fn limit(&mut self, partition: &dyn Partition) -> Option<u64> {
        let (earlier, earlier_time) = self.earlier;
        let now = partition.now();
        let number = self.numbered(partition);
        let left = |t: u64| t.saturating_sub(earlier_time).saturating_sub(now);
        let own = self
            .dues()
            .filter_map(|due| match due {
                Due::Instruction(n) => Some(n.saturating_sub(earlier)),
                // An instruction is a nanosecond, and what is skipped is seen at the next exit.
                Due::Time(t) => self.sees_all.then(|| number.saturating_add(left(t))),
            })
            .min();
        let limit = own.into_iter().chain(self.run_limit).min();
        if limit != self.limit {
            self.limit = limit;
            if let Some(events) = partition.memory_events() {
                events.stop_at(limit);
            }
        }
        let times = self.dues().filter_map(|due| match due {
            Due::Time(t) if !self.sees_all => Some(t),
            _ => None,
        });
        let next = times.min();
        let is_new = next != self.alarm;
        self.alarm = next;
        next.filter(|_| is_new).map(left)
    }

    /// The number that the engine gives to the next instruction.
    fn numbered(&self, partition: &dyn Partition) -> u64 {
        partition.memory_events().map_or(0, engine::event::MemoryEvents::number)
    }

    /// Whether the run ends here in any case.
    pub fn is_at_limit(&self, partition: &dyn Partition) -> bool {
        self.run_limit.is_some_and(|limit| partition.instructions().is_some_and(|now| now >= limit))
    }

    /// What is waited for that comes without an event.
    fn dues(&self) -> impl Iterator<Item = Due> {
        let shutters = self.shutters.as_ref();
        let waits = match self.phase {
            Phase::Before => [shutters.and_then(|s| s.opens.due()), None],
            Phase::Open => {
                [shutters.and_then(|s| s.closes.due()), self.cutting.as_ref().and_then(Cutting::due)]
            }
            Phase::Over => [None, None],
        };
        waits.into_iter().flatten()
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
        self.number = at.instruction;
        let passed = |due: Option<Due>| due.is_some_and(|due| due.is_reached(at.instruction, at.time));
        if self.phase == Phase::Before && passed(self.shutters.as_ref().and_then(|s| s.opens.due())) {
            self.open(at, partition, nvdimms)?;
        }
        if self.phase == Phase::Open && passed(self.cutting.as_ref().and_then(Cutting::due)) {
            self.cut_here(at, Some(partition))?;
        }
        if self.phase == Phase::Open && passed(self.shutters.as_ref().and_then(|s| s.closes.due())) {
            self.phase = Phase::Over;
            self.watch(partition);
        }
        Ok(self.is_cut())
    }

    /// Now, at the begin of the next instruction.
    fn at(&self, vcpu: VcpuId, partition: &dyn Partition) -> At {
        let (instructions, time) = self.earlier;
        At::moment(vcpu, (instructions + self.numbered(partition), time + partition.now()))
    }

    /// Takes what the engine saw, and tells it what it asks.
    fn drain(&mut self, exit: Exit, partition: &dyn Partition, processor: &mut dyn Processor) -> Result<()> {
        let Some(events) = partition.memory_events() else { return Ok(()) };
        let mut log = std::mem::take(&mut self.log);
        events.drain(&mut log);
        if self.phase == Phase::Open {
            if self.cutting.is_some() {
                // The cut may come in the midst of it.
                let mut recorded = 0;
                for item in log.iter() {
                    let happened =
                        words::told(item, self.earlier, |event| self.happens(event, Some(partition)))?;
                    recorded += usize::from(happened || !self.is_cut());
                }
                log.truncate(recorded);
            }
            self.tape.log(&mut log, self.earlier)?;
        }
        self.log = log;
        if exit.kind == ExitKind::UnknownPlace
            && self.phase == Phase::Open
            && let Some(place) = self.chain(exit.vcpu, processor)?
        {
            events.learn(exit.vcpu, place);
        }
        Ok(())
    }

    /// The call chain of a vCPU, where somebody can take it.
    fn chain(&mut self, vcpu: VcpuId, processor: &mut dyn Processor) -> Result<Option<Place>> {
        self.tape.chain(&self.memory, || Ok(processor.save(vcpu)?))
    }

    /// Something happens that is not in the engine's log, in its order; in a partition, unless that is no more.
    fn observe(&mut self, event: Event<'_>, partition: Option<&dyn Partition>) -> Result<()> {
        if self.happens(&event, partition)? { self.tape.event(&event) } else { Ok(()) }
    }

    /// Something happens: gives whether it does before the power is cut, and belongs into a trace.
    fn happens(&mut self, event: &Event<'_>, partition: Option<&dyn Partition>) -> Result<bool> {
        if let Some(cutting) = self.cutting.as_mut().filter(|cutting| cutting.reached().is_some()) {
            cutting.too_late(&event.kind);
            return Ok(false);
        }
        if self.phase != Phase::Open || !self.sieve.keeps(event.vcpu, &event.kind) {
            return Ok(false);
        }
        let verdict = self.cutting.as_mut().map_or(Verdict::GoOn, |cutting| cutting.see(event));
        let at = At::of(event);
        if verdict == Verdict::Before {
            self.cut_here(at, partition)?;
            return self.happens(event, partition);
        }
        if self.surveys {
            self.survey(event, partition)?;
        } else if let Some(cutting) = &mut self.cutting {
            cutting.apply(event)?;
        }
        self.events += 1;
        if verdict == Verdict::After {
            self.cut_here(At { instruction: at.instruction + 1, ..at }, partition)?;
        }
        Ok(true)
    }

    /// An event makes sure what DIMMs hold, of which nothing else is known.
    fn survey(&mut self, event: &Event<'_>, partition: Option<&dyn Partition>) -> Result<()> {
        let zones = self.zones();
        let Some(cutting) = &mut self.cutting else { return Ok(()) };
        let Some(floor) = cutting.contents().map(Contents::floor) else { return Ok(()) };
        let sure = match event.kind {
            Kind::Hint { dimm } => {
                let _halted = partition.and_then(|partition| Halted::all(partition, &zones));
                survey::changed(&self.header, floor, &self.memory, Some(dimm.into()))?
            }
            Kind::Reset => survey::changed(&self.header, floor, &self.memory, None)?,
            Kind::Store { address, data, .. } => survey::lines(&self.memory, address, data.len())?,
            _ => return cutting.apply(event),
        };
        Ok(floor.lines(&sure)?)
    }

    fn cut_here(&mut self, at: At, partition: Option<&dyn Partition>) -> Result<()> {
        let zones = self.zones();
        if let Some(cutting) = &mut self.cutting {
            let At { instruction, time, .. } = at;
            if let (true, Some(contents)) = (self.surveys, cutting.contents()) {
                if let Some(halted) = partition.and_then(|partition| Halted::all(partition, &zones)) {
                    halted.keep_watching();
                }
                let changed = survey::changed(&self.header, contents.floor(), &self.memory, None)?;
                for (&address, data) in &changed {
                    let kind = Kind::Store { address, data, kind: medium::StoreKind::Cached };
                    cutting.apply(&at.event(kind))?;
                }
            }
            cutting.reach(Reached { events: self.events, instruction, time });
        }
        self.phase = Phase::Over;
        Ok(())
    }

    fn is_cut(&self) -> bool {
        self.cutting.as_ref().is_some_and(|cutting| cutting.reached().is_some())
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
            return Ok(self.is_cut());
        }
        let mut at = self.at(exit.vcpu, partition);
        if self.sees_all {
            // Others count it when it is over, which the engine has not been told yet.
            at.instruction = at.instruction.saturating_sub(1);
        }
        if self.phase == Phase::Open {
            at.rip = processor.save(exit.vcpu)?.registers.rip;
            at.chain = self.chain(exit.vcpu, processor)?.map_or(0, |place| place.number);
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
            self.observe(at.event(kind), Some(partition))?;
        }
        for name in &marks {
            self.set_mark(at, name, partition, nvdimms)?;
        }
        Ok(self.is_cut())
    }

    /// A mark may open the recording, then is the first of it, and may close it, then is the last.
    fn set_mark(&mut self, at: At, name: &str, partition: &dyn Partition, nvdimms: &Nvdimms) -> Result<()> {
        let event = at.event(Kind::Mark(name));
        let comes = |cutter: &mut Cutter| cutter.see(&event) == Verdict::After;
        let shutters = self.shutters.as_mut();
        let (opens, closes) =
            shutters.map_or((false, false), |s| (comes(&mut s.opens), comes(&mut s.closes)));
        if self.phase == Phase::Before && opens {
            self.open(at, partition, nvdimms)?;
        }
        let was_open = self.phase == Phase::Open;
        self.observe(event, Some(partition))?;
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
        for zone in self.zones() {
            let (mut from, to) = (range.start.max(zone.start), range.end.min(zone.end));
            while from < to {
                let mut data = vec![0; (to - from).min(Kind::MAX_DATA as u64) as usize];
                self.memory.read_slice(&mut data, GuestAddress(from))?;
                let store = Kind::Store { address: from, data: &data, kind: medium::StoreKind::Device };
                self.observe(at.event(store), Some(partition))?;
                from += data.len() as u64;
            }
        }
        Ok(())
    }

    /// The guest was reset, after so many instructions and nanoseconds: the caches were written back, as the guest will find
    /// all of its stores.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn reset(&mut self, now: (u64, u64)) -> Result<()> {
        self.tape.reset();
        let now = (if self.sees_all { now.0 } else { self.number }, now.1);
        self.observe(At::moment(0, now).event(Kind::Reset), None)
    }

    /// The run is over. If the power was cut, the DIMMs get what is left of their content, and are off.
    ///
    /// # Errors
    /// A file cannot be written, or the survivors that were asked for cannot be had.
    pub fn leave(&mut self, nvdimms: &mut Nvdimms) -> Result<Option<CutReport>> {
        nvdimms.keep_journal(false);
        self.cutting.as_ref().map_or(Ok(None), |cutting| cutting.leave(&self.memory, nvdimms))
    }

    /// Ends the trace, whatever has become of the power cut.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn finish(mut self, outcome: &str, end: (u64, u64)) -> Result<RecordReport> {
        let mut report = RecordReport { events: self.events, ..RecordReport::default() };
        report.open_end = self.shutters.as_ref().and_then(|Shutters { window, .. }| match self.phase {
            Phase::Before => Some(format!("the window did not open: {} never came", window.from)),
            Phase::Open => Some(format!("the window did not close: {} never came", window.to)),
            Phase::Over => None,
        });
        report.never_came = self.cutting.as_ref().and_then(Cutting::missed);
        let reached = self.cutting.as_ref().and_then(Cutting::reached);
        let end = (if self.sees_all { end.0 } else { self.number }, end.1);
        let (instruction, time) = reached.map_or(end, |reached| (reached.instruction, reached.time));
        let end = End { instruction, time, outcome: outcome.to_owned(), events: 0 };
        self.tape.finish(&end, &mut report)?;
        Ok(report)
    }
}
