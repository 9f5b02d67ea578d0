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
