//! Guest memory: anonymous host memory for RAM, and whatever the NV-DIMMs bring for persistent ranges.

use std::sync::Arc;

use engine::GuestMemory;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress,
    MmapRegion,
};

use crate::layout::MemoryPlan;
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

/// Gives every page of RAM back to the host, so that it reads as zeros: what a machine finds at power-up.
///
/// # Errors
/// [`Error::Map`] if the host refuses.
pub fn clear_ram(plan: &MemoryPlan, memory: &GuestMemory) -> Result<()> {
    for range in plan.ram() {
        let Some(region) = memory.find_region(GuestAddress(range.start)) else { continue };
        discard(&region.get_mmap())
            .map_err(|source| Error::Map { bytes: range.end - range.start, source })?;
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

#[expect(unsafe_code, reason = "madvise has no safe form")]
fn discard(mapping: &MmapRegion<()>) -> std::io::Result<()> {
    // SAFETY: the range is exactly one live private anonymous mapping of ours; Rust holds no references into it, as
    // guest memory is only ever reached through volatile accesses.
    let refused = unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), libc::MADV_DONTNEED) };
    if refused == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
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
        clear_ram(&plan, &memory).unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0)).unwrap(), 0);
        assert_eq!(memory.read_obj::<u64>(GuestAddress(64 * MIB - 8)).unwrap(), 0);
        assert_eq!(memory.read_obj::<u64>(place).unwrap(), 0x1234_5678);
    }
}
