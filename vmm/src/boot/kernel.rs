//! Loading a kernel: an ELF vmlinux, entered at its 64-bit entry, or a bzImage, which unpacks itself.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use engine::GuestMemory;
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, KernelLoader};
use serde::{Deserialize, Serialize};
use vm_memory::GuestAddress;

use super::read_into;
use crate::layout::{self, MemoryPlan, boot};
use crate::{Error, Result};

/// Command-line limit of x86 Linux, which an ELF cannot say.
const COMMAND_LINE_LIMIT: usize = 2047;
/// Highest address of an initial RAM disk, which an ELF cannot say.
const INITRD_LIMIT: u64 = 0x7FFF_FFFF;
/// Offset of a bzImage's 64-bit entry from its 32-bit one.
const ENTRY_64: u64 = 0x200;
/// xloadflags: the 64-bit entry exists.
const KERNEL_64: u16 = 1;
/// First protocol version with xloadflags.
const MIN_VERSION: u16 = 0x020C;

/// A kernel file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kernel {
    /// An uncompressed ELF: the fast way.
    Elf(PathBuf),
    /// A bzImage as distributions ship it; the guest spends its first seconds unpacking it.
    BzImage(PathBuf),
}

/// A kernel in guest memory.
#[derive(Debug)]
pub struct Loaded {
    /// Guest-physical address of the 64-bit entry.
    pub entry: u64,
    /// First address that it leaves free, its run-time space included.
    pub end: u64,
    /// The bzImage's header.
    pub header: Option<setup_header>,
    /// Most characters of the command line.
    pub command_line_limit: usize,
    /// Last address of an initial RAM disk.
    pub initrd_limit: u64,
}

/// A part of an ELF that is loaded.
#[derive(Debug)]
struct Segment {
    /// Offset in the file.
    offset: u64,
    /// Guest-physical address.
    address: u64,
    /// Bytes that the file has of it.
    in_file: u64,
    /// Bytes that it has in memory.
    in_memory: u64,
}

impl Kernel {
    /// The kernel at a path, told apart by its first bytes.
    ///
    /// # Errors
    /// [`Error::Read`] or [`Error::Kernel`] if it is neither.
    pub fn detect(path: &Path) -> Result<Self> {
        let failed = |source| Error::Read { what: "kernel", path: path.to_owned(), source };
        let mut bytes = Vec::new();
        File::open(path).and_then(|file| file.take(0x206).read_to_end(&mut bytes)).map_err(failed)?;
        if bytes.starts_with(b"\x7FELF") {
            Ok(Self::Elf(path.to_owned()))
        } else if bytes.get(0x202..0x206) == Some(b"HdrS") {
            Ok(Self::BzImage(path.to_owned()))
        } else {
            Err(refused(path, "it is neither an ELF vmlinux nor a bzImage; give an x86-64 Linux kernel"))
        }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Elf(path) | Self::BzImage(path) => path,
        }
    }

    /// Loads it.
    pub(super) fn load(&self, plan: &MemoryPlan, memory: &GuestMemory) -> Result<Loaded> {
        let path = self.path();
        let failed = |source| Error::Read { what: "kernel", path: path.to_owned(), source };
        let mut file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        match self {
            Self::Elf(_) => load_elf(path, (&file, length), plan, memory),
            Self::BzImage(_) => load_bzimage(path, (&mut file, length), plan, memory),
        }
    }
}

fn refused(path: &Path, reason: impl Into<String>) -> Error {
    Error::Kernel { path: path.to_owned(), reason: reason.into() }
}

fn check_end(path: &Path, end: u64, plan: &MemoryPlan) -> Result<()> {
    let have = plan.low_ram_end();
    if end <= have {
        return Ok(());
    }
    Err(Error::TooLarge { what: format!("The kernel {}", path.display()), need: end, have })
}

fn load_elf(
    path: &Path,
    (file, length): (&File, u64),
    plan: &MemoryPlan,
    memory: &GuestMemory,
) -> Result<Loaded> {
    let (entry, segments) = read_elf(file, length)
        .ok_or_else(|| refused(path, "its ELF program headers are damaged; get the file again"))?;
    let end = segments.iter().map(|segment| segment.address + segment.in_memory).max();
    let end = end.ok_or_else(|| refused(path, "it has no loadable segments; give an x86-64 vmlinux"))?;
    check_end(path, end, plan)?;
    if !(layout::HIGH_RAM_START..end).contains(&entry) {
        return Err(refused(
            path,
            format!("its entry {entry:#x} lies in none of its segments; give an x86-64 vmlinux"),
        ));
    }
    for Segment { offset, address, in_file, .. } in segments {
        let failed = |source| Error::Read { what: "kernel", path: path.to_owned(), source };
        read_into(file, offset..offset + in_file, memory, address).map_err(failed)?;
    }
    Ok(Loaded {
        entry,
        end,
        header: None,
        command_line_limit: COMMAND_LINE_LIMIT,
        initrd_limit: INITRD_LIMIT,
    })
}

/// The entry and the loadable segments of a 64-bit little-endian x86 ELF, if all lie within the file and above the legacy
/// area.
fn read_elf(file: &File, length: u64) -> Option<(u64, Vec<Segment>)> {
    let field = |at: u64, size: usize| {
        let mut bytes = [0; 8];
        file.read_exact_at(bytes.get_mut(..size)?, at).ok()?;
        Some(u64::from_le_bytes(bytes))
    };
    const CLASS_64_LITTLE: u64 = 0x0102;
    const X86_64: u64 = 62;
    const LOAD: u64 = 1;
    if field(4, 2)? != CLASS_64_LITTLE || field(18, 2)? != X86_64 {
        return None;
    }
    let (table, size, count) = (field(32, 8)?, field(54, 2)?, field(56, 2)?);
    let mut segments = Vec::new();
    for n in 0..count {
        let header = table.checked_add(n * size)?;
        let at = |offset| header.checked_add(offset);
        if field(header, 4)? != LOAD {
            continue;
        }
        let segment = Segment {
            offset: field(at(8)?, 8)?,
            address: field(at(24)?, 8)?,
            in_file: field(at(32)?, 8)?,
            in_memory: field(at(40)?, 8)?,
        };
        let inside = segment.offset.checked_add(segment.in_file)? <= length;
        segment.address.checked_add(segment.in_memory)?;
        if !inside || segment.in_file > segment.in_memory || segment.address < layout::HIGH_RAM_START {
            return None;
        }
        segments.push(segment);
    }
    Some((field(24, 8)?, segments))
}

fn load_bzimage(
    path: &Path,
    (file, length): (&mut File, u64),
    plan: &MemoryPlan,
    memory: &GuestMemory,
) -> Result<Loaded> {
    let place = GuestAddress(boot::BZIMAGE);
    let start = Some(GuestAddress(layout::HIGH_RAM_START));
    check_end(path, boot::BZIMAGE.saturating_add(length), plan)?;
    let loaded = BzImage::load(memory, Some(place), file, start)
        .map_err(|error| refused(path, format!("{error}; give a complete x86-64 bzImage")))?;
    let header = loaded.setup_header.ok_or_else(|| refused(path, "it has no setup header"))?;
    if header.version < MIN_VERSION || header.xloadflags & KERNEL_64 == 0 {
        return Err(refused(path, "it has no 64-bit entry; give an x86-64 kernel of version 3.8 or newer"));
    }
    // The system size is in 16-byte paragraphs: a shorter file was cut off.
    let setup = (if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) } + 1) * 512;
    let complete = setup + u64::from(header.syssize) * 16;
    if length < complete {
        let reason = format!("it is truncated: {length} of {complete} bytes; get the file again");
        return Err(refused(path, reason));
    }
    let end = header.pref_address.saturating_add(header.init_size.into());
    check_end(path, end, plan)?;
    Ok(Loaded {
        entry: boot::BZIMAGE + ENTRY_64,
        end,
        header: Some(header),
        command_line_limit: (header.cmdline_size as usize).min(COMMAND_LINE_LIMIT),
        initrd_limit: header.initrd_addr_max.into(),
    })
}
