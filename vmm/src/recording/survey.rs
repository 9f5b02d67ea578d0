//! Power cuts under an engine that sees stores only within a window (KVM), where none was opened: the DIMMs are looked at,
//! line by line, whenever what they hold becomes sure, and when the power goes.
//!
//! Neither flushes nor fences are seen, nor how often a line was stored to. So a domain of `eadr` is exact: what a line
//! holds is sure. In one of `hint` all that a DIMM held when its flush hint was written is taken for sure, and a line that
//! is different by the cut may hold, chunk by chunk, either. Nothing can be said of `adr`.

use std::collections::BTreeMap;
use std::ops::Range;

use engine::event::MemoryEvents;
use engine::{GuestMemory, Partition};
use nvdimm_model::Domain;
use nvdimm_model::geometry::LINE;
use nvdimm_model::medium::Content;
use trace::{Floor, Header, Moment, When};
use vm_memory::{Bytes, GuestAddress};

use super::cutting::touched;
use super::spec::{CutSpec, Window};
use crate::{Error, Result};

/// Bytes that are compared at a time; pieces of an interleave set are a multiple.
const CHUNK: u64 = 64 << 10;

/// No vCPU is in the guest.
pub struct Halted<'a>(&'a dyn MemoryEvents);

impl<'a> Halted<'a> {
    /// Has every vCPU leave the guest; all of them wait for the recorder that calls this.
    pub fn all(partition: &'a dyn Partition, zones: &[Range<u64>]) -> Option<Self> {
        let events = partition.memory_events()?;
        events.watch(zones, false);
        Some(Self(events))
    }

    /// What they do when they go on is told.
    pub fn keep_watching(self) {
        std::mem::forget(self);
    }
}

impl Drop for Halted<'_> {
    fn drop(&mut self) {
        self.0.watch(&[], false);
    }
}

/// Whether an engine that counts no instructions outside of a window can do what is asked for.
///
/// # Errors
/// What it cannot do, and what can be done.
pub fn check(window: Option<&Window>, traced: bool, cut: Option<&CutSpec>, header: &Header) -> Result<()> {
    let refused = |reason: String| Err(Error::Record(reason));
    if let Some(window) = window {
        return match window.from.moment {
            Moment::Instruction(_) => refused(format!(
                "KVM counts instructions only within a window, so it cannot open one at {}; begin it at a mark of the guest \
                 or at a time, or give --engine soft",
                window.from
            )),
            _ => Ok(()),
        };
    }
    if traced {
        return refused(
            "KVM sees stores only within a window: give --window BEGIN..END, two marks of the guest (nvsim-mark BEGIN) or \
             times (time:1s..time:2s), or --engine soft"
                .to_owned(),
        );
    }
    let Some(CutSpec { when, .. }) = cut else { return Ok(()) };
    if !is_seen(when) {
        return refused(format!(
            "without a window KVM sees marks, flush hints, writes of labels and times, not {when}: give --window BEGIN..END \
             around it, or --engine soft"
        ));
    }
    match header.dimms.iter().find(|dimm| dimm.persistence.kept == Domain::Adr) {
        Some(dimm) => refused(format!(
            "{} keeps what was flushed and fenced (domain adr), which KVM sees only within a window: give --window \
             BEGIN..END around {when}, or --engine soft",
            dimm.name
        )),
        None => Ok(()),
    }
}

fn is_seen(when: &When) -> bool {
    matches!(when.moment, Moment::Mark(_) | Moment::Hint(_) | Moment::Label(_) | Moment::Time(_))
}

/// Lines of a DIMM, or of all, that memory and floor have different, as memory has them.
pub fn changed(
    header: &Header,
    floor: &Floor,
    memory: &GuestMemory,
    dimm: Option<usize>,
) -> Result<BTreeMap<u64, Content>> {
    let mut lines = BTreeMap::new();
    let (mut now, mut then) = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
    for zone in &header.zones {
        for start in (zone.start..zone.end).step_by(CHUNK as usize) {
            let whose = header.place(start).map(|(whose, _)| whose);
            if dimm.is_some() && whose != dimm {
                continue;
            }
            let len = CHUNK.min(zone.end - start) as usize;
            memory.read_slice(&mut now[..len], GuestAddress(start))?;
            floor.read(start, &mut then[..len])?;
            if now[..len] == then[..len] {
                continue;
            }
            let pairs = now[..len].as_chunks().0.iter().zip(then[..len].as_chunks().0);
            for (n, (now, then)) in (0..).zip(pairs) {
                let (now, then): (&Content, &Content) = (now, then);
                if now != then {
                    lines.insert(start + n * LINE, *now);
                }
            }
        }
    }
    Ok(lines)
}

/// The lines that a device has just written, as they are now.
pub fn lines(memory: &GuestMemory, address: u64, len: usize) -> Result<BTreeMap<u64, Content>> {
    let line = |address| {
        let mut content = [0; LINE as usize];
        memory.read_slice(&mut content, GuestAddress(address))?;
        Ok((address, content))
    };
    touched(address, len).map(line).collect()
}

#[cfg(test)]
pub mod tests {
    use nvdimm_model::medium::{Rules, Survivors};
    use nvdimm_model::{Identity, Persistence};
    use trace::{DimmHeader, ZoneHeader};

    use super::*;

    pub const START: u64 = 1 << 30;
    pub const PIECE: u64 = 2 << 20;

    /// An interleave set of DIMMs of one piece each.
    pub fn header(domains: &[Domain]) -> Header {
        let dimm = |&domain| DimmHeader {
            name: "d".to_owned(),
            identity: Identity::with_serial(1),
            persistence: Persistence::honest(domain),
            size: PIECE,
            data: PIECE,
        };
        let dimms: Vec<_> = domains.iter().map(dimm).collect();
        let zone = ZoneHeader {
            start: START,
            end: START + PIECE * dimms.len() as u64,
            dimms: (0..dimms.len() as u8).collect(),
        };
        Header { dimms, zones: vec![zone], ..Header::default() }
    }

    #[test]
    fn lines_that_differ_are_found_where_they_are() {
        let header = header(&[Domain::Hint, Domain::Hint]);
        let files = vec![tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
        let floor = Floor::new(&header, files).unwrap();
        let memory = GuestMemory::from_ranges(&[(GuestAddress(START), 2 * PIECE as usize)]).unwrap();
        let places = [START + 70, START + CHUNK - 1, START + PIECE, START + 2 * PIECE - 1];
        for place in places {
            memory.write_obj(1_u8, GuestAddress(place)).unwrap();
        }
        let found =
            |dimm| -> Vec<u64> { changed(&header, &floor, &memory, dimm).unwrap().into_keys().collect() };
        let lines = places.map(|place| place & !63);
        assert_eq!(found(None), lines);
        assert_eq!(found(Some(0)), lines[..2]);
        floor.lines(&changed(&header, &floor, &memory, Some(1)).unwrap()).unwrap();
        assert_eq!(found(None), lines[..2]);
    }

    #[test]
    fn what_cannot_be_kept_is_refused_with_the_remedy() {
        let cut = |when: &str| CutSpec {
            when: when.parse().unwrap(),
            survivors: Survivors::None,
            rules: Rules::default(),
        };
        let refusal = |window: Option<&str>, traced, when: Option<&str>, domain| {
            let window = window.map(|window| window.parse().unwrap());
            check(window.as_ref(), traced, when.map(cut).as_ref(), &header(&[Domain::Eadr, domain]))
                .err()
                .map(|error| error.to_string())
        };
        for (window, traced, when, domain) in [
            (Some("a..b"), true, Some("store:1"), Domain::Adr),
            (Some("time:1s..insn:7"), true, None, Domain::Adr),
            (None, false, Some("mark:m"), Domain::Eadr),
            (None, false, Some("after:m,hint:2"), Domain::Hint),
            (None, false, Some("time:1s"), Domain::Hint),
        ] {
            assert_eq!(refusal(window, traced, when, domain), None, "{window:?} {when:?}");
        }
        for (window, traced, when, domain, word) in [
            (Some("insn:1..b"), true, None, Domain::Adr, "insn:1"),
            (None, true, None, Domain::Eadr, "--window"),
            (None, false, Some("mark:m"), Domain::Adr, "domain adr"),
            (None, false, Some("store:3"), Domain::Eadr, "store:3"),
        ] {
            let told = refusal(window, traced, when, domain).unwrap();
            assert!(told.contains(word) && told.contains("--engine soft"), "{told}");
        }
    }
}
