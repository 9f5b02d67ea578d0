//! Frames on a byte stream that may begin with, or be interrupted by, anything else.
//!
//! ```text
//! 0  4  magic 9e 6e 76 1f
//! 4  1  kind
//! 5  3  payload length, little endian, at most MAX_PAYLOAD
//! 8  4  CRC-32 (IEEE 802.3) of bytes 4..8 and the payload
//! 12    payload
//! ```

/// Longest payload of a frame.
pub const MAX_PAYLOAD: usize = 4096;

const MAGIC: [u8; 4] = [0x9e, b'n', b'v', 0x1f];
const HEADER: usize = 12;

/// A frame whose checksum is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Meaning of the payload.
    pub kind: u8,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
}

/// Appends a frame to `out`. What exceeds [`MAX_PAYLOAD`] is cut off; callers split.
pub fn encode(kind: u8, payload: &[u8], out: &mut Vec<u8>) {
    let payload = &payload[..payload.len().min(MAX_PAYLOAD)];
    let length = (payload.len() as u32).to_le_bytes();
    let head = [kind, length[0], length[1], length[2]];
    out.extend(MAGIC);
    out.extend(head);
    out.extend(crc32(&[&head, payload]).to_le_bytes());
    out.extend(payload);
}

/// Finds frames in a stream. Holds no more than one frame's bytes, whatever comes.
#[derive(Debug, Default)]
pub struct Decoder {
    pending: Vec<u8>,
}

impl Decoder {
    /// Takes one byte. Afterwards [`Decoder::next`] is to be called until it gives nothing.
    pub fn push(&mut self, byte: u8) {
        self.pending.push(byte);
    }

    /// The next whole frame. Bytes that belong to none are dropped.
    #[expect(clippy::should_implement_trait, reason = "more may come after a `None`")]
    pub fn next(&mut self) -> Option<Frame> {
        loop {
            let start = (0..self.pending.len()).find(|&at| {
                let rest = &self.pending[at..];
                let known = rest.len().min(MAGIC.len());
                rest[..known] == MAGIC[..known]
            });
            self.pending.drain(..start.unwrap_or(self.pending.len()));
            let (head, rest) = self.pending.split_first_chunk::<HEADER>()?;
            let length = u32::from_le_bytes([head[5], head[6], head[7], 0]) as usize;
            if length > MAX_PAYLOAD {
                self.pending.drain(..1);
                continue;
            }
            let payload = rest.get(..length)?;
            if crc32(&[&head[4..8], payload]).to_le_bytes() != head[8..12] {
                self.pending.drain(..1);
                continue;
            }
            let frame = Frame { kind: head[4], payload: payload.to_vec() };
            self.pending.drain(..HEADER + length);
            return Some(frame);
        }
    }
}

/// CRC-32 as in Ethernet, zip and gzip.
fn crc32(parts: &[&[u8]]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let mut value = i as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { value >> 1 ^ 0xedb8_8320 } else { value >> 1 };
                bit += 1;
            }
            table[i] = value;
            i += 1;
        }
        table
    };
    let step = |crc: u32, byte: &u8| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)];
    !parts.iter().copied().flatten().fold(u32::MAX, step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> Vec<Frame> {
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for &byte in bytes {
            decoder.push(byte);
            while let Some(frame) = decoder.next() {
                frames.push(frame);
            }
            assert!(decoder.pending.len() <= HEADER + MAX_PAYLOAD);
        }
        frames
    }

    #[test]
    fn the_checksum_is_that_of_ieee() {
        assert_eq!(crc32(&[b"1234", b"56789"]), 0xcbf4_3926);
    }

    #[test]
    fn a_frame_after_a_lying_header_is_found() {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([1, 0xff, 0xff, 0xff]);
        bytes.extend(MAGIC);
        bytes.extend([1, 20, 0, 0, 0, 0, 0, 0]);
        encode(7, b"payload that is long enough", &mut bytes);
        assert_eq!(decode(&bytes), [Frame { kind: 7, payload: b"payload that is long enough".to_vec() }]);
    }

    proptest! {
        #[test]
        fn frames_come_back_in_order(
            frames in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..300)), 0..8),
            garbage in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            // Garbage that ends as a frame begins could swallow that frame; a zero byte ends any such beginning.
            let mut bytes = garbage;
            bytes.retain(|byte| *byte != MAGIC[0]);
            let mut want = Vec::new();
            for (kind, payload) in frames {
                encode(kind, &payload, &mut bytes);
                want.push(Frame { kind, payload });
            }
            prop_assert_eq!(decode(&bytes), want);
        }

        #[test]
        fn a_damaged_frame_is_dropped_and_the_next_one_found(
            at in 0usize..40, flip in 1u8.., payload in prop::collection::vec(any::<u8>(), 28..29),
        ) {
            let mut bytes = Vec::new();
            encode(1, &payload, &mut bytes);
            bytes[at] ^= flip;
            // A length made longer waits for that many bytes before it is found out.
            for _ in 0..MAX_PAYLOAD / 16 {
                encode(2, b"next", &mut bytes);
            }
            let frames = decode(&bytes);
            prop_assert!(frames.iter().all(|frame| frame.kind == 2));
            prop_assert!(!frames.is_empty());
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(prop::sample::select(vec![0x9e, b'n', b'v', 0x1f, 0, 1, 255]), 0..600)) {
            decode(&bytes);
        }
    }
}
