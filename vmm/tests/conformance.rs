//! The two engines agree: the conformance suite with a state that goes from one to the other and back at every exit.
//! Skipped, with the reason, where KVM is not fit; ci/nested-kvm brings one that is.

use engine::conformance::{Selection, run_moving};
use vmm::{CpuModel, EngineChoice, KvmFitness, kvm_fitness, open_engine};

#[test]
fn a_state_saved_on_one_engine_goes_on_with_the_other() {
    match kvm_fitness() {
        KvmFitness::Fit => {}
        verdict if std::env::var_os("NVSIM_REQUIRE_KVM").is_some() => panic!("KVM is {verdict}"),
        verdict => return eprintln!("skipped: KVM is {verdict}"),
    }
    let open = |choice| open_engine(choice, CpuModel::V2).expect("it is there").engine;
    let (soft, kvm) = (open(EngineChoice::Soft), open(EngineChoice::Kvm));
    let report = run_moving(&[&*soft, &*kvm], &Selection::from_environment().named("engines"));
    println!("{report}");
    assert_eq!(report.failures().count(), 0, "\n{report}");
}
