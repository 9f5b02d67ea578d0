//! The model of the medium, fed with events, and what a power cut leaves of it.

use std::collections::BTreeMap;

use nvdimm_model::Medium;
use nvdimm_model::medium::{Content, ImageName, Rules, Survivors};
use trace::{Event, Header};

use super::floor::Floor;
use crate::{Error, Result};

/// Stores after which what is decided is forgotten: some tens of MiB.
const MANY: u64 = 1 << 20;

/// The medium, and what is sure of it.
#[derive(Debug)]
pub struct Live {
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
    /// How many images could have been left.
    pub images: String,
    /// The name of this one.
    pub name: ImageName,
}

impl Live {
    /// All that the floor has is durable.
    pub fn new(header: &Header, rules: Rules, floor: Floor) -> Self {
        Self { medium: header.medium(rules), floor, kept: 0 }
    }

    /// What is sure.
    pub fn floor(&self) -> &Floor {
        &self.floor
    }

    /// An event happens.
    pub fn apply(&mut self, event: &Event<'_>) -> Result<()> {
        let Some(operation) = event.kind.operation() else { return Ok(()) };
        self.medium.apply(event.vcpu, operation).map_err(trace::Error::from)?;
        if self.medium.steps() > self.kept + MANY {
            let sure = self.medium.settle(&self.floor).map_err(trace::Error::from)?;
            self.floor.lines(&sure.lines).and_then(|()| self.floor.check()).map_err(Error::Floor)?;
            self.kept = self.medium.steps();
        }
        Ok(())
    }

    /// What is left if the power goes now.
    pub fn remains(&self, survivors: &Survivors) -> Result<Remains> {
        let cut = self.medium.cut(&self.floor);
        let outcome = cut.outcome(survivors).map_err(trace::Error::from)?;
        let mut lines = cut.sure().lines.clone();
        lines.extend(outcome.lines);
        let in_doubt = self.medium.undecided().iter().map(|line| line.address).collect();
        let images = self.medium.states(&self.floor).to_string();
        self.floor.check().map_err(Error::Floor)?;
        Ok(Remains { lines, in_doubt, images: shortened(images), name: outcome.name })
    }
}

/// A number that nobody reads to its end.
fn shortened(digits: String) -> String {
    if digits.len() <= 40 {
        digits
    } else {
        format!("{}.{}e{}", &digits[..1], &digits[1..3], digits.len() - 1)
    }
}
