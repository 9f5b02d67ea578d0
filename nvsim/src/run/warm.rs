//! The boot snapshot of a run: the guest when its kernel and drivers are up, before it looks at its NV-DIMMs or hears what
//! it is to do. Runs that are equal until then start from it.
//!
//! A run without one rests at the same point all the same, so that what follows is equal, instruction by instruction.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use guest_image::Image;
use vmm::{Machine, Outcome, Report};

use crate::snapshot::cache::Cache;

/// Where a run's boot snapshot is, or will be.
#[derive(Debug)]
pub struct Warm {
    cache: Cache,
    key: String,
}

impl Warm {
    /// Of a machine about to boot an image's files. Only an engine whose runs repeat starts twice alike.
    pub fn new(cache: Cache, machine: &Machine, image: &Image) -> Result<Self> {
        let mut hasher = blake3::Hasher::new_derive_key("nvsim 2026 boot snapshot");
        hasher.update(&machine.identity()?);
        hasher.update(machine.engine().name().as_bytes());
        hasher.update(&contents(image)?);
        hasher.update(&own_build()?);
        Ok(Self { cache, key: hasher.finalize().to_hex()[..32].to_owned() })
    }

    /// Lets the machine go on from the snapshot, if there is one. What cannot be used is said, and removed.
    pub fn start(&self, machine: &mut Machine) -> bool {
        let Some(found) = self.cache.find(&self.key) else { return false };
        let started = found.and_then(|snapshot| machine.go_on_from(&snapshot));
        match started {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!("booting cold: {error}");
                self.cache.remove(&self.key);
                false
            }
        }
    }

    /// Keeps the machine as it rests, in a thread of its own. What cannot be kept is no harm.
    fn keep(self, machine: &Machine) -> Option<JoinHandle<()>> {
        let snapshot = match machine.snapshot_without_dimms() {
            Ok(snapshot) => snapshot,
            Err(error) => {
                tracing::info!("no boot snapshot: {error}");
                return None;
            }
        };
        let write = move || {
            if let Err(error) = self.cache.insert(&self.key, &snapshot) {
                tracing::warn!("no boot snapshot: {error:#}");
            }
        };
        std::thread::Builder::new().name("boot snapshot".to_owned()).spawn(write).ok()
    }
}

/// Runs a machine to its end; keeps it on the way, if that is wanted, when it has booted. Whenever it rests, `at_rest` is
/// asked whether to go on.
pub fn run(
    machine: &mut Machine,
    keep: Option<Warm>,
    mut at_rest: impl FnMut(&mut Machine, &Outcome) -> Result<bool>,
) -> Result<Report> {
    let mut keep = keep;
    let mut writer = None;
    let report = loop {
        let report = match machine.run() {
            Ok(report) if report.outcome.can_go_on() => report,
            ended => break ended.map_err(Into::into),
        };
        tracing::info!(instructions = report.statistics.instructions, "at rest");
        if let Some(warm) = keep.take_if(|_| report.outcome == Outcome::Paused) {
            writer = warm.keep(machine);
        }
        match at_rest(machine, &report.outcome) {
            Ok(true) => {}
            Ok(false) => break Ok(report),
            Err(error) => break Err(error),
        }
    };
    if let Some(writer) = writer {
        // A writer that panicked has said so; the run stands.
        let _ = writer.join();
    }
    report
}

/// BLAKE3 of the files that are booted. Those of the image store are as their manifest says.
fn contents(image: &Image) -> Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    for path in [Some(&image.vmlinux), image.initramfs.as_ref()].into_iter().flatten() {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let known = image.manifest.as_ref().and_then(|manifest| manifest.artefacts.get(name));
        match known {
            Some(artefact) => hasher.update(artefact.blake3.as_bytes()),
            None => hasher.update(hash_file(path)?.to_hex().as_bytes()),
        };
    }
    Ok(*hasher.finalize().as_bytes())
}

fn hash_file(path: &Path) -> Result<blake3::Hash> {
    let failed = || format!("Cannot read {}", path.display());
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut std::fs::File::open(path).with_context(failed)?, &mut hasher).with_context(failed)?;
    Ok(hasher.finalize())
}

/// Which build of nvsim this is: the file that runs.
fn own_build() -> Result<Vec<u8>> {
    let program = Path::new("/proc/self/exe");
    let meta: Metadata = std::fs::metadata(program).context("Cannot examine nvsim's own program")?;
    let numbers = [
        meta.dev(),
        meta.ino(),
        meta.size(),
        meta.mtime().cast_unsigned(),
        meta.mtime_nsec().cast_unsigned(),
        u64::from(vmm::snapshot::FORMAT),
    ];
    Ok(numbers.iter().flat_map(|number| number.to_le_bytes()).collect())
}
