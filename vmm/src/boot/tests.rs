//! Files good and bad.

use std::io::Write;

use linux_loader::loader::bootparam::boot_params;

use super::*;
use crate::layout::{MIB, boot};

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// A 64-bit ELF with one loadable segment of `in_memory` bytes at 16 MiB.
fn elf(in_memory: u64) -> Vec<u8> {
    let mut elf = vec![0; 64 + 56];
    elf[..8].copy_from_slice(b"\x7FELF\x02\x01\x01\x00");
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &2_u16.to_le_bytes());
    put(18, &62_u16.to_le_bytes());
    put(24, &(16 * MIB).to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(56, &1_u16.to_le_bytes());
    put(64, &1_u32.to_le_bytes());
    put(64 + 8, &120_u64.to_le_bytes());
    put(64 + 24, &(16 * MIB).to_le_bytes());
    put(64 + 32, &4_u64.to_le_bytes());
    put(64 + 40, &in_memory.to_le_bytes());
    elf.extend_from_slice(b"\xF4CPU");
    elf
}

struct Bench {
    plan: MemoryPlan,
    memory: GuestMemory,
}

impl Bench {
    fn new() -> Self {
        let plan = MemoryPlan::new(64 * MIB, &[]).unwrap();
        let memory = crate::memory::map(&plan, &[]).unwrap();
        Self { plan, memory }
    }

    fn load(&self, kernel: &Path, initrd: Option<&Path>, line: &str) -> Result<CpuState> {
        let spec = BootSpec {
            kernel: Kernel::detect(kernel)?,
            initrd: initrd.map(Path::to_owned),
            command_line: line.to_owned(),
        };
        load(&spec, &self.plan, &self.memory, 1)
    }
}

#[test]
fn an_elf_is_loaded_with_everything_it_needs() {
    let (bench, kernel, initrd) = (Bench::new(), file(&elf(MIB)), file(&[0xAB; 5000]));
    let state = bench.load(kernel.path(), Some(initrd.path()), "console=ttyS0").unwrap();
    assert_eq!(state.registers.rip, 16 * MIB);
    let code: u32 = bench.memory.read_obj(GuestAddress(16 * MIB)).unwrap();
    assert_eq!(&code.to_le_bytes(), b"\xF4CPU");
    let params: boot_params = bench.memory.read_obj(GuestAddress(boot::ZERO_PAGE)).unwrap();
    let (at, size) = (params.hdr.ramdisk_image, params.hdr.ramdisk_size);
    assert_eq!((u64::from(at), size), (64 * MIB - 8192, 5000));
    assert_eq!(bench.memory.read_obj::<u8>(GuestAddress(u64::from(at) + 4999)).unwrap(), 0xAB);
    let ram: u64 = params.e820_table[..usize::from(params.e820_entries)]
        .iter()
        .filter(|entry| { entry.r#type } == 1)
        .map(|entry| entry.size)
        .sum();
    assert_eq!(ram, 64 * MIB - (MIB - layout::LOW_RAM_END));
    let mut line = [0; 14];
    bench.memory.read_slice(&mut line, GuestAddress(boot::COMMAND_LINE)).unwrap();
    assert_eq!(&line, b"console=ttyS0\0");
}

#[test]
fn a_file_with_holes_is_loaded_around_them() {
    use std::os::unix::fs::FileExt as _;
    let (bench, kernel, initrd) = (Bench::new(), file(&elf(MIB)), file(b"begin"));
    let size = 9 * PIECE as u64 + 123;
    initrd.as_file().set_len(size).unwrap();
    let marks: [(u64, &[u8]); 3] =
        [(PIECE as u64 - 1, b"ab"), (5 * PIECE as u64 + 4096, b"cd"), (size - 2, b"ef")];
    marks.iter().for_each(|&(at, bytes)| initrd.as_file().write_all_at(bytes, at).unwrap());
    bench.load(kernel.path(), Some(initrd.path()), "").unwrap();
    let mut loaded = vec![0xFF; size as usize];
    let params: boot_params = bench.memory.read_obj(GuestAddress(boot::ZERO_PAGE)).unwrap();
    bench.memory.read_slice(&mut loaded, GuestAddress(params.hdr.ramdisk_image.into())).unwrap();
    assert_eq!(loaded, std::fs::read(initrd.path()).unwrap());
    let short = read_into(initrd.as_file(), 10..size + 1, &bench.memory, MIB).unwrap_err();
    assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
}

/// Linux on a hardware-reduced platform without EFI resets by a jump to FFFF:0.
#[test]
fn a_jump_to_the_reset_vector_writes_the_reset_register() {
    let (bench, kernel) = (Bench::new(), file(&elf(MIB)));
    bench.load(kernel.path(), None, "").unwrap();
    let code: [u8; 6] = bench.memory.read_obj(GuestAddress(0xF_FFF0)).unwrap();
    // mov dx, 0x602; mov al, 1; out dx, al
    assert_eq!(code, [0xBA, 0x02, 0x06, 0xB0, 0x01, 0xEE]);
}

#[test]
fn the_seed_of_the_run_decides_the_kernels_seed() {
    let bench = Bench::new();
    let kernel = file(&elf(MIB));
    let seed = |seed| {
        let spec = BootSpec {
            kernel: Kernel::detect(kernel.path()).unwrap(),
            initrd: None,
            command_line: String::new(),
        };
        load(&spec, &bench.plan, &bench.memory, seed).unwrap();
        bench.memory.read_obj::<[u64; 6]>(GuestAddress(boot::SETUP_DATA)).unwrap()
    };
    let (one, again, other) = (seed(1), seed(1), seed(2));
    assert_eq!(one[..2], [0, 32 << 32 | 9]);
    assert_eq!(one, again);
    assert_ne!(one, other);
}

#[test]
fn what_is_no_kernel_is_refused_by_name() {
    let bench = Bench::new();
    let mut short = vec![0; 0x300];
    short[0x202..0x206].copy_from_slice(b"HdrS");
    let mut elsewhere = elf(MIB);
    elsewhere[18] = 183;
    for bytes in [
        b"".to_vec(),
        b"#!/bin/sh".to_vec(),
        elf(MIB)[..70].to_vec(),
        elf(MIB)[..122].to_vec(),
        short,
        elsewhere,
    ] {
        let kernel = file(&bytes);
        let error = bench.load(kernel.path(), None, "").unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, Error::Kernel { .. }), "{error:?}");
        assert!(message.contains(kernel.path().to_str().unwrap()), "{message}");
        assert!(message.contains("; "), "a remedy: {message}");
    }
    let gone = bench.load(Path::new("/nonexistent/vmlinux"), None, "").unwrap_err();
    assert_eq!(gone.to_string(), "Cannot read kernel /nonexistent/vmlinux");
}

#[test]
fn a_kernel_that_begins_outside_itself_is_refused() {
    for entry in [16 * MIB + 4, u64::MAX] {
        let mut bytes = elf(4);
        bytes[24..32].copy_from_slice(&entry.to_le_bytes());
        let error = Bench::new().load(file(&bytes).path(), None, "").unwrap_err().to_string();
        assert!(error.contains(&format!("its entry {entry:#x}")), "{error}");
    }
}

#[test]
fn any_damage_to_an_elf_header_is_survived() {
    let bench = Bench::new();
    for at in 0..120 {
        for value in [0, 0x7F, 0xFF] {
            let mut bytes = elf(MIB);
            bytes[at] = value;
            let _ = bench.load(file(&bytes).path(), None, "");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let bench = Bench::new();
    let large = bench.load(file(&elf(64 * MIB)).path(), None, "").unwrap_err();
    assert!(matches!(large, Error::TooLarge { need, .. } if need == 80 * MIB), "{large:?}");
    let initrd = file(&vec![0; 48 * MIB as usize]);
    let large = bench.load(file(&elf(MIB)).path(), Some(initrd.path()), "").unwrap_err();
    assert!(large.to_string().contains("initrd"), "{large}");
}

#[test]
fn a_command_line_that_cannot_be_passed_is_refused() {
    let (bench, kernel) = (Bench::new(), file(&elf(MIB)));
    assert!(bench.load(kernel.path(), None, &"x".repeat(2047)).is_ok());
    let long = bench.load(kernel.path(), None, &"x".repeat(2048)).unwrap_err();
    assert!(matches!(long, Error::CommandLine { length: 2048, limit: 2047 }));
    let nul = bench.load(kernel.path(), None, "a\0b").unwrap_err();
    assert!(matches!(nul, Error::CommandLineNul(1)));
}
