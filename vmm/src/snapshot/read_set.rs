//! What a guest has learnt of its NV-DIMMs: a snapshot that has this beside its memory goes on with any DIMMs of which the
//! guest would have learnt the same.
//!
//! A guest is a function of what it reads. So where every call gets the same answer and every byte that was looked at is the
//! same, it stands where it stood. Bytes that it has only carried from a DIMM to its RAM have decided nothing: they may differ,
//! and are put in place.

use nvdimm_model::dsm::BusMemory;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use crate::nvdimm::Nvdimms;
use crate::nvdimm::mailbox::Answered;
use engine::GuestMemory;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadSet {
    /// Calls of the DIMMs and their bus, in order, with their answers.
    pub calls: Vec<Answered>,
    /// What was looked at.
    pub looked_at: Vec<Bytewise>,
    /// What is in RAM as it was read, and was not looked at there.
    pub carried: Vec<Carried>,
}

/// Bytes at a guest-physical address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytewise {
    /// Of the first one.
    pub address: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Bytes of RAM that are a copy of a DIMM's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// Guest-physical address of the copy.
    pub to: u64,
    /// Guest-physical address of the original.
    pub from: u64,
    /// Bytes.
    pub len: u64,
}

impl ReadSet {
    /// Whether a guest would learn the same of these DIMMs, whose power is not on yet. If not: what differs.
    pub fn differs(&self, nvdimms: &Nvdimms, bus: &BusMemory, memory: &GuestMemory) -> Option<String> {
        if let Some(call) = nvdimms.answers_otherwise(&self.calls, bus) {
            return Some(format!("function {} of {:?} answers otherwise", call.function, call.handle));
        }
        let mut now = Vec::new();
        let other = self.looked_at.iter().find(|Bytewise { address, bytes }| {
            now.resize(bytes.len(), 0);
            memory.read_slice(&mut now, GuestAddress(*address)).is_err() || now != *bytes
        });
        other.map(|place| format!("{} bytes at {:#x} are others", place.bytes.len(), place.address))
    }

    /// Puts what was only carried where it was carried to.
    ///
    /// # Errors
    /// An address is outside of memory.
    pub fn carry(&self, memory: &GuestMemory) -> Result<(), vm_memory::GuestMemoryError> {
        let mut bytes = Vec::new();
        self.carried.iter().try_for_each(|&Carried { to, from, len }| {
            bytes.resize(len as usize, 0);
            memory.read_slice(&mut bytes, GuestAddress(from))?;
            memory.write_slice(&bytes, GuestAddress(to))
        })
    }
}
