//! Entries for the fuzzer.

use crate::chunk::{self, Refusal, tag};
use crate::{BLOCK, Header, MAGIC};

/// A trace file of which bytes were changed, with right checksums, numbers and hashes: what they protect is looked at. Each
/// chunk is left uncompressed where its payload can be found, so that the next change meets what it changes.
#[must_use]
pub fn reseal(bytes: &[u8]) -> Vec<u8> {
    let begin = MAGIC.len() + 4;
    let (mut out, mut rest) =
        (bytes[..begin.min(bytes.len())].to_vec(), bytes.get(begin..).unwrap_or_default());
    let (mut payload, mut hashes) = (Vec::new(), Vec::new());
    let mut number = 0;
    loop {
        let tag = match chunk::open_unchecked(&mut rest, &mut payload) {
            Ok(tag) => tag,
            Err(Refusal::Short | Refusal::Io(_)) => break,
            Err(Refusal::Damaged(_)) => continue,
        };
        match tag {
            tag::HEADER => {
                let dimms = postcard::from_bytes::<Header>(&payload).map_or(0, |header| header.dimms.len());
                hashes = vec![blake3::Hasher::new(); dimms];
            }
            tag::BLOCKS => payload.chunks_exact(1 + 8 + BLOCK).for_each(|entry| {
                if let Some(hash) = hashes.get_mut(usize::from(entry[0])) {
                    hash.update(&entry[1..9]).update(&entry[9..]);
                }
            }),
            tag::START => {
                let sums: Vec<[u8; 32]> = hashes.iter().map(|hash| *hash.finalize().as_bytes()).collect();
                payload = postcard::to_stdvec(&sums).unwrap_or_default();
            }
            _ => {}
        }
        chunk::append_plain(tag, number, &payload, &mut out);
        number += 1;
    }
    out
}
