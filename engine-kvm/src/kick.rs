//! Getting a vCPU out of the guest without a race.
//!
//! A kick is remembered, raises `immediate_exit` in the page that KVM reads on entry, and sends a signal. Before
//! KVM_RUN the raised byte turns the entry away; inside it the signal ends it; after it the next entry is turned away.
//!
//! A second signal, blocked but within KVM_RUN, [breaks off](break_off) an entry after KVM has accepted interrupts and
//! before the guest runs: `immediate_exit` would turn it away before.
#![expect(unsafe_code, reason = "a byte of the shared run page and pthread_kill")]

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use kvm_bindings::{KVMIO, kvm_signal_mask};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

/// What a vCPU and those who kick it share.
#[derive(Debug, Default)]
pub(crate) struct Kick(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    pending: bool,
    bound: Option<Bound>,
}

#[derive(Debug)]
struct Bound {
    thread: libc::pthread_t,
    immediate_exit: *const AtomicU8,
}

// SAFETY: the pointer is followed only under the mutex while its processor is bound, and it points to an atomic.
unsafe impl Send for Bound {}

impl Kick {
    /// Makes the vCPU leave the guest soon, or at once when it next enters.
    pub(crate) fn kick(&self) {
        let mut inner = self.lock();
        inner.pending = true;
        if let Some(bound) = &inner.bound {
            bound.byte().store(1, Ordering::SeqCst);
            // SAFETY: `release` takes `bound` away before the thread can end.
            unsafe { libc::pthread_kill(bound.thread, signal()) };
        }
    }

    /// Binds to the calling thread and a run page's `immediate_exit` byte.
    ///
    /// # Safety
    /// The byte stays mapped until `release`, which the same thread calls.
    pub(crate) unsafe fn bind(&self, immediate_exit: *const AtomicU8) {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(install);
        let mut inner = self.lock();
        // SAFETY: no argument, cannot fail.
        let bound = Bound { thread: unsafe { libc::pthread_self() }, immediate_exit };
        bound.byte().store(u8::from(inner.pending), Ordering::SeqCst);
        inner.bound = Some(bound);
    }

    /// Ends the binding; later kicks are only remembered.
    pub(crate) fn release(&self) {
        self.lock().bound = None;
    }

    /// Forgets a kick once the vCPU has left the guest.
    pub(crate) fn take(&self) -> bool {
        let mut inner = self.lock();
        if let Some(bound) = &inner.bound {
            bound.byte().store(0, Ordering::SeqCst);
        }
        std::mem::take(&mut inner.pending)
    }

    /// Holds entries off (or no longer), leaving a pending kick pending.
    pub(crate) fn hold(&self, held: bool) {
        let inner = self.lock();
        if let Some(bound) = &inner.bound {
            bound.byte().store(u8::from(held || inner.pending), Ordering::SeqCst);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bound {
    fn byte(&self) -> &AtomicU8 {
        // SAFETY: mapped by the promise of `bind`.
        unsafe { &*self.immediate_exit }
    }
}

fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Blocks the second signal for this thread, and lets `vcpu` see it in KVM_RUN.
pub(crate) fn admit_break(vcpu: &VcpuFd) -> std::io::Result<()> {
    // SAFETY: both sets are initialised before they are read, and the mask outlives the call, with the 8 bytes of the
    // kernel's signal set that its length tells.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        let mut old: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut set, break_signal());
        match libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut old) {
            0 => {}
            errno => return Err(std::io::Error::from_raw_os_error(errno)),
        }
        libc::sigdelset(&mut old, break_signal());
        let mask = SignalMask { len: 8, set: (&raw const old).cast::<[u8; 8]>().read() };
        match ioctl_with_ref(vcpu, KVM_SET_SIGNAL_MASK(), &mask) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

/// Has the next KVM_RUN of this thread broken off.
pub(crate) fn break_off() {
    // SAFETY: a signal to this thread, which has it blocked.
    unsafe { libc::pthread_kill(libc::pthread_self(), break_signal()) };
}

/// Forgets a break that has done its work.
pub(crate) fn broken_off() {
    // SAFETY: the set is initialised, and no information is asked for.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut set, break_signal());
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        libc::sigtimedwait(&set, std::ptr::null_mut(), &now);
    }
}

/// `struct kvm_signal_mask` with its set.
#[repr(C, packed)]
struct SignalMask {
    len: u32,
    set: [u8; 8],
}

ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, kvm_signal_mask);

fn break_signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

/// The signal only has to interrupt; the byte says the rest.
extern "C" fn ignore(_: libc::c_int) {}

fn install() {
    // SAFETY: the structure is valid when zeroed, and the handler does nothing, so it is async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as usize;
        libc::sigaction(signal(), &action, std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kick_before_binding_turns_the_first_entry_away() {
        let (kick, byte) = (Kick::default(), AtomicU8::new(0));
        kick.kick();
        // SAFETY: `byte` outlives the binding.
        unsafe { kick.bind(&byte) };
        assert_eq!(byte.load(Ordering::SeqCst), 1);
        assert!(kick.take());
        assert_eq!(byte.load(Ordering::SeqCst), 0);
        assert!(!kick.take());
        kick.release();
    }

    #[test]
    fn letting_go_keeps_a_pending_kick() {
        let (kick, byte) = (Kick::default(), AtomicU8::new(0));
        // SAFETY: `byte` outlives the binding.
        unsafe { kick.bind(&byte) };
        kick.hold(true);
        kick.kick();
        kick.hold(false);
        assert_eq!(byte.load(Ordering::SeqCst), 1);
        assert!(kick.take());
        kick.release();
    }
}
