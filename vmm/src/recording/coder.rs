//! The thread that makes a trace of what a run does: it takes whole logs of the engine, and what happened between them, in
//! their order.

use std::io::Write;
use std::sync::mpsc::Sender;

use engine::log::{Deed, Item, Log, Origin, Short};
use nvdimm_model::geometry::LINE;
use trace::{Event, Jobs, Kind, Loop, Queue, Worker, Writer};

use super::words::{self, Sieve};

/// Where a trace goes.
pub type Sink = Box<dyn Write + Send>;
/// Hands it [`Job`]s, and gets emptied logs back.
pub type Coder = Worker<Job, Log, Writer<Sink>>;

/// Jobs that may wait: logs of the engine are some 200 KiB each.
const QUEUE: Queue = Queue { waiting: 16, batch: 8 };

/// What is to be put into the trace.
#[derive(Debug)]
pub enum Job {
    /// What an engine saw, after so many instructions and nanoseconds of earlier boots.
    Log(Log, (u64, u64)),
    /// An event by itself.
    Event(Loose),
    /// The next call chain.
    Chain(Vec<u64>),
    /// The name of an address.
    Name(u64, String),
}

/// An event with bytes of its own.
#[derive(Debug)]
pub struct Loose {
    /// Without its bytes.
    event: Event<'static>,
    bytes: Box<[u8]>,
}

impl Loose {
    pub fn new(event: &Event<'_>) -> Self {
        let Event { vcpu, instruction, time, rip, chain, kind } = *event;
        let none = &[][..];
        let (kind, bytes): (_, &[u8]) = match kind {
            Kind::Store { address, data, kind } => (Kind::Store { address, data: none, kind }, data),
            Kind::Meta { dimm, area, offset, data } => (Kind::Meta { dimm, area, offset, data: none }, data),
            Kind::Mark(name) => (Kind::Mark(""), name.as_bytes()),
            Kind::Flush { address, kind } => (Kind::Flush { address, kind }, none),
            Kind::Fence(kind) => (Kind::Fence(kind), none),
            Kind::WriteBackAll => (Kind::WriteBackAll, none),
            Kind::DropAll => (Kind::DropAll, none),
            Kind::Load { address, len } => (Kind::Load { address, len }, none),
            Kind::Hint { dimm } => (Kind::Hint { dimm }, none),
            Kind::Call { handle, function } => (Kind::Call { handle, function }, none),
            Kind::Reset => (Kind::Reset, none),
        };
        Self { event: Event { vcpu, instruction, time, rip, chain, kind }, bytes: bytes.into() }
    }

    fn event(&self) -> Event<'_> {
        let kind = match self.event.kind {
            Kind::Store { address, kind, .. } => Kind::Store { address, data: &self.bytes, kind },
            Kind::Meta { dimm, area, offset, .. } => Kind::Meta { dimm, area, offset, data: &self.bytes },
            Kind::Mark(_) => Kind::Mark(std::str::from_utf8(&self.bytes).unwrap_or_default()),
            other => other,
        };
        Event { kind, ..self.event }
    }
}

/// Starts it.
///
/// # Errors
/// There is no thread to be had.
pub fn start(writer: Writer<Sink>) -> trace::Result<Coder> {
    Worker::new("coder", QUEUE, |jobs, used| work(writer, jobs, &used))
}

fn work(writer: Writer<Sink>, jobs: Jobs<Job>, used: &Sender<Log>) -> trace::Result<Writer<Sink>> {
    let mut desk = Desk { writer, sieve: Sieve::default() };
    for job in jobs {
        match job {
            Job::Log(mut log, earlier) => {
                desk.log(&log, earlier)?;
                log.clear();
                // Nobody may be there to use it again.
                let _ = used.send(log);
            }
            Job::Event(loose) => desk.event(&loose.event())?,
            Job::Chain(frames) => drop(desk.writer.chain(&frames)?),
            Job::Name(address, name) => desk.writer.name(address, name),
        }
    }
    Ok(desk.writer)
}

/// The thread's own.
struct Desk {
    writer: Writer<Sink>,
    sieve: Sieve,
}

impl Desk {
    fn event(&mut self, event: &Event<'_>) -> trace::Result<()> {
        if self.sieve.keeps(event.vcpu, &event.kind) { self.writer.event(event) } else { Ok(()) }
    }

    /// All events of a log. Nearly all that there are by the million are made by loops.
    fn log(&mut self, log: &Log, earlier: (u64, u64)) -> trace::Result<()> {
        let shorts = log.shorts();
        let mut at = 0;
        while at < shorts.len() {
            if let Some((of, count)) = goes_on(log, at)
                && self.rounds(log, &shorts[at..at + count], of)?
            {
                at += count;
                continue;
            }
            if let Some(item) = log.item(&shorts[at]) {
                words::told(item, earlier, |event| self.event(event))?;
            }
            at += 1;
        }
        Ok(())
    }

    fn rounds(&mut self, log: &Log, shorts: &[Short], of: Loop) -> trace::Result<bool> {
        // Each round stores as many bytes as the first.
        let round: Vec<usize> = shorts.iter().take(of.period).map(|short| stored(log, short)).collect();
        self.writer.rounds(of, shorts.len() as u64, |bytes| {
            if round.iter().all(|&len| len == 8) {
                let begin = bytes.len();
                bytes.resize(begin + 8 * shorts.len(), 0);
                for (word, short) in bytes[begin..].chunks_exact_mut(8).zip(shorts) {
                    word.copy_from_slice(&short.data.to_le_bytes());
                }
            } else {
                for (short, &len) in shorts.iter().zip(round.iter().cycle()) {
                    bytes.extend_from_slice(&short.data.to_le_bytes()[..len]);
                }
            }
        })
    }
}

/// Bytes that a short event stores.
fn stored(log: &Log, short: &Short) -> usize {
    match log.item(short) {
        Some(Item::Short(Origin { deed: Deed::Store(len, _), .. }, _)) => usize::from(*len).min(8),
        _ => 0,
    }
}

/// The loop that the events from here on go on with, and how many do.
fn goes_on(log: &Log, at: usize) -> Option<(Loop, usize)> {
    let shorts = log.shorts();
    let next = shorts.get(at)?;
    let before = shorts[at.saturating_sub(Loop::PERIOD)..at].iter().rev();
    let mut before = before.map_while(Short::origin);
    let origin = next.origin()?;
    let period = 1 + before.position(|before| before == origin)?;
    let last = &shorts[at - period];
    // Of one origin: what is not the address is the same.
    let (address, left) = (next.at.wrapping_sub(last.at), last.left.wrapping_sub(next.left));
    // Lines are what is flushed, and these are addresses within.
    let flushes =
        |short| matches!(log.item(short), Some(Item::Short(Origin { deed: Deed::Flush(_), .. }, _)));
    if u64::from(address) % LINE != 0 && shorts[at - period..at].iter().any(flushes) {
        return None;
    }
    let foretold = |(before, short): &(&Short, &Short)| {
        short.at == before.at.wrapping_add(address)
            && short.left == before.left.wrapping_sub(left)
            && short.origin() == before.origin()
    };
    let count = shorts[at - period..].iter().zip(&shorts[at..]).take_while(foretold).count();
    (count >= FEW)
        .then_some((Loop { period, address: address as i32 as u64, instructions: left.into() }, count))
}

/// A loop of fewer events is not worth the while.
const FEW: usize = 2 * Loop::PERIOD;

#[cfg(test)]
mod tests {
    use engine::event::{FlushKind, StoreKind};
    use engine::log::WINDOW;
    use proptest::prelude::*;
    use trace::{End, Header, Reader};

    use super::*;

    /// What each of a loop's rounds begins with, how far the rounds are apart, and where another event comes between.
    fn logs() -> impl Strategy<Value = Log> {
        let deed = prop_oneof![
            (1u8..=8).prop_map(|len| Deed::Store(len, StoreKind::NonTemporal)),
            Just(Deed::Store(8, StoreKind::Cached)),
            Just(Deed::Flush(FlushKind::Clwb)),
        ];
        let round = prop::collection::vec((deed, 1u64 << 32..1 << 33), 1..9);
        let strides = prop_oneof![Just(8u64), Just(32), Just(64), any::<u64>()];
        let one = (round, 1u32..200, strides, 1u32..100, prop::option::of(0usize..500));
        prop::collection::vec(one, 1..4).prop_map(|loops| {
            let mut log = Log::default();
            for (part, (round, count, stride, instructions, between)) in loops.iter().enumerate() {
                for n in 0..*count {
                    for (k, &(deed, address)) in round.iter().enumerate() {
                        let rip = 0x1000 * part as u64 + k as u64;
                        let base = 1 << 40;
                        let address = address.wrapping_add(stride.wrapping_mul(n.into()));
                        let window = address & !(WINDOW - 1);
                        let origin = Origin { vcpu: 1, rip, place: 0, deed, ahead: 7, base, window };
                        let origin = log.origin(origin).unwrap();
                        let left = u32::MAX - n * instructions - k as u32;
                        let data = u64::from(n).wrapping_mul(u64::MAX / 255);
                        log.push_short(Short::new(origin, address, data, left));
                        if *between == Some(n as usize) {
                            let mut event = log.events().last().unwrap();
                            event.kind =
                                engine::event::EventKind::Fence { kind: engine::event::FenceKind::Sfence };
                            log.push(event);
                        }
                    }
                }
            }
            log
        })
    }

    fn read(bytes: &[u8]) -> Vec<String> {
        let mut reader = Reader::new(bytes).unwrap();
        let mut events = Vec::new();
        while let Some(event) = reader.next_event().unwrap() {
            events.push(format!("{event:?}"));
        }
        events
    }

    proptest! {
        #[test]
        fn a_log_is_coded_as_its_events_are(log in logs()) {
            let mut events = Vec::new();
            for item in log.iter() {
                words::told(item, (5, 6), |event| events.push(format!("{event:?}")));
            }
            let shelf = crate::recording::tests::Shelf::default();
            let writer = Writer::new(Box::new(shelf.clone()) as Sink, &Header::default()).unwrap();
            let mut desk = Desk { writer, sieve: Sieve::default() };
            desk.log(&log, (5, 6)).unwrap();
            desk.writer.finish(&End::default()).unwrap();
            prop_assert_eq!(read(&shelf.0.lock().unwrap()), events);
        }
    }
}
