//! The names and call chains of kernel code: what an instruction pointer is called, and who called it.
//!
//! A [`Kernel`] is read out of the bytes of a `vmlinux` that has neither a symbol table nor a System.map beside it, as
//! Debian's have not: its names are in the tables that the kernel keeps for itself (kallsyms), its stack layouts in those of
//! its own unwinder (ORC), the layouts of its structures in BTF. With the last, the modules that a running guest has loaded
//! are read out of its memory, where they lie relocated. [`Code`] is both together.
//!
//! This room knows nobody: guest memory comes as a [`Memory`], registers as [`Registers`]. All that is read may be hostile;
//! nothing here panics, loops or reads without bound.

mod btf;
mod code;
mod elf;
mod error;
mod kallsyms;
mod kernel;
mod modules;
mod orc;
mod table;
#[cfg(test)]
mod tests;
mod unwind;

pub use code::{Code, Place};
pub use error::Error;
pub use kernel::Kernel;
pub use modules::Module;
pub use table::Table;
pub use unwind::{Chain, DEPTH, Frame, Registers};

/// Guest memory by virtual address, as the kernel sees it.
pub trait Memory {
    /// Fills `bytes` from an address; false, with anything in `bytes`, when not all of it is mapped.
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> bool;

    /// Eight bytes, little-endian.
    fn word(&mut self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes).then(|| u64::from_le_bytes(bytes))
    }
}

impl<F: FnMut(u64, &mut [u8]) -> bool> Memory for F {
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> bool {
        self(address, bytes)
    }
}

/// Where the kernel's half of the addresses begins.
pub const KERNEL_HALF: u64 = 0xffff_8000_0000_0000;
