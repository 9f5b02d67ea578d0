//! What is asked for with `--nvdimm FILE[,key=value...]`.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use nvdimm_model::Domain;
use nvdimm_model::label::LabelVersion;
use nvdimm_model::namespace::{Map, Mode};
use serde::{Deserialize, Serialize};

use super::{Error, Result};

/// The keys, with what they take.
pub const KEYS: [(&str, &str); 17] = [
    ("size", "bytes of data, such as 1G or 512M; makes the file if it is missing"),
    ("label-size", "bytes of the label area; 128K"),
    ("labels", "version of the labels: 1.2, 1.1 or none; 1.2"),
    ("domain", "persistence domain: eadr, adr or hint; adr"),
    ("kept", "what a power cut obeys, if not the domain: a lying platform"),
    ("hints", "flush-hint page: on or off; on"),
    ("set", "name of the interleave set"),
    ("serial", "serial number; made up if not given"),
    ("vendor", "vendor id; 0x4e56"),
    ("device", "device id; 0x0001"),
    ("latch", "count dirty shutdowns: on or off; on"),
    ("fs", "file system at the first boot: ext4, xfs, ext2 or none; ext4"),
    ("mode", "namespace: fsdax, devdax, sector or raw; fsdax"),
    ("map", "where the page map lives: mem or dev; mem"),
    ("align", "unit of mappings: 4K or 2M; 2M"),
    ("sector-size", "bytes of a sector: 512 or 4096"),
    ("name", "name of the namespace"),
];

/// The file system that an empty fsdax namespace gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fs {
    /// ext4.
    #[default]
    Ext4,
    /// XFS.
    Xfs,
    /// ext2.
    Ext2,
    /// None: the device is left alone.
    None,
}

impl FromStr for Fs {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "ext4" => Ok(Self::Ext4),
            "xfs" => Ok(Self::Xfs),
            "ext2" => Ok(Self::Ext2),
            "none" => Ok(Self::None),
            _ => Err(format!("unknown file system {text:?}: choose ext4, xfs, ext2 or none")),
        }
    }
}

/// What is asked for; what is `None` was not said, and an existing file then decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DimmSpec {
    /// The file.
    pub path: PathBuf,
    /// Bytes of data.
    pub size: Option<u64>,
    /// Bytes of the label area.
    pub label_size: Option<u64>,
    /// Version of the labels to lay down; `Some(None)` for none.
    pub labels: Option<Option<LabelVersion>>,
    /// What the guest is told.
    pub domain: Option<Domain>,
    /// What a power cut obeys, if not the domain.
    pub kept: Option<Domain>,
    /// Whether there is a flush-hint page.
    pub hints: Option<bool>,
    /// Name of the interleave set.
    pub set: Option<String>,
    /// Serial number.
    pub serial: Option<u32>,
    /// Vendor id.
    pub vendor: Option<u16>,
    /// Device id.
    pub device: Option<u16>,
    /// Whether dirty shutdowns are counted.
    pub latch: Option<bool>,
    /// File system at the first boot.
    pub fs: Option<Fs>,
    /// Mode of the namespace to lay down.
    pub mode: Option<Mode>,
    /// Where its page map lives.
    pub map: Option<Map>,
    /// Its unit of mappings.
    pub align: Option<u32>,
    /// Bytes of its sectors.
    pub sector_size: Option<u32>,
    /// Its name.
    pub name: Option<String>,
}

impl DimmSpec {
    /// A DIMM of which only the file is said.
    pub fn of(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    fn set_key(&mut self, key: &str, value: &str) -> std::result::Result<(), String> {
        match key {
            "size" => self.size = Some(size(value)?),
            "label-size" => self.label_size = Some(size(value)?),
            "labels" => self.labels = Some(label_version(value)?),
            "domain" => self.domain = Some(value.parse()?),
            "kept" => self.kept = Some(value.parse()?),
            "hints" => self.hints = Some(switch(value)?),
            "set" => self.set = Some(value.to_owned()),
            "serial" => self.serial = Some(number(value, u32::MAX.into())? as u32),
            "vendor" => self.vendor = Some(number(value, u16::MAX.into())? as u16),
            "device" => self.device = Some(number(value, u16::MAX.into())? as u16),
            "latch" => self.latch = Some(switch(value)?),
            "fs" => self.fs = Some(value.parse()?),
            "mode" => self.mode = Some(value.parse()?),
            "map" => {
                self.map = Some(match value {
                    "mem" => Map::Mem,
                    "dev" => Map::Dev,
                    _ => return Err(format!("unknown place {value:?}: choose mem or dev")),
                });
            }
            "align" => self.align = Some(small_size(value)?),
            "sector-size" => self.sector_size = Some(small_size(value)?),
            "name" => self.name = Some(value.to_owned()),
            _ => return Err(unknown_key(key)),
        }
        Ok(())
    }
}

impl FromStr for DimmSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |reason: String| Error::Spec { text: text.to_owned(), reason };
        let mut parts = text.split(',');
        let file = parts.next().unwrap_or_default();
        if file.is_empty()
            || (file.contains('=') && KEYS.iter().any(|(key, _)| file.starts_with(&format!("{key}="))))
        {
            return Err(wrong("a file name comes first: FILE[,key=value...]".to_owned()));
        }
        let mut spec = Self::of(Path::new(file));
        let mut seen: Vec<&str> = Vec::new();
        for part in parts {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| wrong(format!("{part:?} is not of the form key=value")))?;
            if seen.contains(&key) {
                return Err(wrong(format!("{key} is given twice")));
            }
            if value.is_empty() {
                return Err(wrong(format!("{key} has no value")));
            }
            spec.set_key(key, value).map_err(|reason| {
                wrong(format!("{key}: {reason}").replace(&format!("{key}: unknown key"), "unknown key"))
            })?;
            seen.push(key);
        }
        Ok(spec)
    }
}

/// Parses a number of bytes: decimal or 0x, with an optional K, M, G or T (powers of 1024).
pub fn size(text: &str) -> std::result::Result<u64, String> {
    let upper = text.to_ascii_uppercase();
    let trimmed =
        upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')).filter(|_| !upper.starts_with("0X"));
    let body = trimmed.unwrap_or(&upper);
    let (digits, shift) = match body.as_bytes().last() {
        Some(b'K') => (&body[..body.len() - 1], 10),
        Some(b'M') => (&body[..body.len() - 1], 20),
        Some(b'G') => (&body[..body.len() - 1], 30),
        Some(b'T') => (&body[..body.len() - 1], 40),
        _ => (body, 0),
    };
    number(digits, u64::MAX >> shift)
        .map(|n| n << shift)
        .map_err(|_| format!("{text:?} is not a size; give something like 1G, 512M or 128K"))
}

fn small_size(text: &str) -> std::result::Result<u32, String> {
    u32::try_from(size(text)?).map_err(|_| format!("{text:?} is too large"))
}

fn number(text: &str, max: u64) -> std::result::Result<u64, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.ok().filter(|&n| n <= max).ok_or_else(|| format!("{text:?} is not a number from 0 to {max:#x}"))
}

fn switch(text: &str) -> std::result::Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{text:?} is neither on nor off")),
    }
}

/// Parses a version of labels: 1.2, 1.1, or none.
pub fn label_version(text: &str) -> std::result::Result<Option<LabelVersion>, String> {
    match text {
        "1.2" => Ok(Some(LabelVersion::V1_2)),
        "1.1" => Ok(Some(LabelVersion::V1_1)),
        "none" => Ok(None),
        _ => Err(format!("unknown version {text:?}: choose 1.2, 1.1 or none")),
    }
}

fn unknown_key(key: &str) -> String {
    let nearest = KEYS.iter().map(|(known, _)| (strsim::damerau_levenshtein(known, key), *known)).min();
    match nearest {
        Some((distance, known)) if distance <= 1 + key.len() / 3 => {
            format!("unknown key {key:?}; did you mean {known:?}?")
        }
        _ => {
            let all: Vec<_> = KEYS.iter().map(|(known, _)| *known).collect();
            format!("unknown key {key:?}; the keys are {}", all.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(text: &str) -> String {
        match text.parse::<DimmSpec>() {
            Err(Error::Spec { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_keys_are_understood() {
        let text = "/tmp/a b.dimm,size=1G,label-size=128K,labels=1.1,domain=eadr,kept=adr,hints=off,set=a,serial=0x10,\
                    vendor=0x8680,device=7,latch=off,fs=xfs,mode=devdax,map=dev,align=4K,sector-size=512,name=db";
        let spec: DimmSpec = text.parse().unwrap();
        assert_eq!(spec.path, Path::new("/tmp/a b.dimm"));
        assert_eq!((spec.size, spec.label_size), (Some(1 << 30), Some(128 << 10)));
        assert_eq!(spec.labels, Some(Some(LabelVersion::V1_1)));
        assert_eq!(
            (spec.domain, spec.kept, spec.hints),
            (Some(Domain::Eadr), Some(Domain::Adr), Some(false))
        );
        assert_eq!((spec.serial, spec.vendor, spec.device), (Some(16), Some(0x8680), Some(7)));
        assert_eq!((spec.mode, spec.map, spec.align), (Some(Mode::Devdax), Some(Map::Dev), Some(4096)));
        for (key, _) in KEYS {
            assert!(text.contains(&format!(",{key}=")), "{key} is not tested");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("1G", 1 << 30),
            ("512m", 512 << 20),
            ("128KiB", 128 << 10),
            ("0x1000", 4096),
            ("2T", 2 << 40),
            ("7", 7),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "1X", "-1", "1.5G", "99999999999T", "0xG", "é"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn mistakes_are_explained() {
        assert_eq!(reason("f,sise=1G"), "unknown key \"sise\"; did you mean \"size\"?");
        assert_eq!(reason("f,lable-size=1K"), "unknown key \"lable-size\"; did you mean \"label-size\"?");
        assert!(reason("f,xyzzy=1").starts_with("unknown key \"xyzzy\"; the keys are size, "));
        assert_eq!(reason("f,size"), "\"size\" is not of the form key=value");
        assert_eq!(reason("f,size=1G,size=2G"), "size is given twice");
        assert_eq!(reason("f,size="), "size has no value");
        assert_eq!(reason("f,domain=adrr"), "domain: unknown domain \"adrr\": choose eadr, adr or hint");
        assert_eq!(
            reason("f,serial=0x100000000"),
            "serial: \"0x100000000\" is not a number from 0 to 0xffffffff"
        );
        assert_eq!(reason("size=1G"), "a file name comes first: FILE[,key=value...]");
        assert_eq!(reason(""), "a file name comes first: FILE[,key=value...]");
    }
}
