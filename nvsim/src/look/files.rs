//! From a DIMM and an offset to a file and an offset: the file systems on the DIMMs that a cut leaves, read by their own
//! tools from copies.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use view::{Images, Place};
use vmm::nvdimm::offline;

use super::tools::Tools;
use super::{ext4, xfs};

/// Bytes of a region that follow each other on one DIMM.
const PIECE: u64 = 2 << 20;
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
    /// Slots of the region's DIMMs, by position.
    slots: Vec<usize>,
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
            let slot = |file: &PathBuf| paths.iter().position(|path| path == file);
            let slots: Vec<usize> = region.dimms.iter().filter_map(|dimm| slot(&dimm.file)).collect();
            for namespace in &region.namespaces {
                let start = namespace.offset + namespace.data_offset;
                let end = (start + namespace.size).min(region.size);
                let copy = images.folder().join(format!("namespace{}", found.len()));
                match FileSystem::copy(&paths, slots.clone(), start, end, copy) {
                    Ok(file_system) => found.extend(file_system),
                    Err(why) => tracing::warn!("a namespace cannot be copied: {why}"),
                }
            }
        }
        Self { found, tools: Tools::new(image, images.folder()) }
    }

    /// What is at these offsets of DIMMs, where a file system knows.
    pub fn locate(&self, places: &[(usize, u64)]) -> HashMap<(usize, u64), Place> {
        let mut located = HashMap::new();
        for own in &self.found {
            let mut wanted: BTreeMap<u64, (usize, u64)> = BTreeMap::new();
            wanted.extend(places.iter().filter_map(|&place| Some((own.offset(place)?, place))));
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
    /// Copies a namespace, if there is a file system on it.
    fn copy(
        paths: &[PathBuf],
        slots: Vec<usize>,
        start: u64,
        end: u64,
        image: PathBuf,
    ) -> std::io::Result<Option<Self>> {
        let files: Vec<File> =
            slots.iter().filter_map(|&slot| paths.get(slot)).map(File::open).collect::<Result<_, _>>()?;
        let ways = files.len() as u64;
        let read = |at: u64, bytes: &mut [u8]| {
            let (piece, within) = (at / PIECE, at % PIECE);
            let Some(file) = files.get((piece % ways.max(1)) as usize) else {
                return Err(std::io::ErrorKind::InvalidInput.into());
            };
            file.read_exact_at(bytes, vmm::nvdimm::backing::DATA + piece / ways * PIECE + within)
        };
        let mut head = vec![0; 4096];
        if start % PIECE + head.len() as u64 > PIECE || start + head.len() as u64 > end {
            return Ok(None);
        }
        read(start, &mut head)?;
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
            read(at, &mut block[..len])?;
            if block[..len].iter().any(|&byte| byte != 0) {
                copy.write_all_at(&block[..len], at - start)?;
            }
            at += len as u64;
        }
        Ok(Some(Self { slots, start, end, kind, image }))
    }

    /// The offset in the file system of a DIMM's byte.
    fn offset(&self, (slot, at): (usize, u64)) -> Option<u64> {
        let position = self.slots.iter().position(|&own| own == slot)? as u64;
        let region = (at / PIECE * self.slots.len() as u64 + position) * PIECE + at % PIECE;
        (self.start..self.end).contains(&region).then(|| region - self.start)
    }
}
