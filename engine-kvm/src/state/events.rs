//! Undelivered events and what the vCPU is doing.

use engine::state::{Activity, PendingEvents};
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, kvm_vcpu_events,
};

/// Vector of the NMI.
const NMI: u8 = 2;
/// Vectors below are exceptions.
const FIRST_INTERRUPT: u8 = 32;

/// KVM's two shadows (STI, MOV SS) are one in the neutral state: both end after one instruction.
pub(super) fn from_kvm(events: &kvm_vcpu_events) -> PendingEvents {
    let exception = &events.exception;
    let injected = if exception.injected != 0 {
        Some((exception.nr, (exception.has_error_code != 0).then_some(exception.error_code)))
    } else if events.interrupt.injected != 0 {
        Some((events.interrupt.nr, None))
    } else if events.nmi.injected != 0 {
        Some((NMI, None))
    } else {
        None
    };
    PendingEvents {
        injected,
        interrupt_shadow: events.interrupt.shadow != 0,
        nmi_pending: events.nmi.pending != 0,
        nmi_blocked: events.nmi.masked != 0,
    }
}

pub(super) fn to_kvm(events: &PendingEvents) -> kvm_vcpu_events {
    let mut kvm = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    match events.injected {
        Some((NMI, None)) => kvm.nmi.injected = 1,
        Some((vector, None)) if vector >= FIRST_INTERRUPT => {
            kvm.interrupt.injected = 1;
            kvm.interrupt.nr = vector;
        }
        Some((vector, error_code)) => {
            kvm.exception.injected = 1;
            kvm.exception.nr = vector;
            kvm.exception.has_error_code = error_code.is_some().into();
            kvm.exception.error_code = error_code.unwrap_or(0);
        }
        None => {}
    }
    // KVM_X86_SHADOW_INT_STI; the guest sees no difference from MOV SS.
    kvm.interrupt.shadow = u8::from(events.interrupt_shadow) << 1;
    kvm.nmi.pending = events.nmi_pending.into();
    kvm.nmi.masked = events.nmi_blocked.into();
    kvm
}

pub(super) fn activity_from_kvm(mp_state: u32) -> Activity {
    match mp_state {
        KVM_MP_STATE_HALTED => Activity::Halted,
        KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED | KVM_MP_STATE_SIPI_RECEIVED => {
            Activity::WaitForSipi
        }
        _ => Activity::Running,
    }
}

/// An uninitialised vCPU would still want an INIT before its SIPI, so INIT has been received.
pub(super) fn activity_to_kvm(activity: Activity) -> u32 {
    match activity {
        Activity::Running => KVM_MP_STATE_RUNNABLE,
        Activity::Halted => KVM_MP_STATE_HALTED,
        Activity::WaitForSipi => KVM_MP_STATE_INIT_RECEIVED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_returns() {
        let events = [
            None,
            Some((2, None)),
            Some((3, None)),
            Some((14, Some(7))),
            Some((32, None)),
            Some((255, None)),
        ];
        for injected in events {
            for bits in 0..8 {
                let events = PendingEvents {
                    injected,
                    interrupt_shadow: bits & 1 != 0,
                    nmi_pending: bits & 2 != 0,
                    nmi_blocked: bits & 4 != 0,
                };
                assert_eq!(from_kvm(&to_kvm(&events)), events);
            }
        }
    }

    #[test]
    fn every_activity_returns() {
        for activity in [Activity::Running, Activity::Halted, Activity::WaitForSipi] {
            assert_eq!(activity_from_kvm(activity_to_kvm(activity)), activity);
        }
    }
}
