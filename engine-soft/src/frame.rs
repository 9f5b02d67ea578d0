//! The stretch of memory that translated code reaches through its stack pointer: a small stack below it, and above it the
//! few words it works with, the translation cache and the jump cache.
//!
//! The tables are found at constant distances, so that a probe needs no pointer. Memory is zero at first and is arranged
//! so that zero is an empty entry; only what is used ever becomes resident.

#![expect(unsafe_code, reason = "memory of its own, with a stack, shared with translated code")]

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::fx::FxArea;

/// Entries of a table, one for each value of address bits 12 to 27.
pub(crate) const SLOTS: usize = 1 << 16;

/// Bytes for return addresses and signal frames below the words.
const STACK: usize = 64 << 10;

/// Bytes of a page at both ends that nothing may touch.
const GUARD: usize = 4096;

/// The translation cache of one privilege level, by linear page.
#[repr(C)]
pub(crate) struct Half {
    /// What added to the last byte's address of a load gives less than a page, if the load may go on.
    pub(crate) read: [u64; SLOTS],
    /// The same for stores.
    pub(crate) write: [u64; SLOTS],
    /// Host address minus linear address.
    pub(crate) addend: [u64; SLOTS],
    /// Physical page, and in its low bits what is known of it.
    pub(crate) page: [u64; SLOTS],
}

/// Where translated code continues at an instruction pointer, by that pointer's low 16 bits.
#[repr(C)]
pub(crate) struct Jumps {
    /// What added to the instruction pointer gives 0.
    pub(crate) tag: [u64; SLOTS],
    /// Address of the translated code.
    pub(crate) code: [u64; SLOTS],
}

/// Groups of accesses of a block, at most.
pub(crate) const GROUPS: usize = 8;

/// Entries of [`Frame::sites`].
pub(crate) const QUICK: usize = 256;

/// Stores of a run, at most.
pub(crate) const RUN: usize = 4;

/// Where an event was logged and the next ones may be.
#[repr(C)]
pub(crate) struct Spot {
    /// The value of [`Frame::unchanged`].
    pub(crate) unchanged: u64,
    /// RSP, RBP.
    pub(crate) stack: [u64; 2],
    /// What makes an offset in the page of a linear address.
    pub(crate) page: u64,
    /// Host address minus linear address.
    pub(crate) addend: u64,
}

/// A site in a page, of which an event was logged and the next ones may be: what they have in common, and by what they are known.
#[repr(C, align(64))]
pub(crate) struct Quick {
    pub(crate) spot: Spot,
    /// The site's number and one.
    pub(crate) key: u32,
    /// What [`engine::log::Short::at`] is at the begin of the page.
    pub(crate) at: u32,
    /// The last offset at which the access is within the page.
    pub(crate) limit: u64,
}

/// The same of a run of stores.
#[repr(C, align(64))]
pub(crate) struct Run {
    pub(crate) spot: Spot,
    /// The number of the first one's site, and one.
    pub(crate) key: u32,
    /// What [`engine::log::Short::at`] is of each where the run's lowest byte is at the begin of the page.
    pub(crate) at: [u32; RUN],
}

/// Values of [`Frame::stack`].
#[derive(Debug)]
pub(crate) struct Stack;

impl Stack {
    /// In the host's registers.
    pub(crate) const HERE: u64 = 0;
    /// In the vCPU.
    pub(crate) const AT_HOME: u64 = 1;
    /// In [`Frame::image`].
    pub(crate) const SAVED: u64 = 2;
}

/// See above. The stack pointer of translated code is [`Frame::BASE`] bytes from its begin.
#[repr(C, align(4096))]
pub(crate) struct Frame {
    /// The top of the stack.
    top: [u64; 18],
    /// Instructions that may still be begun, less 2^32 times what has to be negative.
    pub(crate) remaining: u64,
    /// Not zero while nothing but watched memory has changed: a number for as long as it is so.
    pub(crate) unchanged: u64,
    /// The vCPU.
    pub(crate) cpu: u64,
    /// Guest registers that have no host register.
    pub(crate) registers: [u64; 4],
    /// Where to go on after a call out.
    pub(crate) resume: u64,
    /// For one instruction.
    pub(crate) scratch: u64,
    /// Stack pointer of the caller.
    pub(crate) host_stack: u64,
    /// Status flags between the two worlds: AH as LAHF gives it, AL the overflow flag.
    pub(crate) flags: u64,
    /// MXCSR as Rust code expects it.
    pub(crate) host_mxcsr: u64,
    /// Not zero: SSE instructions fault.
    pub(crate) no_vectors: u64,
    /// Not zero: those that compute with floating-point numbers are the interpreter's; they may fault.
    pub(crate) no_floats: u64,
    /// Not zero: x87 instructions are the interpreter's; they may fault.
    pub(crate) no_x87: u64,
    /// Where the guest's x87 registers are: one of [`Stack`]'s values.
    pub(crate) stack: u64,
    /// The x87 registers as translated code has left them.
    pub(crate) image: FxArea,
    /// Not zero: string instructions go backwards.
    pub(crate) backward: u64,
    /// What makes host addresses of a block's groups of accesses.
    pub(crate) groups: [u64; GROUPS],
    /// Of a group that the translation cache does not know: twice its bytes, and one if they are to be written. Its address is
    /// in [`Frame::scratch`].
    pub(crate) reach: u64,
    /// Not zero: an interrupt comes as soon as none is masked.
    pub(crate) due: u64,
    /// Not zero: AVX instructions fault, or may.
    pub(crate) no_wide: u64,
    /// For a call that keeps all registers.
    pub(crate) kept: [u64; 2],
    /// The log's room that translated code may fill: its begin, what comes next, its end.
    pub(crate) log: [u64; 3],
    /// What the instruction stores that is to be logged.
    pub(crate) value: u64,
    /// Supervisor, user.
    pub(crate) halves: [Half; 2],
    /// Supervisor, user.
    pub(crate) jumps: [Jumps; 2],
    /// Sites that translated code logs by itself, by their low bits.
    pub(crate) sites: [Quick; QUICK],
    /// The same of runs, by their first sites' low bits.
    pub(crate) runs: [Run; QUICK],
}

impl Frame {
    /// Distance of the stack pointer from the begin. As a shift count it is 12: the stack pointer's low bits serve as one.
    pub(crate) const BASE: usize = 128 + 12;
}

/// A frame with its stack, mapped.
pub(crate) struct FrameBox(NonNull<Frame>);

// SAFETY: it is the only owner of its mapping.
unsafe impl Send for FrameBox {}

impl FrameBox {
    pub(crate) fn new() -> Self {
        let len = GUARD + STACK + size_of::<Frame>() + GUARD;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert!(
            start != libc::MAP_FAILED,
            "{len} bytes of address space: {}",
            std::io::Error::last_os_error()
        );
        for guard in [0, len - GUARD] {
            // SAFETY: within the mapping just made.
            let done = unsafe { libc::mprotect(start.byte_add(guard), GUARD, libc::PROT_NONE) };
            assert!(done == 0, "a guard page: {}", std::io::Error::last_os_error());
        }
        // SAFETY: within the mapping.
        let frame = unsafe { start.byte_add(GUARD + STACK) }.cast::<Frame>();
        let mut frame = Self(NonNull::new(frame).unwrap_or_else(|| unreachable!("it is mapped")));
        frame.host_mxcsr = crate::fx::mxcsr::INITIAL.into();
        frame.stack = Stack::AT_HOME;
        frame
    }

    /// The stack pointer of translated code.
    pub(crate) fn base(&self) -> u64 {
        self.0.as_ptr().expose_provenance() as u64 + Frame::BASE as u64
    }
}

impl Drop for FrameBox {
    fn drop(&mut self) {
        let len = GUARD + STACK + size_of::<Frame>() + GUARD;
        // SAFETY: the mapping made in `new`.
        unsafe { libc::munmap(self.0.as_ptr().byte_sub(GUARD + STACK).cast(), len) };
    }
}

impl Deref for FrameBox {
    type Target = Frame;

    #[inline(always)]
    fn deref(&self) -> &Frame {
        // SAFETY: mapped, owned, and any bytes are a valid frame.
        unsafe { self.0.as_ref() }
    }
}

impl DerefMut for FrameBox {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Frame {
        // SAFETY: as above.
        unsafe { self.0.as_mut() }
    }
}

impl std::fmt::Debug for FrameBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("FrameBox").field(&self.0).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stack_pointer_is_a_shift_count_of_twelve() {
        let frame = FrameBox::new();
        assert_eq!(frame.base() & 63, 12);
        assert!(Frame::BASE <= std::mem::offset_of!(Frame, remaining));
    }
}
