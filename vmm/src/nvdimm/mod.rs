//! The NV-DIMMs of a machine: files behind them, tables and methods that describe them, and the device through which
//! the guest talks to them.
//!
//! [`OpenDimms::open`] opens or makes the files; the machine then gives each region an address, and
//! [`OpenDimms::place`] makes the live [`Nvdimms`]: guest memory, NFIT, AML, mailbox, flush-hint pages.

pub mod aml;
pub mod backing;
mod entropy;
mod error;
mod fault;
mod heard;
pub mod hint;
mod host;
mod journal;
mod labels;
pub(crate) mod lock;
pub mod mailbox;
mod map;
pub mod nfit;
pub mod offline;
pub mod plan;
mod region;
mod spec;
pub mod superblock;

use std::ops::Range;
use std::path::PathBuf;

use engine::GuestMemory;
use nvdimm_model::Handle;
use nvdimm_model::dsm::{self, Bus, BusMemory};
use nvdimm_model::health::Health;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

pub use self::entropy::Entropy;
pub use self::error::{Error, Result};
pub use self::journal::{Deed, Journal};
pub use self::labels::{LabelInfo, LabelsInfo, labels, namespace_specs};
pub use self::lock::Hold;
pub use self::region::RegionFiles;
pub use self::spec::{DimmSpec, Fs, KEYS, label_version, size};

use self::backing::Backing;
use self::heard::Heard;
use self::hint::FlushHints;
use self::mailbox::Call;
use self::offline::{Blueprint, NamespaceInfo, named};
use self::plan::{Plan, Sets};
use crate::devices::Snapshot;
use crate::layout::{self, port};
use crate::memory::{self, PersistentRegion};
use crate::snapshot::Image;

/// The files of a machine's DIMMs, open and held, before they have addresses.
#[derive(Debug)]
pub struct OpenDimms {
    backings: Vec<Backing>,
    sets: Sets,
}

/// A machine's DIMMs.
#[derive(Debug)]
pub struct Nvdimms {
    backings: Vec<Backing>,
    plan: Plan,
    bus: Bus,
    hints: FlushHints,
    memory: Vec<PersistentRegion>,
    /// Calls that came through the mailbox since power-up.
    calls: u64,
    journal: Journal,
    heard: Option<Heard>,
}

/// What the DIMMs' bus remembers since power came on. What the DIMMs themselves remember is in their files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvdimmsState {
    bus: BusMemory,
    hints: FlushHints,
    calls: u64,
}

impl NvdimmsState {
    /// What the bus remembers.
    pub(crate) fn bus(&self) -> &BusMemory {
        &self.bus
    }
}

/// What the guest finds as a block or character device.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct GuestDevice {
    /// Its name below /dev, as Linux numbers regions and namespaces.
    pub name: String,
    /// The namespace.
    pub namespace: NamespaceInfo,
    /// The file system to make on it when it is empty.
    pub fs: Fs,
}

impl OpenDimms {
    /// Opens the files that exist, and makes those that do not and have a size; specs with one set name make up a set.
    pub fn open(specs: &[DimmSpec], entropy: &Entropy) -> Result<Self> {
        let slots = usize::from(layout::DIMMS);
        if specs.len() > slots {
            return Err(Error::Slots { asked: specs.len(), slots });
        }
        // Whatever can be refused is refused before a file is made.
        let mut backings: Vec<Option<Backing>> = Vec::new();
        for spec in specs {
            backings.push(match spec.path.symlink_metadata() {
                Ok(_) => Some(reopen(spec)?),
                Err(_) if spec.size.is_some() => None,
                Err(_) => return Err(Error::Missing { path: spec.path.clone() }),
            });
        }
        let mut blueprints = Vec::new();
        for n in 0..specs.len() {
            let drawn = |n| blueprints.iter().any(|(group, _): &(Vec<usize>, Blueprint)| group.contains(&n));
            if backings[n].is_some() || drawn(n) {
                continue;
            }
            let group: Vec<usize> = match &specs[n].set {
                None => vec![n],
                Some(name) => (0..specs.len()).filter(|&m| specs[m].set.as_ref() == Some(name)).collect(),
            };
            if let Some(&old) = group.iter().find(|&&m| backings[m].is_some()) {
                return Err(Error::Set {
                    set: specs[n].set.clone().unwrap_or_default(),
                    reason: format!(
                        "{} is missing, but {} exists; a set is made as a whole",
                        specs[n].path.display(),
                        specs[old].path.display()
                    ),
                });
            }
            let asked: Vec<_> = group.iter().map(|&m| specs[m].clone()).collect();
            blueprints.push((group, Blueprint::draw(&asked, &[], entropy)?));
        }
        Self::finish(backings, blueprints)
    }

    /// Makes the missing files, and none of them if one cannot be made or all together do not fit.
    fn finish(mut backings: Vec<Option<Backing>>, blueprints: Vec<(Vec<usize>, Blueprint)>) -> Result<Self> {
        let mut made = Vec::new();
        let make = || -> Result<Sets> {
            for (group, blueprint) in blueprints {
                for (m, backing) in group.into_iter().zip(blueprint.make()?) {
                    made.push(m);
                    backings[m] = Some(backing);
                }
            }
            let open = || backings.iter().flatten();
            backing::check_space(open())?;
            Sets::new(&open().map(|b| (b.path().to_owned(), b.record())).collect::<Vec<_>>())
        };
        match make() {
            Ok(sets) => Ok(Self { backings: backings.into_iter().flatten().collect(), sets }),
            Err(error) => {
                let new: Vec<Backing> = made.into_iter().filter_map(|m| backings[m].take()).collect();
                offline::unmake(&new);
                Err(error)
            }
        }
    }

    /// The DIMMs of a snapshot that keeps their contents: what a machine writes to them is its own.
    pub fn of_images(images: &[(PathBuf, Image)]) -> Result<Self> {
        let open = |(path, image): &(PathBuf, Image)| Backing::of_image(path, image);
        let backings = images.iter().map(open).collect::<Result<Vec<_>>>()?;
        let sets =
            Sets::new(&backings.iter().map(|b| (b.path().to_owned(), b.record())).collect::<Vec<_>>())?;
        Ok(Self { backings, sets })
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.backings.is_empty()
    }

    /// Bytes of each region, in the order in which addresses are wanted.
    #[must_use]
    pub fn region_sizes(&self) -> Vec<u64> {
        self.sets.sizes()
    }

    /// The file system to make on an empty device of each region: none where no namespace is for fsdax.
    #[must_use]
    pub fn file_systems(&self) -> Vec<Fs> {
        let of_region = |(set, members): (&_, &[usize])| {
            let (namespaces, _) = offline::namespaces(&self.backings, set, members);
            let fsdax = namespaces.iter().any(|n| n.mode == nvdimm_model::namespace::Mode::Fsdax);
            if fsdax { self.backings[members[0]].record().fs } else { Fs::None }
        };
        self.sets.iter().map(of_region).collect()
    }

    /// Maps the regions at their guest-physical addresses: `ranges` has one for each of [`OpenDimms::region_sizes`].
    pub fn place(self, ranges: &[Range<u64>]) -> Result<Nvdimms> {
        let Self { backings, sets } = self;
        let plan = Plan::new(&named(&backings), &sets, ranges);
        let files: Vec<_> = backings.iter().map(Backing::mapped).collect();
        let memory = plan
            .regions
            .iter()
            .map(|region| {
                let path = plan.dimms[region.members[0]].path.clone();
                map::map(region, &files).map_err(Error::io("map", path))
            })
            .collect::<Result<_>>()?;
        let dimms =
            plan.dimms.iter().zip(&backings).map(|(dimm, backing)| (dimm.handle, backing.dimm())).collect();
        let bus = Bus::new(dimms, plan.regions.clone());
        let hints = FlushHints::new(plan.dimms.iter().map(|dimm| dimm.hint.is_some()));
        let journal = Journal::default();
        Ok(Nvdimms { backings, plan, bus, hints, memory, calls: 0, journal, heard: None })
    }
}

/// Opens an existing file for a run, and checks what is asked for against what it is.
fn reopen(spec: &DimmSpec) -> Result<Backing> {
    let backing = Backing::open(&spec.path, Hold::Exclusive)?;
    let record = backing.record();
    let labels = u64::from(record.geometry.label_size);
    let same = |key, asked: Option<String>, found: String| match asked {
        Some(asked) if asked != found => {
            Err(Error::Contradiction { path: spec.path.clone(), key, asked, found })
        }
        _ => Ok(()),
    };
    let hex = |n: Option<u32>| n.map(|n| format!("{n:#x}"));
    let set = record.set.as_ref().map_or("none", |m| &m.name).to_owned();
    same("size", spec.size.map(|n| n.to_string()), record.geometry.size.to_string())?;
    same("label-size", spec.label_size.map(|n| n.to_string()), labels.to_string())?;
    same("set", spec.set.clone(), set)?;
    same("serial", hex(spec.serial), format!("{:#x}", record.identity.serial))?;
    same("vendor", hex(spec.vendor.map(u32::from)), format!("{:#x}", record.identity.vendor))?;
    same("device", hex(spec.device.map(u32::from)), format!("{:#x}", record.identity.device))?;
    adopt(backing, spec)
}

/// What may differ from run to run is taken over into the file.
fn adopt(mut backing: Backing, spec: &DimmSpec) -> Result<Backing> {
    let mut record = backing.record().clone();
    if let Some(shown) = spec.domain {
        record.persistence = nvdimm_model::Persistence::honest(shown);
    }
    record.persistence.kept = spec.kept.unwrap_or(record.persistence.kept);
    record.hints = spec.hints.unwrap_or(record.hints);
    record.fs = spec.fs.unwrap_or(record.fs);
    record.health.latched = spec.latch.unwrap_or(record.health.latched);
    if record.persistence.shown == nvdimm_model::Domain::Hint && !record.hints {
        return Err(Error::Spec {
            text: spec.path.display().to_string(),
            reason: "domain=hint needs hints=on: nothing else would make a store survive".to_owned(),
        });
    }
    if record != *backing.record() {
        backing.store(record)?;
    }
    Ok(backing)
}

impl Nvdimms {
    /// What was decided.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The guest memory of the regions, by address.
    #[must_use]
    pub fn memory(&self) -> &[PersistentRegion] {
        &self.memory
    }

    /// The finished NFIT.
    #[must_use]
    pub fn nfit(&self) -> Vec<u8> {
        nfit::build(&self.plan)
    }

    /// AML for `\_SB`.
    #[must_use]
    pub fn aml(&self) -> Vec<u8> {
        aml::build(&self.plan, layout::DSM_MAILBOX.start, port::DSM_DOORBELL)
    }

    /// The devices that the guest will find, as far as labels and info blocks tell now.
    #[must_use]
    pub fn guest_devices(&self) -> Vec<GuestDevice> {
        use nvdimm_model::namespace::Mode;
        let mut devices = Vec::new();
        for (r, region) in self.plan.regions.iter().enumerate() {
            let (namespaces, problem) = offline::namespaces(&self.backings, &region.set, &region.members);
            if let Some(problem) = problem {
                tracing::warn!(
                    region = r,
                    problem,
                    "labels or info blocks of a region are not as they should be"
                );
            }
            for (n, namespace) in namespaces.iter().enumerate() {
                let place = if n == 0 { format!("{r}") } else { format!("{r}.{n}") };
                let name = match namespace.mode {
                    Mode::Devdax => format!("dax{r}.{n}"),
                    Mode::Sector => format!("pmem{place}s"),
                    Mode::Fsdax | Mode::Raw => format!("pmem{place}"),
                };
                let fs = self.backings[region.members[0]].record().fs;
                devices.push(GuestDevice { name, namespace: namespace.into(), fs });
            }
        }
        devices
    }

    /// The DIMMs and regions, with poison and health.
    #[must_use]
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// The flush-hint pages.
    #[must_use]
    pub fn hints(&self) -> &FlushHints {
        &self.hints
    }

    /// A store to the flush-hint pages, `offset` from [`layout::FLUSH_HINTS`] on. Gives the DIMM that is to flush.
    pub fn write_hint(&mut self, offset: u64, size: u8) -> Option<usize> {
        let dimm = self.hints.write(offset, size)?;
        self.journal.note(|| Deed::Hint(dimm));
        Some(dimm)
    }

    /// The doorbell was rung: carries out the call in the mailbox, writes down what it changed, and answers. Gives the
    /// call, for those who record.
    ///
    /// # Errors
    /// The mailbox's page is not in guest memory, a mistake of the memory plan.
    pub fn ring(&mut self, memory: &GuestMemory) -> std::result::Result<Call, vm_memory::GuestMemoryError> {
        let page = GuestAddress(layout::DSM_MAILBOX.start);
        let mut copy = [0; mailbox::PAGE];
        memory.read_slice(&mut copy, page)?;
        let call = Call::read(&copy);
        self.calls += 1;
        self.journal.note(|| Deed::Call { handle: call.handle.0, function: call.function });
        let mut answer = call.answer(&mut self.bus);
        self.hear(&call, &answer);
        if let Err(error) = self.write_down() {
            tracing::error!(%error, function = call.function, "an NV-DIMM's file could not be written");
            answer = dsm::status(dsm::HARDWARE);
        }
        memory.write_slice(&mailbox::reply(&answer), page)?;
        Ok(call)
    }

    /// Power comes on: each file notes it, so that a run that ends without a word is known to have ended dirty.
    ///
    /// # Errors
    /// A file could not be written.
    pub fn power_on(&mut self) -> Result<()> {
        self.change_health(Health::power_on)
    }

    /// Power goes off in order.
    ///
    /// # Errors
    /// A file could not be written.
    pub fn power_off(&mut self) -> Result<()> {
        self.change_health(Health::power_off)
    }

    /// Power is cut. The data are the caller's affair.
    ///
    /// # Errors
    /// A file could not be written.
    pub fn power_cut(&mut self) -> Result<()> {
        self.change_health(Health::power_cut)
    }

    /// The guest was reset: what the bus itself remembers is gone, what the DIMMs remember stays.
    pub fn reset(&mut self) {
        self.bus.reset();
        self.calls = 0;
    }

    /// Nothing of what the DIMMs hold can be known to this guest: it has made no call, written no hint, and touched no
    /// page of theirs.
    #[must_use]
    pub fn are_unknown_to_guest(&self) -> bool {
        let hinted = (0..self.backings.len()).any(|dimm| self.hints.count(dimm) > 0);
        let touched = self.memory.iter().any(memory::is_touched);
        self.calls == 0 && !hinted && !touched
    }

    /// Copies of the DIMMs' files as they are now. The guest must be at rest.
    ///
    /// # Errors
    /// A file could not be read.
    pub fn images(&self) -> Result<Vec<(PathBuf, Image)>> {
        let copy = |(n, backing): (usize, &Backing)| Ok((backing.path().to_owned(), self.image(n)?));
        self.backings.iter().enumerate().map(copy).collect()
    }

    /// A copy of one.
    fn image(&self, n: usize) -> Result<Image> {
        let regions = self.plan.regions.iter().zip(&self.memory);
        let pieces = regions.flat_map(|(region, memory)| {
            let own = Plan::mapping(region).filter(move |piece| piece.dimm == n);
            own.map(move |piece| (piece.file_offset, memory, piece.offset..piece.offset + piece.len))
        });
        self.backings[n].copy(pieces)
    }

    fn change_health(&mut self, change: fn(&mut Health)) -> Result<()> {
        for (_, dimm) in self.bus.dimms_mut() {
            change(&mut dimm.health);
            dimm.touch();
        }
        self.write_down()
    }

    /// Writes what the guest changed into the files. What could not be written is tried again at the next call.
    fn write_down(&mut self) -> Result<()> {
        let mut failed = Ok(());
        for (n, ((_, dimm), backing)) in self.bus.dimms_mut().zip(&mut self.backings).enumerate() {
            let changes = dimm.take_changes();
            if changes.is_empty() {
                continue;
            }
            let labels = changes
                .labels
                .as_ref()
                .map_or(Ok(()), |range| backing.write_labels(range.start, &dimm.label_area()[range.clone()]));
            let state = if changes.state {
                let record = superblock::Record {
                    health: dimm.health.clone(),
                    poison: dimm.poison.clone(),
                    ..backing.record().clone()
                };
                backing.store(record)
            } else {
                Ok(())
            };
            if labels.is_err() || state.is_err() {
                dimm.put_back(changes);
                failed = failed.and(labels).and(state);
                continue;
            }
            if let Some(range) = changes.labels {
                let offset = backing::LABELS + range.start as u64;
                let data = || dimm.label_area()[range].to_vec();
                self.journal.note(|| Deed::Labels { dimm: n, offset, data: data() });
            }
            if changes.state {
                let (offset, data) = backing.superblock();
                self.journal.note(|| Deed::State { dimm: n, offset, data });
            }
        }
        failed
    }

    /// The index of a DIMM by its handle.
    #[must_use]
    pub fn index_of(&self, handle: Handle) -> Option<usize> {
        self.plan.dimms.iter().position(|dimm| dimm.handle == handle)
    }
}

impl Snapshot for Nvdimms {
    type State = NvdimmsState;

    fn save(&self) -> NvdimmsState {
        NvdimmsState { bus: self.bus.memory(), hints: self.hints.clone(), calls: self.calls }
    }

    fn restore(&mut self, state: NvdimmsState) -> crate::Result<()> {
        if !state.hints.is_like(&self.hints) {
            let reason = "its flush-hint pages are those of other DIMMs".to_owned();
            return Err(crate::Error::BadState { device: "the NV-DIMMs", reason });
        }
        self.bus.recall(state.bus);
        self.hints = state.hints;
        self.calls = state.calls;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
