//! The power cut that ends a run: when it comes, and what it leaves in the DIMMs.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use engine::GuestMemory;
use nvdimm_model::geometry::LINE;
use nvdimm_model::medium::{Base, ChunkWrite, Cut};
use trace::{
    BLOCK, Contents, Cutter, Due, Event, Floor, Header, Kind, Moment, Reached, Verdict, When, in_short,
};
use vm_memory::{Bytes, GuestAddress};

use super::spec::{CutReport, CutSpec, survivors_name};
use crate::Result;
use crate::nvdimm::Nvdimms;

/// A power cut that is waited for, or has come.
#[derive(Debug)]
pub struct Cutting {
    spec: CutSpec,
    cutter: Cutter,
    /// From the recording's begin on.
    contents: Option<Contents>,
    /// Where the power went.
    reached: Option<Reached>,
    /// Stores after that: addresses and bytes.
    late: Vec<(u64, Box<[u8]>)>,
}

impl Cutting {
    pub fn new(spec: CutSpec) -> Self {
        Self { cutter: Cutter::new(&spec.when), spec, contents: None, reached: None, late: Vec::new() }
    }

    /// The recording begins: what the DIMMs hold is durable; it comes by [`Cutting::block`].
    pub fn begin(&mut self, header: &Header, nvdimms: &Nvdimms) -> Result<()> {
        let floor = Floor::new(header, nvdimms.nameless_files()?)?;
        self.contents = Some(Contents::new(header, self.spec.rules, floor));
        Ok(())
    }

    /// What a DIMM's file holds at the begin.
    pub fn block(&self, dimm: usize, number: u64, block: &[u8; BLOCK]) -> Result<()> {
        self.contents.as_ref().map_or(Ok(()), |contents| Ok(contents.floor().block(dimm, number, block)?))
    }

    /// What was asked for.
    pub fn spec(&self) -> &CutSpec {
        &self.spec
    }

    /// What the DIMMs hold, from the recording's begin on.
    pub fn contents(&self) -> Option<&Contents> {
        self.contents.as_ref()
    }

    /// When it comes even if nothing happens.
    pub fn due(&self) -> Option<Due> {
        self.cutter.due()
    }

    /// What was waited for, if it has not come.
    pub fn missed(&self) -> Option<String> {
        let when = &self.spec.when;
        let told = || match (&when.moment, when.drawn(), self.cutter.seen()) {
            (&Moment::Random { seed, .. }, Some(drawn), seen @ 1..) => {
                let within = When { moment: Moment::Random { seed, among: Some(seen) }, ..when.clone() };
                format!("{when} drew event {drawn}, but there were only {seen} (give {within}), so it")
            }
            _ => when.to_string(),
        };
        self.reached.is_none().then(told)
    }

    /// Where the power went, if it has.
    pub fn reached(&self) -> Option<Reached> {
        self.reached
    }

    /// An event is about to happen.
    pub fn see(&mut self, event: &Event<'_>) -> Verdict {
        self.cutter.see(event)
    }

    /// An event happens.
    pub fn apply(&mut self, event: &Event<'_>) -> Result<()> {
        self.contents.as_mut().map_or(Ok(()), |contents| Ok(contents.apply(event)?))
    }

    /// The power goes.
    pub fn reach(&mut self, reached: Reached) {
        self.reached = Some(reached);
    }

    /// Something that the guest did after that, unseen by all but its DIMMs.
    pub fn too_late(&mut self, kind: &Kind<'_>) {
        if let Kind::Store { address, data, .. } = *kind {
            self.late.push((address, data.into()));
        }
    }

    /// Gives the DIMMs what is left of their content. They hold all that was stored; each write on the way leaves what a
    /// power cut may leave too, at this moment or a later one, so that this process may be killed at any time.
    pub fn leave(&self, memory: &GuestMemory, nvdimms: &mut Nvdimms) -> Result<Option<CutReport>> {
        let (Some(reached), Some(contents)) = (self.reached, &self.contents) else { return Ok(None) };
        let cut = contents.cut()?;
        let remains = contents.remains(&cut, &self.spec.survivors)?;
        for (address, chunk) in self.way(contents, &cut)? {
            memory.store(u64::from_le_bytes(chunk), GuestAddress(address), Ordering::Relaxed)?;
        }
        // An engine that has missed a store has said so; the run and its trace leave the same all the same.
        let late = self.late.iter().flat_map(|(address, data)| touched(*address, data.len()));
        for address in remains.in_doubt.iter().copied().chain(late) {
            let content = remains.lines.get(&address).copied();
            let content = content.unwrap_or_else(|| contents.floor().line(address));
            let mut now = [0; LINE as usize];
            memory.read_slice(&mut now, GuestAddress(address))?;
            if now != content {
                tracing::warn!(address, "the engine has not told of all stores to a line");
                memory.write_slice(&content, GuestAddress(address))?;
            }
        }
        contents.floor().check()?;
        nvdimms.sync()?;
        nvdimms.power_cut()?;
        Ok(Some(report(&self.spec, reached, &remains)))
    }

    /// The writes that take back first what came too late, the newest first, and then what does not survive.
    fn way(&self, contents: &Contents, cut: &Cut<'_>) -> Result<Vec<ChunkWrite>> {
        let mut held: HashMap<u64, [u8; 8]> = HashMap::new();
        let mut writes = Vec::new();
        for (address, data) in &self.late {
            let mut at = *address;
            for part in pieces(at, data) {
                let (chunk, within) = (at & !7, (at & 7) as usize);
                let now = held.entry(chunk).or_insert_with(|| {
                    let line = contents.newest(chunk);
                    let from = (chunk % LINE) as usize;
                    std::array::from_fn(|n| line[from + n])
                });
                writes.push((chunk, *now));
                now[within..within + part.len()].copy_from_slice(part);
                at += part.len() as u64;
            }
        }
        writes.reverse();
        writes.extend(cut.descent(&self.spec.survivors).map_err(trace::Error::from)?);
        Ok(writes)
    }
}

/// Addresses of the lines that a store touches.
pub fn touched(address: u64, len: usize) -> impl Iterator<Item = u64> {
    let last = address.saturating_add(len.max(1) as u64 - 1);
    (address / LINE..=last / LINE).map(|line| line * LINE)
}

/// Bytes, cut where a chunk of eight ends.
fn pieces(address: u64, data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (first, rest) = data.split_at(data.len().min((address.wrapping_neg() & 7) as usize));
    std::iter::once(first).filter(|first| !first.is_empty()).chain(rest.chunks(8))
}

/// A power cut, told.
pub fn report(spec: &CutSpec, reached: Reached, remains: &trace::Remains) -> CutReport {
    CutReport {
        at: spec.when.to_string(),
        survivors: survivors_name(&spec.survivors),
        events: reached.events,
        instruction: reached.instruction,
        time: reached.time,
        lines_in_doubt: remains.in_doubt.len() as u64,
        images: in_short(&remains.images),
        outcome: remains.name.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use nvdimm_model::Domain;
    use nvdimm_model::medium::{Rules, StoreKind, Survivors};

    use super::super::survey::tests::{PIECE, START, header};
    use super::*;

    #[test]
    fn a_random_moment_that_never_came_says_how_many_events_there_were() {
        let cutting = |when: &str| {
            let when = when.parse().unwrap();
            let mut own = Cutting::new(CutSpec { when, survivors: Survivors::None, rules: Rules::default() });
            let kind = Kind::Flush { address: START, kind: nvdimm_model::medium::FlushKind::Clwb };
            for _ in 0..3 {
                own.see(&Event { vcpu: 0, instruction: 0, time: 0, rip: 0, chain: 0, kind });
            }
            own.missed().unwrap()
        };
        let told = cutting("random:1");
        assert!(
            told.starts_with("random:1 drew event ") && told.contains("only 3 (give random:1/3)"),
            "{told}"
        );
        assert_eq!(cutting("store:9"), "store:9");
    }

    /// Whoever is killed while the DIMMs get what is left finds what a power cut may leave: first the moments after the cut,
    /// backwards, then fewer and fewer survivors.
    #[test]
    fn the_way_to_what_is_left_is_made_of_permitted_images() {
        let spec =
            CutSpec { when: "store:3".parse().unwrap(), survivors: Survivors::None, rules: Rules::default() };
        let mut cutting = Cutting::new(spec);
        let floor = Floor::new(&header(&[Domain::Adr]), vec![tempfile::tempfile().unwrap()]).unwrap();
        let mut block = [0; BLOCK];
        block[..16].fill(9);
        floor.block(0, PIECE / BLOCK as u64, &block).unwrap();
        cutting.contents = Some(Contents::new(&header(&[Domain::Adr]), Rules::default(), floor));
        let store = |address, data| Kind::Store { address: START + address, data, kind: StoreKind::Cached };
        let event = |kind| Event { vcpu: 0, instruction: 0, time: 0, rip: 0, chain: 0, kind };
        // In the line at 0: two chunks, one after the other, then both in one store that tears.
        for (address, data) in [(0, &[1; 8][..]), (8, &[2; 8]), (4, &[3; 8])] {
            cutting.apply(&event(store(address, data))).unwrap();
        }
        cutting.reach(Reached { events: 3, instruction: 3, time: 3 });
        for (address, data) in [(62, &[5, 6, 7, 8][..]), (0, &[4; 1])] {
            cutting.too_late(&store(address, data));
        }
        let contents = cutting.contents.as_ref().unwrap();
        let way = cutting.way(contents, &contents.cut().unwrap()).unwrap();
        let line = |bytes: [u8; 8]| bytes;
        let expected = [
            // The last store, and the one before in both of its lines.
            (0, line([1, 1, 1, 1, 3, 3, 3, 3])),
            (64, line([0; 8])),
            (56, line([0; 8])),
            // The third store chunk by chunk, the second, the first.
            (0, line([1; 8])),
            (8, line([2; 8])),
            (8, line([9; 8])),
            (0, line([9; 8])),
        ];
        assert_eq!(way, expected.map(|(at, bytes)| (START + at, bytes)));
    }
}
