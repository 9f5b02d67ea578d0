//! A DIMM: all of its state but its data.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::health::Health;
use crate::poison::Poison;
use crate::{Geometry, Identity, Persistence};

/// A DIMM without its data, which the machine maps and no one copies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dimm {
    /// Who it is.
    pub identity: Identity,
    /// How large it is.
    pub geometry: Geometry,
    /// From where on its stores survive.
    pub persistence: Persistence,
    /// How it is.
    pub health: Health,
    /// Which device addresses cannot be read.
    pub poison: Poison,
    label_area: Vec<u8>,
    #[serde(skip)]
    changes: Changes,
}

/// What a guest changed since the last look, so that the owner of the DIMM's file writes it down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// The part of the label area that was written.
    pub labels: Option<Range<usize>>,
    /// Health or poison changed.
    pub state: bool,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.labels.is_none() && !self.state
    }
}

impl Dimm {
    /// A new DIMM with an empty label area.
    pub fn new(identity: Identity, geometry: Geometry, persistence: Persistence) -> Self {
        Self {
            identity,
            geometry,
            persistence,
            health: Health::default(),
            poison: Poison::default(),
            label_area: vec![0; geometry.label_size as usize],
            changes: Changes::default(),
        }
    }

    /// The label area.
    pub fn label_area(&self) -> &[u8] {
        &self.label_area
    }

    /// Replaces the label area, for instance by what the DIMM's file holds. Bytes beyond the area are cut off.
    pub fn set_label_area(&mut self, mut area: Vec<u8>) {
        area.resize(self.geometry.label_size as usize, 0);
        self.label_area = area;
    }

    /// Writes a part of the label area; false if it does not lie within.
    pub fn write_labels(&mut self, offset: usize, bytes: &[u8]) -> bool {
        let Some(end) = offset.checked_add(bytes.len()) else { return false };
        let Some(place) = self.label_area.get_mut(offset..end) else { return false };
        place.copy_from_slice(bytes);
        if !bytes.is_empty() {
            let seen = self.changes.labels.take().unwrap_or(offset..end);
            self.changes.labels = Some(seen.start.min(offset)..seen.end.max(end));
        }
        true
    }

    /// Notes that health or poison changed.
    pub fn touch(&mut self) {
        self.changes.state = true;
    }

    /// Notes again what [`Dimm::take_changes`] gave, because it could not be written down.
    pub fn put_back(&mut self, changes: Changes) {
        self.changes.state |= changes.state;
        if let Some(range) = changes.labels {
            let seen = self.changes.labels.take().unwrap_or(range.clone());
            self.changes.labels = Some(seen.start.min(range.start)..seen.end.max(range.end));
        }
    }

    /// Whether [`Dimm::take_changes`] would give any.
    pub fn is_changed(&self) -> bool {
        !self.changes.is_empty()
    }

    /// What changed since the last call.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }
}
