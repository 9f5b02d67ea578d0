//! Label areas for people and for scripts, and namespaces as a command line describes them.

use std::path::{Path, PathBuf};

use nvdimm_model::label::LabelArea;
use nvdimm_model::namespace::{Mode, NamespaceSpec};
use serde::Serialize;
use uuid::Uuid;

use super::backing::Backing;
use super::entropy::Entropy;
use super::lock::Hold;
use super::spec::DimmSpec;
use super::{Error, Result};

/// A DIMM's label area.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LabelsInfo {
    /// The DIMM's file.
    pub file: PathBuf,
    /// Version of the labels; empty when the area cannot be read.
    pub version: String,
    /// Slots of the area.
    pub slots: u32,
    /// Which index block is current, 0 or 1.
    pub current: usize,
    /// Its sequence number.
    pub sequence: u32,
    /// The labels.
    pub labels: Vec<LabelInfo>,
    /// What is wrong with the area, or that it is blank.
    pub problem: Option<String>,
}

/// A label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LabelInfo {
    /// Its slot.
    pub slot: u32,
    /// The namespace's uuid.
    pub uuid: Uuid,
    /// The namespace's name.
    pub name: String,
    /// Flags as stored.
    pub flags: u32,
    /// Number of DIMMs that hold pieces of the namespace.
    pub nlabel: u16,
    /// This DIMM's position among them.
    pub position: u16,
    /// Cookie of the interleave set.
    pub cookie: u64,
    /// First device address of the piece.
    pub dpa: u64,
    /// Bytes of the piece.
    pub raw_size: u64,
}

/// The label areas of DIMM files. Nothing is changed.
pub fn labels(paths: &[PathBuf]) -> Result<Vec<LabelsInfo>> {
    paths.iter().map(|path| Ok(describe(path, Backing::open(path, Hold::Shared)?.labels()))).collect()
}

fn describe(path: &Path, bytes: &[u8]) -> LabelsInfo {
    let file = path.to_owned();
    match LabelArea::read(bytes) {
        Err(error) => LabelsInfo {
            file,
            version: String::new(),
            slots: 0,
            current: 0,
            sequence: 0,
            labels: Vec::new(),
            problem: Some(error.to_string()),
        },
        Ok(area) => LabelsInfo {
            file,
            version: area.layout.version.to_string(),
            slots: area.layout.slots,
            current: area.current,
            sequence: area.sequence,
            problem: area.rejected.first().map(ToString::to_string),
            labels: area
                .labels
                .into_iter()
                .map(|(slot, label)| LabelInfo {
                    slot,
                    uuid: label.uuid,
                    name: label.name,
                    flags: label.flags.0,
                    nlabel: label.nlabel,
                    position: label.position,
                    cookie: label.cookie,
                    dpa: label.dpa,
                    raw_size: label.raw_size,
                })
                .collect(),
        },
    }
}

/// Namespaces described by `mode=...[,size=...][,key=value...]`, the keys being those of [`DimmSpec`] that concern a
/// namespace.
pub fn namespace_specs(texts: &[String], entropy: &Entropy) -> Result<Vec<NamespaceSpec>> {
    texts.iter().enumerate().map(|(n, text)| namespace_spec(text, n, entropy)).collect()
}

fn namespace_spec(text: &str, number: usize, entropy: &Entropy) -> Result<NamespaceSpec> {
    const OF_NAMESPACE: [&str; 6] = ["size", "mode", "map", "align", "sector-size", "name"];
    let foreign = text.split(',').find_map(|part| {
        let key = part.split('=').next().unwrap_or_default();
        (!OF_NAMESPACE.contains(&key)).then_some(key)
    });
    if let Some(key) = foreign {
        let reason = format!("{key:?} is no key of a namespace; they are {}", OF_NAMESPACE.join(", "));
        return Err(Error::Spec { text: text.to_owned(), reason });
    }
    let spec: DimmSpec = format!("namespace,{text}").parse()?;
    let mode = spec.mode.unwrap_or(Mode::Fsdax);
    let usual =
        NamespaceSpec::new(mode, entropy.uuid("namespace", number), entropy.uuid("info block", number));
    Ok(NamespaceSpec {
        name: spec.name.unwrap_or_default(),
        size: spec.size,
        map: spec.map.unwrap_or(usual.map),
        align: spec.align.unwrap_or(usual.align),
        sector_size: spec.sector_size.unwrap_or(usual.sector_size),
        ..usual
    })
}
