//! Memory as it was: the pages that are not zero, in place in a file with holes, so that mapping it is restoring it.
#![expect(unsafe_code, reason = "memory files and mappings of them have no safe form")]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;

use engine::GuestMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestRegionMmap, MemoryRegionAddress};

use crate::extents::Extents;
use crate::layout::{MemoryPlan, PAGE};

/// Bytes between two runs of pages that are rather copied than left out.
const GAP: u64 = 16 * PAGE;
/// Bytes that are copied or hashed at a time: they stay in a core's cache.
const CHUNK: usize = 256 << 10;
/// Bytes that one thread hashes before it takes the next piece.
const PIECE: usize = 4 << 20;
/// What one thread has hashed: numbers of pieces and their hashes.
type Share = Vec<(usize, [u8; 32])>;
/// Threads that hash, at most.
const HASHERS: usize = 4;

/// A sparse image within a file that nobody changes any more. Clones share the file.
#[derive(Debug, Clone)]
pub struct Image {
    file: Arc<File>,
    /// Where it begins in the file; page-aligned.
    offset: u64,
    /// What is not zero, or, above another image, not as there.
    pub extents: Extents,
    /// What it lies above.
    under: Option<Arc<Self>>,
}

impl Image {
    /// The image that stands at an offset of a file.
    pub fn within(file: Arc<File>, offset: u64, extents: Extents) -> Self {
        Self { file, offset, extents, under: None }
    }

    /// The same above another one of the same length: what it does not have is as there.
    #[must_use]
    pub fn above(self, under: &Self) -> Self {
        Self { under: Some(Arc::new(under.clone())), ..self }
    }

    /// Its file, and where it begins in it.
    pub fn place(&self) -> (&Arc<File>, u64) {
        (&self.file, self.offset)
    }

    /// What it lies above.
    pub fn under(&self) -> Option<&Self> {
        self.under.as_deref()
    }

    /// Whether a page is in it, or in what it lies above.
    fn covers(&self, page: u64) -> bool {
        self.extents.covers(page) || self.under().is_some_and(|under| under.covers(page))
    }

    /// Copies what is not zero of a machine's RAM. What it has not touched since it was mapped from `base` is as there.
    pub fn of_ram(plan: &MemoryPlan, memory: &GuestMemory, base: Option<&Self>) -> io::Result<Self> {
        let len = plan.ram().iter().map(|range| range.end - range.start).sum();
        let mut copy = Copy::new(c"nvsim RAM", len)?;
        let mut done = 0;
        for range in plan.ram() {
            let region = memory.find_region(GuestAddress(range.start)).ok_or(io::ErrorKind::NotFound)?;
            let len = range.end - range.start;
            copy.pages(done, region, 0..len, base)?;
            done += len;
        }
        Ok(copy.finish())
    }

    /// Copies what a machine has written to its RAM since it was mapped from `base`, above which it then lies.
    pub fn of_ram_since(plan: &MemoryPlan, memory: &GuestMemory, base: &Self) -> io::Result<Self> {
        let mut copy = Copy::new(c"nvsim RAM", base.extents.len)?;
        let mut done = 0;
        for range in plan.ram() {
            let region = memory.find_region(GuestAddress(range.start)).ok_or(io::ErrorKind::NotFound)?;
            let len = range.end - range.start;
            copy.own_pages(done, region, len)?;
            done += len;
        }
        Ok(copy.finish().above(base))
    }

    /// Copies what another file holds; its holes stay holes.
    pub fn of_file(source: &File) -> io::Result<Self> {
        let len = source.metadata()?.len();
        let file = memory_file(c"nvsim NV-DIMM", len)?;
        let extents = Extents::of_file(source, len)?;
        for run in &extents.runs {
            copy(source, run.start, &file, run.start, run.end - run.start)?;
        }
        Ok(Self { file: Arc::new(file), offset: 0, extents, under: None })
    }

    /// Writes it at an offset of a file that reads as zeros there.
    pub fn write(&self, to: &File, offset: u64) -> io::Result<()> {
        self.extents.runs.iter().try_for_each(|run| {
            copy(&self.file, self.offset + run.start, to, offset + run.start, run.end - run.start)
        })
    }

    /// BLAKE3 of what is stored: of the places and the hashes of its pieces, which several threads share out.
    pub fn hash(&self) -> io::Result<[u8; 32]> {
        let pieces: Vec<_> = self.extents.pieces(PIECE).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            let mut hashed = Vec::new();
            let mut bytes = vec![0; CHUNK];
            while let Some((n, piece)) = {
                let n = next.fetch_add(1, Ordering::Relaxed);
                pieces.get(n).map(|piece| (n, piece))
            } {
                let mut hasher = blake3::Hasher::new();
                let mut at = piece.start;
                while at < piece.end {
                    let wanted = CHUNK.min((piece.end - at) as usize);
                    self.file.read_exact_at(&mut bytes[..wanted], self.offset + at)?;
                    hasher.update(&bytes[..wanted]);
                    at += wanted as u64;
                }
                hashed.push((n, *hasher.finalize().as_bytes()));
            }
            Ok(hashed)
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(HASHERS);
        let shares: Vec<io::Result<Share>> = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let own = work();
            let join =
                |thread: ScopedJoinHandle<'_, _>| thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            others.into_iter().map(join).chain([own]).collect()
        });
        let mut hashes = vec![[0; 32]; pieces.len()];
        for share in shares {
            share?.into_iter().for_each(|(n, hash)| hashes[n] = hash);
        }
        let mut whole = blake3::Hasher::new();
        for (piece, hash) in pieces.iter().zip(&hashes) {
            whole.update(&piece.start.to_le_bytes()).update(&piece.end.to_le_bytes()).update(hash);
        }
        Ok(*whole.finalize().as_bytes())
    }
}

/// An image in the making, in a memory file, from its begin to its end.
#[derive(Debug)]
pub struct Copy {
    file: File,
    extents: Extents,
}

impl Copy {
    /// All zeros.
    pub fn new(name: &CStr, len: u64) -> io::Result<Self> {
        Ok(Self { file: memory_file(name, len)?, extents: Extents { len, runs: Vec::new() } })
    }

    /// Puts bytes, whole pages of them, at an offset.
    pub fn bytes(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, at)?;
        self.extents.push(at..at + bytes.len() as u64);
        Ok(())
    }

    /// Puts the pages that are not zero of a part of a mapping at an offset. Pages that the mapping's owner has not
    /// touched since it was mapped from `base`, where they have the same offset, are as there.
    pub fn pages(
        &mut self,
        at: u64,
        region: &GuestRegionMmap<()>,
        part: Range<u64>,
        base: Option<&Image>,
    ) -> io::Result<()> {
        let host = region.get_mmap().as_ptr() as u64 + part.start;
        let touched = Touched::of(host, part.end - part.start);
        let mut page = [0_u8; PAGE as usize];
        for n in (0..part.end - part.start).step_by(PAGE as usize) {
            if !touched.contains(n) && !base.is_some_and(|base| base.covers(at + n)) {
                continue;
            }
            let place = MemoryRegionAddress(part.start + n);
            region.read_slice(&mut page, place).map_err(io::Error::other)?;
            if page.iter().any(|&byte| byte != 0) {
                self.bytes(at + n, &page)?;
            }
        }
        Ok(())
    }

    /// Puts the pages of a mapping that its owner has written since it was mapped, and those between them where there are few:
    /// each run is a mapping of its own when it is restored.
    fn own_pages(&mut self, at: u64, region: &GuestRegionMmap<()>, len: u64) -> io::Result<()> {
        let touched = Touched::of(region.get_mmap().as_ptr() as u64, len);
        let mut runs: Vec<Range<u64>> = Vec::new();
        for n in (0..len).step_by(PAGE as usize).filter(|&n| touched.contains(n)) {
            match runs.last_mut() {
                Some(last) if n - last.end <= GAP => last.end = n + PAGE,
                _ => runs.push(n..n + PAGE),
            }
        }
        let mut piece = vec![0; CHUNK];
        for run in runs {
            for n in run.clone().step_by(CHUNK) {
                let piece = &mut piece[..CHUNK.min((run.end - n) as usize)];
                region.read_slice(piece, MemoryRegionAddress(n)).map_err(io::Error::other)?;
                self.bytes(at + n, piece)?;
            }
        }
        Ok(())
    }

    /// The image.
    pub fn finish(self) -> Image {
        Image::within(Arc::new(self.file), 0, self.extents)
    }
}

/// A file of zeros that is only in memory.
fn memory_file(name: &CStr, len: u64) -> io::Result<File> {
    // SAFETY: a NUL-terminated string; the descriptor that comes back is ours alone.
    let file = unsafe {
        let descriptor = libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC);
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        File::from_raw_fd(descriptor)
    };
    file.set_len(len)?;
    Ok(file)
}

fn copy(from: &File, at: u64, to: &File, place: u64, len: u64) -> io::Result<()> {
    let mut piece = vec![0; CHUNK.min(len as usize)];
    let mut done = 0;
    while done < len {
        let wanted = CHUNK.min((len - done) as usize);
        from.read_exact_at(&mut piece[..wanted], at + done)?;
        to.write_all_at(&piece[..wanted], place + done)?;
        done += wanted as u64;
    }
    Ok(())
}

/// Which pages of a mapping are this process's own: it wrote them, or, of anonymous memory, read them.
struct Touched(Option<Vec<u64>>);

impl Touched {
    /// Of a mapping. Where the host does not tell, all are.
    fn of(address: u64, len: u64) -> Self {
        let mut bytes = vec![0; (len / PAGE * 8) as usize];
        let read = File::open("/proc/self/pagemap")
            .and_then(|map| map.read_exact_at(&mut bytes, address / PAGE * 8));
        let entry = |bytes: &[u8]| bytes.try_into().map_or(u64::MAX, u64::from_le_bytes);
        Self(read.ok().map(|()| bytes.chunks_exact(8).map(entry).collect()))
    }

    fn contains(&self, at: u64) -> bool {
        // Linux, Documentation/admin-guide/mm/pagemap.rst.
        const PRESENT_OR_SWAPPED: u64 = 3 << 62;
        const OF_A_FILE: u64 = 1 << 61;
        let entry = self.0.as_ref().and_then(|entries| entries.get((at / PAGE) as usize));
        entry.is_none_or(|entry| entry & PRESENT_OR_SWAPPED != 0 && entry & OF_A_FILE == 0)
    }
}
