//! The neck's conformance suite on KVM. Skipped, with the reason, where KVM is not fit; ci/nested-kvm brings one that is.

use engine::conformance::{Report, Selection, run, run_moving};
use engine::{Built, Engine, GuestMemory, PartitionSpec};
use engine_kvm::{Fitness, Kvm, fitness};

/// Runs a part of the suite where KVM is fit.
fn conforms(name: &str, suite: impl FnOnce(&Kvm, &Selection) -> Report) {
    match fitness() {
        Fitness::Fit => {}
        verdict if std::env::var_os("NVSIM_REQUIRE_KVM").is_some() => panic!("KVM is {verdict}"),
        verdict => return eprintln!("skipped: KVM is {verdict}"),
    }
    let kvm = Kvm::open().expect("it is fit");
    let report = suite(&kvm, &Selection::from_environment().named(name));
    println!("{report}");
    assert_eq!(report.failures().count(), 0, "\n{report}");
}

#[test]
fn every_case_holds() {
    conforms("kvm", |kvm, selection| run(kvm, selection));
}

/// A KVM that single-steps whatever runs on it: a page that no case touches is watched.
#[derive(Debug)]
struct Stepped<'k>(&'k Kvm);

impl Engine for Stepped<'_> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn tsc_khz(&self, preferred: u32) -> u32 {
        self.0.tsc_khz(preferred)
    }

    fn build(&self, spec: &PartitionSpec, memory: &GuestMemory) -> engine::Result<Built> {
        let built = self.0.build(spec, memory)?;
        let nothing = 0x3F_F000..0x40_0000;
        built.partition.memory_events().expect("it steps").watch(&[nothing], false);
        Ok(built)
    }
}

#[test]
fn every_case_holds_while_it_is_stepped() {
    conforms("stepped", |kvm, selection| run(&Stepped(kvm), &selection.clone().and_not(UNFORESEEN)));
}

/// Traps of the guest's own single-stepping, an NMI that waits for another one's end, timers that go by the host's time, and
/// what takes too long by single steps.
const UNFORESEEN: &[&str] = &[
    "exceptions::single_step",
    "events::mov_ss_holds_off_a_single_step",
    "events::nmi_waits_for_iret",
    "apic::periodic_timer",
    "smp::locked_increments_are_not_lost",
];

#[test]
fn every_case_holds_while_its_state_moves() {
    conforms("moving", |kvm, selection| run_moving(&[kvm], selection));
}
