//! What is durable for sure, line by line: files with the DIMMs' content as it was when the model began or last forgot.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nvdimm_model::geometry::LINE;
use nvdimm_model::medium::{Base, Content};
use trace::{BLOCK, Header};

/// A file for each DIMM, laid out as the DIMM's own.
#[derive(Debug)]
pub struct Floor {
    files: Vec<File>,
    header: Header,
    /// A line could not be read; whoever asked for it could not be told.
    failed: RefCell<Option<io::Error>>,
}

impl Floor {
    /// Files that hold the DIMMs' content, or will.
    pub fn new(header: &Header, files: Vec<File>) -> Self {
        Self { files, header: header.clone(), failed: RefCell::new(None) }
    }

    /// Takes a block of a DIMM's file over.
    pub fn block(&self, dimm: usize, number: u64, block: &[u8; BLOCK]) -> io::Result<()> {
        let file = self.files.get(dimm).ok_or(io::ErrorKind::InvalidInput)?;
        file.write_all_at(block, number * BLOCK as u64)
    }

    /// Bytes anywhere in a DIMM's file.
    pub fn bytes(&self, dimm: usize, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.files.get(dimm).ok_or(io::ErrorKind::InvalidInput)?.write_all_at(bytes, offset)
    }

    /// Takes lines over.
    pub fn lines(&self, lines: &BTreeMap<u64, Content>) -> io::Result<()> {
        lines.iter().try_for_each(|(&address, content)| match self.header.place(address) {
            Some((dimm, offset)) => self.bytes(dimm, offset, content),
            None => Ok(()),
        })
    }

    /// Whether every line that was asked for could be read.
    pub fn check(&self) -> io::Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }
}

/// A file without a name beside a DIMM's, that goes with the last who has it open.
pub fn nameless(beside: &Path, len: u64) -> io::Result<File> {
    let mut name = std::ffi::OsString::from(".");
    name.push(beside.file_name().unwrap_or_default());
    name.push(format!(".{}.floor", std::process::id()));
    let path = beside.with_file_name(name);
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    file.set_len(len)?;
    Ok(file)
}

impl Base for Floor {
    fn line(&self, address: u64) -> Content {
        let mut content = [0; LINE as usize];
        if let Some((dimm, offset)) = self.header.place(address)
            && let Some(file) = self.files.get(dimm)
            && let Err(error) = file.read_exact_at(&mut content, offset)
        {
            *self.failed.borrow_mut() = Some(error);
        }
        content
    }
}
