//! Namespaces: the parts of a region that the guest sees as devices, laid down from the host and read back.
//!
//! A namespace is a run of its region, cut at stripes so that each DIMM of the set holds an equal piece. Labels on each
//! DIMM name the piece; an info block in the namespace's first pages says how Linux uses it.

pub mod btt;
pub mod pfn;

use std::ops::Range;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use self::btt::BttVersion;
use self::pfn::PfnInfo;
use crate::interleave::InterleaveSet;
use crate::label::{Abstraction, Label, LabelArea, LabelFlags, LabelVersion, NAME_LEN};
use crate::{Error, Patch};

/// Bytes at a namespace's start that [`Namespace::identify`] wants to see.
pub const HEAD: usize = 8192;

/// How Linux uses a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A block device that file systems can map directly.
    Fsdax,
    /// A character device for direct mapping.
    Devdax,
    /// A block device whose sectors never tear (BTT).
    Sector,
    /// A block device without a page map: no direct mapping.
    Raw,
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fsdax" => Ok(Self::Fsdax),
            "devdax" => Ok(Self::Devdax),
            "sector" => Ok(Self::Sector),
            "raw" => Ok(Self::Raw),
            _ => Err(format!("unknown mode {text:?}: choose fsdax, devdax, sector or raw")),
        }
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fsdax => "fsdax",
            Self::Devdax => "devdax",
            Self::Sector => "sector",
            Self::Raw => "raw",
        })
    }
}

/// Where the page map of an fsdax or devdax namespace lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Map {
    /// In guest memory, made anew at each boot.
    Mem,
    /// On the medium, of which it takes a 64th, and whose stores it then makes up in part.
    Dev,
}

impl std::fmt::Display for Map {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Mem => "mem",
            Self::Dev => "dev",
        })
    }
}

/// A namespace that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceSpec {
    /// How it is to be used.
    pub mode: Mode,
    /// Its name; may be empty.
    pub name: String,
    /// Bytes of the region that it takes, a multiple of the stripe; all that is left if `None`.
    pub size: Option<u64>,
    /// Where the page map lives (fsdax, devdax).
    pub map: Map,
    /// Unit of mappings (fsdax, devdax), 4 KiB or 2 MiB.
    pub align: u32,
    /// Bytes of a sector: 512 or 4096.
    pub sector_size: u32,
    /// The uuid in the labels.
    pub raw_uuid: Uuid,
    /// The uuid in the info block.
    pub uuid: Uuid,
}

impl NamespaceSpec {
    /// The usual namespace of a mode, over all that is left of its region.
    pub fn new(mode: Mode, raw_uuid: Uuid, uuid: Uuid) -> Self {
        let sector_size = if mode == Mode::Sector { 4096 } else { 512 };
        Self {
            mode,
            name: String::new(),
            size: None,
            map: Map::Mem,
            align: 2 << 20,
            sector_size,
            raw_uuid,
            uuid,
        }
    }
}

/// A namespace that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// How it is used.
    pub mode: Mode,
    /// Its name; may be empty.
    pub name: String,
    /// The uuid in the labels; nil without labels.
    pub raw_uuid: Uuid,
    /// The uuid that `ndctl list` shows: that of the info block, or else of the labels.
    pub uuid: Uuid,
    /// Offset in the region.
    pub offset: u64,
    /// Bytes of the region that it takes.
    pub raw_size: u64,
    /// Offset in the namespace of the user's first byte; 0 for sectors, which have no fixed place.
    pub data_offset: u64,
    /// Bytes that the user gets.
    pub size: u64,
    /// Where the page map lives (fsdax, devdax).
    pub map: Option<Map>,
    /// Unit of mappings (fsdax, devdax), in bytes.
    pub align: Option<u32>,
    /// Bytes of a sector.
    pub sector_size: u32,
}

/// What to write to lay namespaces down in a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The namespaces, by offset.
    pub namespaces: Vec<Namespace>,
    /// The label area of each DIMM of the set, by position; empty without labels.
    pub label_areas: Vec<Vec<u8>>,
    /// Runs of the region that must read as zeroes before the patches are written.
    pub zero: Vec<Range<u64>>,
    /// What to write where in the region.
    pub patches: Vec<Patch>,
}

/// Lays namespaces down in a region. `labels` is the version and the size of the label areas; without them, the region
/// is one namespace.
pub fn lay_out(
    set: &InterleaveSet,
    labels: Option<(LabelVersion, u32)>,
    specs: &[NamespaceSpec],
) -> Result<Layout, Error> {
    if labels.is_none()
        && (specs.len() > 1 || specs.iter().any(|s| s.size.is_some_and(|size| size != set.size())))
    {
        return Err(Error::NeedsLabels { remedy: "ask for labels, or for one namespace without a size" });
    }
    let btt =
        if matches!(labels, Some((LabelVersion::V1_2, _))) { BttVersion::V2_0 } else { BttVersion::V1_1 };
    let mut areas = match labels {
        Some((version, size)) => vec![LabelArea::new(version, size as usize)?; set.ways()],
        None => Vec::new(),
    };
    let (mut namespaces, mut zero, mut patches) = (Vec::new(), Vec::new(), Vec::new());
    let mut at = 0;
    for (spec, size) in specs.iter().zip(sizes(set, specs)?) {
        let namespace = place(spec, labels.is_some(), at, size, btt, &mut zero, &mut patches)?;
        for (position, area) in areas.iter_mut().enumerate() {
            area.insert(label_for(set, area.layout.version, &namespace, position))?;
        }
        at += size;
        namespaces.push(namespace);
    }
    let label_areas = areas.iter().map(LabelArea::write).collect();
    Ok(Layout { namespaces, label_areas, zero, patches })
}

/// The bytes that each namespace takes; those without a size share what the others leave.
fn sizes(set: &InterleaveSet, specs: &[NamespaceSpec]) -> Result<Vec<u64>, Error> {
    let stripe = set.stripe();
    let asked = specs.iter().filter_map(|s| s.size).try_fold(0, u64::checked_add).unwrap_or(u64::MAX);
    let left = set.size().saturating_sub(asked);
    let open = specs.iter().filter(|s| s.size.is_none()).count() as u64;
    if asked > set.size() || (open > 0 && left / open < stripe) {
        let size = specs.iter().filter_map(|s| s.size).max().unwrap_or(stripe);
        return Err(Error::NoSpace { size, free: if open > 0 { left } else { set.size() } });
    }
    let mut open_left = open;
    let mut left = left;
    specs
        .iter()
        .map(|spec| match spec.size {
            Some(size) if size == 0 || size % stripe != 0 => {
                Err(Error::NamespaceSize { size, granule: stripe, min: stripe })
            }
            Some(size) => Ok(size),
            None => {
                let share = left / open_left / stripe * stripe;
                open_left -= 1;
                left -= share;
                Ok(share)
            }
        })
        .collect()
}

fn place(
    spec: &NamespaceSpec,
    labelled: bool,
    offset: u64,
    raw_size: u64,
    btt: BttVersion,
    zero: &mut Vec<Range<u64>>,
    patches: &mut Vec<Patch>,
) -> Result<Namespace, Error> {
    if spec.name.len() >= NAME_LEN {
        return Err(Error::NameLength { len: spec.name.len() });
    }
    if !matches!(spec.sector_size, 512 | 4096) {
        return Err(Error::SectorSize { size: spec.sector_size });
    }
    let raw_uuid = if labelled { spec.raw_uuid } else { Uuid::nil() };
    let name = if labelled { spec.name.clone() } else { String::new() };
    let mut namespace = Namespace::raw(name, raw_uuid, offset, raw_size, spec.sector_size);
    namespace.mode = spec.mode;
    // Whatever the first pages said before must not be taken for this namespace's info block.
    zero.push(offset..offset + HEAD as u64);
    match spec.mode {
        Mode::Raw => {}
        Mode::Fsdax | Mode::Devdax => {
            let devdax = spec.mode == Mode::Devdax;
            let info = PfnInfo::new(devdax, spec.uuid, raw_uuid, spec.map, spec.align, raw_size)?;
            namespace.adopt_pfn(&info);
            patches.push(Patch { offset: offset + pfn::OFFSET, bytes: info.write() });
        }
        Mode::Sector => {
            let arenas = btt::arenas(btt, spec.uuid, raw_uuid, spec.sector_size, raw_size)?;
            namespace.uuid = spec.uuid;
            namespace.size = arenas.iter().map(|(_, arena)| arena.usable()).sum();
            for (at, arena) in &arenas {
                zero.push(offset + at + arena.map..offset + at + arena.log);
                patches.extend(btt::patches(offset + at, arena));
            }
        }
    }
    Ok(namespace)
}

fn label_for(set: &InterleaveSet, version: LabelVersion, namespace: &Namespace, position: usize) -> Label {
    let ways = set.ways() as u64;
    Label {
        uuid: namespace.raw_uuid,
        name: namespace.name.clone(),
        flags: LabelFlags::default(),
        nlabel: set.ways() as u16,
        position: position as u16,
        cookie: cookie(set, version),
        lba_size: if namespace.mode == Mode::Sector { 512 } else { namespace.sector_size.into() },
        dpa: namespace.offset / ways,
        raw_size: namespace.raw_size / ways,
        align: 0,
        abstraction: match namespace.mode {
            Mode::Fsdax => Abstraction::Pfn,
            Mode::Devdax => Abstraction::Dax,
            Mode::Sector => Abstraction::Btt2,
            Mode::Raw => Abstraction::None,
        },
    }
}

fn cookie(set: &InterleaveSet, version: LabelVersion) -> u64 {
    match version {
        LabelVersion::V1_1 => set.cookie_v1_1(),
        LabelVersion::V1_2 => set.cookie_v1_2(),
    }
}

impl Namespace {
    fn raw(name: String, raw_uuid: Uuid, offset: u64, raw_size: u64, sector_size: u32) -> Self {
        Self {
            mode: Mode::Raw,
            name,
            raw_uuid,
            uuid: raw_uuid,
            offset,
            raw_size,
            data_offset: 0,
            size: raw_size,
            map: None,
            align: None,
            sector_size,
        }
    }

    /// The namespace that a region is when no DIMM of it has labels.
    pub fn unlabelled(set: &InterleaveSet) -> Self {
        Self::raw(String::new(), Uuid::nil(), 0, set.size(), 512)
    }

    /// The namespaces that the labels of a set's DIMMs (`areas`, by position) name; mode and sizes are those of raw
    /// namespaces until [`Namespace::identify`] has seen the info block.
    pub fn from_labels(set: &InterleaveSet, areas: &[LabelArea]) -> Result<Vec<Self>, Error> {
        let Some(first) = areas.first() else { return Ok(Vec::new()) };
        let version = first.layout.version;
        let mut namespaces = Vec::new();
        for (_, label) in &first.labels {
            if label.flags.0 & LabelFlags::UPDATING != 0 {
                continue;
            }
            let mismatch = |what| Error::LabelMismatch { version, uuid: label.uuid, what };
            if label.cookie != cookie(set, version) {
                return Err(mismatch("they were made for another interleave set"));
            }
            if usize::from(label.nlabel) != set.ways() || areas.len() != set.ways() {
                return Err(mismatch("number of DIMMs"));
            }
            let mut positions = 0u32;
            for area in areas {
                let own = area
                    .labels
                    .iter()
                    .map(|(_, l)| l)
                    .find(|l| l.uuid == label.uuid)
                    .ok_or(mismatch("a DIMM of the set has no label of it"))?;
                if (own.dpa, own.raw_size, own.cookie) != (label.dpa, label.raw_size, label.cookie) {
                    return Err(mismatch("extent"));
                }
                positions |= 1u32.checked_shl(own.position.into()).unwrap_or(0);
            }
            if positions != (1 << set.ways()) - 1 {
                return Err(mismatch("positions in the set"));
            }
            if label.dpa.checked_add(label.raw_size).is_none_or(|end| end > set.member_size()) {
                return Err(mismatch("it ends beyond the DIMM"));
            }
            let ways = set.ways() as u64;
            let sector_size = if label.lba_size == 4096 { 4096 } else { 512 };
            namespaces.push(Self::raw(
                label.name.clone(),
                label.uuid,
                label.dpa * ways,
                label.raw_size * ways,
                sector_size,
            ));
        }
        namespaces.sort_by_key(|n| n.offset);
        Ok(namespaces)
    }

    /// Takes mode and sizes from the info block in `head`, the namespace's first [`HEAD`] bytes, in Linux' order: BTT,
    /// fsdax, devdax.
    pub fn identify(&mut self, head: &[u8]) -> Result<(), Error> {
        for start in [BttVersion::V2_0, BttVersion::V1_1] {
            let block = head.get(start.start() as usize..).unwrap_or_default();
            if let Some(arena) = btt::Arena::read(block, self.raw_uuid)?.filter(|a| a.version == start) {
                let arenas = btt::arenas(start, arena.uuid, self.raw_uuid, arena.sector_size, self.raw_size)?;
                self.mode = Mode::Sector;
                self.uuid = arena.uuid;
                self.sector_size = arena.sector_size;
                self.size = arenas.iter().map(|(_, a)| a.usable()).sum();
                return Ok(());
            }
        }
        let block = head.get(pfn::OFFSET as usize..).unwrap_or_default();
        if let Some(info) = PfnInfo::read(block, self.raw_uuid, self.raw_size)? {
            self.adopt_pfn(&info);
        }
        Ok(())
    }

    fn adopt_pfn(&mut self, info: &PfnInfo) {
        self.mode = if info.devdax { Mode::Devdax } else { Mode::Fsdax };
        self.uuid = info.uuid;
        self.data_offset = info.data_offset;
        self.size = info.usable();
        self.map = Some(info.map);
        self.align = Some(info.align);
    }
}

#[cfg(test)]
mod tests;
