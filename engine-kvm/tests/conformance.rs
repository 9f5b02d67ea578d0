//! The neck's conformance suite on KVM. Skipped, with the reason, where KVM is not fit; ci/nested-kvm brings one that is.

use engine::conformance::{Report, Selection, run, run_moving};
use engine_kvm::{Fitness, Kvm, fitness};

/// Runs a part of the suite where KVM is fit.
fn conforms(suite: impl FnOnce(&Kvm, &Selection) -> Report) {
    match fitness() {
        Fitness::Fit => {}
        verdict if std::env::var_os("NVSIM_REQUIRE_KVM").is_some() => panic!("KVM is {verdict}"),
        verdict => return eprintln!("skipped: KVM is {verdict}"),
    }
    let kvm = Kvm::open().expect("it is fit");
    let report = suite(&kvm, &Selection::from_environment());
    println!("{report}");
    assert_eq!(report.failures().count(), 0, "\n{report}");
}

#[test]
fn every_case_holds() {
    conforms(|kvm, selection| run(kvm, selection));
}

#[test]
fn every_case_holds_while_its_state_moves() {
    conforms(|kvm, selection| run_moving(&[kvm], selection));
}
