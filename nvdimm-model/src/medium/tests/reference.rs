//! A machine that does what the rules say, one way at a time, and is run in all ways: stores wait in queues, anything that
//! may move to the medium by itself does so or not, and a fence drops the runs in which what it waits for has not moved.
//! It shares no code and no idea with the model.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use proptest::prelude::*;

use super::super::*;
use super::machine::images;

const LINES: usize = 2;
const CHUNKS: usize = 2;

/// What one vCPU does. Stores write the number of the operation, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Store(usize, usize),
    Wide(usize),
    Locked(usize, usize),
    Posted(usize, usize),
    PostedWide(usize),
    Direct(usize),
    Device(usize, usize),
    Clflush(usize),
    Clwb(usize),
    Sfence,
    WriteBackAll,
    Hint,
}

type Program = Vec<(u8, Op)>;
type Cells = [[u8; CHUNKS]; LINES];

/// A store that has not reached the medium: in the cache, or posted by a vCPU.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    number: u8,
    line: usize,
    /// Bits.
    chunks: u8,
    posted_by: Option<u8>,
}

/// One way that things can have gone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Run {
    medium: Cells,
    waiting: Vec<Waiting>,
    /// By vCPU: number up to which a line's cached stores were asked for.
    asked: [Vec<(usize, u8)>; 2],
    /// What the next hint waits for: numbers of stores.
    fenced: Vec<u8>,
}

impl Run {
    fn blocked(&self, at: usize, line_order: bool) -> bool {
        let own = &self.waiting[at];
        self.waiting[..at].iter().any(|earlier| {
            let both_cached = earlier.posted_by.is_none() && own.posted_by.is_none();
            earlier.line == own.line && (earlier.chunks & own.chunks != 0 || (line_order && both_cached))
        })
    }

    fn land(&mut self, at: usize) {
        let store = self.waiting.remove(at);
        for chunk in (0..CHUNKS).filter(|c| store.chunks >> c & 1 == 1) {
            self.medium[store.line][chunk] = store.number;
        }
    }

    /// A store that is on the medium at once replaces what waits for the same place.
    fn write_through(&mut self, number: u8, line: usize, chunks: u8) {
        for waiting in &mut self.waiting {
            if waiting.line == line {
                waiting.chunks &= !chunks;
            }
        }
        self.waiting.retain(|w| w.chunks != 0);
        for chunk in (0..CHUNKS).filter(|c| chunks >> c & 1 == 1) {
            self.medium[line][chunk] = number;
        }
    }

    fn cached(&self, line: usize, up_to: u8) -> impl Iterator<Item = u8> + '_ {
        let cached = move |w: &&Waiting| w.line == line && w.posted_by.is_none() && w.number <= up_to;
        self.waiting.iter().filter(cached).map(|w| w.number)
    }
}

struct Machine {
    domain: Domain,
    rules: Rules,
    runs: BTreeSet<Run>,
    number: u8,
}

impl Machine {
    fn new(domain: Domain, rules: Rules) -> Self {
        let start =
            Run { medium: Cells::default(), waiting: vec![], asked: [vec![], vec![]], fenced: vec![] };
        Self { domain, rules, runs: BTreeSet::from([start]), number: 0 }
    }

    fn clone(&self) -> Self {
        Self { domain: self.domain, rules: self.rules, runs: self.runs.clone(), number: self.number }
    }

    fn step(&mut self, vcpu: u8, op: Op) {
        self.number += 1;
        let number = self.number;
        let runs = std::mem::take(&mut self.runs);
        for mut run in runs {
            if self.act(&mut run, vcpu, op, number) {
                self.settle(run);
            }
        }
    }

    /// Everything that may now move to the medium does so in some runs.
    fn settle(&mut self, run: Run) {
        for at in 0..run.waiting.len() {
            if !run.blocked(at, self.rules.line_order) {
                let mut moved = run.clone();
                moved.land(at);
                if !self.runs.contains(&moved) {
                    self.settle(moved);
                }
            }
        }
        self.runs.insert(run);
    }

    /// Carries out an operation; false if this run cannot go on, for something should have moved before.
    fn act(&self, run: &mut Run, vcpu: u8, op: Op, number: u8) -> bool {
        let posted = |line, chunks| Waiting { number, line, chunks, posted_by: Some(vcpu) };
        let wait = |run: &mut Run, needed: Vec<u8>| match self.domain {
            Domain::Hint => {
                run.fenced.extend(needed);
                true
            }
            Domain::Adr | Domain::Eadr => !run.waiting.iter().any(|w| needed.contains(&w.number)),
        };
        let store = |run: &mut Run, line, chunks| match self.domain {
            Domain::Eadr => run.write_through(number, line, chunks),
            _ if self.rules.line_order => run.waiting.push(Waiting { number, line, chunks, posted_by: None }),
            _ => {
                let parts = (0..CHUNKS).map(|c| chunks & 1 << c).filter(|&c| c != 0);
                run.waiting.extend(parts.map(|chunks| Waiting { number, line, chunks, posted_by: None }));
            }
        };
        let fence = |run: &mut Run| {
            let asked = std::mem::take(&mut run.asked[usize::from(vcpu)]);
            let mut needed: Vec<u8> =
                asked.iter().flat_map(|&(l, n)| run.cached(l, n).collect::<Vec<_>>()).collect();
            needed.extend(run.waiting.iter().filter(|w| w.posted_by == Some(vcpu)).map(|w| w.number));
            wait(run, needed)
        };
        match op {
            Op::Store(line, chunk) => store(run, line, 1 << chunk),
            Op::Wide(line) => store(run, line, 3),
            Op::Locked(line, chunk) => {
                if !fence(run) {
                    return false;
                }
                store(run, line, 1 << chunk);
            }
            Op::Posted(line, chunk) => run.waiting.push(posted(line, 1 << chunk)),
            Op::PostedWide(line) => run.waiting.extend([posted(line, 1), posted(line, 2)]),
            Op::Direct(line) => run.waiting.push(posted(line, 3)),
            Op::Device(line, chunk) => {
                if run.cached(line, u8::MAX).next().is_some() {
                    return false;
                }
                run.write_through(number, line, 1 << chunk);
            }
            Op::Clflush(line) => {
                let needed = run.cached(line, u8::MAX).collect();
                return wait(run, needed);
            }
            Op::Clwb(line) => run.asked[usize::from(vcpu)].push((line, number)),
            Op::Sfence => return fence(run),
            Op::WriteBackAll => {
                let needed = run.waiting.iter().map(|w| w.number).collect();
                return wait(run, needed);
            }
            Op::Hint => {
                let needed = std::mem::take(&mut run.fenced);
                return !run.waiting.iter().any(|w| needed.contains(&w.number));
            }
        }
        true
    }

    /// All that a cut can leave: what has landed, and parts of the next cached store of each line.
    fn images(&self) -> BTreeSet<Cells> {
        let mut images = BTreeSet::new();
        for run in &self.runs {
            let mut torn = vec![run.medium];
            for (at, store) in run.waiting.iter().enumerate() {
                let tears = self.rules.tear && store.posted_by.is_none() && store.chunks == 3;
                if tears && !run.blocked(at, self.rules.line_order) {
                    for image in torn.clone() {
                        for chunk in 0..CHUNKS {
                            let mut other = image;
                            other[store.line][chunk] = store.number;
                            torn.push(other);
                        }
                    }
                }
            }
            images.extend(torn);
        }
        images
    }
}

fn medium(domain: Domain, rules: Rules) -> Medium {
    Medium::new(rules, vec![Zone { range: 0..1 << 20, dimms: vec![0] }], vec![domain])
}

fn feed(medium: &mut Medium, vcpu: u8, op: Op, number: u8) {
    let mut word = [0; 8];
    word[0] = number;
    let wide = [word, word].concat();
    let mut line = [0; 64];
    (line[0], line[8]) = (number, number);
    let at = |line: usize, chunk: usize| (64 * line + 8 * chunk) as u64;
    let store = |address, data, kind| Operation::Store { address, data, kind };
    let operation = match op {
        Op::Store(l, c) => store(at(l, c), &word[..], StoreKind::Cached),
        Op::Wide(l) => store(at(l, 0), &wide[..], StoreKind::Cached),
        Op::Locked(l, c) => store(at(l, c), &word[..], StoreKind::Locked),
        Op::Posted(l, c) => store(at(l, c), &word[..], StoreKind::NonTemporal),
        Op::PostedWide(l) => store(at(l, 0), &wide[..], StoreKind::NonTemporal),
        Op::Direct(l) => store(at(l, 0), &line[..], StoreKind::Direct64),
        Op::Device(l, c) => store(at(l, c), &word[..], StoreKind::Device),
        Op::Clflush(l) => Operation::Flush { address: at(l, 1), kind: FlushKind::Clflush },
        Op::Clwb(l) => Operation::Flush { address: at(l, 1), kind: FlushKind::Clwb },
        Op::Sfence => Operation::Fence(FenceKind::Sfence),
        Op::WriteBackAll => Operation::WriteBackAll,
        Op::Hint => Operation::Hint { dimm: 0 },
    };
    medium.apply(vcpu, operation).unwrap();
}

type Lines = BTreeMap<u64, [u8; 64]>;

fn cells(base: &Lines, image: &Lines) -> Cells {
    let mut cells = Cells::default();
    for (&address, content) in base.iter().chain(image) {
        for (chunk, cell) in cells[(address / 64) as usize].iter_mut().enumerate() {
            *cell = content[8 * chunk];
        }
    }
    cells
}

/// Compares the two at a cut. Where cached and posted stores meet in a line the model may allow more.
fn agree(machine: &Machine, medium: &Medium, base: &Lines, program: &[(u8, Op)]) {
    let zero = |address: u64| base.get(&address).copied().unwrap_or([0; 64]);
    let expected = machine.images();
    let found: BTreeSet<Cells> = images(medium, &zero).into_iter().map(|image| cells(base, &image)).collect();
    if medium.warnings().mixed == 0 {
        assert_eq!(found, expected, "{:?} {:?} {program:?}", machine.domain, machine.rules);
    } else {
        assert!(
            found.is_superset(&expected),
            "{found:?} lacks some of {expected:?}: {:?} {program:?}",
            machine.domain
        );
    }
    assert_eq!(medium.states(&zero), found.len().into(), "{program:?}");
    for survivors in
        [Survivors::None, Survivors::All, Survivors::Random(1), Survivors::Random(program.len() as u64)]
    {
        let image = medium.image(&zero, &survivors).unwrap();
        assert!(found.contains(&cells(base, &image.lines)), "{survivors:?} {program:?}");
        descends(medium, base, &survivors, &found, program);
    }
}

/// The way from all stores to what survives leads over nothing but images that may be left.
fn descends(
    medium: &Medium,
    base: &Lines,
    survivors: &Survivors,
    found: &BTreeSet<Cells>,
    program: &[(u8, Op)],
) {
    let zero = |address: u64| base.get(&address).copied().unwrap_or([0; 64]);
    let newest = |line: u64| (64 * line, medium.newest(64 * line, &zero));
    let mut lines: Lines = (0..LINES as u64).map(newest).collect();
    assert_eq!(cells(base, &lines), cells(base, &medium.image(&zero, &Survivors::All).unwrap().lines));
    // What must not tear is in part there, when it is written by chunks.
    let whole = !medium.rules.tear || program.iter().any(|(_, op)| matches!(op, Op::Direct(_)));
    for (address, chunk) in medium.cut(&zero).descent(survivors).unwrap() {
        let line = lines.get_mut(&(address / 64 * 64)).unwrap();
        line[(address % 64) as usize..][..8].copy_from_slice(&chunk);
        assert!(whole || found.contains(&cells(base, &lines)), "{survivors:?} {program:?}: {lines:?}");
    }
    let reached = cells(base, &medium.image(&zero, survivors).unwrap().lines);
    assert_eq!(cells(base, &lines), reached, "{survivors:?} {program:?}");
}

/// Runs a program; after the operations that `settle` has bits for, the model forgets what is decided.
fn run(domain: Domain, rules: Rules, program: &[(u8, Op)], settle: u8) {
    let mut machine = Machine::new(domain, rules);
    let mut settled = medium(domain, rules);
    let mut whole = medium(domain, rules);
    let mut base = Lines::new();
    let of = |base: &Lines, address: u64| base.get(&address).copied().unwrap_or([0; 64]);
    for (n, &(vcpu, op)) in program.iter().enumerate() {
        machine.step(vcpu, op);
        feed(&mut settled, vcpu, op, n as u8 + 1);
        feed(&mut whole, vcpu, op, n as u8 + 1);
        if settle >> n & 1 == 1 {
            let image = settled.settle(&|address: u64| of(&base, address)).unwrap();
            base.extend(image.lines);
        }
        agree(&machine, &settled, &base, &program[..=n]);
        picks_are_complete(&whole);
        for survivors in [Survivors::None, Survivors::All] {
            let name = |medium: &Medium, base: &Lines| {
                medium.image(&|address: u64| of(base, address), &survivors).unwrap().name
            };
            assert_eq!(name(&settled, &base), name(&whole, &Lines::new()), "{program:?}");
        }
    }
}

/// All picks of all lines give as many contents as there are.
fn picks_are_complete(medium: &Medium) {
    let zero = |_: u64| [0; 64];
    let cut = medium.cut(&zero);
    let mut states = num_bigint::BigUint::from(1u32);
    assert_eq!(medium.lines_in_doubt(), medium.undecided().len());
    for line in medium.undecided() {
        assert!(medium.is_in_doubt(line.address));
        let contents: HashSet<_> = medium
            .picks(line.address)
            .map(|pick| {
                let picks = Survivors::Picks(BTreeMap::from([(line.address, pick)]));
                cut.outcome(&picks).unwrap().lines.get(&line.address).copied()
            })
            .collect();
        states *= contents.len();
    }
    assert_eq!(states, medium.states(&zero));
}

/// All programs over `ops` up to `depth` operations, as a tree.
fn all(machine: &Machine, medium: &Medium, ops: &[(u8, Op)], program: &mut Program, depth: usize) {
    for &(vcpu, op) in ops {
        let (mut machine, mut medium) = (machine.clone(), medium.clone());
        program.push((vcpu, op));
        machine.step(vcpu, op);
        feed(&mut medium, vcpu, op, program.len() as u8);
        agree(&machine, &medium, &Lines::new(), program);
        if program.len() < depth {
            all(&machine, &medium, ops, program, depth);
        }
        program.pop();
    }
}

fn exhaust(domain: Domain, rules: Rules, ops: &[Op], depth: usize) {
    let both: Vec<_> = ops.iter().flat_map(|&op| [(0, op), (1, op)]).collect();
    all(&Machine::new(domain, rules), &medium(domain, rules), &both, &mut Vec::new(), depth);
}

const CORE: [Op; 5] = [Op::Store(0, 0), Op::Store(1, 0), Op::Clwb(0), Op::Clwb(1), Op::Sfence];
const ONE_LINE: [Op; 6] = [Op::Wide(0), Op::Store(0, 1), Op::Posted(0, 0), Op::Clwb(0), Op::Sfence, Op::Hint];
const POSTED: [Op; 6] =
    [Op::Posted(0, 0), Op::PostedWide(0), Op::Direct(1), Op::Sfence, Op::Locked(1, 1), Op::Clflush(1)];
const DOMAINS: [Domain; 3] = [Domain::Adr, Domain::Eadr, Domain::Hint];

#[test]
fn all_short_programs() {
    for domain in DOMAINS {
        for ops in [&CORE[..], &ONE_LINE, &POSTED] {
            exhaust(domain, Rules::default(), ops, 3);
        }
    }
}

#[test]
#[ignore = "minutes: all programs of six operations; run with --release -- --ignored"]
fn all_programs_of_six_operations() {
    for domain in DOMAINS {
        exhaust(domain, Rules::default(), &CORE, 6);
        exhaust(domain, Rules::default(), &ONE_LINE, 5);
        exhaust(domain, Rules::default(), &POSTED, 5);
    }
}

fn any_op() -> impl Strategy<Value = Op> {
    let (l, c) = (0..LINES, 0..CHUNKS);
    prop_oneof![
        4 => (l.clone(), c.clone()).prop_map(|(l, c)| Op::Store(l, c)),
        2 => l.clone().prop_map(Op::Wide),
        1 => (l.clone(), c.clone()).prop_map(|(l, c)| Op::Locked(l, c)),
        2 => (l.clone(), c.clone()).prop_map(|(l, c)| Op::Posted(l, c)),
        1 => l.clone().prop_map(Op::PostedWide),
        1 => l.clone().prop_map(Op::Direct),
        1 => (l.clone(), c).prop_map(|(l, c)| Op::Device(l, c)),
        1 => l.clone().prop_map(Op::Clflush),
        4 => l.prop_map(Op::Clwb),
        4 => Just(Op::Sfence),
        1 => Just(Op::WriteBackAll),
        2 => Just(Op::Hint),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn random_programs_of_six_operations(
        domain in prop::sample::select(DOMAINS.to_vec()),
        tear in any::<bool>(),
        line_order in prop::bool::weighted(0.8),
        program in prop::collection::vec((0u8..2, any_op()), 1..7),
        settle in any::<u8>(),
    ) {
        run(domain, Rules { tear, line_order, ..Rules::default() }, &program, settle);
    }
}
