//! A store to a DIMM that its disk has no room for. Files are sparse, so another program may take the space that was free when
//! the run began; the kernel then says so with SIGBUS at the store (mmap(2)), in the middle of a guest's instruction.
#![expect(unsafe_code, reason = "a signal handler")]

use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a run ends with that nvsim itself could not go on with.
const FAILED: libc::c_int = 125;
const MESSAGE: &str = "\r\nnvsim: the disk that holds a DIMM's file is full: a store of the guest found no room. The file holds what \
                       was stored before; make room and run again.\r\n";
/// Start and end of each region that was mapped; a slot is free while its end is 0.
static REGIONS: [[AtomicUsize; 2]; 16] = [const { [const { AtomicUsize::new(0) }; 2] }; 16];

/// Explains a SIGBUS in this range of the host's addresses, and ends the process, from now on.
pub fn explain(start: usize, len: usize) {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(install);
    for [first, end] in &REGIONS {
        if end.load(Ordering::SeqCst) == 0 || first.load(Ordering::SeqCst) == start {
            first.store(start, Ordering::SeqCst);
            end.store(start.saturating_add(len), Ordering::SeqCst);
            return;
        }
    }
}

fn install() {
    // SAFETY: the structure is valid when zeroed, and the handler calls nothing but async-signal-safe functions.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction =
            handler as extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
    }
}

extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid structure, and for SIGBUS its address.
    let at = unsafe { (*info).si_addr() } as usize;
    let ours = REGIONS
        .iter()
        .any(|[first, end]| (first.load(Ordering::SeqCst)..end.load(Ordering::SeqCst)).contains(&at));
    // SAFETY: these are async-signal-safe. What is not ours happens again at our return, and ends the process as ever.
    unsafe {
        if ours {
            libc::write(2, MESSAGE.as_ptr().cast(), MESSAGE.len());
            libc::_exit(FAILED);
        }
        libc::signal(signal, libc::SIG_DFL);
    }
}
