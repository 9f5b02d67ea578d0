//! Litmus programs: what may never be left, and what may. The numbers are those of the list that the project keeps.

use std::collections::BTreeSet;

use super::super::*;
use super::machine::{Values, run};

/// A row: number, program, what no image shows, and what some image shows.
type Row = (u32, &'static str, &'static [&'static str], &'static [&'static str]);

/// `x=0 y=1` holds in an image that has both.
fn holds(pattern: &str, image: &Values) -> bool {
    pattern.split(' ').all(|term| {
        let (name, value) = term.split_once('=').unwrap();
        image.get(name) == value.parse::<u8>().unwrap()
    })
}

fn check(domain: Domain, rules: Rules, rows: &[Row]) {
    for (number, program, never, sometimes) in rows {
        let images: BTreeSet<Values> = run(domain, rules, program).into_iter().flatten().collect();
        for pattern in *never {
            assert!(
                !images.iter().any(|i| holds(pattern, i)),
                "row {number}: {program}: {pattern} must not be left"
            );
        }
        for pattern in *sometimes {
            assert!(
                images.iter().any(|i| holds(pattern, i)),
                "row {number}: {program}: {pattern} may be left"
            );
        }
    }
}

const LOST: &str = "x=0 y=1";

#[test]
fn adr() {
    let rows: &[Row] = &[
        (1, "x=1; y=1", &[], &["x=0 y=0", "x=1 y=0", LOST, "x=1 y=1"]),
        (2, "x0=1; x1=1", &["x0=0 x1=1"], &["x0=0 x1=0", "x0=1 x1=0", "x0=1 x1=1"]),
        (3, "x=1; clflush x; y=1", &[LOST], &["x=1 y=0", "x=1 y=1", "x=0 y=0"]),
        (4, "x=1; clflushopt x; y=1", &[], &[LOST, "x=1 y=1"]),
        (5, "x=1; clwb x; sfence; y=1", &[LOST], &["x=1 y=0", "x=1 y=1"]),
        (6, "x=1; clwb x; mfence; y=1", &[LOST], &["x=1 y=1"]),
        (7, "x=1; clwb x; lock z=1; y=1", &[LOST], &["x=1 y=1 z=0", "x=1 y=1 z=1"]),
        (8, "x=1; clwb x; lfence; y=1", &[], &[LOST]),
        (9, "clwb x; x=1; sfence; y=1", &[], &[LOST]),
        (10, "x=1; clwb x; x=2; sfence; y=1", &[LOST], &["x=1 y=1", "x=2 y=1"]),
        (11, "x=1; sfence; y=1", &[], &[LOST]),
        (12, "nt x=1; y=1", &[], &[LOST, "x=1 y=1"]),
        (13, "nt x=1; sfence; y=1", &[LOST], &["x=1 y=1", "x=0 y=0", "x=1 y=0"]),
        (14, "nt x0=1; nt x1=1", &[], &["x0=0 x1=0", "x0=1 x1=0", "x0=0 x1=1", "x0=1 x1=1"]),
        (15, "x=1; y=1; clflush x; clflush y; z=1", &["z=1 x=0", "z=1 y=0"], &[LOST, "x=1 y=1 z=1"]),
        (16, "x=1; clflushopt x; clflush x; y=1", &[LOST], &["x=1 y=1"]),
        (17, "A: x=1; clwb x; B: sfence; y=1", &[], &[LOST]),
        (18, "A: x=1; B: load x; clwb x; sfence; y=1", &[LOST], &["x=1 y=1"]),
        (19, "A: x=1; clwb x; sfence; f=1; B: load f; y=1", &[LOST], &["x=1 y=1 f=0"]),
        (20, "wide x=1", &[], &["x0=0 x1=0", "x0=1 x1=0", "x0=0 x1=1", "x0=1 x1=1"]),
        (23, "lock x=1; y=1", &[], &[LOST]),
        (24, "x=1; clwb x; cpuid; y=1", &[], &[LOST]),
        (25, "x=1; clwb x; lock z=1; y=1", &[LOST], &["x=1 y=1"]),
        (28, "x=1; clwb x; out; y=1", &[], &[LOST]),
        (29, "x=1; wbinvd; y=1", &[LOST], &["x=1 y=1"]),
        (35, "x=1; clwb x; sfence; x=2; x=3; y=1", &[LOST], &["x=1 y=1", "x=2 y=1", "x=3 y=1"]),
        (37, "x=1; clwb x; fail; y=1", &[LOST], &["x=1 y=1"]),
        (38, "x=1; clwb x; load z; y=1", &[], &[LOST]),
        (39, "x=1; clwb x; clflush y; y=1", &[], &[LOST]),
        (40, "x0=1; clwb x; x1=1; sfence; y=1", &["x0=0 y=1"], &["x0=1 x1=0 y=1", "x0=1 x1=1 y=1"]),
        (
            41,
            "nt x=1; nt x=2; sfence; y=1",
            &["x=0 y=1", "x=1 y=1"],
            &["x=0 y=0", "x=1 y=0", "x=2 y=0", "x=2 y=1"],
        ),
        (46, "A: nt x=1; B: sfence; y=1", &[], &[LOST]),
    ];
    check(Domain::Adr, Rules::default(), rows);
}

#[test]
fn switches() {
    let rules = Rules::default();
    let whole = Rules { tear: false, ..rules };
    check(Domain::Adr, whole, &[(20, "wide x=1", &["x0=0 x1=1", "x0=1 x1=0"], &["x0=0 x1=0", "x0=1 x1=1"])]);
    let serialising = Rules { serialising_fences: true, ..rules };
    check(Domain::Adr, serialising, &[(24, "x=1; clwb x; cpuid; y=1", &[LOST], &["x=1 y=1"])]);
    let failing = Rules { failed_cmpxchg_fences: false, ..rules };
    check(Domain::Adr, failing, &[(37, "x=1; clwb x; fail; y=1", &[], &[LOST])]);
    let by_place = Rules { line_order: false, ..rules };
    check(Domain::Adr, by_place, &[(2, "x0=1; x1=1", &[], &["x0=0 x1=1"])]);
}

#[test]
fn eadr() {
    let rows: &[Row] = &[
        (30, "x=1; y=1", &[LOST], &["x=1 y=0", "x=1 y=1"]),
        (31, "nt x=1; y=1", &[], &[LOST]),
        (31, "nt x=1; sfence; y=1", &[LOST], &["x=1 y=1"]),
    ];
    check(Domain::Eadr, Rules::default(), rows);
    let certain = |cut: &BTreeSet<Values>| cut.iter().all(|i| i.get("x") == 1);
    assert!(certain(&run(Domain::Eadr, Rules::default(), "x=1")[1]));
    assert!(certain(&run(Domain::Eadr, Rules::default(), "wide x=1")[1]));
    let posted = run(Domain::Eadr, Rules::default(), "nt x=1; sfence");
    assert!(!certain(&posted[1]) && certain(&posted[2]));
}

#[test]
fn hints() {
    let rows: &[Row] = &[
        (32, "x=1; clwb x; sfence; y=1", &[], &[LOST]),
        (33, "x=1; clwb x; sfence; hint a; y=1", &[LOST], &["x=1 y=1"]),
        (34, "a=1; clwb a; sfence; hint b; y=1", &[], &["a=0 y=1"]),
        (34, "b=1; clwb b; sfence; hint b; y=1", &["b=0 y=1"], &["b=1 y=1"]),
        (33, "x=1; clwb x; hint a; sfence; y=1", &[], &[LOST]),
        (33, "x=1; clflush x; y=1; hint a; z=1", &["x=0 z=1"], &[LOST, "y=0 z=1"]),
        (33, "x=1; wbinvd; y=1; hint a; z=1", &["x=0 z=1"], &[LOST]),
        (33, "nt x=1; sfence; y=1; hint a; z=1", &["x=0 z=1"], &[LOST]),
        (10, "dma x=1; y=1", &[LOST], &["x=1 y=1"]),
    ];
    check(Domain::Hint, Rules::default(), rows);
}

#[test]
fn device_writes_and_whole_lines() {
    let rows: &[Row] = &[
        (10, "dma x=1; y=1", &[LOST], &["x=1 y=1"]),
        (10, "x0=1; dma x1=1; y=1", &["x0=0 y=1"], &["x0=1 x1=1 y=1"]),
        (13, "direct x=1", &["x0=0 x1=1", "x0=1 x1=0"], &["x0=0 x1=0", "x0=1 x1=1"]),
        (13, "direct x=1; sfence; y=1", &[LOST], &["x=1 y=1"]),
        (13, "direct x=1; clwb x; clflush x; y=1", &[], &[LOST]),
    ];
    check(Domain::Adr, Rules::default(), rows);
}

/// Rows 21 and 22: a store across the border of two lines, and of two chunks.
#[test]
fn stores_across_borders() {
    for (address, left, right) in [(60, 60, 64), (4, 4, 8)] {
        let zone = Zone { range: 0..1 << 20, dimms: vec![0] };
        let mut medium = Medium::new(Rules::default(), vec![zone], vec![Domain::Adr]);
        let store = Operation::Store { address, data: &[1; 8], kind: StoreKind::Cached };
        medium.apply(0, store).unwrap();
        let images = super::machine::images(&medium, &|_: u64| [0; 64]);
        let parts: BTreeSet<_> = images
            .into_iter()
            .map(|image| {
                [left, right].map(|at: u64| image.get(&(at & !63)).map_or(0, |c| c[(at % 64) as usize]))
            })
            .collect();
        assert_eq!(parts, BTreeSet::from([[0, 0], [0, 1], [1, 0], [1, 1]]));
    }
}

/// Rows 26 and 27: string stores over three lines.
#[test]
fn string_stores() {
    let stored = |kind, data: &[u8], after: &[Operation<'_>]| {
        let zone = Zone { range: 0..1 << 20, dimms: vec![0] };
        let mut medium = Medium::new(Rules::default(), vec![zone], vec![Domain::Adr]);
        medium.apply(0, Operation::Store { address: 0, data, kind }).unwrap();
        for operation in after {
            medium.apply(0, *operation).unwrap();
        }
        medium
    };
    let clwb = |address| Operation::Flush { address, kind: FlushKind::Clwb };
    let fenced = [clwb(0), clwb(64), clwb(128), Operation::Fence(FenceKind::Sfence)];
    let stosq = stored(StoreKind::String(8), &[7; 192], &fenced);
    assert!(stosq.undecided().is_empty());
    let movsb = stored(StoreKind::String(1), &[7; 192], &[]);
    let zero = |_: u64| [0; 64];
    // Each line keeps any prefix of 64 bytes.
    assert_eq!(movsb.states(&zero), (65u32 * 65 * 65).into());
    for marks in movsb.lines.iter() {
        for content in movsb.line_contents(*marks.0, *marks.1, &zero) {
            let kept = content.iter().take_while(|&&b| b == 7).count();
            assert!(content[kept..].iter().all(|&b| b == 0));
        }
    }
}

/// Rows 36 and 47: after the last fence, and after a mark, everything is certain.
#[test]
fn what_was_promised_stays() {
    let program = "x=1; y=1; clwb x; clwb y; sfence; c=1; clwb c; sfence";
    let cuts = run(Domain::Adr, Rules::default(), program);
    assert!(cuts.iter().flatten().all(|i| i.get("c") == 0 || (i.get("x") == 1 && i.get("y") == 1)));
    let last = cuts.last().unwrap();
    assert_eq!(last.len(), 1);
    assert!(last.iter().all(|i| i.get("x") == 1 && i.get("y") == 1 && i.get("c") == 1));
    let cuts = run(Domain::Adr, Rules::default(), "x=1; clwb x; sfence; mark; y=1; y=2");
    assert!(cuts[4..].iter().flatten().all(|i| i.get("x") == 1));
}
