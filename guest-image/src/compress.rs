//! Decompression of kernels, modules, packages and initial RAM disks, told apart by their magic numbers.
//!
//! Everything read here came from outside, so every output is bounded by the caller.

use std::io::{self, Read};

/// A compression format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Gzip,
    Xz,
    Zstd,
    /// The frame of `lz4 -l`, which the kernel uses: blocks of 8 MiB, no checksum.
    Lz4Legacy,
}

const LZ4_LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
const LZ4_LEGACY_BLOCK: usize = 8 << 20;

impl Format {
    /// The format that `data` begins with.
    pub(crate) fn of(data: &[u8]) -> Option<Self> {
        match data {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            [a, b, c, d, ..] if [*a, *b, *c, *d] == LZ4_LEGACY_MAGIC => Some(Self::Lz4Legacy),
            _ => None,
        }
    }
}

/// A reader of the decompressed stream; `data` that is not compressed is read as it is.
pub(crate) fn reader<'a>(data: &'a [u8]) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match Format::of(data) {
        None => Box::new(data),
        Some(Format::Gzip) => Box::new(flate2::read::MultiGzDecoder::new(data)),
        Some(Format::Xz) => Box::new(lzma_rust2::XzReader::new(data, true)),
        Some(Format::Zstd) => {
            Box::new(ruzstd::decoding::StreamingDecoder::new(data).map_err(io::Error::other)?)
        }
        Some(Format::Lz4Legacy) => Box::new(Lz4Legacy { rest: &data[4..], block: Vec::new(), taken: 0 }),
    })
}

/// Decompresses all of `data`, or fails when it is damaged or gives more than `limit` bytes.
pub(crate) fn decompress(data: &[u8], limit: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    reader(data)?.take(limit as u64 + 1).read_to_end(&mut out)?;
    if out.len() > limit {
        return Err(io::Error::other(format!("decompresses to more than {limit} bytes")));
    }
    Ok(out)
}

struct Lz4Legacy<'a> {
    rest: &'a [u8],
    block: Vec<u8>,
    taken: usize,
}

impl Lz4Legacy<'_> {
    fn next_block(&mut self) -> io::Result<bool> {
        let Some((head, rest)) = self.rest.split_first_chunk::<4>() else {
            return Ok(false);
        };
        if *head == LZ4_LEGACY_MAGIC {
            self.rest = rest;
            return self.next_block();
        }
        let length = u32::from_le_bytes(*head) as usize;
        let Some((block, rest)) = rest.split_at_checked(length) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        self.block = lz4_flex::block::decompress(block, LZ4_LEGACY_BLOCK).map_err(io::Error::other)?;
        self.rest = rest;
        self.taken = 0;
        Ok(true)
    }
}

impl Read for Lz4Legacy<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.block.len() {
            if !self.next_block()? {
                return Ok(0);
            }
        }
        let n = buf.len().min(self.block.len() - self.taken);
        buf[..n].copy_from_slice(&self.block[self.taken..self.taken + n]);
        self.taken += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lz4_legacy(data: &[u8]) -> Vec<u8> {
        let mut out = LZ4_LEGACY_MAGIC.to_vec();
        for chunk in data.chunks(LZ4_LEGACY_BLOCK) {
            let block = lz4_flex::block::compress(chunk);
            out.extend((block.len() as u32).to_le_bytes());
            out.extend(block);
        }
        out
    }

    #[test]
    fn lz4_legacy_frame_of_two_blocks_comes_back() {
        let data: Vec<u8> = (0..LZ4_LEGACY_BLOCK + 1000).map(|i| (i / 7) as u8).collect();
        assert_eq!(decompress(&lz4_legacy(&data), data.len()).unwrap(), data);
    }

    #[test]
    fn output_is_bounded() {
        let data = vec![0; 1000];
        assert!(decompress(&lz4_legacy(&data), 999).is_err());
    }

    proptest! {
        #[test]
        fn damaged_input_never_panics(magic in 0usize..4, body in prop::collection::vec(any::<u8>(), 0..200)) {
            let head: &[u8] = match magic {
                0 => &[0x1f, 0x8b, 8],
                1 => &[0xfd, b'7', b'z', b'X', b'Z', 0],
                2 => &[0x28, 0xb5, 0x2f, 0xfd],
                _ => &LZ4_LEGACY_MAGIC,
            };
            let _ = decompress(&[head, &body].concat(), 1 << 20);
        }
    }
}
