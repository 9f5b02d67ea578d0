//! A machine that is kept, and one that goes on where another one rested.

use std::path::PathBuf;

use engine::CodeStock;

use super::Machine;
use crate::devices::Snapshot as _;
use crate::outcome::Statistics;
use crate::snapshot::{Image, Since, Snapshot, State, Witness, misfit};
use crate::{Error, Result, memory};

impl Machine {
    /// Lets a machine that is switched off go on where another one rested, instead of being powered up. The console is
    /// told again all that the guest has said since power-up. The DIMMs must be as the guest was told of them, and of what
    /// they hold it must have learnt the same, if it has looked there at all.
    ///
    /// # Errors
    /// [`Error::Misfit`] if the guest was told of another machine, or has learnt something else; this one is then as it was.
    pub fn go_on_from(&mut self, snapshot: &Snapshot) -> Result<()> {
        if snapshot.keeps_dimms() {
            return Err(misfit("it has NV-DIMMs of its own, which a machine gets when it is made"));
        }
        self.adopt(snapshot)?;
        // With DIMMs to probe it rests once more, and goes on then with the code that was translated until then.
        let probes = snapshot.since.is_none() && !self.board.nvdimms().plan().dimms.is_empty();
        self.code = probes.then(CodeStock::default);
        Ok(())
    }

    pub(super) fn adopt(&mut self, snapshot: &Snapshot) -> Result<()> {
        let state = &snapshot.state;
        if self.on || self.board.has_disks() {
            return Err(misfit("the machine is under power, or has disks"));
        }
        let (own, its) = ((self.spec.vcpus, self.spec.ram), (state.partition.vcpus, state.ram));
        if own != its {
            let reason = format!(
                "it has {} processors and {} bytes of RAM, not {} and {}",
                its.0, its.1, own.0, own.1
            );
            return Err(misfit(reason));
        }
        let (own, its) = (self.spec.cpu, state.partition.cpuid.model());
        if own != its {
            return Err(misfit(format!("its processors are {its}, not {own}; give --cpu {its}")));
        }
        if *blake3::hash(&self.tables()?).as_bytes() != state.tables {
            return Err(misfit("its guest was told of other NV-DIMMs; give those with which it was taken"));
        }
        if let Some(Since { read, .. }) = &snapshot.since {
            if snapshot.memory.under().is_none() {
                return Err(misfit("it is part of a boot snapshot, which nvsim run uses by itself"));
            }
            if let Some(other) = read.differs(self.board.nvdimms(), state.board.nvdimms.bus(), &self.memory) {
                return Err(misfit(format!("its guest has learnt other things of its NV-DIMMs: {other}")));
            }
        }
        memory::fill_ram(&self.plan, &self.memory, Some(&snapshot.memory))?;
        if let Some(Since { read, .. }) = &snapshot.since {
            let damaged = |_| misfit("it has read beyond memory; take it anew");
            read.carry(&self.memory).map_err(damaged)?;
        }
        self.board.restore(state.board.clone())?;
        self.board.tell_console(state.said.all());
        self.transcript.restore(state.said.clone());
        self.statistics = state.statistics.clone();
        self.base = Some((snapshot.memory.clone(), snapshot.sum));
        self.rested = Some((state.partition.clone(), state.processors.clone()));
        Ok(())
    }

    /// Keeps the machine as it rests, copies of its DIMMs included.
    ///
    /// # Errors
    /// [`Error::NoSnapshot`] if it does not rest, or has disks; or the host refuses.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let dimms = self.board.nvdimms().images()?;
        self.keep((!dimms.is_empty()).then_some(dimms), None)
    }

    /// Keeps the machine as it rests, without what its DIMMs hold, which its guest cannot know yet.
    ///
    /// # Errors
    /// As [`Machine::snapshot`]; and if the guest has looked at the DIMMs.
    pub fn snapshot_without_dimms(&self) -> Result<Snapshot> {
        if !self.board.nvdimms().are_unknown_to_guest() {
            let reason = "the guest has looked at its NV-DIMMs, so they have to be part of it".to_owned();
            return Err(Error::NoSnapshot { reason });
        }
        self.keep(None, None)
    }

    /// Lets it be seen what the guest learns of its DIMMs from now on, which it must not know yet; see
    /// [`Machine::snapshot_with_read_set`].
    pub fn witness(&mut self) {
        self.board.nvdimms_mut().listen(true);
        // Code that was translated to be watched is no use to whoever is not.
        self.code = None;
        self.witness = Some(Witness::new(&self.plan));
    }

    /// Keeps the machine as it rests, without what its DIMMs hold, but with what its guest has learnt of them since it went on
    /// from the snapshot of a file, on which the new one stands. Nobody is a witness any more.
    ///
    /// # Errors
    /// As [`Machine::snapshot`]; and if there was no witness, or the guest has changed something on its DIMMs.
    pub fn snapshot_with_read_set(&mut self) -> Result<Snapshot> {
        let refused = |reason: &str| Error::NoSnapshot { reason: reason.to_owned() };
        let read = self.witness.take().and_then(|witness| witness.finish(self.board.nvdimms(), &self.memory));
        self.board.nvdimms_mut().listen(false);
        let read = read.ok_or_else(|| refused("the guest has done more to its NV-DIMMs than to look"))?;
        let sum = self.base.as_ref().and_then(|(_, sum)| *sum);
        let base = sum.ok_or_else(|| refused("it did not go on from a snapshot's file"))?;
        self.keep(None, Some(Since { base, read }))
    }

    fn keep(&self, dimms: Option<Vec<(PathBuf, Image)>>, since: Option<Since>) -> Result<Snapshot> {
        let refused = |reason: &str| Error::NoSnapshot { reason: reason.to_owned() };
        let (partition, processors) =
            self.rested.clone().ok_or_else(|| refused("it does not rest between two instructions"))?;
        if self.board.has_disks() {
            return Err(refused(
                "it has disks, which could be changed behind its guest's back; leave them out",
            ));
        }
        let bytes = self.spec.ram;
        let base = self.base.as_ref().map(|(image, _)| image);
        let memory = match (base, &since) {
            (Some(base), Some(_)) => Image::of_ram_since(&self.plan, &self.memory, base),
            _ => Image::of_ram(&self.plan, &self.memory, base),
        };
        let memory = memory.map_err(|source| Error::Map { bytes, source })?;
        let state = State {
            partition,
            ram: self.spec.ram,
            boot: self.spec.boot.clone(),
            wall_clock: self.spec.wall_clock,
            tables: *blake3::hash(&self.tables()?).as_bytes(),
            processors,
            board: self.board.save(),
            statistics: Statistics { processors: Vec::new(), ..self.statistics.clone() },
            said: self.transcript.save(),
            note: String::new(),
        };
        Ok(Snapshot { state, memory, dimms, code: CodeStock::default(), since, sum: None })
    }
}
