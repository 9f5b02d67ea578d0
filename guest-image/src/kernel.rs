//! Kernels: taking the ELF vmlinux out of a bzImage (Linux Documentation/arch/x86/boot.rst), and reading its release.

use std::path::Path;

use object::read::elf::FileHeader;

use crate::compress::{self, Format};
use crate::error::{Error, Result};

/// A vmlinux is not larger than this.
const VMLINUX_LIMIT: usize = 1 << 30;

/// All that [`release_of_bzimage`] looks at is within so many bytes.
pub(crate) const HEAD: u64 = 128 << 10;

const SETUP_SECTS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const KERNEL_VERSION: usize = 0x20e;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// What a kernel file holds.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// The ELF image.
    pub vmlinux: Vec<u8>,
    /// As `uname -r` says.
    pub release: String,
}

impl Kernel {
    /// Unpacks `data`, a bzImage or an ELF file; `path` is for messages.
    pub(crate) fn unpack(data: &[u8], path: &Path) -> Result<Self> {
        let bad = |why: String| Error::Kernel { path: path.to_owned(), why };
        let vmlinux =
            if data.starts_with(b"\x7fELF") { data.to_vec() } else { payload(data).map_err(bad)? };
        check_elf(&vmlinux).map_err(bad)?;
        let release = release_of_bzimage(data)
            .or_else(|| release_of_banner(&vmlinux))
            .ok_or_else(|| bad("it names no Linux version".into()))?;
        Ok(Self { vmlinux, release })
    }
}

/// The release that a kernel file names, without unpacking it when it is a bzImage.
pub(crate) fn release(data: &[u8]) -> Option<String> {
    release_of_bzimage(data).or_else(|| release_of_banner(data))
}

fn payload(data: &[u8]) -> std::result::Result<Vec<u8>, String> {
    if data.get(HEADER_MAGIC..HEADER_MAGIC + 4) != Some(b"HdrS") {
        return Err("neither a bzImage nor an ELF file".into());
    }
    let version = u16_at(data, VERSION).unwrap_or(0);
    if version < 0x208 {
        return Err(format!("its boot protocol {}.{:02} is older than 2.08", version >> 8, version & 0xff));
    }
    // Zero means four, for the oldest boot loaders' sake.
    let sectors = match data[SETUP_SECTS] {
        0 => 4,
        n => usize::from(n),
    };
    let protected = (sectors + 1) * 512;
    let (offset, length) = (u32_at(data, PAYLOAD_OFFSET)?, u32_at(data, PAYLOAD_LENGTH)?);
    let start = protected.saturating_add(offset);
    let packed = start.checked_add(length).and_then(|end| data.get(start..end)).ok_or_else(|| {
        format!("truncated: its payload of {length} bytes ends beyond the file's {} bytes", data.len())
    })?;
    let packed = stream(packed).ok_or_else(|| {
        let magic = &packed[..packed.len().min(4)];
        format!("its payload is compressed in an unknown way (it begins with {magic:02x?})")
    })?;
    compress::decompress(packed, VMLINUX_LIMIT)
        .map_err(|e| format!("corrupt: its payload does not decompress: {e}"))
}

/// A payload without the unpacked size that the kernel's build appends to it: always with zstd and lz4, never with gzip,
/// which carries its own, and with xz in some versions.
fn stream(payload: &[u8]) -> Option<&[u8]> {
    const XZ_FOOTER: &[u8] = b"YZ";
    let (stream, _) = payload.split_last_chunk::<4>()?;
    match Format::of(payload)? {
        Format::Gzip => Some(payload),
        Format::Xz if payload.ends_with(XZ_FOOTER) => Some(payload),
        Format::Xz | Format::Zstd | Format::Lz4Legacy => Some(stream),
    }
}

fn check_elf(data: &[u8]) -> std::result::Result<(), String> {
    use object::elf::{EM_X86_64, FileHeader64, PT_LOAD};
    use object::read::elf::ProgramHeader;
    let parse = || -> std::result::Result<bool, String> {
        let header = FileHeader64::<object::Endianness>::parse(data).map_err(|e| e.to_string())?;
        let endian = header.endian().map_err(|e| e.to_string())?;
        let mut loads = 0;
        for segment in header.program_headers(endian, data).map_err(|e| e.to_string())? {
            if segment.p_type(endian) == PT_LOAD {
                segment.data(endian, data).map_err(|()| "a segment ends beyond the file")?;
                loads += 1;
            }
        }
        Ok(header.e_machine(endian) == EM_X86_64 && loads > 0)
    };
    match parse() {
        Ok(true) => Ok(()),
        Ok(false) => Err("not an ELF kernel for x86-64".into()),
        Err(e) => Err(format!("a damaged ELF file: {e}")),
    }
}

/// The release that the header of a bzImage names.
pub(crate) fn release_of_bzimage(data: &[u8]) -> Option<String> {
    if data.get(HEADER_MAGIC..HEADER_MAGIC + 4)? != b"HdrS" {
        return None;
    }
    let at = usize::from(u16_at(data, KERNEL_VERSION)?) + 0x200;
    first_word(data.get(at..)?)
}

fn release_of_banner(data: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let at = data.windows(BANNER.len()).position(|w| w == BANNER)?;
    first_word(&data[at + BANNER.len()..])
}

fn first_word(data: &[u8]) -> Option<String> {
    let end = data.iter().take(256).position(|&b| b == b' ' || b == 0)?;
    let word = std::str::from_utf8(&data[..end]).ok()?;
    (word.starts_with(|c: char| c.is_ascii_digit())).then(|| word.to_owned())
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*data.get(at..)?.first_chunk()?))
}

fn u32_at(data: &[u8], at: usize) -> std::result::Result<usize, String> {
    let bytes = data.get(at..).and_then(|d| d.first_chunk()).ok_or("truncated within its header")?;
    Ok(u32::from_le_bytes(*bytes) as usize)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use object::elf;
    use proptest::prelude::*;

    /// An ELF file with one loaded segment that holds a Linux banner.
    pub(crate) fn tiny_vmlinux() -> Vec<u8> {
        let text = b"Linux version 6.12.99-test (someone) #1\0";
        let mut out = vec![0; 64 + 56];
        out[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(16, &elf::ET_EXEC.to_le_bytes());
        put(18, &elf::EM_X86_64.to_le_bytes());
        put(20, &1u32.to_le_bytes());
        put(32, &64u64.to_le_bytes());
        put(52, &64u16.to_le_bytes());
        put(54, &56u16.to_le_bytes());
        put(56, &1u16.to_le_bytes());
        put(64, &elf::PT_LOAD.to_le_bytes());
        put(64 + 8, &120u64.to_le_bytes());
        put(64 + 32, &(text.len() as u64).to_le_bytes());
        put(64 + 40, &(text.len() as u64).to_le_bytes());
        out.extend(text);
        out
    }

    /// A bzImage of one setup sector around `payload`.
    pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0; 1024];
        out[SETUP_SECTS] = 1;
        out[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        out[VERSION..VERSION + 2].copy_from_slice(&0x20fu16.to_le_bytes());
        out[KERNEL_VERSION..KERNEL_VERSION + 2].copy_from_slice(&0x100u16.to_le_bytes());
        out[0x300..0x300 + 11].copy_from_slice(b"6.12.99-b #");
        out[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&8u32.to_le_bytes());
        out[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        out.extend([0; 8]);
        out.extend(payload);
        out
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut out, data).unwrap();
        out.finish().unwrap()
    }

    #[test]
    fn an_elf_kernel_is_taken_as_it_is() {
        let kernel = Kernel::unpack(&tiny_vmlinux(), Path::new("k")).unwrap();
        assert_eq!(kernel.release, "6.12.99-test");
    }

    #[test]
    fn a_bzimage_gives_its_payload_and_release() {
        let kernel = Kernel::unpack(&bzimage(&gzip(&tiny_vmlinux())), Path::new("k")).unwrap();
        assert_eq!(kernel.vmlinux, tiny_vmlinux());
        assert_eq!(kernel.release, "6.12.99-b");
    }

    #[test]
    fn the_size_behind_a_payload_is_not_part_of_it() {
        let xz = b"\xfd7zXZ\0body--YZ";
        assert_eq!(stream(xz), Some(&xz[..]));
        assert_eq!(stream(&[&xz[..], &[1, 2, 3, 4]].concat()), Some(&xz[..]));
        let zstd = b"\x28\xb5\x2f\xfdbody";
        assert_eq!(stream(&[&zstd[..], &[1, 2, 3, 4]].concat()), Some(&zstd[..]));
        assert_eq!(stream(b"\x1f\x8b\x08body"), Some(&b"\x1f\x8b\x08body"[..]));
        assert_eq!(stream(b"\x28"), None);
    }

    #[test]
    fn truncation_and_noise_are_told_apart() {
        let whole = bzimage(&gzip(&tiny_vmlinux()));
        let say = |data: &[u8]| Kernel::unpack(data, Path::new("/x/k")).unwrap_err().to_string();
        assert!(say(&whole[..whole.len() - 1]).contains("truncated"));
        assert!(say(b"hello").contains("neither a bzImage nor an ELF file"));
        assert!(say(&tiny_vmlinux()[..130]).contains("damaged ELF"));
        assert!(say(&bzimage(b"junk")).contains("unknown way"));
        assert!(say(b"hello").starts_with("/x/k: "));
    }

    proptest! {
        #[test]
        fn damage_never_panics(at in 0usize..1200, byte: u8, cut in 0usize..1400) {
            let mut data = bzimage(&gzip(&tiny_vmlinux()));
            if let Some(b) = data.get_mut(at) { *b = byte; }
            data.truncate(cut);
            let _ = Kernel::unpack(&data, Path::new("k"));
            let mut elf = tiny_vmlinux();
            if let Some(b) = elf.get_mut(at) { *b = byte; }
            elf.truncate(cut);
            let _ = Kernel::unpack(&elf, Path::new("k"));
        }
    }
}
