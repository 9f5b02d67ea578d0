//! What the model costs, what it explains, and what it refuses.

use std::collections::BTreeMap;
use std::time::Instant;

use super::super::*;
use super::machine::execute;

fn medium(domain: Domain) -> Medium {
    Medium::new(Rules::default(), vec![Zone { range: 0..1 << 30, dimms: vec![0] }], vec![domain])
}

fn zero(_: u64) -> [u8; 64] {
    [0; 64]
}

fn store(medium: &mut Medium, address: u64, value: u64) {
    let data = value.to_le_bytes();
    medium.apply(0, Operation::Store { address, data: &data, kind: StoreKind::Cached }).unwrap();
}

#[test]
fn a_store_costs_at_most_64_bytes_and_its_data() {
    const STORES: u64 = 2_000_000;
    type Address = fn(u64) -> u64;
    let patterns: [(&str, Address); 3] = [
        ("one after the other", |n| 8 * n),
        ("a line each", |n| 64 * n),
        ("all over the place", |n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (1 << 30)) & !7),
    ];
    for (name, address) in patterns {
        let mut medium = medium(Domain::Adr);
        (0..STORES).for_each(|n| store(&mut medium, address(n), n));
        let each = medium.memory() as f64 / STORES as f64;
        assert!(each <= 64.0 + 8.0, "{name}: {each:.1} bytes a store");
    }
}

/// Prints the rate; `cargo test --release -- --nocapture --ignored rate` shows it without the tests' checks.
#[test]
#[ignore = "a measurement"]
fn rate() {
    const STORES: u64 = 20_000_000;
    let mut medium = medium(Domain::Adr);
    let start = Instant::now();
    for n in 0..STORES {
        store(&mut medium, 8 * n % (1 << 26), n);
    }
    let rate = STORES as f64 / start.elapsed().as_secs_f64() / 1e6;
    println!("{rate:.1} million stores a second, {:.1} bytes each", medium.memory() as f64 / STORES as f64);
}

/// Prints what a first and a second choice at one cut cost after a million stores, a tenth of them never flushed.
#[test]
#[ignore = "a measurement"]
fn choice() {
    let mut medium = medium(Domain::Adr);
    for n in 0..1_000_000 {
        let address = 64 * (n * 7 % 125_000);
        store(&mut medium, address, n);
        if n % 10 != 0 {
            medium.apply(0, Operation::Flush { address, kind: FlushKind::Clflush }).unwrap();
        }
    }
    let start = Instant::now();
    let cut = medium.cut(&zero);
    let first = start.elapsed();
    let start = Instant::now();
    let outcome = cut.outcome(&Survivors::Random(1)).unwrap();
    println!(
        "{} lines in doubt; the cut takes {first:?}, a choice {:?} for {} lines",
        medium.undecided().len(),
        start.elapsed(),
        outcome.lines.len()
    );
}

#[test]
fn a_long_run_that_settles_stays_small() {
    let mut medium = medium(Domain::Adr);
    let mut base = BTreeMap::new();
    let mut most = 0;
    for round in 0..20u64 {
        for n in 0..20_000 {
            store(&mut medium, 64 * (n % 1000), round * 20_000 + n + 1);
        }
        // All but one line are flushed.
        for line in 1..1000 {
            let flush = Operation::Flush { address: 64 * line, kind: FlushKind::Clflush };
            medium.apply(0, flush).unwrap();
        }
        let image = medium.settle(&|address: u64| base.get(&address).copied().unwrap_or([0; 64])).unwrap();
        base.extend(image.lines);
        most = most.max(medium.memory());
        assert_eq!(medium.undecided().len(), 1);
    }
    assert_eq!(medium.steps(), 20 * 20);
    assert!(most < 8 << 20, "{most} bytes");
    let last = |line: u64| u64::from_le_bytes(base[&(64 * line)][..8].try_into().unwrap());
    assert_eq!((last(1), last(999)), (399_002, 400_000));
}

#[test]
fn counts_are_exact_and_large() {
    let mut medium = medium(Domain::Adr);
    (0..1000).for_each(|n| store(&mut medium, 64 * n, 1));
    assert_eq!(medium.states(&zero), num_bigint::BigUint::from(2u32).pow(1000));
    // A store that changes nothing adds no image.
    store(&mut medium, 0, 1);
    assert_eq!(medium.states(&zero), num_bigint::BigUint::from(2u32).pow(1000));
    assert_eq!(medium.undecided().len(), 1000);
}

#[test]
fn what_is_missing_is_named() {
    let missing = |domain, program: &str| -> Vec<Missing> {
        let mut medium = medium(domain);
        program.split(';').for_each(|statement| execute(&mut medium, 1, statement.trim()));
        medium.undecided().iter().flat_map(|line| line.writers.iter().map(|w| w.missing)).collect()
    };
    assert_eq!(missing(Domain::Adr, "x=1"), [Missing::Flush]);
    assert_eq!(missing(Domain::Adr, "x=1; clwb x"), [Missing::Fence(1)]);
    assert_eq!(missing(Domain::Adr, "x=1; clwb x; x=2"), [Missing::Fence(1), Missing::Flush]);
    assert_eq!(missing(Domain::Adr, "x=1; clwb x; sfence"), []);
    assert_eq!(missing(Domain::Adr, "nt x=1"), [Missing::Fence(1)]);
    assert_eq!(missing(Domain::Hint, "x=1; clwb x; sfence"), [Missing::Hint(0)]);
    assert_eq!(missing(Domain::Hint, "nt x=1; sfence"), [Missing::Hint(0)]);
    let mut medium = medium(Domain::Adr);
    execute(&mut medium, 0, "sfence");
    execute(&mut medium, 3, "wide x=1");
    let line = &medium.undecided()[0];
    let writer = line.writers[0];
    assert_eq!((writer.event, writer.vcpu, writer.offset, writer.len), (1, 3, 0, 16));
    assert_eq!((line.by_chunks, line.chunks), (false, [1, 1, 0, 0, 0, 0, 0, 0]));
}

#[test]
fn picks_make_the_image_that_they_say() {
    let mut medium = medium(Domain::Adr);
    for statement in ["wide a=1", "a=2", "nt c=3", "nt c1=4"] {
        execute(&mut medium, 0, statement);
    }
    let image =
        |address: u64, pick: Pick| medium.image(&zero, &Survivors::Picks(BTreeMap::from([(address, pick)])));
    let shows = |address: u64, pick: Pick| {
        let lines = image(address, pick).unwrap().lines;
        lines.get(&address).map_or((0, 0), |content| (content[0], content[8]))
    };
    let in_order = |kept, torn| Pick::InOrder { kept, torn };
    assert_eq!(shows(0, in_order(0, 0)), (0, 0));
    assert_eq!(shows(0, in_order(0, 0b10)), (0, 1));
    assert_eq!(shows(0, in_order(1, 0)), (1, 1));
    assert_eq!(shows(0, in_order(2, 0)), (2, 1));
    assert_eq!(shows(128, Pick::ByChunks([0, 1, 0, 0, 0, 0, 0, 0])), (0, 4));
    for (address, pick) in [
        (0, in_order(3, 0)),
        (0, in_order(0, 0b11)),
        (0, in_order(0, 0b100)),
        (0, in_order(1, 1)),
        (0, in_order(2, 1)),
        (0, Pick::ByChunks([0; 8])),
        (128, in_order(0, 0)),
        (128, Pick::ByChunks([2, 0, 0, 0, 0, 0, 0, 0])),
    ] {
        assert_eq!(image(address, pick), Err(Error::BadPick { address }), "{pick:?}");
    }
    for address in [64, 1, 1 << 40] {
        assert_eq!(image(address, in_order(0, 0)), Err(Error::NotInDoubt { address }));
    }
    let none = medium.image(&zero, &Survivors::None).unwrap();
    assert_eq!((none.lines.len(), none.name), (0, ImageName::default()));
    let names: std::collections::HashSet<_> =
        (0..50).map(|seed| medium.image(&zero, &Survivors::Random(seed)).unwrap().name).collect();
    assert!(names.len() > 4, "{}", names.len());
}

#[test]
fn what_lies_elsewhere_does_not_matter() {
    let mut medium = medium(Domain::Adr);
    let outside = Operation::Store { address: (1 << 30) - 4, data: &[1; 8], kind: StoreKind::Cached };
    medium.apply(0, outside).unwrap();
    assert_eq!((medium.steps(), medium.undecided().len()), (1, 1));
    for address in [u64::MAX, u64::MAX - 3, 1 << 40] {
        let store = Operation::Store { address, data: &[1; 4], kind: StoreKind::NonTemporal };
        medium.apply(255, store).unwrap();
        medium.apply(255, Operation::Flush { address, kind: FlushKind::Clflush }).unwrap();
    }
    medium.apply(255, Operation::Fence(FenceKind::Sfence)).unwrap();
    medium.apply(0, Operation::Hint { dimm: 99 }).unwrap();
    medium.apply(0, Operation::Store { address: 0, data: &[], kind: StoreKind::Locked }).unwrap();
    medium.apply(0, Operation::DropAll).unwrap();
    assert_eq!((medium.steps(), medium.warnings().dropped), (1, 1));
}
