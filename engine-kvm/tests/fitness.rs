//! The verdict on this host, whatever it is: quick, and with a reason.

use std::time::{Duration, Instant};

use engine_kvm::{Fitness, fitness};

#[test]
fn the_verdict_is_quick_and_has_a_reason() {
    let start = Instant::now();
    let verdict = fitness();
    let took = start.elapsed();
    eprintln!("KVM on this host, after {took:?}: {verdict}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    // ci/nested-kvm brings a KVM that is known to be fit.
    if std::env::var_os("NVSIM_REQUIRE_KVM").is_some() {
        assert_eq!(verdict, Fitness::Fit);
    }
    match verdict {
        Fitness::Fit => assert!(std::path::Path::new("/dev/kvm").exists()),
        Fitness::Unfit { reason } | Fitness::Absent { reason } => assert!(reason.len() > 20, "{reason}"),
    }
}

/// Hosts without hardware virtualization have no fit KVM, whatever /dev/kvm says.
#[test]
fn a_processor_without_virtualization_is_never_fit() {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let virtualizes = cpuinfo.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    if !virtualizes {
        assert_ne!(fitness(), Fitness::Fit);
    }
}
