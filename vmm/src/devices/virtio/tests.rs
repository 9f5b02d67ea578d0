//! A driver in a few lines, well-behaved and otherwise.

use std::io::Write;

use proptest::prelude::*;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::{Registers, Wires};
use crate::layout::{MIB, MemoryPlan};

const DESCRIPTORS: u64 = 0x10_0000;
const AVAILABLE: u64 = 0x10_1000;
const USED: u64 = 0x10_2000;
const DATA: u64 = 0x10_4000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const NEEDS_RESET: u64 = 64;
const SIZE: u16 = 64;

/// (address, length, flags, next), as in memory.
type Descriptor = (u64, u32, u16, u16);

struct Driver {
    device: VirtioMmio,
    memory: GuestMemory,
    wires: Wires,
    given: u16,
}

impl Driver {
    fn new(device: Box<dyn VirtioDevice>) -> Self {
        let plan = MemoryPlan::new(64 * MIB, &[]).unwrap();
        let memory = crate::memory::map(&plan, &[]).unwrap();
        let wires = Wires::default();
        let device = VirtioMmio::new(0, device, wires.line(5), memory.clone());
        Self { device, memory, wires, given: 0 }
    }

    fn set(&mut self, register: u64, value: u64) {
        self.device.write(register, 4, value, 0);
    }

    fn get(&mut self, register: u64) -> u64 {
        self.device.read(register, 4, 0)
    }

    /// What Linux does at probe.
    fn start(mut self) -> Self {
        assert_eq!([self.get(0), self.get(4)], [0x7472_6976, 2]);
        for status in [0, 1, 3] {
            self.set(0x70, status);
        }
        for half in 0..2 {
            self.set(0x14, half);
            let features = self.get(0x10);
            self.set(0x24, half);
            self.set(0x20, features);
        }
        self.set(0x70, 11);
        assert_eq!(self.get(0x70), 11, "the features are accepted");
        for (register, value) in
            [(0x30, 0), (0x38, SIZE.into()), (0x80, DESCRIPTORS), (0x90, AVAILABLE), (0xA0, USED), (0x44, 1)]
        {
            self.set(register, value);
        }
        self.set(0x70, 15);
        self
    }

    fn describe(&self, at: u64, chain: &[Descriptor]) {
        for (n, (address, length, flags, next)) in (0..).zip(chain) {
            let at = GuestAddress(at + 16 * n);
            self.memory.write_obj(*address, at).unwrap();
            let rest = u64::from(*length) | u64::from(*flags) << 32 | u64::from(*next) << 48;
            self.memory.write_obj(rest, GuestAddress(at.0 + 8)).unwrap();
        }
    }

    /// Gives the chain that begins at descriptor 0 and rings; gives the length used.
    fn give(&mut self, chain: &[Descriptor]) -> Option<u32> {
        self.describe(DESCRIPTORS, chain);
        let slot = u64::from(self.given % SIZE);
        self.memory.write_obj(0_u16, GuestAddress(AVAILABLE + 4 + 2 * slot)).unwrap();
        self.given = self.given.wrapping_add(1);
        self.memory.write_obj(self.given, GuestAddress(AVAILABLE + 2)).unwrap();
        self.set(0x50, 0);
        let used: u16 = self.memory.read_obj(GuestAddress(USED + 2)).unwrap();
        (used == self.given).then(|| self.memory.read_obj(GuestAddress(USED + 8 + 8 * slot)).unwrap())
    }

    /// A block request: data of `length` from or to `DATA + 512`. Gives its status.
    fn block(&mut self, kind: u32, sector: u64, length: u32) -> u32 {
        self.memory.write_obj(kind, GuestAddress(DATA)).unwrap();
        self.memory.write_obj(sector, GuestAddress(DATA + 8)).unwrap();
        let status = DATA + 16;
        self.memory.write_obj(0xFF_u8, GuestAddress(status)).unwrap();
        let way = if kind == 1 { NEXT } else { NEXT | WRITE };
        let chain = [(DATA, 16, NEXT, 1), (DATA + 512, length, way, 2), (status, 1, WRITE, 0)];
        let chain =
            if length == 0 { vec![(DATA, 16, NEXT, 1), (status, 1, WRITE, 0)] } else { chain.to_vec() };
        self.give(&chain);
        self.memory.read_obj::<u8>(GuestAddress(status)).unwrap().into()
    }

    fn broken(&mut self) -> bool {
        self.get(0x70) & NEEDS_RESET != 0
    }
}

fn disk(bytes: u64, read_only: bool) -> (tempfile::NamedTempFile, Driver) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    let spec = DiskSpec { path: file.path().to_owned(), read_only };
    let driver = Driver::new(Box::new(Block::open(&spec, 0).unwrap())).start();
    (file, driver)
}

#[test]
fn a_disk_is_read_written_flushed_and_named() {
    let (mut file, mut driver) = disk(MIB, false);
    assert_eq!(driver.device.read(0x100, 8, 0), MIB / 512);
    driver.memory.write_slice(b"hello", GuestAddress(DATA + 512)).unwrap();
    assert_eq!(driver.block(1, 3, 512), VIRTIO_BLK_S_OK);
    assert_eq!(driver.wires.take().collect::<Vec<_>>(), [5]);
    assert_eq!(driver.get(0x60), 1);
    driver.set(0x64, 1);
    assert_eq!(driver.get(0x60), 0);
    let bytes = std::fs::read(file.path()).unwrap();
    assert_eq!(&bytes[3 * 512..3 * 512 + 5], b"hello");
    file.write_all(b"by the host").unwrap();
    assert_eq!(driver.block(0, 0, 1024), VIRTIO_BLK_S_OK);
    let mut read = [0; 11];
    driver.memory.read_slice(&mut read, GuestAddress(DATA + 512)).unwrap();
    assert_eq!(&read, b"by the host");
    assert!(driver.device.take_touched().contains(&(DATA + 512..DATA + 1536)));
    assert_eq!(driver.block(4, 0, 0), VIRTIO_BLK_S_OK);
    assert_eq!(driver.block(8, 0, 20), VIRTIO_BLK_S_OK);
    driver.memory.read_slice(&mut read[..6], GuestAddress(DATA + 512)).unwrap();
    assert_eq!(&read[..6], b"disk0\0");
    assert_eq!(driver.block(77, 0, 20), VIRTIO_BLK_S_UNSUPP);
}

#[test]
fn what_the_disk_has_not_is_an_error() {
    let (file, mut driver) = disk(MIB, false);
    for (sector, length) in [(2048, 512), (2047, 1024), (u64::MAX, 512), (1 << 55, 512), (0, 100)] {
        for kind in [0, 1] {
            assert_eq!(driver.block(kind, sector, length), VIRTIO_BLK_S_IOERR, "{sector} {length}");
        }
    }
    assert!(std::fs::read(file.path()).unwrap().iter().all(|byte| *byte == 0));
    assert!(!driver.broken());
}

#[test]
fn a_read_only_disk_is_not_written() {
    let (file, mut driver) = disk(MIB, true);
    assert_eq!(driver.block(0, 0, 512), VIRTIO_BLK_S_OK);
    driver.memory.write_slice(b"x", GuestAddress(DATA + 512)).unwrap();
    assert_eq!(driver.block(1, 0, 512), VIRTIO_BLK_S_IOERR);
    assert!(std::fs::read(file.path()).unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn a_disk_is_held_by_one_run() {
    let (file, _driver) = disk(MIB, false);
    for read_only in [false, true] {
        let spec = DiskSpec { path: file.path().to_owned(), read_only };
        assert!(Block::open(&spec, 1).unwrap_err().to_string().contains("is in use by"));
    }
    assert_eq!("a,b,ro".parse(), Ok(DiskSpec { path: "a,b".into(), read_only: true }));
    assert!("a,rw".parse::<DiskSpec>().is_err() && ",ro".parse::<DiskSpec>().is_err());
}

#[test]
fn broken_chains_need_a_reset() {
    const HOLE: u64 = 0xF000_0000;
    let header = (DATA, 16, NEXT, 1);
    let cases: [(&str, Vec<Descriptor>); 9] = [
        ("a loop", vec![header, (DATA, 512, NEXT | WRITE, 1)]),
        ("a next beyond the table", vec![(DATA, 16, NEXT, SIZE)]),
        ("an address without memory", vec![header, (HOLE, 512, NEXT | WRITE, 2), (DATA, 1, WRITE, 0)]),
        ("a length beyond memory", vec![header, (DATA, u32::MAX, NEXT | WRITE, 2), (DATA, 1, WRITE, 0)]),
        ("an address that wraps", vec![header, (u64::MAX - 7, 512, NEXT | WRITE, 2), (DATA, 1, WRITE, 0)]),
        ("no room for a status", vec![(DATA, 16, 0, 0)]),
        ("a short header", vec![(DATA, 8, NEXT, 1), (DATA, 1, WRITE, 0)]),
        ("reading after writing", vec![(DATA, 16, NEXT | WRITE, 1), (DATA, 1, 0, 0)]),
        ("an indirect table without memory", vec![(HOLE, 32, INDIRECT, 0)]),
    ];
    for (case, chain) in cases {
        let (_file, mut driver) = disk(MIB, false);
        assert_eq!(driver.give(&chain), None, "{case}");
        assert!(driver.broken(), "{case}");
        assert_eq!(driver.get(0x60), 2, "{case}: a change of configuration");
        driver.set(0x70, 15);
        assert!(driver.broken(), "{case}: only a reset helps");
        driver.set(0x70, 0);
        assert!(!driver.broken(), "{case}");
    }
}

#[test]
fn an_indirect_table_is_followed_once() {
    let (_file, mut driver) = disk(MIB, false);
    let table = DATA + 0x1000;
    driver
        .describe(table, &[(DATA, 16, NEXT, 1), (DATA + 64, 20, NEXT | WRITE, 2), (DATA + 16, 1, WRITE, 0)]);
    driver.memory.write_obj(8_u32, GuestAddress(DATA)).unwrap();
    assert_eq!(driver.give(&[(table, 48, INDIRECT, 0)]), Some(21));
    driver.describe(table, &[(table, 16, INDIRECT, 0)]);
    assert_eq!(driver.give(&[(table, 16, INDIRECT, 0)]), None);
    assert!(driver.broken());
}

#[test]
fn more_requests_than_the_queue_holds_need_a_reset() {
    let (_file, mut driver) = disk(MIB, false);
    driver.memory.write_obj(SIZE + 1, GuestAddress(AVAILABLE + 2)).unwrap();
    driver.set(0x50, 0);
    assert!(driver.broken());
}

#[test]
fn a_queue_out_of_memory_needs_a_reset() {
    for register in [0x84, 0x94, 0xA4] {
        let (_file, mut driver) = disk(MIB, false);
        driver.set(0x44, 0);
        driver.set(register, 0x1234);
        driver.set(0x44, 1);
        driver.set(0x50, 0);
        assert!(driver.broken());
    }
}

#[test]
fn entropy_is_a_function_of_the_seed() {
    let draw = |seed| {
        let mut driver = Driver::new(Box::new(Entropy::new(seed))).start();
        let mut drawn = Vec::new();
        for length in [8, 100_000] {
            drawn.push(driver.give(&[(DATA, length, WRITE, 0)]).unwrap());
        }
        let mut bytes = vec![0; 65536];
        driver.memory.read_slice(&mut bytes, GuestAddress(DATA)).unwrap();
        (drawn, bytes)
    };
    assert_eq!(draw(1).0, [8, 65536]);
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1).1, draw(2).1);
}

#[test]
fn nonsense_in_every_register_is_survived() {
    let (_file, mut driver) = disk(MIB, false);
    for offset in 0..0x200 {
        for size in [1, 2, 4, 8] {
            for value in [u64::MAX, 0, 1, 0x8000_0000] {
                driver.device.write(offset, size, value, 0);
                driver.device.read(offset, size, 0);
            }
        }
    }
    driver.device.read(u64::MAX, 8, 0);
}

#[test]
fn a_driver_must_be_modern_and_modest() {
    for features in [0_u64, 1 << 32 | 1 << 40] {
        let (_file, driver) = disk(MIB, false);
        let mut driver = Driver { given: 0, ..driver };
        driver.set(0x70, 0);
        for half in 0..2 {
            driver.set(0x24, half);
            driver.set(0x20, features >> (32 * half) & 0xFFFF_FFFF);
        }
        driver.set(0x70, 11);
        assert_eq!(driver.get(0x70), 3, "{features:#x}");
    }
}

/// An address that a hostile driver might try: near what exists, and anywhere.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![DATA..DATA + 0x3000, DESCRIPTORS..USED + 0x1000, 64 * MIB - 600..64 * MIB + 600, any::<u64>()]
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let length = prop_oneof![0..2000_u32, any::<u32>()];
    (address(), length, 0..8_u16, prop_oneof![0..8_u16, any::<u16>()])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_lies_in_the_rings_the_device_survives_and_a_reset_helps(
        table in prop::collection::vec(descriptor(), 1..8),
        indirect in prop::collection::vec(descriptor(), 1..8),
        heads in prop::collection::vec(prop_oneof![0..8_u16, any::<u16>()], 1..8),
        ahead in prop_oneof![0..8_u16, any::<u16>()],
        kind in 0..10_u32,
    ) {
        let (file, mut driver) = disk(MIB, false);
        driver.describe(DESCRIPTORS, &table);
        driver.describe(DATA + 0x1000, &indirect);
        driver.memory.write_obj(kind, GuestAddress(DATA)).unwrap();
        for (n, head) in (0..).zip(&heads) {
            driver.memory.write_obj(*head, GuestAddress(AVAILABLE + 4 + 2 * n)).unwrap();
        }
        driver.memory.write_obj(ahead, GuestAddress(AVAILABLE + 2)).unwrap();
        driver.set(0x50, 0);
        prop_assert_eq!(file.as_file().metadata().unwrap().len(), MIB, "the file keeps its size");
        driver.given = 0;
        driver.memory.write_obj(0_u32, GuestAddress(AVAILABLE)).unwrap();
        driver.memory.write_obj(0_u32, GuestAddress(USED)).unwrap();
        let mut driver = driver.start();
        prop_assert!(!driver.broken());
        prop_assert_eq!(driver.block(4, 0, 0), VIRTIO_BLK_S_OK);
    }
}

fn entropy() -> VirtioMmio {
    Driver::new(Box::new(Entropy::new(7))).start().device
}

crate::devices::law::snapshot_law!(law, entropy(), |device: &mut VirtioMmio| {
    device.write(0x30, 4, 5, 0);
    let mut random = Entropy::new(7);
    random.set_position(99);
    device.restore(VirtioMmioState { position: random.position(), ..device.save() }).unwrap();
});
