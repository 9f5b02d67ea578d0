//! What was decided about the NV-DIMMs of a machine: sets, handles, system addresses, flush-hint pages.

use std::ops::Range;
use std::path::PathBuf;

use nvdimm_model::dsm::Region;
use nvdimm_model::interleave::{InterleaveSet, Piece};
use nvdimm_model::{Handle, Identity, Persistence};

use super::backing::DATA;
use super::superblock::Record;
use super::{Error, Result};
use crate::layout;

/// A DIMM in its slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DimmPlan {
    /// Its file.
    pub path: PathBuf,
    /// The slot.
    pub handle: Handle,
    /// Who it is.
    pub identity: Identity,
    /// It has a label area.
    pub has_labels: bool,
    /// From where on its stores survive.
    pub persistence: Persistence,
    /// Guest-physical address of its flush-hint page.
    pub hint: Option<u64>,
}

/// A run of guest-physical addresses and the run of a file that backs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedPiece {
    /// Offset in the region.
    pub offset: u64,
    /// Index of the DIMM.
    pub dimm: usize,
    /// Offset in the DIMM's file.
    pub file_offset: u64,
    /// Bytes.
    pub len: u64,
}

/// The interleave sets of a machine, before they have addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sets(Vec<(InterleaveSet, Vec<usize>)>);

/// The NV-DIMMs of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The DIMMs, by slot.
    pub dimms: Vec<DimmPlan>,
    /// The regions, by address; their members are indexes of `dimms`.
    pub regions: Vec<Region>,
}

impl Sets {
    /// Groups DIMMs by what their files say: each set must be complete, and its DIMMs must agree. Sets come in the order
    /// of their first DIMM.
    pub fn new(records: &[(PathBuf, &Record)]) -> Result<Self> {
        let slots = usize::from(layout::DIMMS);
        if records.len() > slots {
            return Err(Error::Slots { asked: records.len(), slots });
        }
        let mut sets = Vec::new();
        let mut placed = vec![false; records.len()];
        for (n, (path, record)) in records.iter().enumerate() {
            let twin = records[..n].iter().find(|(_, r)| r.identity.serial == record.identity.serial);
            if let Some((other, _)) = twin {
                return Err(Error::Set {
                    set: record.set.as_ref().map(|m| m.name.clone()).unwrap_or_default(),
                    reason: format!(
                        "{} and {} have the same serial number {:#010x}; one is a copy of the other, so use one of them",
                        other.display(),
                        path.display(),
                        record.identity.serial
                    ),
                });
            }
            if placed[n] {
                continue;
            }
            let members = match &record.set {
                None => vec![n],
                Some(own) => own
                    .members
                    .iter()
                    .enumerate()
                    .map(|(position, identity)| find(records, &own.name, &own.members, position, identity))
                    .collect::<Result<Vec<_>>>()?,
            };
            members.iter().for_each(|&m| placed[m] = true);
            let parts: Vec<_> =
                members.iter().map(|&m| (records[m].1.identity, records[m].1.geometry)).collect();
            let set = InterleaveSet::new(&parts).map_err(Error::model(path.clone()))?;
            sets.push((set, members));
        }
        Ok(Self(sets))
    }

    /// Bytes of each region, in order.
    pub fn sizes(&self) -> Vec<u64> {
        self.0.iter().map(|(set, _)| set.size()).collect()
    }

    /// The sets with the indexes of their DIMMs.
    pub fn iter(&self) -> impl Iterator<Item = (&InterleaveSet, &[usize])> {
        self.0.iter().map(|(set, members)| (set, &members[..]))
    }
}

/// The DIMM that a set has at a position.
fn find(
    records: &[(PathBuf, &Record)],
    name: &str,
    members: &[Identity],
    position: usize,
    identity: &Identity,
) -> Result<usize> {
    let wrong = |reason| Err(Error::Set { set: name.to_owned(), reason });
    let Some(n) = records.iter().position(|(_, r)| r.identity == *identity) else {
        return wrong(format!(
            "it has {} DIMMs, and the one with id {} is missing; give all its files",
            members.len(),
            identity.id()
        ));
    };
    let (path, record) = &records[n];
    match &record.set {
        Some(other) if other.members == members && usize::from(other.position) == position => Ok(n),
        Some(other) => wrong(format!(
            "{} says that it belongs to set {:?}; sets may not overlap",
            path.display(),
            other.name
        )),
        None => wrong(format!("{} says that it belongs to no set; sets may not overlap", path.display())),
    }
}

impl Plan {
    /// Gives DIMMs their slots and sets their addresses: `ranges` has one of the right size for each set, in order.
    pub fn new(records: &[(PathBuf, &Record)], sets: &Sets, ranges: &[Range<u64>]) -> Self {
        let dimms = (0..)
            .zip(records)
            .map(|(n, (path, record))| DimmPlan {
                path: path.clone(),
                handle: Handle::nth(n),
                identity: record.identity,
                has_labels: record.geometry.label_size > 0,
                persistence: record.persistence,
                hint: record.hints.then(|| layout::FLUSH_HINTS + u64::from(n) * layout::FLUSH_HINT_STRIDE),
            })
            .collect();
        let regions = sets
            .iter()
            .zip(ranges)
            .map(|((set, members), range)| Region {
                base: range.start,
                set: set.clone(),
                members: members.to_vec(),
            })
            .collect();
        Self { dimms, regions }
    }

    /// Which runs of which files make up a region, in order of addresses.
    pub fn mapping(region: &Region) -> impl Iterator<Item = MappedPiece> + '_ {
        region.set.pieces(0..region.set.size()).map(|Piece { offset, member, dpa, len }| MappedPiece {
            offset,
            dimm: region.members[member],
            file_offset: DATA + dpa,
            len,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::superblock::{Membership, tests::record};
    use super::*;

    /// Records of DIMMs with serial numbers from 1 on; `sets` gives the sizes of the sets in turn.
    pub(crate) fn records(sets: &[u32]) -> Vec<Record> {
        let mut serial = 0;
        let mut records = Vec::new();
        for (n, &ways) in sets.iter().enumerate() {
            let members: Vec<_> = (1..=ways).map(|k| Identity::with_serial(serial + k)).collect();
            serial += ways;
            for (position, &identity) in members.iter().enumerate() {
                let set = (ways > 1).then(|| Membership {
                    name: format!("set{n}"),
                    position: position as u8,
                    members: members.clone(),
                });
                records.push(Record { identity, set, ..record() });
            }
        }
        records
    }

    pub(crate) fn named(records: &[Record]) -> Vec<(PathBuf, &Record)> {
        records.iter().enumerate().map(|(n, r)| (PathBuf::from(format!("{n}.dimm")), r)).collect()
    }

    pub(crate) fn plan(records: &[Record]) -> Plan {
        let records = named(records);
        let sets = Sets::new(&records).unwrap();
        let mut base = 0x1_0000_0000;
        let ranges: Vec<_> = sets
            .sizes()
            .into_iter()
            .map(|size| {
                let range = base..base + size;
                base += 1 << 30;
                range
            })
            .collect();
        Plan::new(&records, &sets, &ranges)
    }

    #[test]
    fn single_dimms_and_a_set() {
        let mut records = records(&[1, 2, 1]);
        // The set's files may be given in any order.
        records.swap(1, 2);
        records[3].hints = false;
        let plan = plan(&records);
        let members: Vec<_> = plan.regions.iter().map(|r| r.members.clone()).collect();
        assert_eq!(members, [vec![0], vec![2, 1], vec![3]]);
        let hints: Vec<_> = plan.dimms.iter().map(|d| d.hint).collect();
        assert_eq!(hints, [Some(0xfed4_0000), Some(0xfed4_1000), Some(0xfed4_2000), None]);
        let pieces: Vec<_> = Plan::mapping(&plan.regions[1]).take(3).collect();
        let piece = |offset, dimm, file_offset| MappedPiece { offset, dimm, file_offset, len: 2 << 20 };
        assert_eq!(pieces, [piece(0, 2, 2 << 20), piece(2 << 20, 1, 2 << 20), piece(4 << 20, 2, 4 << 20)]);
        assert_eq!(Plan::mapping(&plan.regions[0]).count(), 1);
    }

    #[test]
    fn sets_that_do_not_fit_are_explained() {
        let reason = |records: &[Record]| Sets::new(&named(records)).unwrap_err().to_string();
        assert!(
            reason(&records(&[2])[..1]).contains(&format!("{} is missing", Identity::with_serial(2).id()))
        );
        let mut twins = records(&[1, 1]);
        twins[1].identity = twins[0].identity;
        assert!(reason(&twins).contains("0.dimm and 1.dimm have the same serial number"));
        let mut overlapping = records(&[2, 1]);
        overlapping[1].set = None;
        assert!(reason(&overlapping).contains("belongs to no set"));
        let mut stolen = records(&[2, 2]);
        stolen[1].set = stolen[3].set.clone();
        assert!(reason(&stolen).contains("belongs to set \"set1\""));
        let mut uneven = records(&[2]);
        uneven[1].geometry.size *= 2;
        assert!(matches!(Sets::new(&named(&uneven)), Err(Error::Model { .. })));
        assert!(matches!(Sets::new(&named(&records(&[1; 9]))), Err(Error::Slots { .. })));
    }
}
