//! From a DIMM and an offset to a file and an offset: the file systems on the DIMMs that a cut leaves, read by their own
//! tools from copies.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use view::{Images, Place};
use vmm::nvdimm::{RegionFiles, offline};

use super::tools::Tools;
use super::{ext4, xfs};

/// Where a file system says what it is.
const HEAD: usize = 4096;
/// Bytes that are copied at once; runs of zeroes stay holes.
const BLOCK: usize = 64 << 10;

/// A file system's kind, by its magic number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ext,
    Xfs,
}

/// What a namespace of a region holds.
#[derive(Debug)]
struct FileSystem {
    region: RegionFiles,
    /// Where the file system begins in the region, and where it ends.
    start: u64,
    end: u64,
    kind: Kind,
    /// A copy of its bytes.
    image: PathBuf,
}

/// The file systems on the DIMMs.
#[derive(Debug)]
pub struct FileSystems {
    /// The DIMMs' files, by slot.
    paths: Vec<PathBuf>,
    found: Vec<FileSystem>,
    tools: Tools,
}

impl FileSystems {
    /// Looks for file systems; `image` names the guest image that has the tools.
    pub fn read(images: &Images, image: &str) -> Self {
        let paths: Vec<PathBuf> = images.paths().map(Path::to_owned).collect();
        let mut found = Vec::new();
        let regions = offline::info(&paths).unwrap_or_else(|why| {
            tracing::warn!("the namespaces cannot be read: {why}");
            Vec::new()
        });
        for region in regions {
            let files: Vec<PathBuf> = region.dimms.iter().map(|dimm| dimm.file.clone()).collect();
            for namespace in &region.namespaces {
                let start = namespace.offset + namespace.data_offset;
                let end = (start + namespace.size).min(region.size);
                let copy = images.folder().join(format!("namespace{}", found.len()));
                match FileSystem::copy(&files, start, end, copy) {
                    Ok(file_system) => found.extend(file_system),
                    Err(why) => tracing::warn!("a namespace cannot be copied: {why:#}"),
                }
            }
        }
        Self { paths, found, tools: Tools::new(image, images.folder()) }
    }

    /// What is at these offsets of DIMMs, where a file system knows.
    pub fn locate(&self, places: &[(usize, u64)]) -> HashMap<(usize, u64), Place> {
        let mut located = HashMap::new();
        for own in &self.found {
            let mut wanted: BTreeMap<u64, (usize, u64)> = BTreeMap::new();
            let offset = |(slot, at): (usize, u64)| own.offset(self.paths.get(slot)?, at);
            wanted.extend(places.iter().filter_map(|&place| Some((offset(place)?, place))));
            let offsets: BTreeSet<u64> = wanted.keys().copied().collect();
            if offsets.is_empty() {
                continue;
            }
            let answer = match own.kind {
                Kind::Ext => ext4::locate(&self.tools, &own.image, &offsets),
                Kind::Xfs => xfs::locate(&self.tools, &own.image, &offsets),
            };
            match answer {
                Ok(answer) => located.extend(
                    answer.into_iter().filter_map(|(offset, place)| Some((*wanted.get(&offset)?, place))),
                ),
                Err(why) => tracing::warn!("files are not named: {why:#}"),
            }
        }
        located
    }
}

impl FileSystem {
    /// Copies a namespace of a set, if there is a file system on it.
    fn copy(files: &[PathBuf], start: u64, end: u64, image: PathBuf) -> Result<Option<Self>> {
        let region = RegionFiles::open(files)?;
        let mut head = vec![0; HEAD];
        if start + HEAD as u64 > end {
            return Ok(None);
        }
        region.read(start, &mut head)?;
        let kind = match () {
            () if head.starts_with(b"XFSB") => Kind::Xfs,
            () if head[0x438..0x43a] == [0x53, 0xef] => Kind::Ext,
            () => return Ok(None),
        };
        let copy = File::create_new(&image)?;
        copy.set_len(end - start)?;
        let mut block = vec![0; BLOCK];
        let mut at = start;
        while at < end {
            let len = (BLOCK as u64 - at % BLOCK as u64).min(end - at) as usize;
            region.read(at, &mut block[..len])?;
            if block[..len].iter().any(|&byte| byte != 0) {
                copy.write_all_at(&block[..len], at - start)?;
            }
            at += len as u64;
        }
        Ok(Some(Self { region, start, end, kind, image }))
    }

    /// The offset in the file system of a DIMM's byte.
    fn offset(&self, dimm: &Path, at: u64) -> Option<u64> {
        let offset = self.region.offset_of(dimm, at)?;
        (self.start..self.end).contains(&offset).then(|| offset - self.start)
    }
}
