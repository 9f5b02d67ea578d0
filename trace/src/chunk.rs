//! Chunks: a header of 32 bytes, then the payload, compressed with LZ4 where that helps.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 1 | tag |
//! | 1 | 1 | 1 if compressed |
//! | 2 | 2 | 0 |
//! | 4 | 4 | bytes of the payload in the file |
//! | 8 | 4 | bytes of the payload |
//! | 12 | 4 | number of the chunk |
//! | 16 | 16 | BLAKE3 of the 16 bytes before and the payload in the file, cut to its first half |

use std::io::{self, Read};

/// Bytes before the payload.
pub const HEADER: usize = 32;
/// A writer begins a new chunk after so many bytes.
pub const FULL: usize = 256 << 10;
/// No payload is longer: a reader of a foreign file is not made to fill its memory.
pub const MAX: usize = 4 << 20;

/// Which chunk.
pub mod tag {
    pub const HEADER: u8 = b'H';
    pub const BLOCKS: u8 = b'B';
    pub const START: u8 = b'S';
    pub const NAMES: u8 = b'N';
    pub const EVENTS: u8 = b'E';
    pub const END: u8 = b'Z';
}

/// Why a chunk is none.
#[derive(Debug)]
pub enum Refusal {
    Io(io::Error),
    /// Nothing, or not enough, is left.
    Short,
    Damaged(&'static str),
}

/// The bytes of a chunk.
pub fn seal(tag: u8, number: u32, payload: &[u8], out: &mut Vec<u8>) {
    let packed = lz4_flex::block::compress(payload);
    out.clear();
    if packed.len() < payload.len() {
        append(tag, number, payload.len(), &packed, out);
    } else {
        append(tag, number, payload.len(), payload, out);
    }
}

/// Appends a chunk whose payload of `len` bytes is `stored`, compressed if that is shorter.
fn append(tag: u8, number: u32, len: usize, stored: &[u8], out: &mut Vec<u8>) {
    let head = out.len();
    out.extend([tag, u8::from(stored.len() < len), 0, 0]);
    for word in [stored.len() as u32, len as u32, number] {
        out.extend(word.to_le_bytes());
    }
    let sum = checksum(&out[head..], stored);
    out.extend(sum);
    out.extend_from_slice(stored);
}

/// Appends a chunk that is not compressed.
#[cfg(feature = "fuzz")]
pub fn append_plain(tag: u8, number: u32, payload: &[u8], out: &mut Vec<u8>) {
    append(tag, number, payload.len(), payload, out);
}

fn checksum(head: &[u8], stored: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(head).update(stored);
    let mut sum = [0; 16];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    sum
}

/// Reads the next chunk: its tag, and how many bytes it has in the file. `payload` is replaced.
pub fn open(from: &mut impl Read, number: u32, payload: &mut Vec<u8>) -> Result<(u8, u64), Refusal> {
    let (head, stored) = take(from)?;
    if checksum(&head[..16], &stored) != head[16..] {
        return Err(Refusal::Damaged("its checksum is wrong"));
    }
    if word(&head, 12) as u32 != number {
        return Err(Refusal::Damaged("a chunk is missing or out of place"));
    }
    let bytes = (HEADER + stored.len()) as u64;
    unpack(&head, stored, payload)?;
    Ok((head[0], bytes))
}

/// Reads the next chunk and believes it, checksum or not: its tag.
#[cfg(feature = "fuzz")]
pub fn open_unchecked(from: &mut impl Read, payload: &mut Vec<u8>) -> Result<u8, Refusal> {
    let (head, stored) = take(from)?;
    unpack(&head, stored, payload)?;
    Ok(head[0])
}

fn word(head: &[u8; HEADER], at: usize) -> usize {
    u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize
}

/// The header of the next chunk, if it can be one, and what it stores.
fn take(from: &mut impl Read) -> Result<([u8; HEADER], Vec<u8>), Refusal> {
    let mut head = [0; HEADER];
    fill(from, &mut head)?;
    let (stored_len, len) = (word(&head, 4), word(&head, 8));
    if stored_len > len || len > MAX || head[1] > 1 || (head[1] == 0 && stored_len != len) {
        return Err(Refusal::Damaged("its length cannot be"));
    }
    let mut stored = vec![0; stored_len];
    fill(from, &mut stored)?;
    Ok((head, stored))
}

/// The payload out of what a chunk stores.
fn unpack(head: &[u8; HEADER], stored: Vec<u8>, payload: &mut Vec<u8>) -> Result<(), Refusal> {
    if head[1] == 0 {
        *payload = stored;
        return Ok(());
    }
    let len = word(head, 8);
    payload.resize(len, 0);
    match lz4_flex::block::decompress_into(&stored, payload) {
        Ok(unpacked) if unpacked == len => Ok(()),
        _ => Err(Refusal::Damaged("it cannot be decompressed")),
    }
}

/// Fills all of `bytes`.
pub fn fill(from: &mut impl Read, bytes: &mut [u8]) -> Result<(), Refusal> {
    from.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Refusal::Short,
        _ => Refusal::Io(error),
    })
}
