//! What the DIMMs of a run hold: what is sure of it in files, and the medium, which knows what is in doubt.

use std::collections::BTreeMap;

use nvdimm_model::Medium;
use nvdimm_model::medium::{Content, Cut, ImageName, Rules, Survivors};

use crate::{Event, Floor, Header, Kind, Result};

/// Stores after which what is decided is forgotten: some tens of MiB.
const MANY: u64 = 1 << 18;

/// The DIMMs' contents after some events.
#[derive(Debug)]
pub struct Contents {
    medium: Medium,
    floor: Floor,
    /// Stores in the medium after it last forgot.
    kept: u64,
}

/// What a power cut leaves.
#[derive(Debug)]
pub struct Remains {
    /// Lines that differ from the floor.
    pub lines: BTreeMap<u64, Content>,
    /// Addresses of the lines in doubt.
    pub in_doubt: Vec<u64>,
    /// How many images could have been left, exactly, in decimal.
    pub images: String,
    /// The name of this one.
    pub name: ImageName,
}

impl Contents {
    /// Before the first event: all that the floor has is durable.
    #[must_use]
    pub fn new(header: &Header, rules: Rules, floor: Floor) -> Self {
        Self { medium: header.medium(rules), floor, kept: 0 }
    }

    /// What is in doubt.
    #[must_use]
    pub fn medium(&self) -> &Medium {
        &self.medium
    }

    /// What is sure, but for what the medium has not forgotten yet.
    #[must_use]
    pub fn floor(&self) -> &Floor {
        &self.floor
    }

    /// An event happens.
    ///
    /// # Errors
    /// [`crate::Error::Model`] or [`crate::Error::Floor`].
    pub fn apply(&mut self, event: &Event<'_>) -> Result<()> {
        if let Kind::Meta { dimm, area, offset, data } = event.kind {
            return self.floor.meta(dimm.into(), area, offset, data);
        }
        let Some(operation) = event.kind.operation() else { return Ok(()) };
        self.medium.apply(event.vcpu, operation)?;
        if self.medium.steps() > self.kept + MANY {
            let sure = self.medium.settle(&self.floor)?;
            self.floor.lines(&sure.lines)?;
            self.kept = self.medium.steps();
        }
        Ok(())
    }

    /// The power goes now: what is sure is worked out, and any number of choices can be asked for.
    ///
    /// # Errors
    /// [`crate::Error::Floor`].
    pub fn cut(&self) -> Result<Cut<'_>> {
        let cut = self.medium.cut(&self.floor);
        self.floor.check()?;
        Ok(cut)
    }

    /// What is left for one choice; `cut` is [of this moment](Self::cut).
    ///
    /// # Errors
    /// [`crate::Error::Model`] for survivors that cannot be had, or [`crate::Error::Floor`].
    pub fn remains(&self, cut: &Cut<'_>, survivors: &Survivors) -> Result<Remains> {
        let outcome = cut.outcome(survivors)?;
        let mut lines = cut.sure().lines.clone();
        lines.extend(outcome.lines);
        let in_doubt = self.medium.undecided().iter().map(|line| line.address).collect();
        Ok(Remains { lines, in_doubt, images: self.states()?, name: outcome.name })
    }

    /// What the line at an address holds if all stores survive: what the guest reads.
    #[must_use]
    pub fn newest(&self, address: u64) -> Content {
        self.medium.newest(address, &self.floor)
    }

    /// How many images a cut can leave now, exactly, in decimal.
    ///
    /// # Errors
    /// [`crate::Error::Floor`].
    pub fn states(&self) -> Result<String> {
        let states = self.medium.states(&self.floor).to_string();
        self.floor.check()?;
        Ok(states)
    }
}

/// A number in decimal as people read it: exact up to 40 digits, else as a power of ten.
#[must_use]
pub fn in_short(digits: &str) -> String {
    match digits.len() {
        0..=40 => digits.to_owned(),
        len => format!("{}.{}e{}", &digits[..1], &digits[1..4], len - 1),
    }
}
