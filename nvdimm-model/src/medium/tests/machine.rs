//! A small language for programs on the medium, and all images that a cut can leave.

use std::collections::{BTreeMap, BTreeSet};

use super::super::reach::Content;
use super::super::*;

/// All images that a cut can leave now, by taking every content of every line with every content of the others.
pub(super) fn images(medium: &Medium, base: &impl Base) -> Vec<BTreeMap<u64, Content>> {
    let mut all = vec![BTreeMap::new()];
    for (&line, &marks) in &medium.lines {
        let mut contents: Vec<Content> = Vec::new();
        if medium.chunked.contains_key(&line) {
            contents.push(base.line(line * 64));
            for (chunk, options) in medium.chunk_contents(line, marks, base).iter().enumerate() {
                let mut next = Vec::new();
                for content in &contents {
                    for option in options {
                        let mut content = *content;
                        content[8 * chunk..][..8].copy_from_slice(option);
                        next.push(content);
                    }
                }
                contents = next;
            }
        } else {
            contents.extend(medium.line_contents(line, marks, base));
        }
        all = all
            .into_iter()
            .flat_map(|image| {
                contents.iter().map(move |content| {
                    let mut image = image.clone();
                    image.insert(line * 64, *content);
                    image
                })
            })
            .collect();
    }
    all
}

/// Where a variable lives: x, y, ... in lines of their own, x0 and x1 in two chunks of one, b on another DIMM than a.
pub(super) fn place(name: &str) -> u64 {
    let (first, rest) = name.split_at(1);
    let letter = u64::from(first.as_bytes()[0] - b'a');
    let base = if first == "b" { ALIGN } else { 64 * letter };
    base + 8 * rest.parse::<u64>().unwrap_or(0)
}

/// What the variables hold in an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Values(pub(super) BTreeMap<u64, Content>);

impl Values {
    pub(super) fn get(&self, name: &str) -> u8 {
        let address = place(name);
        self.0.get(&(address & !63)).map_or(0, |content| content[(address % 64) as usize])
    }
}

/// Runs statements, separated by `;`, in the order given; `A:` and `B:` say which vCPU runs what follows. Gives all images of
/// all cuts, one set for each point: before the first statement, after it, and so on.
pub(super) fn run(domain: Domain, rules: Rules, program: &str) -> Vec<BTreeSet<Values>> {
    let zone = Zone { range: 0..2 * ALIGN, dimms: vec![0, 1] };
    let mut medium = Medium::new(rules, vec![zone], vec![domain; 2]);
    let mut vcpu = 0;
    let now = |medium: &Medium| images(medium, &|_: u64| [0; 64]).into_iter().map(Values).collect();
    let mut cuts = vec![now(&medium)];
    for mut statement in program.split(';').map(str::trim) {
        for (name, number) in [("A:", 0), ("B:", 1)] {
            if let Some(rest) = statement.strip_prefix(name) {
                (vcpu, statement) = (number, rest.trim());
            }
        }
        execute(&mut medium, vcpu, statement);
        cuts.push(now(&medium));
    }
    cuts
}

/// One statement: `x=1`, `nt x=1`, `lock x=1`, `wide x=1` (16 bytes), `direct x=1`, `dma x=1`, `clwb x`, `sfence`, ...
pub(super) fn execute(medium: &mut Medium, vcpu: u8, statement: &str) {
    let (verb, object) = statement.split_once(' ').unwrap_or((statement, ""));
    let flush = |kind| Operation::Flush { address: place(object), kind };
    let operation = match verb {
        "clflush" => flush(FlushKind::Clflush),
        "clflushopt" => flush(FlushKind::Clflushopt),
        "clwb" => flush(FlushKind::Clwb),
        "sfence" => Operation::Fence(FenceKind::Sfence),
        "mfence" => Operation::Fence(FenceKind::Mfence),
        "lfence" => Operation::Fence(FenceKind::Lfence),
        "cpuid" => Operation::Fence(FenceKind::Serialising),
        "fail" => Operation::Fence(FenceKind::FailedCmpxchg),
        "wbinvd" => Operation::WriteBackAll,
        "hint" => Operation::Hint { dimm: usize::from(object == "b") },
        // What the medium does not see.
        "load" | "out" | "mark" => return,
        _ => return store(medium, vcpu, verb, if object.is_empty() { verb } else { object }),
    };
    medium.apply(vcpu, operation).unwrap();
}

fn store(medium: &mut Medium, vcpu: u8, verb: &str, assignment: &str) {
    let (name, value) = assignment.split_once('=').unwrap_or_else(|| panic!("{assignment:?}"));
    let mut word = [0; 8];
    word[0] = value.parse().unwrap();
    let (data, kind) = match verb {
        "nt" => (word.to_vec(), StoreKind::NonTemporal),
        "lock" => (word.to_vec(), StoreKind::Locked),
        "wide" => (word.repeat(2), StoreKind::Cached),
        "direct" => (word.repeat(8), StoreKind::Direct64),
        "dma" => (word.to_vec(), StoreKind::Device),
        _ => (word.to_vec(), StoreKind::Cached),
    };
    medium.apply(vcpu, Operation::Store { address: place(name), data: &data, kind }).unwrap();
}
