//! Guest images: recipes, Debian packages, initramfs, content-addressed cache.
//!
//! A [`Recipe`] says what an image is made of; a [`Store`] builds it, by way of the host's apt-get with a private state,
//! and keeps it. An [`Image`] is what a machine boots: the ELF kernel, an initial RAM disk whose init is the guest
//! agent, and the default command line. Nothing needs root, and nothing on the host changes outside of the store.

mod apt;
mod build;
mod compress;
mod cpio;
mod deb;
mod elf;
mod error;
mod hashes;
mod image;
mod kernel;
mod libraries;
mod lock;
mod modules;
mod origin;
mod own;
mod patch;
mod progress;
mod recipe;
mod series;
mod skeleton;
mod source;
mod sources;
mod store;
mod version;

pub use apt::Package;
pub use error::{Error, Result};
pub use hashes::identity;
pub use image::{Artefact, Image, Manifest};
pub use modules::Strip;
pub use own::OwnKernel;
pub use progress::{Bars, Progress, Silent, Total};
pub use recipe::{FileSpec, KernelSpec, ModulesSpec, Recipe};
pub use store::Store;

/// Entries for the fuzzer: all that reads files of others.
#[cfg(feature = "fuzz")]
pub mod fuzz {
    use std::path::Path;

    /// The ELF kernel in a kernel file.
    pub fn kernel(data: &[u8]) -> Option<Vec<u8>> {
        crate::kernel::Kernel::unpack(data, Path::new("kernel")).ok().map(|kernel| kernel.vmlinux)
    }

    /// Unpacks all of a Debian package; gives the bytes in it, or nothing if it is damaged.
    pub fn package(path: &Path) -> Option<usize> {
        let mut bytes = 0;
        let each = |_: &str, node| {
            if let crate::cpio::Node::File { data, .. } = node {
                bytes += data.len();
            }
            Ok(())
        };
        crate::deb::Deb::new(path).unpack(|_| true, each).ok().map(|()| bytes)
    }
}
