//! The DIMMs' files as they were at a moment, in a temporary folder.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::{Error, Result};

/// A sparse file for each DIMM, gone when this is dropped.
#[derive(Debug)]
pub struct Images {
    folder: TempDir,
    paths: Vec<PathBuf>,
}

impl Images {
    /// Empty files; open ones are for whoever fills them.
    pub(crate) fn new(dimms: usize) -> Result<(Self, Vec<File>)> {
        let scratch = |source| Error::Scratch { folder: std::env::temp_dir(), source };
        let folder = tempfile::Builder::new().prefix("nvsim-view").tempdir().map_err(scratch)?;
        let paths: Vec<PathBuf> = (0..dimms).map(|slot| folder.path().join(format!("{slot}.nvd"))).collect();
        let make = |path| OpenOptions::new().read(true).write(true).create_new(true).open(path);
        let files = paths.iter().map(make).collect::<std::io::Result<_>>().map_err(scratch)?;
        Ok((Self { folder, paths }, files))
    }

    /// The files, by the DIMMs' slots.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.paths.iter().map(PathBuf::as_path)
    }

    /// The folder, for other temporary files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}
