//! Moments of a run: how a user names them, and how they are found in a stream of events, live or recorded.

use std::fmt;
use std::io::Read;
use std::str::FromStr;

use crate::{Area, Error, Event, Kind, Reader, Result};

/// A moment, as `store:7`, `mark:NAME` or `after:MARK,fence:2` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct When {
    /// Count from this mark on, instead of from the start.
    pub after: Option<String>,
    /// What to wait for.
    pub moment: Moment,
}

/// What to wait for. Numbers begin with 1; the moment is just after the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moment {
    /// So many instructions have retired.
    Instruction(u64),
    /// The n-th store; one of several parts counts for each part.
    Store(u64),
    /// The n-th flush of a line.
    Flush(u64),
    /// The n-th fence.
    Fence(u64),
    /// The n-th flush hint.
    Hint(u64),
    /// The n-th write of labels.
    Label(u64),
    /// The n-th event that may change what survives.
    Event(u64),
    /// A mark.
    Mark(String),
    /// So much guest time has passed, in nanoseconds.
    Time(u64),
    /// An event drawn from the first `among` that may change what survives.
    Random {
        /// Decides.
        seed: u64,
        /// Out of how many; if not said, a recorded trace has all of its events drawn from, a run 10 000.
        among: Option<u64>,
    },
}

/// Events that a run draws from for [`Moment::Random`] if not told.
const AMONG: u64 = 10_000;

const FORMS: &str = "write insn:N, store:N, flush:N, fence:N, hint:N, label:N, event:N, mark:NAME, time:1.5s, random:SEED or \
     random:SEED/N, or one of these after a mark: after:MARK,store:N";

impl FromStr for When {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |reason: &str| Error::When { text: text.to_owned(), reason: reason.to_owned() };
        let (after, rest) = match text.strip_prefix("after:") {
            None => (None, text),
            Some(tail) => {
                let (mark, rest) = tail.rsplit_once(',').ok_or_else(|| bad("write after:MARK,store:N"))?;
                (Some(mark.to_owned()), rest)
            }
        };
        let (word, value) = rest.split_once(':').ok_or_else(|| bad(FORMS))?;
        let number = || value.parse::<u64>().ok();
        let nth = || number().filter(|&n| n > 0).ok_or_else(|| bad("give a number from 1 on"));
        let moment = match word {
            "insn" => Moment::Instruction(number().ok_or_else(|| bad("give a number of instructions"))?),
            "store" => Moment::Store(nth()?),
            "flush" => Moment::Flush(nth()?),
            "fence" => Moment::Fence(nth()?),
            "hint" => Moment::Hint(nth()?),
            "label" => Moment::Label(nth()?),
            "event" => Moment::Event(nth()?),
            "mark" if !value.is_empty() => Moment::Mark(value.to_owned()),
            "mark" => return Err(bad("give the mark's name")),
            "time" => Moment::Time(nanoseconds(value).ok_or_else(|| bad("give a time, as 1.5s or 20ms"))?),
            "random" => {
                random(value).ok_or_else(|| bad("give a seed, or a seed and out of how many: 7/1000"))?
            }
            _ => return Err(bad(FORMS)),
        };
        if after.as_ref().is_some_and(String::is_empty) {
            return Err(bad("give the mark's name"));
        }
        Ok(Self { after, moment })
    }
}

impl When {
    /// Whether it is drawn at random from a number of events that is not said: see [`When::drawn_from`].
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.moment, Moment::Random { among: None, .. })
    }

    /// The number of the event that was drawn for a random moment.
    #[must_use]
    pub fn drawn(&self) -> Option<u64> {
        match self.moment {
            Moment::Random { seed, among } => Some(draw(seed, among.unwrap_or(AMONG))),
            _ => None,
        }
    }

    /// Draws an open moment from all events of a trace, read from its begin, that may change what survives; with a mark,
    /// from those behind it.
    ///
    /// # Errors
    /// What is wrong with the trace.
    pub fn drawn_from<R: Read>(&self, trace: &mut Reader<R>) -> Result<Self> {
        let mut when = self.clone();
        let Moment::Random { among: among @ None, .. } = &mut when.moment else { return Ok(when) };
        let mut counting = self.after.is_none();
        let mut count = 0_u64;
        while let Some(event) = trace.next_event()? {
            count += u64::from(counting && event.kind.is_decisive());
            counting |= self.after.as_deref().is_some_and(|mark| event.kind == Kind::Mark(mark));
        }
        *among = Some(count.max(1));
        Ok(when)
    }
}

fn random(value: &str) -> Option<Moment> {
    let (seed, among) = match value.split_once('/') {
        Some((seed, among)) => (seed, Some(among.parse().ok().filter(|&n| n > 0)?)),
        None => (value, None),
    };
    Some(Moment::Random { seed: seed.parse().ok()?, among })
}

/// `1.5s`, `20ms`, `7us`, `3ns`.
fn nanoseconds(text: &str) -> Option<u64> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let unit: u32 = match &text[unit_at..] {
        "s" => 9,
        "ms" => 6,
        "us" => 3,
        "ns" => 0,
        _ => return None,
    };
    let (whole, part) = text[..unit_at].split_once('.').unwrap_or((&text[..unit_at], ""));
    if part.len() > unit as usize || !part.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let part: u64 = format!("{part:0<width$}", width = unit as usize).parse().unwrap_or(0);
    whole.parse::<u64>().ok()?.checked_mul(10u64.pow(unit))?.checked_add(part)
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(mark) = &self.after {
            write!(f, "after:{mark},")?;
        }
        match &self.moment {
            Moment::Instruction(n) => write!(f, "insn:{n}"),
            Moment::Store(n) => write!(f, "store:{n}"),
            Moment::Flush(n) => write!(f, "flush:{n}"),
            Moment::Fence(n) => write!(f, "fence:{n}"),
            Moment::Hint(n) => write!(f, "hint:{n}"),
            Moment::Label(n) => write!(f, "label:{n}"),
            Moment::Event(n) => write!(f, "event:{n}"),
            Moment::Mark(name) => write!(f, "mark:{name}"),
            Moment::Time(n) => write!(f, "time:{n}ns"),
            Moment::Random { seed, among: None } => write!(f, "random:{seed}"),
            Moment::Random { seed, among: Some(among) } => write!(f, "random:{seed}/{among}"),
        }
    }
}

impl Kind<'_> {
    /// Whether it may change what survives.
    #[must_use]
    pub fn is_decisive(&self) -> bool {
        self.operation().is_some() || matches!(self, Self::Meta { .. })
    }
}

/// Whether the moment has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Not yet: the event happens.
    GoOn,
    /// It was before this event.
    Before,
    /// It is now: this event has happened, and is the last.
    After,
}

/// When the moment comes even if nothing happens any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// When so many instructions have retired.
    Instruction(u64),
    /// At this guest time, in nanoseconds.
    Time(u64),
}

impl Due {
    /// Whether the moment has come for who is at this instruction and guest time.
    #[must_use]
    pub fn is_reached(self, instruction: u64, time: u64) -> bool {
        match self {
            Self::Instruction(n) => instruction >= n,
            Self::Time(n) => time >= n,
        }
    }
}

/// Waits for a moment.
#[derive(Debug, Clone)]
pub struct Cutter {
    /// The mark that has not come yet.
    after: Option<String>,
    moment: Moment,
    seen: u64,
    /// Where counting began.
    instruction: u64,
    time: u64,
}

impl Cutter {
    /// Waits from the start of a run.
    #[must_use]
    pub fn new(when: &When) -> Self {
        let moment = when.drawn().map_or_else(|| when.moment.clone(), Moment::Event);
        Self { after: when.after.clone(), moment, seen: 0, instruction: 0, time: 0 }
    }

    /// An event has been met.
    pub fn see(&mut self, event: &Event<'_>) -> Verdict {
        if let Some(mark) = &self.after {
            if event.kind == Kind::Mark(mark) {
                self.after = None;
                (self.instruction, self.time) = (event.instruction, event.time);
            }
            return Verdict::GoOn;
        }
        let (counts, n) = match &self.moment {
            Moment::Instruction(n) => {
                let reached = event.instruction >= self.instruction.saturating_add(*n);
                return if reached { Verdict::Before } else { Verdict::GoOn };
            }
            Moment::Time(n) => {
                let reached = event.time >= self.time.saturating_add(*n);
                return if reached { Verdict::Before } else { Verdict::GoOn };
            }
            Moment::Mark(name) => (event.kind == Kind::Mark(name), 1),
            Moment::Store(n) => (matches!(event.kind, Kind::Store { .. }), *n),
            Moment::Flush(n) => (matches!(event.kind, Kind::Flush { .. }), *n),
            Moment::Fence(n) => (matches!(event.kind, Kind::Fence(_)), *n),
            Moment::Hint(n) => (matches!(event.kind, Kind::Hint { .. }), *n),
            Moment::Label(n) => (matches!(event.kind, Kind::Meta { area: Area::Labels, .. }), *n),
            Moment::Event(n) | Moment::Random { among: Some(n), .. } => (event.kind.is_decisive(), *n),
            Moment::Random { among: None, .. } => (event.kind.is_decisive(), AMONG),
        };
        self.seen += u64::from(counts);
        if counts && self.seen == n { Verdict::After } else { Verdict::GoOn }
    }

    /// How many events of the kind that it waits for have been met.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// When the moment comes without an event.
    #[must_use]
    pub fn due(&self) -> Option<Due> {
        match self.moment {
            _ if self.after.is_some() => None,
            Moment::Instruction(n) => Some(Due::Instruction(self.instruction.saturating_add(n))),
            Moment::Time(n) => Some(Due::Time(self.time.saturating_add(n))),
            _ => None,
        }
    }
}

/// A number from 1 to `among`, decided by a seed: SplitMix64, once.
fn draw(seed: u64, among: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    1 + ((u128::from(z) * u128::from(among)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use nvdimm_model::medium::{FenceKind, StoreKind};

    use super::*;

    fn event(instruction: u64, kind: Kind<'_>) -> Event<'_> {
        Event { vcpu: 0, instruction, time: 10 * instruction, rip: 0, chain: 0, kind }
    }

    /// Where a moment is in a small run: how many events happen.
    fn at(when: &str) -> Option<usize> {
        let store = Kind::Store { address: 0, data: &[1], kind: StoreKind::Cached };
        let run = [
            event(3, store),
            event(4, Kind::Fence(FenceKind::Sfence)),
            event(5, Kind::Mark("a,b")),
            event(7, store),
            event(7, store),
            event(9, Kind::Mark("end")),
        ];
        let mut cutter = Cutter::new(&when.parse().unwrap());
        for (n, event) in run.iter().enumerate() {
            match cutter.see(event) {
                Verdict::GoOn => {}
                Verdict::Before => return Some(n),
                Verdict::After => return Some(n + 1),
            }
        }
        None
    }

    #[test]
    fn moments_are_found() {
        assert_eq!(at("store:2"), Some(4));
        assert_eq!(at("after:a,b,store:2"), Some(5));
        assert_eq!(at("fence:1"), Some(2));
        assert_eq!(at("after:a,b,fence:1"), None);
        assert_eq!(at("event:3"), Some(4));
        assert_eq!(at("mark:end"), Some(6));
        assert_eq!(at("insn:7"), Some(3));
        assert_eq!(at("insn:0"), Some(0));
        assert_eq!(at("after:a,b,insn:4"), Some(5));
        assert_eq!(at("time:70ns"), Some(3));
        assert_eq!(at("insn:10"), None);
        for seed in 0..20 {
            assert!(matches!(at(&format!("random:{seed}/4")), Some(1 | 2 | 4 | 5)));
            let drawn = |text: String| text.parse::<When>().unwrap().drawn();
            assert!(matches!(drawn(format!("random:{seed}/4")), Some(1..=4)));
            assert_eq!(drawn(format!("event:{seed}1")), None);
        }
    }

    #[test]
    fn what_comes_without_an_event_is_told() {
        let mut cutter = Cutter::new(&"after:m,time:1.5us".parse().unwrap());
        assert_eq!(cutter.due(), None);
        cutter.see(&event(2, Kind::Mark("m")));
        assert_eq!(cutter.due(), Some(Due::Time(1520)));
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for text in ["insn:0", "store:7", "after:a,b,mark:x", "event:9", "time:1500000000ns", "random:3/10"] {
            assert_eq!(text.parse::<When>().unwrap().to_string(), text);
        }
        assert_eq!("time:1.5s".parse::<When>().unwrap().moment, Moment::Time(1_500_000_000));
        assert_eq!("time:0.02ms".parse::<When>().unwrap().moment, Moment::Time(20_000));
        let bad = [
            "",
            "store",
            "store:0",
            "store:x",
            "time:5",
            "time:1.s5s",
            "mark:",
            "after:m",
            "after:,store:1",
            "random:1/0",
        ];
        for text in bad {
            assert!(matches!(text.parse::<When>(), Err(Error::When { .. })), "{text}");
        }
    }
}
