//! Virtio devices (virtio 1.2) behind the MMIO transport. A device sees only whole, well-formed requests; whatever else a
//! driver may put into a queue ends in DEVICE_NEEDS_RESET.

mod block;
mod entropy;
mod mmio;

pub use block::{Block, DiskSpec};
pub use entropy::Entropy;
pub use mmio::{QueueState, VirtioMmio, VirtioMmioState};

use std::fmt::Debug;
use std::ops::Range;

use engine::GuestMemory;
use virtio_queue::DescriptorChain;

/// A driver broke the rules: the device needs a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// What a kind of device adds to the transport.
pub trait VirtioDevice: Debug + Send {
    /// Device ID (virtio 1.2, ch. 5).
    fn id(&self) -> u32;

    /// Feature bits of the kind, without those of the transport.
    fn features(&self) -> u64;

    /// Largest size of each queue: powers of two.
    fn queues(&self) -> &'static [u16];

    /// The configuration space.
    fn config(&self) -> &[u8];

    /// Carries out a request; gives the number of bytes written into it.
    ///
    /// # Errors
    /// [`Malformed`]: the request is none.
    fn process(&mut self, request: &mut Request<'_>) -> Result<u32, Malformed>;

    /// What must be kept of the device in a snapshot beside its transport.
    fn position(&self) -> u64 {
        0
    }

    /// Brings back what [`VirtioDevice::position`] gave.
    fn set_position(&mut self, _position: u64) {}
}

/// A request: what the driver gives, and what it wants filled. All of it lies in guest memory.
pub struct Request<'m> {
    /// From the driver.
    pub readable: virtio_queue::Reader<'m>,
    /// To the driver.
    pub writable: virtio_queue::Writer<'m>,
}

impl Debug for Request<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("readable", &self.readable.available_bytes())
            .field("writable", &self.writable.available_bytes())
            .finish()
    }
}

impl<'m> Request<'m> {
    /// Checks a chain and opens it. Notes in `touched` where a device may write.
    fn new(
        chain: DescriptorChain<&'m GuestMemory>,
        memory: &'m GuestMemory,
        touched: &mut Vec<Range<u64>>,
    ) -> Result<Self, Malformed> {
        let mut last = None;
        let mut writing = false;
        for descriptor in chain.clone() {
            // What the driver gives comes before what it wants.
            if writing && !descriptor.is_write_only() {
                return Err(Malformed);
            }
            writing = descriptor.is_write_only();
            if writing {
                let start = descriptor.addr().0;
                touched.push(start..start.saturating_add(descriptor.len().into()));
            }
            last = Some(descriptor);
        }
        // The chain's iterator stops silently at a loop, at an index out of bounds and at a table it cannot read.
        if last.is_none_or(|descriptor| descriptor.has_next()) {
            return Err(Malformed);
        }
        let readable = chain.clone().reader(memory).map_err(|_| Malformed)?;
        let writable = chain.writer(memory).map_err(|_| Malformed)?;
        Ok(Self { readable, writable })
    }
}

#[cfg(test)]
mod tests;
