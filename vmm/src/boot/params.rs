//! The zero page (`struct boot_params`): what the kernel learns from its loader.

use engine::GuestMemory;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use crate::Result;
use crate::layout::{self, MemoryPlan, boot};

/// "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
/// A loader without a number of its own.
const UNDEFINED_LOADER: u8 = 0xFF;
/// The protected-mode part is loaded high.
const LOADED_HIGH: u8 = 1;
/// `struct setup_data` that feeds the kernel's random pool.
const SETUP_RNG_SEED: u32 = 9;
/// Bytes of the random seed.
const SEED_SIZE: u32 = 32;

/// What to tell.
#[derive(Debug)]
pub struct ParamsSpec<'a> {
    /// The bzImage's own header; none for an ELF.
    pub header: Option<setup_header>,
    /// Address and size of the initial RAM disk.
    pub initrd: Option<(u64, u64)>,
    /// Where memory is.
    pub plan: &'a MemoryPlan,
    /// Seed of the run.
    pub seed: u64,
}

/// The start of `struct setup_data`, before its data.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct SetupData {
    next: u64,
    kind: u32,
    length: u32,
}

#[expect(unsafe_code, reason = "ByteValued is an unsafe trait")]
// SAFETY: plain integers without padding (8 + 4 + 4 bytes); any bit pattern is valid.
unsafe impl ByteValued for SetupData {}

/// Writes the zero page and the setup data it points to.
pub fn write(spec: &ParamsSpec<'_>, memory: &GuestMemory) -> Result<()> {
    let mut params = boot_params { hdr: spec.header.unwrap_or_default(), ..Default::default() };
    params.hdr.boot_flag = 0xAA55;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.type_of_loader = UNDEFINED_LOADER;
    params.hdr.loadflags |= LOADED_HIGH;
    params.hdr.cmd_line_ptr = boot::COMMAND_LINE as u32;
    params.hdr.setup_data = boot::SETUP_DATA;
    if let Some((address, size)) = spec.initrd {
        params.hdr.ramdisk_image = address as u32;
        params.hdr.ramdisk_size = size as u32;
    }
    params.acpi_rsdp_addr = layout::ACPI_TABLES.start;
    let mut entries = 0;
    for region in spec.plan.regions() {
        params.e820_table[entries] = boot_e820_entry {
            addr: region.range.start,
            size: region.range.end - region.range.start,
            r#type: region.kind.e820_type(),
        };
        entries += 1;
    }
    params.e820_entries = entries as u8;
    memory.write_obj(params, GuestAddress(boot::ZERO_PAGE))?;
    write_seed(spec.seed, memory)
}

/// A seed for the kernel's random pool, so that boots neither wait for entropy nor differ.
fn write_seed(seed: u64, memory: &GuestMemory) -> Result<()> {
    let random = blake3::derive_key("nvsim 2026 seed of the guest kernel", &seed.to_le_bytes());
    let header = SetupData { next: 0, kind: SETUP_RNG_SEED, length: SEED_SIZE };
    memory.write_obj(header, GuestAddress(boot::SETUP_DATA))?;
    memory.write_slice(&random, GuestAddress(boot::SETUP_DATA + size_of::<SetupData>() as u64))?;
    Ok(())
}
