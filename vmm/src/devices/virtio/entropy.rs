//! The entropy device (virtio 1.2, ch. 5.4), whose stream the run's seed decides.

use std::io::Write;

use super::{Malformed, Request, VirtioDevice};

/// A request gets at most so much.
const LIMIT: usize = 64 << 10;

/// An endless stream of random bytes.
#[derive(Debug)]
pub struct Entropy {
    stream: blake3::OutputReader,
}

impl Entropy {
    /// The stream of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("nvsim 2026 virtio entropy device");
        hasher.update(&seed.to_le_bytes());
        Self { stream: hasher.finalize_xof() }
    }
}

impl VirtioDevice for Entropy {
    fn id(&self) -> u32 {
        virtio_bindings::virtio_ids::VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> &'static [u16] {
        &[64]
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn process(&mut self, request: &mut Request<'_>) -> Result<u32, Malformed> {
        let mut bytes = vec![0; request.writable.available_bytes().min(LIMIT)];
        self.stream.fill(&mut bytes);
        request.writable.write_all(&bytes).map_err(|_| Malformed)?;
        Ok(bytes.len() as u32)
    }

    fn position(&self) -> u64 {
        self.stream.position()
    }

    fn set_position(&mut self, position: u64) {
        self.stream.set_position(position);
    }
}
