//! A driver that writes what it likes to the registers and rings of a disk and of an entropy device.
#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use vm_memory::{Bytes, GuestAddress};
use vmm::DiskSpec;
use vmm::devices::virtio::{Block, Entropy, VirtioMmio};
use vmm::devices::{Registers, Wires};
use vmm::layout::{MIB, MemoryPlan};

/// Where rings, buffers and addresses in registers are drawn from, so that they meet.
const ARENA: u64 = 0x10_0000;
const ARENA_SIZE: usize = 0x4000;

#[derive(Debug, arbitrary::Arbitrary)]
enum Access<'a> {
    Read { register: u16, size: u8 },
    Write { register: u8, value: u32 },
    /// A register of addresses gets one in the arena.
    Place { register: u8, offset: u16 },
    Memory { offset: u16, bytes: &'a [u8] },
    Descriptor { slot: u8, offset: u16, length: u16, flags: u8, next: u8 },
    Notify { queue: u8 },
    Start,
}

fuzz_target!(|input: (bool, Vec<Access<'_>>)| {
    let (entropy, accesses) = input;
    let plan = MemoryPlan::new(64 * MIB, &[]).unwrap();
    let memory = vmm::memory::map(&plan, &[]).unwrap();
    let file = nvsim_fuzz::File::new();
    std::fs::OpenOptions::new().write(true).open(file.path()).unwrap().set_len(64 << 10).unwrap();
    let wires = Wires::default();
    let spec = DiskSpec { path: file.path().to_owned(), read_only: false };
    let mut device = if entropy {
        VirtioMmio::new(0, Box::new(Entropy::new(7)), wires.line(5), memory.clone())
    } else {
        let Ok(block) = Block::open(&spec, 0) else { return };
        VirtioMmio::new(0, Box::new(block), wires.line(5), memory.clone())
    };
    for access in accesses {
        match access {
            Access::Read { register, size } => {
                device.read(u64::from(register) & 0x1ff, 1 << (size & 3), 0);
            }
            Access::Write { register, value } => {
                device.write(u64::from(register) * 4, 4, value.into(), 0);
            }
            Access::Place { register, offset } => {
                device.write(0x80 + u64::from(register % 12) * 4, 4, ARENA + u64::from(offset) % ARENA_SIZE as u64, 0);
            }
            Access::Memory { offset, bytes } => {
                let offset = usize::from(offset) % ARENA_SIZE;
                let bytes = &bytes[..bytes.len().min(ARENA_SIZE - offset)];
                memory.write_slice(bytes, GuestAddress(ARENA + offset as u64)).unwrap();
            }
            Access::Descriptor { slot, offset, length, flags, next } => {
                let at = ARENA + 16 * u64::from(slot % 64);
                memory.write_obj(ARENA + u64::from(offset), GuestAddress(at)).unwrap();
                let rest = u64::from(length) | u64::from(flags) << 32 | u64::from(next) << 48;
                memory.write_obj(rest, GuestAddress(at + 8)).unwrap();
            }
            Access::Notify { queue } => {
                device.write(0x50, 4, queue.into(), 0);
            }
            Access::Start => start(&mut device),
        }
    }
    for range in device.take_touched() {
        assert!(range.end <= 64 * MIB);
    }
    wires.take().for_each(drop);
});

/// What Linux does at probe, with rings in the arena.
fn start(device: &mut VirtioMmio) {
    for (register, value) in [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x24, 0), (0x20, 0), (0x70, 11)] {
        device.write(register, 4, value, 0);
    }
    let rings = [(0x80, ARENA), (0x90, ARENA + 0x1000), (0xA0, ARENA + 0x2000)];
    for (register, value) in [(0x30, 0), (0x38, 64)].into_iter().chain(rings).chain([(0x44, 1), (0x70, 15)]) {
        device.write(register, 4, value, 0);
    }
}
