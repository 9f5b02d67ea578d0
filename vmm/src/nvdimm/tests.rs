use super::*;
use nvdimm_model::namespace::Mode;

const GIB: u64 = 1 << 30;

pub(super) struct Desk {
    dir: tempfile::TempDir,
    memory: GuestMemory,
}

impl Desk {
    pub(super) fn new() -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        Self { dir: tempfile::tempdir().unwrap(), memory }
    }

    pub(super) fn open(&self, texts: &[&str]) -> Result<Nvdimms> {
        let specs: Vec<DimmSpec> =
            texts.iter().map(|t| format!("{}/{t}", self.dir.path().display()).parse().unwrap()).collect();
        let open = OpenDimms::open(&specs, &Entropy::from_seed(0))?;
        let mut base = 4 * GIB;
        let ranges: Vec<_> = open
            .region_sizes()
            .into_iter()
            .map(|size| {
                base += GIB;
                base..base + size
            })
            .collect();
        open.place(&ranges)
    }

    pub(super) fn call(&self, nvdimms: &mut Nvdimms, handle: u32, function: u32, input: &[u8]) -> Vec<u8> {
        let page = GuestAddress(layout::DSM_MAILBOX.start);
        let head: Vec<u8> =
            [handle, 1, function, input.len() as u32].iter().flat_map(|w| w.to_le_bytes()).collect();
        self.memory.write_slice(&[&head[..], input].concat(), page).unwrap();
        nvdimms.ring(&self.memory).unwrap();
        let mut len = [0; 4];
        self.memory.read_slice(&mut len, page).unwrap();
        let mut answer = vec![0; u32::from_le_bytes(len) as usize];
        self.memory.read_slice(&mut answer, page.0.checked_add(4).map(GuestAddress).unwrap()).unwrap();
        answer
    }
}

#[test]
fn stores_reach_the_files_of_an_interleaved_set() {
    let desk = Desk::new();
    let nvdimms = desk.open(&["a,size=32M,set=s", "b,size=32M,set=s"]).unwrap();
    let region = nvdimms.memory()[0].clone();
    let base = nvdimms.plan().regions[0].base;
    let memory = GuestMemory::from_arc_regions(vec![region]).unwrap();
    memory.write_slice(b"across", GuestAddress(base + (6 << 20) - 3)).unwrap();
    drop((memory, nvdimms));
    let read = |name: &str, at: u64| {
        let backing = Backing::open(&desk.dir.path().join(name), Hold::Shared).unwrap();
        let mut bytes = [0; 3];
        backing.read_data(at, &mut bytes).unwrap();
        bytes
    };
    // Pieces 2 and 3 of the region are the second pieces of a and of b.
    assert_eq!(&read("a", (4 << 20) - 3), b"acr");
    assert_eq!(&read("b", 2 << 20), b"oss");
}

#[test]
fn labels_written_by_the_guest_are_there_in_the_next_run() {
    let desk = Desk::new();
    let mut nvdimms = desk.open(&["a,size=32M"]).unwrap();
    assert_eq!(desk.call(&mut nvdimms, 0x10, 6, &[0, 1, 0, 0, 2, 0, 0, 0, 7, 8]), [0; 4]);
    drop(nvdimms);
    let mut nvdimms = desk.open(&["a"]).unwrap();
    assert_eq!(desk.call(&mut nvdimms, 0x10, 5, &[0, 1, 0, 0, 2, 0, 0, 0]), [0, 0, 0, 0, 7, 8]);
    assert_eq!(desk.call(&mut nvdimms, 0x20, 5, &[]), [1, 0, 0, 0]);
    assert_eq!(desk.call(&mut nvdimms, 0, 0, &[]).len(), 8);
}

#[test]
fn a_run_that_ends_without_a_word_was_dirty() {
    let desk = Desk::new();
    let count = |n: &Nvdimms| n.bus().dimms()[0].1.health.dirty_shutdowns;
    let mut nvdimms = desk.open(&["a,size=32M"]).unwrap();
    nvdimms.power_on().unwrap();
    nvdimms.power_off().unwrap();
    drop(nvdimms);
    let mut nvdimms = desk.open(&["a"]).unwrap();
    nvdimms.power_on().unwrap();
    assert_eq!(count(&nvdimms), 0);
    drop(nvdimms);
    let mut nvdimms = desk.open(&["a"]).unwrap();
    nvdimms.power_on().unwrap();
    assert_eq!(count(&nvdimms), 1);
}

#[test]
fn specs_are_checked_against_files_before_anything_is_made() {
    let desk = Desk::new();
    drop(desk.open(&["a,size=32M,domain=eadr"]).unwrap());
    let refused = desk.open(&["a,size=64M"]).unwrap_err().to_string();
    assert!(refused.contains("size=67108864 is asked for, but the file has 33554432"), "{refused}");
    assert!(matches!(desk.open(&["b,size=32M", "c"]), Err(Error::Missing { .. })));
    assert!(matches!(desk.open(&["b,size=32M", "a,set=q"]), Err(Error::Contradiction { key: "set", .. })));
    assert!(!desk.dir.path().join("b").exists());
    assert!(matches!(desk.open(&["a", "a"]), Err(Error::Busy { .. })));
    let nine: Vec<String> = (0..9).map(|n| format!("x{n},size=32M")).collect();
    let nine: Vec<&str> = nine.iter().map(String::as_str).collect();
    assert!(matches!(desk.open(&nine), Err(Error::Slots { .. })));
    // What may change from run to run does.
    drop(desk.open(&["a,domain=adr,fs=xfs"]).unwrap());
    let info = offline::info(&[desk.dir.path().join("a")]).unwrap();
    assert_eq!((info[0].dimms[0].domain, info[0].dimms[0].fs), (nvdimm_model::Domain::Adr, Fs::Xfs));
}

#[test]
fn all_files_are_made_or_none() {
    let desk = Desk::new();
    let count = || desk.dir.path().read_dir().unwrap().count();
    for refused in [
        &["a,size=32M", "b,size=33M"][..],
        &["a,size=32M", "b,size=32M,label-size=64K,set=s", "c,size=32M,label-size=128K,set=s"],
        &["a,size=32M,serial=5", "b,size=32M,serial=5"],
        &["a,size=32M", "no/such/folder/b,size=32M"],
    ] {
        assert!(desk.open(refused).is_err(), "{refused:?}");
        assert_eq!(count(), 0, "{refused:?}");
    }
    // The members of a set need not stand side by side.
    let nvdimms = desk.open(&["a,size=32M,set=s", "x,size=32M", "b,size=32M,set=s"]).unwrap();
    let members: Vec<_> = nvdimms.plan().regions.iter().map(|r| r.members.clone()).collect();
    assert_eq!(members, [vec![0, 2], vec![1]]);
}

#[test]
fn devices_have_the_names_that_linux_gives() {
    let desk = Desk::new();
    let nvdimms =
        desk.open(&["a,size=32M", "b,size=32M,mode=devdax", "c,size=32M,mode=sector,fs=xfs"]).unwrap();
    let devices = nvdimms.guest_devices();
    let names: Vec<_> = devices.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names, ["pmem0", "dax1.0", "pmem2s"]);
    assert_eq!((devices[2].fs, devices[2].namespace.mode), (Fs::Xfs, Mode::Sector));
    assert!(!nvdimms.nfit().is_empty() && !nvdimms.aml().is_empty());
}

/// A DIMM that is mapped privately from a snapshot's file is recorded as the machine sees it.
#[test]
fn blocks_of_a_private_dimm_are_those_that_the_machine_sees() {
    let desk = Desk::new();
    let nvdimms = desk.open(&["a,size=16M"]).unwrap();
    let (path, image) = nvdimms.images().unwrap().remove(0);
    let superblock = |nvdimms: &Nvdimms| nvdimms.backings[0].superblock();
    let ranges: Vec<_> = nvdimms.plan().regions.iter().map(|r| r.base..r.base + r.set.size()).collect();
    drop(nvdimms);
    // Somewhere in a file, as in a snapshot.
    let file = tempfile::tempfile().unwrap();
    file.set_len(image.extents.len + (1 << 20)).unwrap();
    image.write(&file, 1 << 20).unwrap();
    let image = Image::within(std::sync::Arc::new(file), 1 << 20, image.extents);
    let mut nvdimms = OpenDimms::of_images(&[(path, image)]).unwrap().place(&ranges).unwrap();
    nvdimms.power_on().unwrap();
    let memory = GuestMemory::from_arc_regions(nvdimms.memory().to_vec()).unwrap();
    memory.write_slice(b"new", GuestAddress(ranges[0].start + (5 << 20))).unwrap();
    let mut blocks = std::collections::BTreeMap::new();
    let mut take = |_, number: u64, block: &[u8; trace::BLOCK]| {
        blocks.insert(number, *block);
        Ok(())
    };
    nvdimms.each_block(&mut take).unwrap();
    let (at, bytes) = superblock(&nvdimms);
    assert_eq!(blocks[&(at / 4096)][..bytes.len()], bytes);
    assert_eq!(blocks[&((backing::DATA + (5 << 20)) / 4096)][..4], *b"new\0");
    assert!(nvdimms.nameless_files().unwrap()[0].metadata().unwrap().is_file());
}
