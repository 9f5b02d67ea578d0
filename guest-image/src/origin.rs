//! Where an image's kernel comes from: a kernel package, or a source package that is built.

use std::path::PathBuf;

use crate::apt::{Apt, Package};
use crate::cpio::Node;
use crate::deb::Deb;
use crate::error::{Error, Result};
use crate::kernel;
use crate::modules::{self, Modules};
use crate::progress::{Progress, Total};

/// A kernel and what came with it.
#[derive(Debug)]
pub(crate) struct Origin {
    /// The package it is from.
    pub package: Package,
    /// The package's file, for messages.
    pub file: PathBuf,
    /// The bzImage.
    pub image: Vec<u8>,
    /// As `uname -r` says.
    pub release: String,
    pub system_map: Option<Vec<u8>>,
    pub modules: Modules,
    /// How it differs from what the package's name says.
    pub notes: Vec<String>,
}

impl Origin {
    /// The newest kernel package whose name matches.
    pub(crate) fn package(pattern: &str, apt: &Apt, progress: &dyn Progress) -> Result<Self> {
        let package = apt.newest(pattern)?;
        let file = apt.fetch(&package, progress)?;
        let (mut image, mut system_map, mut found) = (Vec::new(), None, Modules::default());
        progress.started("Unpacking the kernel", Total::Unknown);
        let unpacked = Deb::new(&file).unpack(
            |path| path.starts_with("/boot/") || modules::is_module_file(path),
            |path, node| {
                let Node::File { data, .. } = node else { return Ok(()) };
                if path.starts_with("/boot/vmlinuz-") {
                    image = data;
                } else if path.starts_with("/boot/System.map-") {
                    // Debian's holds one line that says where the real one is.
                    system_map = (data.len() > 4096).then_some(data);
                } else if path.ends_with("/modules.builtin") {
                    found.built_in(&data);
                } else if !path.starts_with("/boot/") {
                    found.stage(path, data);
                }
                Ok(())
            },
        );
        progress.finished();
        unpacked?;
        let release = kernel::release(&image).ok_or_else(|| Error::NotInPackage {
            package: package.name.clone(),
            path: "/boot/vmlinuz-* that names its release".into(),
        })?;
        Ok(Self { package, file, image, release, system_map, modules: found, notes: Vec::new() })
    }
}
