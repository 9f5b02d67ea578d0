//! What is durable for sure, line by line: files with the DIMMs' content as it was when the recording began, or when the
//! medium last forgot what was decided.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use nvdimm_model::medium::{Base, Content};

use crate::{Area, BLOCK, Error, Header, Reader, Result, STATE};

/// A sparse file for each DIMM, laid out as the DIMM's own.
#[derive(Debug)]
pub struct Floor {
    /// With their lengths.
    files: Vec<(File, u64)>,
    header: Header,
    /// A line could not be read; whoever asked for it could not be told.
    failed: RefCell<Option<io::Error>>,
}

impl Floor {
    /// Empty files, one for each DIMM of the header, become as long as the DIMMs' own.
    ///
    /// # Errors
    /// [`Error::Floor`].
    pub fn new(header: &Header, files: Vec<File>) -> Result<Self> {
        let sized = |(file, dimm): (File, &crate::DimmHeader)| {
            // A hostile header may ask for more than a file can have: that is the host's to refuse.
            let len = dimm.data.saturating_add(dimm.size);
            file.set_len(len).map(|()| (file, len))
        };
        let files = files.into_iter().zip(&header.dimms).map(sized).collect::<io::Result<_>>();
        let files = files.map_err(Error::Floor)?;
        Ok(Self { files, header: header.clone(), failed: RefCell::new(None) })
    }

    /// Takes over all that a trace says the DIMMs held.
    ///
    /// # Errors
    /// What is wrong with the trace, or [`Error::Floor`].
    pub fn fill<R: Read>(&self, trace: &mut Reader<R>) -> Result<()> {
        while let Some((dimm, number, block)) = trace.next_block()? {
            self.block(dimm, number, block)?;
        }
        Ok(())
    }

    /// Takes a block of a DIMM's file over.
    ///
    /// # Errors
    /// [`Error::Floor`].
    pub fn block(&self, dimm: usize, number: u64, block: &[u8; BLOCK]) -> Result<()> {
        self.write(dimm, number.saturating_mul(BLOCK as u64), block)
    }

    /// Takes over what a DIMM wrote outside of its data. A superblock comes without the zeroes at its end.
    ///
    /// # Errors
    /// [`Error::Floor`].
    pub fn meta(&self, dimm: usize, area: Area, offset: u64, data: &[u8]) -> Result<()> {
        self.write(dimm, offset, data)?;
        let rest = STATE.saturating_sub(data.len());
        match area {
            Area::Labels => Ok(()),
            Area::State => self.write(dimm, offset.saturating_add(data.len() as u64), &vec![0; rest]),
        }
    }

    /// Takes lines over; those of no DIMM are dropped.
    ///
    /// # Errors
    /// [`Error::Floor`]: one of these, or a line that was asked for before.
    pub fn lines(&self, lines: &BTreeMap<u64, Content>) -> Result<()> {
        for (&address, content) in lines {
            if let Some((dimm, offset)) = self.header.place(address) {
                self.write(dimm, offset, content)?;
            }
        }
        self.check()
    }

    /// What is there from an address on, all of it in one piece of a DIMM; zeros where there is no DIMM.
    ///
    /// # Errors
    /// [`Error::Floor`].
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        match self.header.place(address).and_then(|(dimm, offset)| Some((self.files.get(dimm)?, offset))) {
            Some(((file, _), offset)) => file.read_exact_at(bytes, offset).map_err(Error::Floor),
            None => {
                bytes.fill(0);
                Ok(())
            }
        }
    }

    /// Whether every line that was asked for could be read.
    ///
    /// # Errors
    /// [`Error::Floor`]: why not.
    pub fn check(&self) -> Result<()> {
        self.failed.take().map_or(Ok(()), |error| Err(Error::Floor(error)))
    }

    /// Writes into a DIMM's file; what would lie beyond its end is dropped.
    fn write(&self, dimm: usize, at: u64, bytes: &[u8]) -> Result<()> {
        let Some((file, len)) = self.files.get(dimm) else { return Ok(()) };
        let room = len.saturating_sub(at).min(bytes.len() as u64) as usize;
        file.write_all_at(&bytes[..room], at).map_err(Error::Floor)
    }
}

impl Base for Floor {
    fn line(&self, address: u64) -> Content {
        let mut content = [0; size_of::<Content>()];
        if let Some((dimm, offset)) = self.header.place(address)
            && let Some((file, _)) = self.files.get(dimm)
            && let Err(error) = file.read_exact_at(&mut content, offset)
        {
            *self.failed.borrow_mut() = Some(error);
        }
        content
    }
}
