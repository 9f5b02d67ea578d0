//! Two engines that ran the same workload between two marks saw the same: every store, flush, explicit fence and flush hint
//! that concerns what the workload wrote, in order and with its data, and who in the kernel called for it.
//!
//! NVSIM_TRACES names the traces, separated by a colon; ci/nested-kvm records them and runs this. The workload fills its files
//! with the letter Z, so that the pages they have are known; of other pages of file systems, which have times in them, nothing
//! is compared. What is on a DIMM without a file system is compared whole.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;

use nvdimm_model::medium::{FenceKind, StoreKind};
use trace::{Kind, Reader};

const PAGE: u64 = 4096;
/// Addresses from here on are the kernel's, where the frame is sure.
const KERNEL: u64 = 0xFFFF_8000_0000_0000;
/// What the workload writes into files.
const MARKED: u8 = b'Z';

/// The DIMM and the page in it.
type Place = (usize, u64);

/// What a trace says of the places that count: those that hold what the workload marked, and all of a `raw` DIMM.
#[derive(Debug)]
struct Story {
    engine: String,
    /// An event each.
    lines: Vec<String>,
    /// Who called for the first store or flush that was the kernel's own, the innermost first.
    chain: Vec<String>,
}

/// What happened, where it may count.
#[derive(Debug)]
enum Seen {
    /// An event, and the vCPU that has something to fence by it.
    Line(String, Option<usize>),
    /// A fence of a vCPU, in a place.
    Fence(FenceKind, usize, u32),
}

/// Was it not the workload: an interrupt, or a thread of the kernel? When the one comes and which vCPU the other has is the
/// engine's affair, and both have fences (`lapic_next_deadline`, the journal's flushes).
fn is_anothers(reader: &Reader<File>, chain: u32) -> bool {
    let begins = ["sysvec_", "common_interrupt", "kthread+"];
    let mut names = reader.chain(chain).iter().filter_map(|frame| reader.name(*frame));
    names.any(|name| begins.iter().any(|begin| name.starts_with(begin)))
}

fn story(path: &Path) -> Story {
    let places = |mut reader: Reader<File>| {
        let header = reader.header().clone();
        while reader.next_block().unwrap().is_some() {}
        let mut pages: BTreeSet<Place> = BTreeSet::new();
        while let Some(event) = reader.next_event().unwrap() {
            if let Kind::Store { address, data, .. } = event.kind
                && data.iter().all(|&byte| byte == MARKED)
                && let Some((dimm, offset)) = header.place(address)
            {
                pages.insert((dimm, offset / PAGE));
            }
        }
        pages
    };
    let open = || Reader::new(File::open(path).unwrap()).unwrap();
    let pages = places(open());
    let mut reader = open();
    let header = reader.header().clone();
    while reader.next_block().unwrap().is_some() {}
    let counts = |address| {
        let (dimm, offset) = header.place(address)?;
        let is_raw = header.dimms[dimm].name.contains("raw");
        (is_raw || pages.contains(&(dimm, offset / PAGE))).then_some(format!("{dimm}+{offset:#x}"))
    };
    let mut seen = Vec::new();
    let mut first = None;
    let mut note = |rip, chain| {
        if first.is_none() && rip >= KERNEL {
            first = Some((rip, chain));
        }
    };
    while let Some(event) = reader.next_event().unwrap() {
        let (vcpu, chain) = (usize::from(event.vcpu), event.chain);
        match event.kind {
            Kind::Store { address, data, kind } => {
                if let Some(place) = counts(address) {
                    note(event.rip, chain);
                    let line = format!("{kind:?} store at {place}: {data:02x?}");
                    seen.push(Seen::Line(line, (kind == StoreKind::NonTemporal).then_some(vcpu)));
                }
            }
            Kind::Flush { address, kind } => {
                if let Some(place) = counts(address) {
                    note(event.rip, chain);
                    seen.push(Seen::Line(format!("{kind:?} of {place}"), Some(vcpu)));
                }
            }
            // Of one that is implied no callers are known, so that nobody can say whether it is an interrupt's.
            // The kernel's MFENCE is before a write to a local APIC (`weak_wrmsr_fence`), of the idle loop and the scheduler, too.
            Kind::Fence(FenceKind::Mfence) if event.rip >= KERNEL => {}
            Kind::Fence(kind @ (FenceKind::Sfence | FenceKind::Mfence)) => {
                seen.push(Seen::Fence(kind, vcpu, chain));
            }
            Kind::Hint { dimm } if header.dimms[usize::from(dimm)].name.contains("raw") => {
                seen.push(Seen::Line(format!("hint of {dimm}"), None));
            }
            Kind::Mark(name) => seen.push(Seen::Line(format!("mark {name}"), None)),
            _ => {}
        }
    }
    let mut lines = Vec::new();
    let mut unfenced = [false; 8];
    for event in seen {
        match event {
            Seen::Line(line, opens) => {
                opens.into_iter().for_each(|vcpu| unfenced[vcpu] = true);
                lines.push(line);
            }
            Seen::Fence(_, vcpu, chain) if !unfenced[vcpu] || is_anothers(&reader, chain) => {}
            Seen::Fence(kind, vcpu, _) => {
                unfenced[vcpu] = false;
                lines.push(format!("{kind:?}"));
            }
        }
    }
    let (rip, chain) = first.expect("the kernel stores or flushes for the workload");
    let callers = reader.chain(chain).iter().take_while(|frame| **frame >= KERNEL);
    let name = |at: u64| reader.name(at).map_or_else(|| format!("{at:#x}"), str::to_owned);
    let chain = std::iter::once(rip).chain(callers.copied()).map(name).collect();
    Story { engine: header.engine, lines, chain }
}

#[test]
fn engines_see_the_same() {
    let Some(traces) = std::env::var_os("NVSIM_TRACES") else {
        return eprintln!("skipped: NVSIM_TRACES names no traces; ci/nested-kvm record makes them");
    };
    let stories: Vec<_> = std::env::split_paths(&traces).map(|path| story(&path)).collect();
    let [one, other] = &stories[..] else { panic!("two traces are wanted: {traces:?}") };
    let (first, second) = (&one.lines, &other.lines);
    println!("the kernel's first:\n  {}", one.chain.join("\n  "));
    assert!(one.chain.len() > 3, "{} knows of no callers: {:?}", one.engine, one.chain);
    assert_eq!(one.chain, other.chain, "{} and {} saw other callers", one.engine, other.engine);
    let (one, other) = (&one.engine, &other.engine);
    let begins = |word: &str| first.iter().filter(|line| line.starts_with(word)).count();
    for word in ["Cached store", "Clwb", "Sfence", "mark"] {
        assert!(begins(word) > 0, "{one} saw no {word}");
    }
    for (n, (mine, its)) in first.iter().zip(second).enumerate() {
        let around = |lines: &[String]| lines[n.saturating_sub(8)..lines.len().min(n + 8)].join("\n  ");
        assert!(
            mine == its,
            "{one} and {other} part at event {n}:\n{one}\n  {}\n{other}\n  {}",
            around(first),
            around(second)
        );
    }
    assert_eq!(first.len(), second.len(), "{one} and {other}: one saw more");
    println!("{one} and {other} saw the same {} events", first.len());
}
