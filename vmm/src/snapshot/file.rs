//! The saved form of a snapshot: one file with holes.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 16 | magic |
//! | 16 | 4 | format |
//! | 20 | 4 | zero |
//! | 24 | 8 | length of the state |
//! | 32 | 32 | BLAKE3 of everything else up to the state's end |
//! | 64 | | the state, as postcard: values, and where each image is, what of it is not a hole, and its BLAKE3 |
//! | | | the images: RAM, or what of it has changed since another snapshot, then each DIMM's file; page-aligned, in place, to be mapped as they are |

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::CodeStock;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::image::Image;
use super::{Since, Snapshot, State};
use crate::draft::Draft;
use crate::extents::Extents;
use crate::layout::PAGE;
use crate::{Error, Result};

/// Changes with anything in the file.
pub const FORMAT: u32 = 3;

const MAGIC: &[u8; 16] = b"nvsim snapshot\r\n";
const HEADER: usize = 64;
/// States are far smaller; longer ones are damage.
const STATE_LIMIT: u64 = 64 << 20;

/// Where an image is.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    offset: u64,
    extents: Extents,
    blake3: [u8; 32],
}

#[derive(Debug, Serialize, Deserialize)]
struct Contents {
    state: State,
    memory: Stored,
    dimms: Option<Vec<(PathBuf, Stored)>>,
    since: Option<Since>,
}

/// See [`Snapshot::save`].
pub fn save(snapshot: &Snapshot, path: &Path, sync: bool) -> Result<()> {
    let failed = |source| Error::Write { what: "snapshot", path: path.to_owned(), source };
    let write = || {
        let draft = Draft::of(path, OFlags::empty())?;
        lay_down(snapshot, &draft.file)?;
        if sync {
            draft.file.sync_all()?;
        }
        draft.publish()
    };
    write().map_err(failed)
}

fn lay_down(snapshot: &Snapshot, file: &File) -> io::Result<()> {
    let images = || std::iter::once(&snapshot.memory).chain(snapshot.dimms.iter().flatten().map(|(_, i)| i));
    let hashes = images().map(Image::hash).collect::<io::Result<Vec<_>>>()?;
    // Offsets are counted from the end of the state, whose length they would change.
    let mut end = 0;
    let mut stored = images().zip(hashes).map(|(image, blake3)| {
        let offset = end;
        end += image.extents.len.next_multiple_of(PAGE);
        Stored { offset, extents: image.extents.clone(), blake3 }
    });
    let memory = stored.next().ok_or(ErrorKind::InvalidData)?;
    let dimms = snapshot
        .dimms
        .as_ref()
        .map(|dimms| dimms.iter().map(|(path, _)| path.clone()).zip(stored.by_ref()).collect());
    drop(stored);
    let contents = Contents { state: snapshot.state.clone(), memory, dimms, since: snapshot.since.clone() };
    let state = postcard::to_allocvec(&contents).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(HEADER + state.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&(state.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&[0; 32]);
    bytes.extend_from_slice(&state);
    let sum = blake3::hash(&bytes);
    bytes[32..64].copy_from_slice(sum.as_bytes());
    let base = images_start(state.len() as u64);
    file.set_len(base + end)?;
    file.write_all_at(&bytes, 0)?;
    let places = std::iter::once(&contents.memory).chain(contents.dimms.iter().flatten().map(|(_, s)| s));
    images().zip(places).try_for_each(|(image, stored)| image.write(file, base + stored.offset))
}

/// Where the first image is.
fn images_start(state: u64) -> u64 {
    (HEADER as u64 + state).next_multiple_of(PAGE)
}

/// See [`Snapshot::is_one`].
pub fn is_one(path: &Path) -> bool {
    let mut magic = [0; MAGIC.len()];
    File::open(path).and_then(|file| file.read_exact_at(&mut magic, 0)).is_ok() && magic == *MAGIC
}

/// See [`Snapshot::open`]; the images are checked if that is wanted.
pub fn open(path: &Path, check: bool) -> Result<Snapshot> {
    let unreadable = |source| Error::Read { what: "snapshot", path: path.to_owned(), source };
    let refused = |reason: String| Error::Snapshot { path: path.to_owned(), reason };
    let damaged = |what: &str| refused(format!("it is damaged: {what}; take it anew"));
    let file = Arc::new(File::open(path).map_err(unreadable)?);
    let len = file.metadata().map_err(unreadable)?.len();
    let mut header = [0; HEADER];
    if len < HEADER as u64 || file.read_exact_at(&mut header, 0).is_err() || !header.starts_with(MAGIC) {
        return Err(refused("it is no snapshot of nvsim".to_owned()));
    }
    let format = u32::from_le_bytes([header[16], header[17], header[18], header[19]]);
    if format != FORMAT {
        let reason = format!("it has format {format}, this nvsim knows {FORMAT}; take it anew");
        return Err(refused(reason));
    }
    let state_len = header[24..32].try_into().map_or(u64::MAX, u64::from_le_bytes);
    if state_len > STATE_LIMIT.min(len - HEADER as u64) {
        return Err(damaged("it is cut off"));
    }
    let mut state = vec![0; state_len as usize];
    file.read_exact_at(&mut state, HEADER as u64).map_err(unreadable)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header[..32]).update(&[0; 32]).update(&state);
    let sum = *hasher.finalize().as_bytes();
    if sum != header[32..64] {
        return Err(damaged("the checksum of its state is wrong"));
    }
    let contents: Contents = postcard::from_bytes(&state)
        .map_err(|_| refused("its state is of another nvsim; take it anew".to_owned()))?;
    let base = images_start(state_len);
    let image = |stored: Stored| {
        let start = base.checked_add(stored.offset);
        let end = start.and_then(|start| start.checked_add(stored.extents.len));
        let (Some(start), true) = (start, end.is_some_and(|end| end <= len) && stored.extents.are_sound())
        else {
            return Err(damaged("it is cut off"));
        };
        let image = Image::within(Arc::clone(&file), start, stored.extents);
        if check && image.hash().map_err(unreadable)? != stored.blake3 {
            return Err(damaged("the checksum of its memory is wrong"));
        }
        Ok(image)
    };
    let memory = image(contents.memory)?;
    let dimms = match contents.dimms {
        None => None,
        Some(dimms) => {
            Some(dimms.into_iter().map(|(path, stored)| Ok((path, image(stored)?))).collect::<Result<_>>()?)
        }
    };
    let Contents { state, since, .. } = contents;
    Ok(Snapshot { state, memory, dimms, code: CodeStock::default(), since, sum: Some(sum) })
}
