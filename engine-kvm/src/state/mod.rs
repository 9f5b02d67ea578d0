//! The neutral state at KVM's edge.
//!
//! Order matters both ways. Saving: the multiprocessor state first, since asking for it lets KVM process a pending INIT or
//! SIPI; then the events, since asking for them moves the side effects of a pending exception into CR2 and DR6.
//! Restoring: registers (which clears exceptions) before events, the local APIC before the MSRs (the deadline is kept only
//! where the timer is in deadline mode), the counter before its deadline, and events last.

mod counter;
mod events;
mod fpu;
mod lapic;
mod msr;
mod registers;
mod system;

use engine::{CpuState, Error, Result};
use kvm_bindings::kvm_mp_state;
use kvm_ioctls::VcpuFd;

use crate::refused;

/// Offset of the local vector table's timer entry, and its mode of waiting for the time-stamp counter.
const LVT_TIMER: usize = 0x320;
const TSC_DEADLINE_MODE: u32 = 2;

pub(crate) use counter::{is_adjustable, shift as shift_counter};
pub(crate) use msr::{deadline, save as msrs, set_deadline, tsc, tsc_aux};
pub(crate) use system::set as set_system;

/// Reads the whole state of a vCPU that is not in the guest.
pub(crate) fn save(vcpu: &VcpuFd) -> Result<CpuState> {
    let activity = vcpu.get_mp_state().map_err(refused("KVM_GET_MP_STATE"))?;
    let undelivered = vcpu.get_vcpu_events().map_err(refused("KVM_GET_VCPU_EVENTS"))?;
    let sregs = vcpu.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
    let xcr0 = fpu::xcr0(vcpu)?;
    Ok(CpuState {
        registers: registers::from_kvm(&vcpu.get_regs().map_err(refused("KVM_GET_REGS"))?),
        system: system::from_kvm(&sregs, xcr0),
        msrs: msr::save(vcpu)?,
        fpu: fpu::from_kvm(&vcpu.get_xsave().map_err(refused("KVM_GET_XSAVE"))?),
        debug: registers::debug_from_kvm(&vcpu.get_debug_regs().map_err(refused("KVM_GET_DEBUGREGS"))?),
        lapic: lapic::from_kvm(&vcpu.get_lapic().map_err(refused("KVM_GET_LAPIC"))?),
        events: events::from_kvm(&undelivered),
        activity: events::activity_from_kvm(activity.mp_state),
    })
}

/// Does the local APIC's timer wait for the time-stamp counter? (LVT timer register, SDM vol. 3, 11.5.4.)
pub(crate) fn waits_for_counter(vcpu: &VcpuFd) -> Result<bool> {
    let page = vcpu.get_lapic().map_err(refused("KVM_GET_LAPIC"))?;
    Ok(lapic::from_kvm(&page).get(LVT_TIMER) >> 17 & 3 == TSC_DEADLINE_MODE)
}

/// XCR0, and the components of extended state that are in use.
pub(crate) fn extended(vcpu: &VcpuFd) -> Result<(u64, u64)> {
    let xsave = vcpu.get_xsave().map_err(refused("KVM_GET_XSAVE"))?;
    Ok((fpu::xcr0(vcpu)?, fpu::in_use(&xsave)))
}

/// Replaces the whole state.
pub(crate) fn restore(vcpu: &VcpuFd, state: &CpuState) -> Result<()> {
    let mp_state = kvm_mp_state { mp_state: events::activity_to_kvm(state.activity) };
    vcpu.set_mp_state(mp_state).map_err(refused("KVM_SET_MP_STATE"))?;
    vcpu.set_regs(&registers::to_kvm(&state.registers)).map_err(refused("KVM_SET_REGS"))?;
    system::set(vcpu, &system::to_kvm(&state.system)).map_err(|errno| match errno.errno() {
        libc::EINVAL => {
            Error::BadState(format!("KVM finds the system registers contradictory: {:x?}", state.system))
        }
        _ => refused("KVM_SET_SREGS")(errno),
    })?;
    fpu::restore(vcpu, &state.fpu, state.system.xcr0)?;
    vcpu.set_debug_regs(&registers::debug_to_kvm(&state.debug)).map_err(refused("KVM_SET_DEBUGREGS"))?;
    vcpu.set_lapic(&lapic::to_kvm(&state.lapic)).map_err(refused("KVM_SET_LAPIC"))?;
    msr::restore(vcpu, &state.msrs)?;
    vcpu.set_vcpu_events(&events::to_kvm(&state.events)).map_err(refused("KVM_SET_VCPU_EVENTS"))
}
