//! A built image: a folder with kernel, vmlinux, initramfs and a manifest.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::apt::Package;
use crate::error::{At, Error, Result};

/// Changes when images are put together differently, so that older ones are built anew.
pub(crate) const FORMAT: u32 = 2;

/// What an image is made of, and the hash of each part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this layout.
    pub format: u32,
    /// The recipe's name.
    pub name: String,
    /// The recipe's line for listings.
    pub description: String,
    /// The image's identity: a hash of everything that went into it.
    pub id: String,
    /// BLAKE3 of the recipe and its files.
    pub recipe: String,
    /// BLAKE3 of the agent, which is init.
    pub agent: String,
    /// As `uname -r` says in the guest.
    pub kernel: String,
    /// Kernel command line.
    pub cmdline: String,
    /// Packages in the image, by name.
    pub packages: Vec<Package>,
    /// Files of the image by name.
    pub artefacts: BTreeMap<String, Artefact>,
    /// What differs from the packages' files.
    pub notes: Vec<String>,
}

/// A file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artefact {
    /// BLAKE3 of the file.
    pub blake3: String,
    /// Size of the file.
    pub bytes: u64,
}

impl Artefact {
    pub(crate) fn of(data: &[u8]) -> Self {
        Self { blake3: blake3::hash(data).to_hex().to_string(), bytes: data.len() as u64 }
    }
}

/// A bootable image.
#[derive(Debug, Clone)]
pub struct Image {
    /// The kernel as packaged, a bzImage.
    pub kernel: PathBuf,
    /// The ELF image taken out of it.
    pub vmlinux: PathBuf,
    /// Symbol addresses, where the package has them.
    pub system_map: Option<PathBuf>,
    /// The initial RAM disk. An own kernel may come without one.
    pub initramfs: Option<PathBuf>,
    /// The default kernel command line.
    pub cmdline: String,
    /// As `uname -r` says in the guest.
    pub release: String,
    /// What the image is made of; none for an own kernel.
    pub manifest: Option<Manifest>,
}

pub(crate) const KERNEL: &str = "kernel";
pub(crate) const VMLINUX: &str = "vmlinux";
pub(crate) const INITRAMFS: &str = "initramfs";
pub(crate) const SYSTEM_MAP: &str = "System.map";
pub(crate) const MANIFEST: &str = "manifest.json";

impl Image {
    /// Opens a folder of the store. Sizes are checked, contents are not: see [`Image::verify`].
    pub(crate) fn open(name: &str, folder: &Path) -> Result<Self> {
        let bad = |why: String| Error::Image { name: name.to_owned(), path: folder.to_owned(), why };
        let path = folder.join(MANIFEST);
        let text = fs::read(&path).at("read", &path)?;
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|e| bad(format!("{MANIFEST}: {e}")))?;
        for (file, artefact) in &manifest.artefacts {
            let found = fs::metadata(folder.join(file)).map_err(|e| bad(format!("{file}: {e}")))?.len();
            if found != artefact.bytes {
                return Err(bad(format!("{file} has {found} bytes, the manifest says {}", artefact.bytes)));
            }
        }
        for file in [KERNEL, VMLINUX, INITRAMFS] {
            if !manifest.artefacts.contains_key(file) {
                return Err(bad(format!("the manifest lists no {file}")));
            }
        }
        Ok(Self {
            kernel: folder.join(KERNEL),
            vmlinux: folder.join(VMLINUX),
            system_map: manifest.artefacts.contains_key(SYSTEM_MAP).then(|| folder.join(SYSTEM_MAP)),
            initramfs: Some(folder.join(INITRAMFS)),
            cmdline: manifest.cmdline.clone(),
            release: manifest.kernel.clone(),
            manifest: Some(manifest),
        })
    }

    /// Unpacks some files of the initial RAM disk into a folder, programs and libraries for the host to run; gives how many.
    pub fn unpack(&self, into: &Path, wanted: impl Fn(&str) -> bool) -> Result<usize> {
        const TYPE: u32 = 0o170_000;
        const FILE: u32 = 0o100_000;
        const LINK: u32 = 0o120_000;
        let Some(path) = &self.initramfs else { return Ok(0) };
        let archive = fs::read(path).at("read", path)?;
        let mut count = 0;
        for (name, mode, data) in crate::cpio::entries(&archive).filter(|entry| wanted(entry.0)) {
            let plain = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
            let to = into.join(name);
            let (true, Some(folder)) = (plain(Path::new(name)), to.parent()) else { continue };
            fs::create_dir_all(folder).at("create", folder)?;
            match mode & TYPE {
                FILE => {
                    fs::write(&to, data).at("write", &to)?;
                    fs::set_permissions(&to, fs::Permissions::from_mode(mode & 0o777)).at("write", &to)?;
                }
                LINK => {
                    // A link that leads out of its folder is of no use here.
                    let target = std::str::from_utf8(data).map(Path::new).unwrap_or(Path::new("/"));
                    if !plain(target) || symlink(target, &to).is_err() {
                        continue;
                    }
                }
                _ => continue,
            }
            count += 1;
        }
        Ok(count)
    }

    /// Compares every file with the hash in the manifest.
    pub fn verify(&self) -> Result<()> {
        let Some(manifest) = &self.manifest else { return Ok(()) };
        let folder = self.kernel.parent().unwrap_or(Path::new(""));
        for (file, artefact) in &manifest.artefacts {
            let path = folder.join(file);
            let data = fs::read(&path).at("read", &path)?;
            if Artefact::of(&data) != *artefact {
                let why = format!("{file} is not what the manifest says");
                return Err(Error::Image { name: manifest.name.clone(), path: folder.to_owned(), why });
            }
        }
        Ok(())
    }
}
