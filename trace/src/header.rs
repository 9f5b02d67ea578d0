//! What a trace says of itself: at its begin, who ran what on which DIMMs; at its end, what became of it.

use nvdimm_model::medium::{Rules, Zone};
use nvdimm_model::{Identity, Medium, Persistence};
use serde::{Deserialize, Serialize};

/// The begin of a trace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the nvsim that recorded.
    pub nvsim: String,
    /// Engine that ran the guest.
    pub engine: String,
    /// Name of the guest image, or the path of an own kernel.
    pub image: String,
    /// Hash that names the image's content; empty where there is none.
    pub image_hash: String,
    /// Kernel release, where it is known before the guest runs.
    pub kernel: String,
    /// The kernel's command line.
    pub command_line: String,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// What decides all randomness of the run.
    pub seed: u64,
    /// Instructions retired before the recording began.
    pub instruction: u64,
    /// Guest time before the recording began, in nanoseconds.
    pub time: u64,
    /// Loads are recorded, too.
    pub loads: bool,
    /// The DIMMs, by slot.
    pub dimms: Vec<DimmHeader>,
    /// Where guests find them.
    pub zones: Vec<ZoneHeader>,
}

/// A DIMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DimmHeader {
    /// Its file, as it was named.
    pub name: String,
    /// Who it is.
    pub identity: Identity,
    /// What it promises and what it keeps.
    pub persistence: Persistence,
    /// Bytes of data.
    pub size: u64,
    /// Offset of the data in the file; the file ends with them.
    pub data: u64,
}

/// A range of guest-physical addresses, dealt out to DIMMs in pieces of 2 MiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneHeader {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Slots of the DIMMs, in the order of the pieces.
    pub dimms: Vec<u8>,
}

/// The end of a trace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Instructions retired at the end.
    pub instruction: u64,
    /// Guest time at the end, in nanoseconds.
    pub time: u64,
    /// How the recording ended.
    pub outcome: String,
    /// Events recorded; the writer counts them.
    pub events: u64,
}

impl Header {
    /// The medium before the first event.
    #[must_use]
    pub fn medium(&self, rules: Rules) -> Medium {
        let zone = |zone: &ZoneHeader| Zone {
            range: zone.start..zone.end,
            dimms: zone.dimms.iter().map(|&dimm| usize::from(dimm)).collect(),
        };
        Medium::new(
            rules,
            self.zones.iter().map(zone).collect(),
            self.dimms.iter().map(|dimm| dimm.persistence.kept).collect(),
        )
    }

    /// The DIMM that holds a guest-physical address, and the offset in its file.
    #[must_use]
    pub fn place(&self, address: u64) -> Option<(usize, u64)> {
        const PIECE: u64 = nvdimm_model::geometry::ALIGN;
        let zone = self.zones.iter().find(|zone| (zone.start..zone.end).contains(&address))?;
        let ways = zone.dimms.len() as u64;
        let (piece, within) = ((address - zone.start) / PIECE, (address - zone.start) % PIECE);
        let dimm = usize::from(*zone.dimms.get(piece.checked_rem(ways)? as usize)?);
        let offset = self.dimms.get(dimm)?.data.checked_add(piece / ways * PIECE + within)?;
        Some((dimm, offset))
    }

    /// The guest-physical address of a DIMM's byte, by its offset in the data.
    #[must_use]
    pub fn address(&self, dimm: usize, offset: u64) -> Option<u64> {
        const PIECE: u64 = nvdimm_model::geometry::ALIGN;
        self.zones.iter().find_map(|zone| {
            let position = zone.dimms.iter().position(|&d| usize::from(d) == dimm)? as u64;
            let piece = (offset / PIECE).checked_mul(zone.dimms.len() as u64)?.checked_add(position)?;
            let address = piece.checked_mul(PIECE)?.checked_add(zone.start)?.checked_add(offset % PIECE)?;
            (address < zone.end).then_some(address)
        })
    }
}
