//! What `nvsim dimm create|info|label|ls` does: DIMM files without a machine.
//!
//! What is shown agrees with `ndctl list -v` in the guest: mode, map, size, uuid, raw_uuid, sector_size, align, name.

use std::path::{Path, PathBuf};

use nvdimm_model::health::{Health, Power};
use nvdimm_model::interleave::InterleaveSet;
use nvdimm_model::label::{LabelArea, LabelVersion};
use nvdimm_model::namespace::{self, HEAD, Layout, Map, Mode, Namespace, NamespaceSpec};
use nvdimm_model::{Domain, Geometry, Identity, Persistence};
use serde::Serialize;
use uuid::Uuid;

use super::backing::Backing;
use super::entropy::Entropy;
use super::lock::Hold;
use super::plan::Sets;
use super::spec::{DimmSpec, Fs};
use super::superblock::{Membership, Record};
use super::{Error, Result};

/// A DIMM, for people and for scripts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DimmInfo {
    /// Its file.
    pub file: PathBuf,
    /// Its id, as the guest shows it.
    pub id: String,
    /// Serial number.
    pub serial: u32,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Bytes of data.
    pub size: u64,
    /// Bytes of the file that the disk holds.
    pub allocated: u64,
    /// Bytes of the label area.
    pub label_size: u32,
    /// Version of the labels; `None` when the area is blank.
    pub labels: Option<LabelVersion>,
    /// Persistence domain that the guest is told.
    pub domain: Domain,
    /// What a power cut obeys.
    pub kept: Domain,
    /// Whether it has a flush-hint page.
    pub flush_hints: bool,
    /// The file system for an empty fsdax namespace.
    pub fs: Fs,
    /// Dirty shutdowns that were counted.
    pub dirty_shutdowns: u32,
    /// Whether dirty shutdowns are counted.
    pub latched: bool,
    /// Whether the last run did not switch the DIMM off.
    pub left_on: bool,
    /// Ranges of device addresses that cannot be read: start and length.
    pub poison: Vec<(u64, u64)>,
    /// Its interleave set.
    pub set: Option<SetInfo>,
}

/// A DIMM's place in an interleave set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SetInfo {
    /// Name of the set.
    pub name: String,
    /// Number of DIMMs.
    pub ways: usize,
    /// Its place, from 0.
    pub position: u8,
}

/// A region: an interleave set and what is on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RegionInfo {
    /// Its DIMMs, by position.
    pub dimms: Vec<DimmInfo>,
    /// Bytes.
    pub size: u64,
    /// The cookie of its labels, in the version that the labels have.
    pub cookie: Option<u64>,
    /// Its namespaces, by offset.
    pub namespaces: Vec<NamespaceInfo>,
    /// What is wrong with labels or info blocks, if anything.
    pub problem: Option<String>,
}

/// A namespace, under the names that `ndctl list -v` has for its properties.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NamespaceInfo {
    /// How it is used.
    pub mode: Mode,
    /// Where its page map lives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map: Option<Map>,
    /// Bytes that the user gets.
    pub size: u64,
    /// Its uuid; nil is not shown.
    #[serde(skip_serializing_if = "Uuid::is_nil")]
    pub uuid: Uuid,
    /// The uuid in its labels, where an info block has another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw_uuid: Option<Uuid>,
    /// Bytes of a sector; devdax has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sector_size: Option<u32>,
    /// Unit of mappings, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub align: Option<u32>,
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Offset in the region, in bytes.
    pub offset: u64,
    /// Bytes of the region that it takes.
    pub raw_size: u64,
    /// Offset in the namespace of the user's first byte.
    #[serde(skip)]
    pub data_offset: u64,
}

impl From<&Namespace> for NamespaceInfo {
    fn from(n: &Namespace) -> Self {
        Self {
            mode: n.mode,
            map: n.map,
            size: n.size,
            uuid: n.uuid,
            raw_uuid: (n.mode != Mode::Raw && !n.raw_uuid.is_nil()).then_some(n.raw_uuid),
            sector_size: (n.mode != Mode::Devdax).then_some(n.sector_size),
            align: n.align,
            name: n.name.clone(),
            offset: n.offset,
            raw_size: n.raw_size,
            data_offset: n.data_offset,
        }
    }
}

/// Makes the files of one interleave set (or of one DIMM) and lays namespaces down: those in `namespaces`, or the one that
/// the first spec describes. All files are held when this returns.
pub fn create(specs: &[DimmSpec], namespaces: &[NamespaceSpec], entropy: &Entropy) -> Result<Vec<Backing>> {
    if specs.is_empty() { Ok(Vec::new()) } else { Blueprint::draw(specs, namespaces, entropy)?.make() }
}

/// The files of one set, worked out and not yet made: whatever can be refused was refused.
pub(crate) struct Blueprint {
    files: Vec<(PathBuf, Record)>,
    set: InterleaveSet,
    layout: Layout,
}

impl Blueprint {
    /// Works out what [`create`] makes; there is at least one spec.
    pub(crate) fn draw(specs: &[DimmSpec], namespaces: &[NamespaceSpec], entropy: &Entropy) -> Result<Self> {
        let first = &specs[0];
        if let Some(spec) = specs.iter().find(|spec| spec.path.symlink_metadata().is_ok()) {
            return Err(Error::Exists { path: spec.path.clone() });
        }
        let mut records = specs.iter().map(|spec| record(spec, entropy)).collect::<Result<Vec<_>>>()?;
        let label_size = records[0].geometry.label_size;
        let parts: Vec<_> = records.iter().map(|r| (r.identity, r.geometry)).collect();
        let set = InterleaveSet::new(&parts).map_err(Error::model(first.path.clone()))?;
        let name = first.set.clone().unwrap_or_else(|| "set".to_owned());
        if records.iter().any(|r| r.geometry.label_size != label_size) {
            let reason =
                "its DIMMs must have label areas of one size; give all the same label-size".to_owned();
            return Err(Error::Set { set: name, reason });
        }
        if set.ways() > 1 {
            for (position, record) in (0..).zip(&mut records) {
                record.set =
                    Some(Membership { name: name.clone(), position, members: set.members().to_vec() });
            }
        }
        let default = [namespace_of(first, entropy)];
        let namespaces = if namespaces.is_empty() { &default } else { namespaces };
        let version = first.labels.unwrap_or(Some(LabelVersion::V1_2)).filter(|_| label_size > 0);
        let layout = namespace::lay_out(&set, version.map(|v| (v, label_size)), namespaces)
            .map_err(Error::model(first.path.clone()))?;
        let files = specs.iter().map(|spec| spec.path.clone()).zip(records).collect();
        Ok(Self { files, set, layout })
    }

    /// Makes the files, all or none.
    pub(crate) fn make(self) -> Result<Vec<Backing>> {
        let Self { files, set, layout } = self;
        let mut backings: Vec<Backing> = Vec::new();
        for (position, (path, record)) in files.into_iter().enumerate() {
            let label_size = record.geometry.label_size as usize;
            let labels = layout.label_areas.get(position).cloned().unwrap_or_else(|| vec![0; label_size]);
            let made = Backing::create(&path, record, labels, |backing| {
                layout.patches.iter().try_for_each(|patch| {
                    let end = patch.offset + patch.bytes.len() as u64;
                    set.pieces(patch.offset..end).filter(|piece| piece.member == position).try_for_each(
                        |piece| {
                            let at = (piece.offset - patch.offset) as usize;
                            backing.write_data(piece.dpa, &patch.bytes[at..at + piece.len as usize])
                        },
                    )
                })
            });
            match made {
                Ok(backing) => backings.push(backing),
                Err(error) => {
                    unmake(&backings);
                    return Err(error);
                }
            }
        }
        Ok(backings)
    }
}

/// Removes files that were just made: half of what was asked for is of no use to anyone.
pub(crate) fn unmake(backings: &[Backing]) {
    for backing in backings {
        let _ = std::fs::remove_file(backing.path());
    }
}

/// Gives existing DIMMs, all of one set, new labels and namespaces. What they held is lost.
pub fn relabel(
    paths: &[PathBuf],
    version: Option<LabelVersion>,
    namespaces: &[NamespaceSpec],
) -> Result<RegionInfo> {
    let mut backings =
        paths.iter().map(|path| Backing::open(path, Hold::Exclusive)).collect::<Result<Vec<_>>>()?;
    let (set, members) = one_set(&backings)?;
    let model = || Error::model(backings[members[0]].path().to_owned());
    let label_size = backings[members[0]].record().geometry.label_size;
    let labels = version.filter(|_| label_size > 0).map(|v| (v, label_size));
    let layout = namespace::lay_out(&set, labels, namespaces).map_err(model())?;
    // First of all the old labels go, so that no moment shows old labels over new data.
    for backing in &mut backings {
        let blank = vec![0; backing.labels().len()];
        backing.write_labels(0, &blank)?;
    }
    for range in layout.zero {
        for piece in set.pieces(range) {
            backings[members[piece.member]].clear_data(piece.dpa, piece.len)?;
        }
    }
    for patch in &layout.patches {
        for piece in set.pieces(patch.offset..patch.offset + patch.bytes.len() as u64) {
            let at = (piece.offset - patch.offset) as usize;
            backings[members[piece.member]]
                .write_data(piece.dpa, &patch.bytes[at..at + piece.len as usize])?;
        }
    }
    for (area, &member) in layout.label_areas.iter().zip(&members) {
        backings[member].write_labels(0, area)?;
    }
    Ok(region_info(&backings, &set, &members))
}

/// What stands in DIMM files, by region. Files of a set that is not complete are a region each, with a problem. Nothing
/// is changed.
pub fn info(paths: &[PathBuf]) -> Result<Vec<RegionInfo>> {
    let backings = paths.iter().map(|path| Backing::open(path, Hold::Shared)).collect::<Result<Vec<_>>>()?;
    match Sets::new(&named(&backings)) {
        Ok(sets) => Ok(sets.iter().map(|(set, members)| region_info(&backings, set, members)).collect()),
        Err(error @ Error::Set { .. }) => Ok(backings
            .iter()
            .map(|backing| RegionInfo {
                size: backing.record().geometry.size,
                dimms: vec![dimm_info(backing)],
                cookie: None,
                namespaces: Vec::new(),
                problem: Some(error.to_string()),
            })
            .collect()),
        Err(error) => Err(error),
    }
}

/// A DIMM file in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Listed {
    /// What it says of itself.
    Dimm(Box<DimmInfo>),
    /// One that says nothing now: damaged, or in use.
    Problem {
        /// The file.
        file: PathBuf,
        /// Why, and what to do about it.
        problem: String,
    },
}

impl Listed {
    fn file(&self) -> &Path {
        match self {
            Self::Dimm(dimm) => &dimm.file,
            Self::Problem { file, .. } => file,
        }
    }
}

/// The DIMM files in a folder, by name, other files being passed over; or the one DIMM file that `path` is.
///
/// # Errors
/// A folder that cannot be read, or a single file that is no DIMM. One DIMM of a folder that cannot be read hides no other.
pub fn ls(path: &Path) -> Result<Vec<Listed>> {
    if !path.is_dir() {
        let backing = Backing::open(path, Hold::Shared)?;
        return Ok(vec![Listed::Dimm(Box::new(dimm_info(&backing)))]);
    }
    let mut found = Vec::new();
    for entry in path.read_dir().map_err(Error::io("list", path))? {
        let file = entry.map_err(Error::io("list", path))?.path();
        match Backing::open(&file, Hold::Shared) {
            Ok(backing) => found.push(Listed::Dimm(Box::new(dimm_info(&backing)))),
            Err(Error::Foreign { .. } | Error::Missing { .. }) => {}
            // A file that we may not even look at is none of ours.
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => {}
            Err(error) => found.push(Listed::Problem { file, problem: error.to_string() }),
        }
    }
    found.sort_by(|a, b| a.file().cmp(b.file()));
    Ok(found)
}

/// The namespaces of a set whose files are open, with what is wrong with them.
pub(crate) fn namespaces(
    backings: &[Backing],
    set: &InterleaveSet,
    members: &[usize],
) -> (Vec<Namespace>, Option<String>) {
    let areas: Vec<_> = members.iter().map(|&m| LabelArea::read(backings[m].labels())).collect();
    let found = if areas.iter().all(|a| a.is_err()) {
        Ok(vec![Namespace::unlabelled(set)])
    } else {
        areas
            .into_iter()
            .collect::<std::result::Result<Vec<_>, _>>()
            .and_then(|a| Namespace::from_labels(set, &a))
    };
    let mut found = match found {
        Ok(found) => found,
        Err(error) => return (Vec::new(), Some(error.to_string())),
    };
    let mut problem = None;
    for namespace in &mut found {
        let mut head = vec![0; HEAD];
        let read = set.pieces(namespace.offset..namespace.offset + HEAD as u64).try_for_each(|piece| {
            let at = (piece.offset - namespace.offset) as usize;
            backings[members[piece.member]].read_data(piece.dpa, &mut head[at..at + piece.len as usize])
        });
        let identified = read
            .map_err(|e| e.to_string())
            .and_then(|()| namespace.identify(&head).map_err(|e| e.to_string()));
        problem = problem.or(identified.err());
    }
    (found, problem)
}

pub(crate) fn named(backings: &[Backing]) -> Vec<(PathBuf, &Record)> {
    backings.iter().map(|b| (b.path().to_owned(), b.record())).collect()
}

pub(crate) fn one_set(backings: &[Backing]) -> Result<(InterleaveSet, Vec<usize>)> {
    let sets = Sets::new(&named(backings))?;
    let mut sets = sets.iter();
    match (sets.next(), sets.next()) {
        (Some((set, members)), None) => Ok((set.clone(), members.to_vec())),
        _ => Err(Error::Set { set: String::new(), reason: "give the files of one set at a time".to_owned() }),
    }
}

fn record(spec: &DimmSpec, entropy: &Entropy) -> Result<Record> {
    let Some(size) = spec.size else { return Err(Error::Missing { path: spec.path.clone() }) };
    let geometry = Geometry::new(size, spec.label_size.unwrap_or(Geometry::DEFAULT_LABEL_SIZE.into()))
        .map_err(Error::model(spec.path.clone()))?;
    let made_up = Identity::with_serial(entropy.of_file(&spec.path).serial());
    let identity = Identity {
        vendor: spec.vendor.unwrap_or(made_up.vendor),
        device: spec.device.unwrap_or(made_up.device),
        serial: spec.serial.unwrap_or(made_up.serial),
        ..made_up
    };
    let shown = spec.domain.unwrap_or(Domain::Adr);
    let persistence = Persistence { shown, kept: spec.kept.unwrap_or(shown) };
    let hints = spec.hints.unwrap_or(true);
    if !hints && persistence.shown == Domain::Hint {
        return Err(Error::Spec {
            text: spec.path.display().to_string(),
            reason: "domain=hint needs hints=on: nothing else would make a store survive".to_owned(),
        });
    }
    let health = Health { latched: spec.latch.unwrap_or(true), ..Health::default() };
    Ok(Record {
        identity,
        geometry,
        persistence,
        hints,
        fs: spec.fs.unwrap_or_default(),
        set: None,
        health,
        poison: nvdimm_model::poison::Poison::default(),
    })
}

/// The namespace that a spec describes, over the whole region.
fn namespace_of(spec: &DimmSpec, entropy: &Entropy) -> NamespaceSpec {
    let own = entropy.of_file(&spec.path);
    let mode = spec.mode.unwrap_or(Mode::Fsdax);
    let usual = NamespaceSpec::new(mode, own.uuid("namespace", 0), own.uuid("info block", 0));
    NamespaceSpec {
        name: spec.name.clone().unwrap_or_default(),
        map: spec.map.unwrap_or(usual.map),
        align: spec.align.unwrap_or(usual.align),
        sector_size: spec.sector_size.unwrap_or(usual.sector_size),
        ..usual
    }
}

fn region_info(backings: &[Backing], set: &InterleaveSet, members: &[usize]) -> RegionInfo {
    let (namespaces, problem) = namespaces(backings, set, members);
    let dimms: Vec<_> = members.iter().map(|&m| dimm_info(&backings[m])).collect();
    let cookie = dimms.first().and_then(|d| d.labels).map(|version| match version {
        LabelVersion::V1_1 => set.cookie_v1_1(),
        LabelVersion::V1_2 => set.cookie_v1_2(),
    });
    let namespaces = namespaces.iter().map(NamespaceInfo::from).collect();
    RegionInfo { dimms, size: set.size(), cookie, namespaces, problem }
}

fn dimm_info(backing: &Backing) -> DimmInfo {
    use std::os::unix::fs::MetadataExt;
    let record = backing.record();
    DimmInfo {
        file: backing.path().to_owned(),
        id: record.identity.id(),
        serial: record.identity.serial,
        vendor: record.identity.vendor,
        device: record.identity.device,
        size: record.geometry.size,
        allocated: backing.file().metadata().map_or(0, |meta| meta.blocks() * 512),
        label_size: record.geometry.label_size,
        labels: LabelArea::read(backing.labels()).ok().map(|area| area.layout.version),
        domain: record.persistence.shown,
        kept: record.persistence.kept,
        flush_hints: record.hints,
        fs: record.fs,
        dirty_shutdowns: record.health.dirty_shutdowns,
        latched: record.health.latched,
        left_on: record.health.power == Power::On,
        poison: record.poison.iter().map(|r| (r.start, r.end - r.start)).collect(),
        set: record.set.as_ref().map(|m| SetInfo {
            name: m.name.clone(),
            ways: m.members.len(),
            position: m.position,
        }),
    }
}

#[cfg(test)]
#[path = "offline_tests.rs"]
mod tests;
