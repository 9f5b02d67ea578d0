//! The functions of the bus (ACPI 9.20.7, family 2f10e7a4-...): address range scrub, clearing and injecting errors,
//! translation of system addresses. All of them speak of the DIMMs' poison lists and of nothing else.
//!
//! A scrub is over as soon as it is asked for; its result stands until the next.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use uuid::{Uuid, uuid};

use super::{NO_DEVICE, ROOT_INVALID, ROOT_NO_RESOURCES, SUCCESS, UNSUPPORTED, mask, status};
use crate::geometry::LINE;
use crate::interleave::InterleaveSet;
use crate::{Dimm, Handle, le};

/// The family's GUID, as `_DSM` gets it.
pub const FAMILY: Uuid = uuid!("2f10e7a4-9e91-11e4-89d3-123b93f75cba");

const PERSISTENT: u16 = 2;
const HEADER: usize = 48;
const RECORD: usize = 24;
/// Errors in one answer of a scrub.
const MAX_RECORDS: usize = 80;
const MAX_OUT: u32 = (HEADER + RECORD * MAX_RECORDS) as u32;
/// Status of a scrub's result: none was made since power came on.
const NEVER_RAN: u32 = 2 << 16;
/// Status of a scrub's result: it stopped early.
const INTERRUPTED: u32 = 3 << 16;

/// A range of system addresses that is backed by an interleave set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// First system physical address.
    pub base: u64,
    /// How addresses are dealt out.
    pub set: InterleaveSet,
    /// Indexes of the DIMMs in [`Bus::dimms`], by position in the set.
    pub members: Vec<usize>,
}

impl Region {
    fn range(&self) -> Range<u64> {
        self.base..self.base.saturating_add(self.set.size())
    }
}

/// All DIMMs of a machine, and the regions that they make up.
#[derive(Debug, Clone, PartialEq)]
pub struct Bus {
    dimms: Vec<(Handle, Dimm)>,
    regions: Vec<Region>,
    scrub: Option<Scrub>,
}

/// The result of an address range scrub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Scrub {
    /// What was asked for.
    range: Range<u64>,
    /// Where it stopped early, for lack of room for more errors.
    stopped: Option<u64>,
    found: Vec<(Handle, Range<u64>)>,
}

/// What a bus remembers since power came on, its DIMMs left out: an opaque value to be kept and given back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusMemory(Option<Scrub>);

const fn words(n: usize) -> usize {
    8 * n
}

struct Function {
    number: u64,
    input: usize,
    run: fn(&mut Bus, &[u8]) -> Vec<u8>,
}

const FUNCTIONS: [Function; 8] = [
    Function { number: 1, input: words(2), run: scrub_capabilities },
    Function { number: 2, input: words(3), run: scrub_start },
    Function { number: 3, input: 0, run: scrub_status },
    Function { number: 4, input: words(2), run: clear_error },
    Function { number: 5, input: words(1), run: translate },
    Function { number: 7, input: words(2) + 1, run: inject },
    Function { number: 8, input: words(2), run: uninject },
    Function { number: 9, input: 0, run: injected },
];

/// The answer of function 0: which functions there are in a revision.
pub fn functions(revision: u64) -> Vec<u8> {
    if revision == 1 { mask(FUNCTIONS.iter().map(|f| f.number)) } else { vec![0] }
}

impl Bus {
    /// A bus with its DIMMs; `regions` name them by index.
    pub fn new(dimms: Vec<(Handle, Dimm)>, regions: Vec<Region>) -> Self {
        Self { dimms, regions, scrub: None }
    }

    /// The DIMMs with their handles.
    pub fn dimms(&self) -> &[(Handle, Dimm)] {
        &self.dimms
    }

    /// The DIMMs with their handles, to be changed.
    pub fn dimms_mut(&mut self) -> impl Iterator<Item = (Handle, &mut Dimm)> {
        self.dimms.iter_mut().map(|(handle, dimm)| (*handle, dimm))
    }

    /// The DIMM of a handle.
    pub fn dimm_mut(&mut self, handle: Handle) -> Option<&mut Dimm> {
        self.dimms.iter_mut().find(|(h, _)| *h == handle).map(|(_, dimm)| dimm)
    }

    /// Forgets what was learnt since power came on.
    pub fn reset(&mut self) {
        self.scrub = None;
    }

    /// What was learnt since power came on.
    pub fn memory(&self) -> BusMemory {
        BusMemory(self.scrub.clone())
    }

    /// Replaces what was learnt.
    pub fn recall(&mut self, memory: BusMemory) {
        self.scrub = memory.0;
    }

    /// The regions.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The DIMM that holds a system address, and the device address there.
    pub fn locate(&self, spa: u64) -> Option<(usize, u64)> {
        let region = self.regions.iter().find(|r| r.range().contains(&spa))?;
        let (position, dpa) = region.set.locate(spa - region.base)?;
        Some((*region.members.get(position)?, dpa))
    }

    /// Whether a load from `range` of system addresses meets poison.
    pub fn poisoned(&self, range: Range<u64>) -> bool {
        self.regions.iter().any(|r| !self.errors(r, &range).is_empty())
    }

    /// Answers a call of the NFIT root family, which has revision 1 only.
    pub fn dsm(&mut self, revision: u64, function: u64, input: &[u8]) -> Vec<u8> {
        match (revision, function) {
            (_, 0) => functions(revision),
            (1, _) => match FUNCTIONS.iter().find(|f| f.number == function) {
                None => status(UNSUPPORTED),
                Some(f) if f.input != input.len() => status(ROOT_INVALID),
                Some(f) => (f.run)(self, input),
            },
            _ => status(UNSUPPORTED),
        }
    }

    /// The region that holds the whole of a non-empty range.
    fn region_of(&self, range: &Range<u64>) -> Option<&Region> {
        self.regions.iter().find(|r| {
            let own = r.range();
            range.start < range.end && own.start <= range.start && range.end <= own.end
        })
    }

    /// The poisoned parts of `range` in a region, in order.
    fn errors(&self, region: &Region, range: &Range<u64>) -> Vec<(Handle, Range<u64>)> {
        let own = region.range();
        let (start, end) = (range.start.max(own.start), range.end.min(own.end));
        if start >= end || region.members.iter().all(|&m| self.dimms[m].1.poison.is_empty()) {
            return Vec::new();
        }
        let mut found = Vec::new();
        for piece in region.set.pieces(start - own.start..end - own.start) {
            let (handle, dimm) = &self.dimms[region.members[piece.member]];
            for bad in dimm.poison.within(piece.dpa..piece.dpa + piece.len) {
                let at = own.start + piece.offset + (bad.start - piece.dpa);
                found.push((*handle, at..at + (bad.end - bad.start)));
            }
        }
        found
    }

    fn scrub_of(&self, region: &Region, range: Range<u64>) -> Scrub {
        let mut found = self.errors(region, &range);
        let stopped = found.get(MAX_RECORDS).map(|(_, bad)| bad.start);
        found.truncate(MAX_RECORDS);
        Scrub { range, stopped, found }
    }

    fn change_poison(&mut self, range: &Range<u64>, change: fn(&mut Dimm, Range<u64>)) -> bool {
        let Some(region) = self.region_of(range).cloned() else { return false };
        for piece in region.set.pieces(range.start - region.base..range.end - region.base) {
            let dimm = &mut self.dimms[region.members[piece.member]].1;
            change(dimm, piece.dpa..piece.dpa + piece.len);
            dimm.touch();
        }
        true
    }
}

/// The range that an input's first two words, address and length, name.
fn range_of(input: &[u8]) -> Range<u64> {
    let start = le::u64_at(input, 0);
    start..start.saturating_add(le::u64_at(input, 8))
}

fn scrub_capabilities(bus: &mut Bus, input: &[u8]) -> Vec<u8> {
    if bus.region_of(&range_of(input)).is_none() {
        return [UNSUPPORTED, 0, 0, 0].iter().flat_map(|w| w.to_le_bytes()).collect();
    }
    let code = u32::from(PERSISTENT) << 16 | SUCCESS;
    [code, MAX_OUT, LINE as u32, 0].iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn scrub_start(bus: &mut Bus, input: &[u8]) -> Vec<u8> {
    let range = range_of(input);
    let answer = |code: u32| [code.to_le_bytes(), [0; 4]].concat();
    let Some(region) = bus.region_of(&range) else { return answer(ROOT_INVALID) };
    if le::u16_at(input, 16) != PERSISTENT {
        return answer(ROOT_INVALID);
    }
    // The flag "return previous data" asks for what is known without a scrub, which is the same here.
    bus.scrub = Some(bus.scrub_of(region, range));
    answer(SUCCESS)
}

fn scrub_status(bus: &mut Bus, _: &[u8]) -> Vec<u8> {
    let Some(scrub) = &bus.scrub else {
        let mut out = vec![0; HEADER];
        le::put_u32(&mut out, 0, NEVER_RAN);
        le::put_u32(&mut out, 4, HEADER as u32);
        return out;
    };
    let mut out = vec![0; HEADER + RECORD * scrub.found.len()];
    let len = out.len() as u32;
    le::put_u32(&mut out, 0, if scrub.stopped.is_some() { INTERRUPTED } else { SUCCESS });
    le::put_u32(&mut out, 4, len);
    let done = scrub.stopped.unwrap_or(scrub.range.end);
    le::put_u64(&mut out, 8, scrub.range.start);
    le::put_u64(&mut out, 16, done - scrub.range.start);
    if let Some(restart) = scrub.stopped {
        le::put_u64(&mut out, 24, restart);
        le::put_u64(&mut out, 32, scrub.range.end - restart);
    }
    le::put_u16(&mut out, 40, PERSISTENT);
    le::put_u16(&mut out, 42, u16::from(scrub.stopped.is_some()));
    le::put_u32(&mut out, 44, scrub.found.len() as u32);
    for (n, (handle, bad)) in scrub.found.iter().enumerate() {
        let record = &mut out[HEADER + RECORD * n..][..RECORD];
        le::put_u32(record, 0, handle.0);
        le::put_u64(record, 8, bad.start);
        le::put_u64(record, 16, bad.end - bad.start);
    }
    out
}

fn clear_error(bus: &mut Bus, input: &[u8]) -> Vec<u8> {
    let range = range_of(input);
    let aligned = range.start.is_multiple_of(LINE) && range.end.is_multiple_of(LINE);
    let done = aligned && bus.change_poison(&range, |dimm, dpa| dimm.poison.clear(dpa));
    // A healed line must not come back as bad from a result that is older.
    if let Some(old) = bus.scrub.take_if(|_| done) {
        bus.scrub = bus.region_of(&old.range).map(|region| bus.scrub_of(region, old.range));
    }
    let mut out = vec![0; 16];
    le::put_u32(&mut out, 0, if done { SUCCESS } else { ROOT_INVALID });
    le::put_u64(&mut out, 8, if done { range.end - range.start } else { 0 });
    out
}

fn translate(bus: &mut Bus, input: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 20];
    let Some((dimm, dpa)) = bus.locate(le::u64_at(input, 0)) else {
        le::put_u32(&mut out, 0, NO_DEVICE);
        return out;
    };
    // One line is translated: longer runs could lie on several DIMMs.
    le::put_u64(&mut out, 8, LINE);
    le::put_u32(&mut out, 16, 1);
    out.extend_from_slice(&bus.dimms[dimm].0.0.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&dpa.to_le_bytes());
    out
}

fn inject(bus: &mut Bus, input: &[u8]) -> Vec<u8> {
    if bus.dimms.iter().any(|(_, dimm)| !dimm.poison.has_room()) {
        return status(ROOT_NO_RESOURCES);
    }
    let done = bus.change_poison(&range_of(input), |dimm, dpa| dimm.poison.add(dpa));
    status(if done { SUCCESS } else { ROOT_INVALID })
}

fn uninject(bus: &mut Bus, input: &[u8]) -> Vec<u8> {
    let done = bus.change_poison(&range_of(input), |dimm, dpa| dimm.poison.clear(dpa));
    status(if done { SUCCESS } else { ROOT_INVALID })
}

fn injected(bus: &mut Bus, _: &[u8]) -> Vec<u8> {
    let found: Vec<_> =
        bus.regions.iter().flat_map(|r| bus.errors(r, &r.range())).take(MAX_RECORDS).collect();
    let mut out = vec![0; 8];
    le::put_u32(&mut out, 4, found.len() as u32);
    for (_, bad) in found {
        out.extend_from_slice(&bad.start.to_le_bytes());
        out.extend_from_slice(&(bad.end - bad.start).to_le_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::ALIGN;
    use crate::{Domain, Geometry, Identity, Persistence};
    use proptest::prelude::*;

    const BASE: u64 = 0x1_0000_0000;

    fn bus() -> Bus {
        let geometry = Geometry::new(16 << 20, 4096).unwrap();
        let dimms: Vec<_> = (0..2)
            .map(|n| {
                let identity = Identity::with_serial(u32::from(n) + 1);
                (Handle::nth(n), Dimm::new(identity, geometry, Persistence::honest(Domain::Adr)))
            })
            .collect();
        let members: Vec<_> = dimms.iter().map(|(_, d)| (d.identity, d.geometry)).collect();
        let set = InterleaveSet::new(&members).unwrap();
        Bus::new(dimms, vec![Region { base: BASE, set, members: vec![0, 1] }])
    }

    fn input(values: &[u64]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn function_0_names_what_there_is() {
        assert_eq!(bus().dsm(1, 0, &[]), 0b11_1011_1111u64.to_le_bytes());
        assert_eq!(bus().dsm(2, 0, &[]), [0]);
        assert_eq!(bus().dsm(1, 6, &[]), status(UNSUPPORTED));
        assert_eq!(bus().dsm(1, 1, &[0; 15]), status(ROOT_INVALID));
    }

    #[test]
    fn the_boot_sequence_of_linux() {
        let mut bus = bus();
        let all = input(&[BASE, 32 << 20]);
        assert_eq!(bus.dsm(1, 1, &all), [0, 0, 2, 0, 0xb0, 7, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bus.dsm(1, 3, &[])[..8], [0, 0, 2, 0, 48, 0, 0, 0]);
        assert_eq!(bus.dsm(1, 2, &input(&[BASE, 32 << 20, 2 | 0b10 << 16])), [0; 8]);
        let done = bus.dsm(1, 3, &[]);
        assert_eq!(done.len(), 48);
        assert_eq!(done[8..24], *all);
        assert_eq!(done[40..48], [2, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn an_injected_error_is_found_translated_and_cleared() {
        let mut bus = bus();
        let at = BASE + ALIGN + 128;
        assert_eq!(bus.dsm(1, 7, &[input(&[at, 10]), vec![0]].concat()), status(SUCCESS));
        assert!(bus.poisoned(at + 63..at + 64) && !bus.poisoned(at + 64..at + 65));
        assert!(bus.dimms()[1].1.poison.touches(128..129));
        assert_eq!(bus.dsm(1, 9, &[])[4..], [input(&[1])[..4].to_vec(), input(&[at, 64])].concat());
        bus.dsm(1, 2, &input(&[BASE, 32 << 20, 2]));
        let found = bus.dsm(1, 3, &[]);
        assert_eq!(found[44..], [vec![1, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0], input(&[at, 64])].concat());
        let place = bus.dsm(1, 5, &input(&[at]));
        assert_eq!(place[16..], [vec![1, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0], input(&[128])].concat());
        assert_eq!(bus.dsm(1, 4, &input(&[at, 64])), input(&[0, 64]));
        assert!(!bus.poisoned(BASE..BASE + (32 << 20)));
        assert!(bus.dimm_mut(Handle::nth(1)).unwrap().take_changes().state);
    }

    #[test]
    fn too_many_errors_interrupt_the_scrub() {
        let mut bus = bus();
        for n in 0..100 {
            bus.dsm(1, 7, &[input(&[BASE + n * 128, 64]), vec![0]].concat());
        }
        bus.dsm(1, 2, &input(&[BASE, 32 << 20, 2]));
        let first = bus.dsm(1, 3, &[]);
        assert_eq!(first.len(), MAX_OUT as usize);
        assert_eq!(first[..4], INTERRUPTED.to_le_bytes());
        let restart = BASE + 80 * 128;
        assert_eq!(first[16..40], *input(&[80 * 128, restart, (32 << 20) - 80 * 128]));
        bus.dsm(1, 2, &input(&[restart, (32 << 20) - 80 * 128, 2]));
        assert_eq!(bus.dsm(1, 3, &[])[44..48], [20, 0, 0, 0]);
    }

    #[test]
    fn addresses_outside_are_refused() {
        let mut bus = bus();
        for (start, len) in
            [(0, 64), (BASE, 0), (BASE, u64::MAX), (BASE + (32 << 20) - 64, 128), (u64::MAX, 64)]
        {
            let range = input(&[start, len]);
            assert_eq!(bus.dsm(1, 1, &range)[0], 1);
            assert_eq!(bus.dsm(1, 2, &[range.clone(), input(&[2])].concat())[0], 2);
            assert_eq!(bus.dsm(1, 4, &range)[8..], [0; 8]);
            assert_eq!(bus.dsm(1, 7, &[range.clone(), vec![0]].concat()), status(ROOT_INVALID));
        }
        assert_eq!(bus.dsm(1, 4, &input(&[BASE + 1, 64]))[0], 2);
        assert_eq!(bus.dsm(1, 5, &input(&[BASE - 1]))[0], 2);
    }

    proptest! {
        #[test]
        fn any_call_has_an_answer(
            calls in prop::collection::vec((0u64..3, 0u64..12, prop::collection::vec(any::<u8>(), 0..26)), 1..20),
        ) {
            let mut bus = bus();
            for (revision, function, input) in calls {
                let out = bus.dsm(revision, function, &input);
                prop_assert!(!out.is_empty() && out.len() <= super::super::MAX_TRANSFER);
            }
        }
    }
}
