//! Memory for host code: one file mapped twice, to write through the one mapping and to execute through the other, so
//! that no page is ever both.

#![expect(unsafe_code, reason = "memory that is executed")]

use std::io::{Error, Result};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// Code begins at multiples of this.
const ALIGN: usize = 16;

/// The two mappings.
#[derive(Debug)]
pub(crate) struct Arena {
    /// Null once it is sealed.
    write: *mut u8,
    execute: *const u8,
    size: usize,
    used: usize,
}

// SAFETY: it is the only owner of its mappings.
unsafe impl Send for Arena {}

impl Arena {
    /// For so many bytes, which become resident as they are used.
    pub(crate) fn new(size: usize) -> Result<Self> {
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"nvsim code".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: just made, and nobody else's.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: no memory is involved.
        if unsafe { libc::ftruncate(file.as_raw_fd(), size as libc::off_t) } != 0 {
            return Err(Error::last_os_error());
        }
        let map = |protection| {
            // SAFETY: a new mapping at an address of the kernel's choice.
            let at = unsafe {
                libc::mmap(std::ptr::null_mut(), size, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
            };
            if at == libc::MAP_FAILED { Err(Error::last_os_error()) } else { Ok(at.cast::<u8>()) }
        };
        let write = map(libc::PROT_READ | libc::PROT_WRITE)?;
        match map(libc::PROT_READ | libc::PROT_EXEC) {
            Ok(execute) => Ok(Self { write, execute, size, used: 0 }),
            Err(error) => {
                // SAFETY: made above, and given up.
                unsafe { libc::munmap(write.cast(), size) };
                Err(error)
            }
        }
    }

    /// Where the next code will be executed.
    pub(crate) fn next(&self) -> u64 {
        self.execute.expose_provenance() as u64 + self.used as u64
    }

    /// Bytes that are left.
    pub(crate) fn room(&self) -> usize {
        self.size - self.used
    }

    /// Takes code in at [`Arena::next`].
    pub(crate) fn add(&mut self, code: &[u8]) {
        assert!(code.len() <= self.room() && !self.write.is_null(), "the caller has looked");
        // SAFETY: within the mapping, by the assertion.
        unsafe { self.write.add(self.used).copy_from_nonoverlapping(code.as_ptr(), code.len()) };
        self.used = (self.used + code.len()).next_multiple_of(ALIGN).min(self.size);
    }

    /// Replaces the four bytes that are executed at an address.
    pub(crate) fn patch(&mut self, address: u64, value: i32) {
        self.replace(address, &value.to_le_bytes());
    }

    /// Replaces bytes that are executed at an address.
    pub(crate) fn replace(&mut self, address: u64, bytes: &[u8]) {
        assert!(!self.write.is_null(), "sealed code stays as it is");
        let offset = (address as usize).wrapping_sub(self.execute.addr());
        assert!(offset < self.used && bytes.len() <= self.used - offset, "code that is there");
        // SAFETY: within the mapping, by the assertion.
        unsafe { self.write.add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// From now on nothing can be changed.
    pub(crate) fn seal(&mut self) {
        if !self.write.is_null() {
            // SAFETY: mapped in `new`, and never used again once the pointer is gone.
            unsafe { libc::munmap(self.write.cast(), self.size) };
            self.write = std::ptr::null_mut();
        }
    }

    /// Forgets all code behind an offset that [`Arena::used`] gave.
    pub(crate) fn shorten(&mut self, used: usize) {
        self.used = self.used.min(used);
    }

    pub(crate) fn used(&self) -> usize {
        self.used
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.seal();
        // SAFETY: mapped in `new`, and nothing refers to it any more.
        unsafe { libc::munmap(self.execute.cast_mut().cast(), self.size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Permissions of the mapping around an address.
    fn permissions(address: u64) -> String {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
        let around = |line: &&str| {
            let (from, to) =
                line.split_whitespace().next().and_then(|range| range.split_once('-')).expect("a range");
            let number = |text| u64::from_str_radix(text, 16).expect("hexadecimal");
            (number(from)..number(to)).contains(&address)
        };
        let line = maps.lines().find(around).expect("it is mapped");
        line.split_whitespace().nth(1).expect("permissions").to_owned()
    }

    #[test]
    fn code_is_written_here_and_executed_there() {
        let mut arena = Arena::new(1 << 16).expect("memory");
        let at = arena.next();
        // mov eax, 1; ret
        arena.add(&[0xB8, 1, 0, 0, 0, 0xC3]);
        let call = || {
            let code = std::ptr::with_exposed_provenance::<()>(at as usize);
            // SAFETY: the code above is a function without arguments.
            let function: extern "sysv64" fn() -> u32 = unsafe { std::mem::transmute(code) };
            function()
        };
        assert_eq!(call(), 1);
        arena.patch(at + 1, 77);
        assert_eq!(call(), 77);
        assert_eq!(permissions(at), "r-xs");
        assert_eq!(permissions(arena.write.addr() as u64), "rw-s");
        arena.seal();
        assert!(arena.write.is_null());
        assert_eq!(call(), 77);
    }
}
