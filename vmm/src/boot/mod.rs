//! From files to a machine about to execute its first instruction (Linux, Documentation/arch/x86/boot.rst: the 64-bit
//! boot protocol).

mod cpu;
mod kernel;
mod params;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use engine::{CpuState, GuestMemory};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use crate::devices::Power;
use crate::extents::Extents;
use crate::layout::{self, MemoryPlan, PAGE, port};
use crate::{Error, Result};

pub use kernel::Kernel;

/// 16-bit code at the reset vector: `mov dx, port; mov al, value; out dx, al`, then `hlt` for ever.
const RESET_CODE: [u8; 9] = {
    let [low, high] = (port::POWER + Power::RESET as u16).to_le_bytes();
    [0xBA, low, high, 0xB0, Power::RESET_VALUE, 0xEE, 0xF4, 0xEB, 0xFD]
};

/// Bytes of a file that are read at a time: they stay in a core's cache.
const PIECE: usize = 256 << 10;

/// What to boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSpec {
    /// The kernel.
    pub kernel: Kernel,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Command line.
    pub command_line: String,
}

/// Loads everything into memory, which must read as zeros, and gives the state of the processor that starts it.
///
/// # Errors
/// A file that cannot be read, is not what it should be, or does not fit; the message says which, and what to do.
pub fn load(spec: &BootSpec, plan: &MemoryPlan, memory: &GuestMemory, seed: u64) -> Result<CpuState> {
    let kernel = spec.kernel.load(plan, memory)?;
    let command_line = spec.command_line.as_bytes();
    check_command_line(command_line, kernel.command_line_limit)?;
    memory.write_slice(command_line, GuestAddress(layout::boot::COMMAND_LINE))?;
    let initrd = match &spec.initrd {
        Some(path) => Some(load_initrd(path, kernel.end, kernel.initrd_limit, plan, memory)?),
        None => None,
    };
    params::write(&params::ParamsSpec { header: kernel.header, initrd, plan, seed }, memory)?;
    cpu::write_tables(memory)?;
    memory.write_slice(&RESET_CODE, GuestAddress(layout::RESET_VECTOR))?;
    Ok(cpu::state(kernel.entry))
}

fn check_command_line(line: &[u8], limit: usize) -> Result<()> {
    if let Some(position) = line.iter().position(|byte| *byte == 0) {
        return Err(Error::CommandLineNul(position));
    }
    if line.len() > limit { Err(Error::CommandLine { length: line.len(), limit }) } else { Ok(()) }
}

/// Puts the initial RAM disk as high as the kernel can take it below 4 GiB, out of the way of its unpacking, and gives
/// its address and size.
fn load_initrd(
    path: &Path,
    kernel_end: u64,
    limit: u64,
    plan: &MemoryPlan,
    memory: &GuestMemory,
) -> Result<(u64, u64)> {
    let failed = |source| Error::Read { what: "initrd", path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let top = plan.low_ram_end().min(limit.saturating_add(1));
    let have = top.saturating_sub(kernel_end.next_multiple_of(PAGE));
    let too_large = || Error::TooLarge { what: format!("The initrd {}", path.display()), need: size, have };
    let address = top.checked_sub(size).map(|a| a & !(PAGE - 1)).filter(|a| *a >= kernel_end);
    let address = address.ok_or_else(too_large)?;
    read_into(&file, 0..size, memory, address).map_err(failed)?;
    Ok((address, size))
}

/// Reads a part of a file into memory that is zero: holes are skipped. Two threads do so, as the host has to find and clear a
/// page for each that is read.
fn read_into(file: &File, part: Range<u64>, memory: &GuestMemory, address: u64) -> io::Result<()> {
    if file.metadata()?.len() < part.end {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let data = Extents::of_file(file, part.end)?;
    let within = data.pieces(PIECE).map(|piece| piece.start.max(part.start)..piece.end);
    let pieces: Vec<_> = within.filter(|piece| !piece.is_empty()).collect();
    let next = AtomicUsize::new(0);
    let read = || {
        let mut room = vec![0; PIECE];
        while let Some(piece) = pieces.get(next.fetch_add(1, Relaxed)) {
            let bytes = &mut room[..(piece.end - piece.start) as usize];
            file.read_exact_at(bytes, piece.start)?;
            let place = GuestAddress(address + (piece.start - part.start));
            memory.write_slice(bytes, place).map_err(io::Error::other)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(read);
        read().and(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

#[cfg(test)]
mod tests;
