//! The boot snapshots of a run: the guest when its kernel and drivers are up, before it looks at its NV-DIMMs or hears what it
//! is to do; and the guest when its NV-DIMMs are probed, with all that it has learnt of them until then. Runs that are equal
//! until then start from them. The second one stands on the first one, and is made by a run that starts from that.
//!
//! A run without them rests at the same points all the same, so that what follows is equal, instruction by instruction.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use guest_image::{Image, Store};
use serde::Serialize;
use vmm::{Machine, Outcome, Report, Snapshot};

use super::control;
use crate::snapshot::cache::Cache;

/// How far a run's guest is when the run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// Switched off.
    Cold,
    /// Its kernel and drivers are up.
    Booted,
    /// Its NV-DIMMs are probed.
    Probed,
}

/// Where a run's boot snapshots are, or will be.
#[derive(Debug)]
pub struct Warm {
    cache: Cache,
    key: String,
}

impl Warm {
    /// Of a machine about to boot an image's files. Only an engine whose runs repeat starts twice alike.
    pub fn new(store: &Store, machine: &Machine, image: &Image) -> Result<Self> {
        let mut hasher = blake3::Hasher::new_derive_key("nvsim 2026 boot snapshot");
        hasher.update(&machine.identity()?);
        hasher.update(machine.engine().name().as_bytes());
        hasher.update(&contents(store, image)?);
        hasher.update(&own_build()?);
        Ok(Self { cache: Cache::of(store), key: hasher.finalize().to_hex()[..32].to_owned() })
    }

    /// The name of the snapshot of the probed guest. There is one: what a DIMM is asked at probing seldom changes, and then for
    /// good.
    fn probed(&self) -> String {
        format!("{}-probed", self.key)
    }

    /// Lets the machine go on from a snapshot, if there is one; from the later one only where `probed` allows it. What cannot
    /// be used is said, and removed.
    pub fn start(&self, machine: &mut Machine, probed: bool) -> Start {
        let Some(found) = self.cache.find(&self.key) else { return Start::Cold };
        let started = found.and_then(|booted| {
            if probed && self.start_probed(machine, &booted) {
                return Ok(Start::Probed);
            }
            machine.go_on_from(&booted).map(|()| Start::Booted)
        });
        started.unwrap_or_else(|error| {
            tracing::warn!("booting cold: {error}");
            self.cache.remove(&self.key);
            Start::Cold
        })
    }

    fn start_probed(&self, machine: &mut Machine, booted: &Snapshot) -> bool {
        let Some(found) = self.cache.find(&self.probed()) else { return false };
        let started = found
            .and_then(|probed| probed.standing_on(booted))
            .and_then(|probed| machine.go_on_from(&probed));
        match &started {
            Ok(()) => {}
            Err(vmm::Error::Misfit { reason }) => tracing::info!("probing the NV-DIMMs anew: {reason}"),
            Err(error) => {
                tracing::warn!("probing the NV-DIMMs anew: {error}");
                self.cache.remove(&self.probed());
            }
        }
        started.is_ok()
    }

    /// Keeps a snapshot in a thread of its own. What cannot be kept is no harm.
    fn keep(&self, start: Start, snapshot: vmm::Result<Snapshot>) -> Option<JoinHandle<()>> {
        let snapshot = match snapshot {
            Ok(snapshot) => snapshot,
            Err(error) => {
                tracing::info!("no boot snapshot: {error}");
                return None;
            }
        };
        let (cache, key) = (self.cache.clone(), self.key.clone());
        let probed = self.probed();
        let write = move || {
            let kept = match start {
                Start::Probed => {
                    // It is of what the DIMMs are now.
                    cache.remove(&probed);
                    cache.insert(&probed, &snapshot)
                }
                Start::Cold | Start::Booted => cache.insert(&key, &snapshot),
            };
            if let Err(error) = kept {
                tracing::warn!("no boot snapshot: {error:#}");
            }
        };
        std::thread::Builder::new().name("boot snapshot".to_owned()).spawn(write).ok()
    }
}

/// A snapshot that a run shall keep on its way.
#[derive(Debug)]
pub struct Wanted {
    /// Where.
    pub warm: Warm,
    /// Of a guest that is so far.
    pub when: Start,
}

/// Runs a machine to its end; keeps it on the way, if that is wanted, when it is so far. Whenever it rests, `at_rest` is asked
/// whether to go on.
pub fn run(
    machine: &mut Machine,
    wanted: Option<Wanted>,
    told: &control::Report,
    mut at_rest: impl FnMut(&mut Machine, &Outcome) -> Result<bool>,
) -> Result<Report> {
    let mut wanted = wanted;
    let mut writer = None;
    let report = loop {
        let report = match machine.run() {
            Ok(report) if report.outcome.can_go_on() => report,
            ended => break ended.map_err(Into::into),
        };
        tracing::info!(instructions = report.statistics.instructions, "at rest");
        if let Some(Wanted { warm, when }) = wanted.take_if(|_| report.outcome == Outcome::Paused) {
            writer = match when {
                Start::Probed if told.told().probed => warm.keep(when, machine.snapshot_with_read_set()),
                Start::Probed => None,
                Start::Cold | Start::Booted => warm.keep(when, machine.snapshot_without_dimms()),
            };
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
fn contents(store: &Store, image: &Image) -> Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    for path in [Some(&image.vmlinux), image.initramfs.as_ref()].into_iter().flatten() {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let known = image.manifest.as_ref().and_then(|manifest| manifest.artefacts.get(name));
        match known {
            Some(artefact) => hasher.update(artefact.blake3.as_bytes()),
            None => hasher.update(store.hash_of(path)?.to_hex().as_bytes()),
        };
    }
    Ok(*hasher.finalize().as_bytes())
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
