//! Guest memory: anonymous host memory for RAM, and whatever the NV-DIMMs bring for persistent ranges.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use engine::GuestMemory;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress,
    MmapRegion,
};

use crate::layout::{MemoryPlan, PAGE};
use crate::snapshot::Image;
use crate::{Error, Result};

/// A mapping of persistent memory for the guest.
pub type PersistentRegion = Arc<GuestRegionMmap<()>>;

/// Maps RAM as planned and adds the persistent regions, which must not overlap it or each other.
///
/// # Errors
/// [`Error::Map`] if the host refuses.
pub fn map(plan: &MemoryPlan, persistent: &[PersistentRegion]) -> Result<GuestMemory> {
    let mut regions = Vec::new();
    for range in plan.ram() {
        let bytes = range.end - range.start;
        let refused = |source| Error::Map { bytes, source };
        let too_large = || refused(std::io::ErrorKind::OutOfMemory.into());
        let size = usize::try_from(bytes).map_err(|_| too_large())?;
        let mapping = MmapRegion::new(size).map_err(|e| refused(std::io::Error::other(e)))?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(range.start)).ok_or_else(too_large)?;
        regions.push(Arc::new(region));
    }
    regions.extend(persistent.iter().cloned());
    regions.sort_by_key(|region| region.start_addr());
    let bytes = regions.iter().map(|region| region.len()).sum();
    GuestMemory::from_arc_regions(regions)
        .map_err(|error| Error::Map { bytes, source: std::io::Error::other(error) })
}

/// Replaces RAM: by zeros, which is what a machine finds at power-up, or by an image of as much RAM, of which the pages
/// that are written become this mapping's own.
///
/// # Errors
/// [`Error::Map`] if the host refuses.
pub fn fill_ram(plan: &MemoryPlan, memory: &GuestMemory, image: Option<&Image>) -> Result<()> {
    let mut done = 0;
    for range in plan.ram() {
        let bytes = range.end - range.start;
        let Some(region) = memory.find_region(GuestAddress(range.start)) else { continue };
        let mapping = region.get_mmap();
        let filled = match image {
            None => map_over(&mapping, 0..bytes, None),
            Some(image) => lay_image(&mapping, image, done),
        };
        filled.map_err(|source| Error::Map { bytes, source })?;
        done += bytes;
    }
    Ok(())
}

/// BLAKE3 of all of the memory, region by region with its address: what two equal runs must agree on.
#[must_use]
pub fn hash(memory: &GuestMemory) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; 1 << 20];
    for region in memory.iter() {
        hasher.update(&region.start_addr().0.to_le_bytes());
        let mut done = 0;
        while done < region.len() {
            let wanted = piece.len().min((region.len() - done) as usize);
            // Within the region by construction.
            let read = region.read(&mut piece[..wanted], MemoryRegionAddress(done)).unwrap_or(0);
            if read == 0 {
                break;
            }
            hasher.update(&piece[..read]);
            done += read as u64;
        }
    }
    hasher.finalize().to_hex().to_string()
}

/// Whether this process has reached any page of a region through its mapping. Where the host does not tell: yes.
#[must_use]
pub fn is_touched(region: &PersistentRegion) -> bool {
    let mapping = region.get_mmap();
    let count = region.len().div_ceil(PAGE);
    let mut entries = vec![0; 8 * count as usize];
    let read = File::open("/proc/self/pagemap")
        .and_then(|map| map.read_exact_at(&mut entries, mapping.as_ptr() as u64 / PAGE * 8));
    // Linux, Documentation/admin-guide/mm/pagemap.rst: the top byte has the bits for present and swapped.
    read.is_err() || entries.chunks_exact(8).any(|entry| entry[7] & 0xC0 != 0)
}

/// Puts a part of an image, from `at` on, where a mapping is: what it lies above, then its own runs.
fn lay_image(mapping: &MmapRegion<()>, image: &Image, at: u64) -> std::io::Result<()> {
    let whole = 0..mapping.size() as u64;
    if at + whole.end > image.extents.len {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let (file, base) = image.place();
    let Some(under) = image.under() else { return map_over(mapping, whole, Some((file, base + at))) };
    lay_image(mapping, under, at)?;
    image.extents.runs.iter().try_for_each(|run| {
        let (start, end) = (run.start.max(at), run.end.min(at + whole.end));
        if start < end { map_over(mapping, start - at..end - at, Some((file, base + start))) } else { Ok(()) }
    })
}

/// Maps zeros, or a file from an offset on, over a part of a mapping.
#[expect(unsafe_code, reason = "a mapping is replaced in place")]
fn map_over(mapping: &MmapRegion<()>, part: Range<u64>, file: Option<(&File, u64)>) -> std::io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_FIXED;
    let (flags, file, offset) = match file {
        None => (flags | libc::MAP_ANONYMOUS, -1, 0),
        Some((file, offset)) => {
            let offset = i64::try_from(offset).map_err(|_| std::io::ErrorKind::InvalidInput)?;
            (flags, file.as_raw_fd(), offset)
        }
    };
    if part.start > part.end || part.end > mapping.size() as u64 {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the range is within one live private mapping of ours, which is unmapped as a whole when it goes; Rust holds no
    // references into it, as guest memory is only ever reached through volatile accesses. An image's file is as long as
    // the image says, and nobody shortens it.
    let mapped = unsafe {
        libc::mmap(
            mapping.as_ptr().add(part.start as usize).cast(),
            (part.end - part.start) as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            file,
            offset,
        )
    };
    if mapped == libc::MAP_FAILED { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{GIB, MIB};

    #[test]
    fn cleared_ram_is_zero_and_persistent_memory_stays() {
        let plan = MemoryPlan::new(64 * MIB, &[2 * MIB]).unwrap();
        let place = GuestAddress(plan.persistent()[0].start);
        assert_eq!(place.0, 4 * GIB);
        let mapping = MmapRegion::new(2 * MIB as usize).unwrap();
        let dimm = Arc::new(GuestRegionMmap::new(mapping, place).unwrap());
        let memory = map(&plan, &[dimm]).unwrap();
        for at in [GuestAddress(0), GuestAddress(64 * MIB - 8), place] {
            memory.write_obj(0x1234_5678_u64, at).unwrap();
        }
        fill_ram(&plan, &memory, None).unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0)).unwrap(), 0);
        assert_eq!(memory.read_obj::<u64>(GuestAddress(64 * MIB - 8)).unwrap(), 0);
        assert_eq!(memory.read_obj::<u64>(place).unwrap(), 0x1234_5678);
    }
}
