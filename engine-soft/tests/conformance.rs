//! The neck's conformance suite on the software engine.

use engine::conformance::{Report, Selection, run, run_moving};
use engine_soft::Soft;

fn conforms(report: &Report) {
    println!("{report}");
    assert_eq!(report.failures().count(), 0, "\n{report}");
}

#[test]
fn every_case_holds() {
    conforms(&run(&Soft::new(), &Selection::from_environment()));
}

#[test]
fn every_case_holds_while_its_state_moves() {
    conforms(&run_moving(&[&Soft::new()], &Selection::from_environment()));
}

/// The interpreter alone, and the translator with caches emptied, slow paths taken and blocks cut at random.
#[test]
fn every_case_holds_interpreted_and_under_stress() {
    conforms(&run(&Soft::interpreter(), &Selection::from_environment()));
    for seed in 0..8 {
        println!("seed {seed}");
        conforms(&run(&Soft::stressed(seed), &Selection::from_environment()));
    }
    conforms(&run_moving(
        &[&Soft::interpreter(), &Soft::stressed(8), &Soft::new()],
        &Selection::from_environment(),
    ));
}
