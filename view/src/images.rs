//! The DIMMs' files as they were at a moment, in a temporary folder.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nvdimm_model::medium::{Base, Content, Image};
use tempfile::TempDir;
use trace::{BLOCK, Header};

use crate::{Error, Result};

/// A sparse file for each DIMM, gone when this is dropped. They begin as the DIMMs were when the recording began.
#[derive(Debug)]
pub struct Images {
    folder: TempDir,
    files: Vec<(PathBuf, File, u64)>,
    header: Header,
    /// Reading can fail where nothing can be said: see [`Images::check`].
    failed: Cell<Option<io::ErrorKind>>,
}

impl Images {
    /// Files of zeroes.
    pub(crate) fn new(header: &Header) -> Result<Self> {
        let scratch = |source| Error::Scratch { folder: std::env::temp_dir(), source };
        let folder = tempfile::Builder::new().prefix("nvsim-view").tempdir().map_err(scratch)?;
        let mut files = Vec::new();
        for (slot, dimm) in header.dimms.iter().enumerate() {
            let path = folder.path().join(format!("{slot}.nvd"));
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
            let file = file.map_err(scratch)?;
            // A hostile header may ask for more than a file can have: that is the host's to refuse.
            let len = dimm.data.saturating_add(dimm.size);
            file.set_len(len).map_err(scratch)?;
            files.push((path, file, len));
        }
        Ok(Self { folder, files, header: header.clone(), failed: Cell::new(None) })
    }

    /// The files, by the DIMMs' slots.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, ..)| path.as_path())
    }

    /// The folder, for other temporary files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn block(&self, slot: usize, number: u64, block: &[u8; BLOCK]) -> Result<()> {
        self.write(slot, number.saturating_mul(BLOCK as u64), block)
    }

    /// Writes into a DIMM's file; what would lie beyond its end is dropped.
    pub(crate) fn write(&self, slot: usize, at: u64, bytes: &[u8]) -> Result<()> {
        let Some((_, file, len)) = self.files.get(slot) else { return Ok(()) };
        let room = len.saturating_sub(at).min(bytes.len() as u64) as usize;
        file.write_all_at(&bytes[..room], at).map_err(|source| self.scratch(source))
    }

    /// Puts lines where they belong.
    pub(crate) fn apply(&self, image: &Image) -> Result<()> {
        for (&address, content) in &image.lines {
            if let Some((slot, at)) = self.header.place(address) {
                self.write(slot, at, content)?;
            }
        }
        self.check()
    }

    /// Says whether all lines could be read since the last time.
    pub(crate) fn check(&self) -> Result<()> {
        self.failed.take().map_or(Ok(()), |kind| Err(self.scratch(kind.into())))
    }

    fn scratch(&self, source: io::Error) -> Error {
        Error::Scratch { folder: self.folder.path().to_owned(), source }
    }
}

impl Base for Images {
    fn line(&self, address: u64) -> Content {
        let mut content = [0; 64];
        let place = self.header.place(address).and_then(|(slot, at)| Some((&self.files.get(slot)?.1, at)));
        if let Some((file, at)) = place
            && let Err(error) = file.read_exact_at(&mut content, at)
        {
            self.failed.set(Some(error.kind()));
        }
        content
    }
}
