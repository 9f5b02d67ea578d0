//! A region's bytes without a machine: an interleave set, read through its DIMMs' files.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use nvdimm_model::interleave::InterleaveSet;

use super::backing::Backing;
use super::lock::Hold;
use super::offline::one_set;
use super::{Error, Result};

/// The files of one set, held for reading. Nothing is changed.
#[derive(Debug)]
pub struct RegionFiles {
    backings: Vec<Backing>,
    set: InterleaveSet,
    /// Their indexes, by position in the set.
    members: Vec<usize>,
}

impl RegionFiles {
    /// Opens all files of a set, which may come in any order.
    ///
    /// # Errors
    /// A file cannot be read, or they are not one whole set.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let open = |path: &PathBuf| Backing::open(path, Hold::Shared);
        let backings = paths.iter().map(open).collect::<Result<Vec<_>>>()?;
        let (set, members) = one_set(&backings)?;
        Ok(Self { backings, set, members })
    }

    /// Reads bytes of the region.
    ///
    /// # Errors
    /// They are not all within the region, or a file cannot be read.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(bytes.len() as u64).filter(|&end| end <= self.set.size());
        let beyond =
            || Error::io("reach the data of", self.backings[0].path())(ErrorKind::InvalidInput.into());
        let end = end.ok_or_else(beyond)?;
        self.set.pieces(offset..end).try_for_each(|piece| {
            let at = (piece.offset - offset) as usize;
            self.backings[self.members[piece.member]]
                .read_data(piece.dpa, &mut bytes[at..at + piece.len as usize])
        })
    }

    /// The offset in the region of a byte of a DIMM's data; none for a file that is not of the set.
    #[must_use]
    pub fn offset_of(&self, file: &Path, dpa: u64) -> Option<u64> {
        let position = self.members.iter().position(|&n| self.backings[n].path() == file)?;
        self.set.offset_of(position, dpa)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvdimm::{Entropy, offline};

    #[test]
    fn a_set_is_one_run_of_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| folder.path().join(name)).to_vec();
        let specs: Vec<_> = paths
            .iter()
            .map(|path| format!("{},size=16M,set=pair", path.display()).parse().unwrap())
            .collect();
        let made = offline::create(&specs, &[], &Entropy::from_seed(1)).unwrap();
        made[1].write_data(4 << 20, &[7; 16]).unwrap();
        made[0].write_data((6 << 20) - 8, &[6; 8]).unwrap();
        drop(made);
        let region = RegionFiles::open(&[paths[1].clone(), paths[0].clone()]).unwrap();
        // The third piece of each: 4 and 5 of the region, in turn from the first DIMM on.
        let at = region.offset_of(&paths[1], 4 << 20).unwrap();
        assert_eq!(at, 10 << 20);
        let mut bytes = [0; 16];
        region.read(at - 8, &mut bytes).unwrap();
        assert_eq!(bytes, [6, 6, 6, 6, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7, 7, 7]);
        assert!(region.read((32 << 20) - 8, &mut bytes).is_err());
        assert_eq!(region.offset_of(Path::new("c"), 0), None);
    }
}
