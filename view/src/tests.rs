//! Made-up runs, explained and drawn.

use std::path::PathBuf;

use insta::assert_snapshot;
use nvdimm_model::medium::{FenceKind, FlushKind, StoreKind};
use nvdimm_model::{Domain, Identity, Persistence};
use proptest::prelude::*;
use tempfile::TempDir;
use trace::{Area, BLOCK, DimmHeader, End, Event, Header, Kind, Writer, ZoneHeader};

use super::*;

const START: u64 = 4 << 30;
const MIB: u64 = 1 << 20;

fn header(domain: Domain) -> Header {
    Header {
        nvsim: "0.1.0".to_owned(),
        engine: "soft".to_owned(),
        image: "dax".to_owned(),
        vcpus: 2,
        dimms: vec![DimmHeader {
            name: "d0.nvd".to_owned(),
            identity: Identity::with_serial(1),
            persistence: Persistence::honest(domain),
            size: 16 * MIB,
            data: 2 * MIB,
        }],
        zones: vec![ZoneHeader { start: START, end: START + 16 * MIB, dimms: vec![0] }],
        ..Header::default()
    }
}

/// A run under construction, in a file.
struct Run {
    folder: TempDir,
    writer: Writer<std::fs::File>,
    instruction: u64,
    chain: u32,
    rip: u64,
}

impl Run {
    fn new(domain: Domain) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(folder.path().join("run.trace")).unwrap();
        let mut writer = Writer::new(file, &header(domain)).unwrap();
        // The first page of the data holds ones.
        writer.block(0, 2 * MIB / BLOCK as u64, &[1; BLOCK]).unwrap();
        Self { folder, writer, instruction: 0, chain: 0, rip: 0 }
    }

    /// What follows comes from here.
    fn from(&mut self, rip: u64, name: &str, callers: &[(u64, &str)]) {
        self.writer.name(rip, name.to_owned());
        let frames: Vec<u64> = callers.iter().map(|caller| caller.0).collect();
        callers
            .iter()
            .for_each(|&(address, name)| self.writer.name(trace::frame(address).0, name.to_owned()));
        self.chain = self.writer.chain(&frames).unwrap();
        self.rip = rip;
    }

    fn on(&mut self, vcpu: u8, kind: Kind<'_>) {
        self.instruction += 10;
        let (instruction, rip, chain) = (self.instruction, self.rip, self.chain);
        let event = Event { vcpu, instruction, time: 1000 + instruction, rip, chain, kind };
        self.writer.event(&event).unwrap();
    }

    fn store(&mut self, at: u64, data: &[u8]) {
        self.on(0, Kind::Store { address: START + at, data, kind: StoreKind::Cached });
    }

    fn post(&mut self, at: u64, data: &[u8]) {
        self.on(0, Kind::Store { address: START + at, data, kind: StoreKind::NonTemporal });
    }

    fn clwb(&mut self, at: u64) {
        self.on(0, Kind::Flush { address: START + at, kind: FlushKind::Clwb });
    }

    fn sfence(&mut self) {
        self.on(0, Kind::Fence(FenceKind::Sfence));
    }

    fn end(self) -> (TempDir, Source) {
        let end = End { instruction: self.instruction + 5, time: self.instruction + 1005, ..End::default() };
        self.writer.finish(&end).unwrap();
        let path: PathBuf = self.folder.path().join("run.trace");
        (self.folder, Source::new(&path))
    }
}

const COPY: u64 = 0xffff_ffff_8100_0010;
const FLUSH: u64 = 0xffff_ffff_8100_0210;
const CALLERS: [(u64, &str); 2] = [
    (0xffff_ffff_8100_1000, "dax_iomap_rw+0x10"),
    (0xffff_ffff_8100_2000 ^ trace::GUESS, "vfs_write+0x20 [ext4]"),
];

/// A line that was never flushed, one flushed and not fenced, one posted, and one that is sure.
fn faulty() -> (TempDir, Source) {
    let mut run = Run::new(Domain::Adr);
    run.from(COPY, "memcpy+0x10", &CALLERS);
    run.store(0x100, &[7; 8]);
    run.clwb(0x100);
    run.sfence();
    run.on(0, Kind::Mark("begun"));
    run.store(0x200, &[8; 16]);
    run.store(0x208, &[9; 8]);
    run.from(FLUSH, "memcpy_flushcache+0x10", &CALLERS[..1]);
    run.store(0x300, &[1; 8]);
    run.store(0x340, &[5; 40]);
    run.clwb(0x340);
    run.post(0x1400, &[6; 16]);
    run.on(1, Kind::Mark("<script>alert('x')</script>"));
    run.end()
}

#[test]
fn an_explanation_names_the_store_and_what_it_lacks() {
    let (_folder, source) = faulty();
    let explained = explain(&source, None).unwrap();
    assert_snapshot!(serde_json::to_string_pretty(&explained.explanation).unwrap());
}

#[test]
fn the_moment_decides() {
    let (_folder, source) = faulty();
    let at = |when: &str| explain(&source, Some(&when.parse().unwrap()));
    let lines = |when: &str| at(when).unwrap().explanation.lines.len();
    assert_eq!(
        ["store:1", "flush:1", "fence:1", "mark:begun", "after:begun,store:1"].map(lines),
        [1, 1, 0, 0, 1]
    );
    assert_eq!(["insn:60", "insn:115", "time:1112ns", "event:1"].map(lines), [1, 4, 4, 1]);
    // The same bytes as before are no other image.
    assert_eq!(at("after:begun,store:3").unwrap().explanation.states, "5");
    assert!(at("random:7").is_ok());
    // Behind a mark, there are only the events behind it to draw from.
    assert!((0..20).all(|seed| at(&format!("after:begun,random:{seed}")).is_ok()));
    let never = at("fence:2").unwrap_err().to_string().replace(&source.path().display().to_string(), "T");
    assert_snapshot!(never, @"T: fence:2 never comes: the trace ends after 11 events, 115 instructions, 0.000001 s; `nvsim trace stats` counts what there is");
}

#[test]
fn the_images_are_what_survives_for_sure() {
    let (_folder, source) = faulty();
    let explained = explain(&source, None).unwrap();
    let file = std::fs::read(explained.images.paths().next().unwrap()).unwrap();
    assert_eq!(file.len() as u64, 18 * MIB);
    let data = &file[2 << 20..];
    assert_eq!((data[0xff], data[0x100], data[0x107], data[0x108]), (1, 7, 7, 1));
    assert_eq!((data[0x200], data[0x340], data[0x1400]), (1, 1, 0));
    let folder = explained.images.folder().to_owned();
    drop(explained);
    assert!(!folder.exists());
}

/// A superblock is recorded without the zeroes at its end; what it replaces may have been longer.
#[test]
fn nothing_of_an_older_superblock_shows() {
    let mut run = Run::new(Domain::Adr);
    run.writer.block(0, 0, &[7; BLOCK]).unwrap();
    run.on(0, Kind::Meta { dimm: 0, area: Area::State, offset: 0, data: &[1, 2, 3] });
    run.on(0, Kind::Meta { dimm: 0, area: Area::Labels, offset: 64 << 10, data: &[4] });
    let (_folder, source) = run.end();
    let explained = explain(&source, None).unwrap();
    let file = std::fs::read(explained.images.paths().next().unwrap()).unwrap();
    assert_eq!((&file[..4], &file[64 << 10..][..2]), (&[1, 2, 3, 0][..], &[4, 0][..]));
    assert!(file[3..32 << 10].iter().all(|&byte| byte == 0));
}

#[test]
fn hints_are_missed_by_name() {
    let mut run = Run::new(Domain::Hint);
    run.from(COPY, "memcpy+0x10", &[]);
    run.store(0, &[1; 8]);
    run.store(0x40, &[2; 8]);
    run.clwb(0x40);
    run.sfence();
    let (_folder, source) = run.end();
    let explanation = explain(&source, None).unwrap().explanation;
    let missing: Vec<&str> = explanation.causes.iter().map(|cause| cause.missing.as_str()).collect();
    // The first store wrote what was there before.
    assert_eq!((missing, explanation.states.as_str()), (vec!["flush", "hint of d0.nvd"], "2"));
}

#[test]
fn places_come_from_whoever_can_read_the_file_system() {
    let (_folder, source) = faulty();
    let mut explanation = explain(&source, None).unwrap().explanation;
    explanation.locate(|dimm, offset| {
        assert_eq!(dimm, 0);
        (offset < 0x1000).then(|| Place { name: "/file".to_owned(), offset: Some(offset) })
    });
    assert!(explanation.causes.iter().any(|cause| cause.files == ["/file"]));
    assert_eq!(explanation.lines.iter().filter(|line| line.place.is_none()).count(), 1);
}

#[test]
fn numbers_of_images_beyond_counting_are_short() {
    let mut run = Run::new(Domain::Adr);
    run.from(COPY, "memset+0x10", &[]);
    (0..1000u64).for_each(|n| run.store(64 * n, &[7; 8]));
    let (_folder, source) = run.end();
    let explanation = explain(&source, None).unwrap().explanation;
    assert_eq!((explanation.lines.len(), explanation.states.len()), (1000, 302));
    assert_eq!(explanation.states_in_short(), "1.071e301");
    assert_eq!(explanation.causes.len(), 1);
}

/// A run of some size, for eyes: `VIEW_SAMPLE=page.html cargo test -p view sample`.
fn sample() -> (TempDir, Source) {
    let mut run = Run::new(Domain::Adr);
    for round in 0..120u64 {
        if round % 30 == 0 {
            run.on(0, Kind::Mark(["mkfs", "mount", "write", "fsync"][round as usize / 30]));
        }
        run.from(FLUSH, "memcpy_flushcache+0x10", &CALLERS[..1]);
        for n in 0..(round % 17) * 8 {
            run.post(round * 4096 + 64 * n, &[n as u8 + 2; 64]);
        }
        run.from(COPY, "memcpy+0x10", &CALLERS);
        for n in 0..round % 7 * 4 {
            run.store(8 * MIB + round * 512 + n * 24, &[n as u8; 24]);
            if round % 5 != 3 || n % 3 == 0 {
                run.clwb(8 * MIB + round * 512 + n * 24);
                run.clwb(8 * MIB + round * 512 + n * 24 + 23);
            }
        }
        run.sfence();
    }
    run.store(64, &[9; 100]);
    run.end()
}

#[test]
fn a_page_is_self_contained_and_escapes_what_it_is_told() {
    let (_folder, source) = faulty();
    let page = report(&source).unwrap();
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;alert"));
    for outside in ["http://", "https://", "url(", "<link", "<img", "@import"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("4 lines are in doubt at the end."));
    assert!(page.contains("memcpy+0x10") && page.contains("fence of vCPU 0"));
}

#[test]
fn a_page_of_a_large_run_stays_small() {
    let (_folder, source) = sample();
    let page = report(&source).unwrap();
    assert!(page.len() < 2 << 20, "{}", page.len());
    assert_eq!(page.matches("<svg").count(), 2 + 60);
    if let Ok(path) = std::env::var("VIEW_SAMPLE") {
        std::fs::write(path, page).unwrap();
    }
}

#[test]
fn an_empty_run_has_a_page_too() {
    let (_folder, source) = Run::new(Domain::Adr).end();
    assert!(report(&source).unwrap().contains("Nothing is in doubt at the end."));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn damage_is_an_error_with_the_files_name(at in 0usize..2000, byte: u8, cut in 0usize..2500) {
        let (_folder, source) = faulty();
        let mut bytes = std::fs::read(source.path()).unwrap();
        if let Some(place) = bytes.get_mut(at) { *place = byte; }
        bytes.truncate(cut);
        std::fs::write(source.path(), bytes).unwrap();
        for result in [explain(&source, None).map(|_| ()), report(&source).map(|_| ())] {
            if let Err(error) = result {
                prop_assert!(error.to_string().contains("run.trace"), "{error}");
            }
        }
    }
}
