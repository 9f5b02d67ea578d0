//! Guest-physical memory and where it is on the host.

#![expect(unsafe_code, reason = "guest memory is reached by host address")]

use engine::GuestMemory;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion as _, MemoryRegionAddress};

/// Size of a page in bytes.
pub const PAGE: u64 = 4096;

/// A run of guest-physical pages that lie together on the host.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: u64,
    end: u64,
    host: u64,
}

/// The map from guest-physical pages to host addresses. What is in no span is a hole: MMIO.
#[derive(Debug, Default)]
pub struct Ram {
    spans: Vec<Span>,
    /// Keeps the mappings alive.
    memory: Option<GuestMemory>,
}

impl Ram {
    /// Of a machine's memory. Parts of pages at the ends of regions are left out.
    #[must_use]
    pub fn new(memory: &GuestMemory) -> Self {
        let span = |region: &<GuestMemory as GuestMemoryBackend>::R| {
            let first = region.start_addr().0;
            let start = first.next_multiple_of(PAGE);
            let end = (first + region.len()) & !(PAGE - 1);
            let host = region.get_host_address(MemoryRegionAddress(start - first)).ok()?;
            (start < end).then_some(Span { start, end, host: host.expose_provenance() as u64 })
        };
        let mut spans: Vec<Span> = memory.iter().filter_map(span).collect();
        spans.sort_by_key(|span| span.start);
        Self { spans, memory: Some(memory.clone()) }
    }

    /// The memory that this maps.
    #[must_use]
    pub fn memory(&self) -> Option<&GuestMemory> {
        self.memory.as_ref()
    }

    /// Host address of a guest-physical address; good to the end of its page.
    #[inline]
    #[must_use]
    pub fn host(&self, gpa: u64) -> Option<u64> {
        let span = self.spans.iter().find(|span| gpa >= span.start && gpa < span.end)?;
        Some(span.host + (gpa - span.start))
    }

    /// Reads within a page. `false` for a hole, and then `bytes` is as before.
    pub fn read(&self, gpa: u64, bytes: &mut [u8]) -> bool {
        debug_assert!((gpa & (PAGE - 1)) + bytes.len() as u64 <= PAGE);
        let Some(host) = self.host(gpa) else { return false };
        let from = std::ptr::with_exposed_provenance::<u8>(host as usize);
        // SAFETY: the span says that the rest of the page at `host` is mapped; `bytes` does not reach beyond it.
        unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        true
    }

    /// Writes within a page. `false` for a hole.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> bool {
        debug_assert!((gpa & (PAGE - 1)) + bytes.len() as u64 <= PAGE);
        let Some(host) = self.host(gpa) else { return false };
        let to = std::ptr::with_exposed_provenance_mut::<u8>(host as usize);
        // SAFETY: the span says that the rest of the page at `host` is mapped; `bytes` does not reach beyond it.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        true
    }
}
