//! What happens to the medium: stores, flushes, fences, hints (Intel SDM vol. 1, 11.12; vol. 2, the instructions named).

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How a store is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StoreKind {
    /// An ordinary store, of any width; a page walker's update of a table entry is one too.
    Cached,
    /// A store by a LOCK-prefixed instruction, or XCHG with memory: the vCPU is fenced first.
    Locked,
    /// MOVNTx or MOVDIRI: posted in pieces of eight bytes.
    NonTemporal,
    /// MOVDIR64B: posted as a whole.
    Direct64,
    /// A string instruction, whose elements have this many bytes.
    String(u8),
    /// A device's write: DMA, mailbox, clearing of poison.
    Device,
}

/// How a line is flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FlushKind {
    /// CLFLUSH: done when executed.
    Clflush,
    /// CLFLUSHOPT: done at the vCPU's next fence.
    Clflushopt,
    /// CLWB: done at the vCPU's next fence.
    Clwb,
}

/// What may order a vCPU's flushes and posted stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FenceKind {
    /// SFENCE.
    Sfence,
    /// MFENCE.
    Mfence,
    /// LFENCE: orders loads only.
    Lfence,
    /// A LOCK-prefixed instruction outside the medium.
    Locked,
    /// A LOCK CMPXCHG that did not store.
    FailedCmpxchg,
    /// CPUID, IRET, MOV to a control register and the like.
    Serialising,
}

/// One event on a medium, at one vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Bytes are stored.
    Store {
        /// Guest-physical address of the first byte.
        address: u64,
        /// The bytes.
        data: &'a [u8],
        /// How.
        kind: StoreKind,
    },
    /// The line that holds an address is flushed.
    Flush {
        /// Guest-physical address in the line.
        address: u64,
        /// How.
        kind: FlushKind,
    },
    /// A fence, or what some take for one.
    Fence(FenceKind),
    /// WBINVD or WBNOINVD: all caches are written back.
    WriteBackAll,
    /// INVD: caches are dropped; a guest that does this loses data.
    DropAll,
    /// A flush hint of a DIMM is written.
    Hint {
        /// Index of the DIMM.
        dimm: usize,
    },
}

/// Where the sources of the rules differ or are silent; the default is what Intel's manual says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// A wide store may be cut at borders of eight bytes.
    pub tear: bool,
    /// LOCK-prefixed instructions, and XCHG with memory, are fences. Without, only those count that a program makes for
    /// their own sake.
    pub locked_fences: bool,
    /// A failing LOCK CMPXCHG is a fence.
    pub failed_cmpxchg_fences: bool,
    /// Serialising instructions are fences.
    pub serialising_fences: bool,
    /// Stores to one line survive in the order in which they were made; else only stores to the same eight bytes do.
    pub line_order: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            tear: true,
            locked_fences: true,
            failed_cmpxchg_fences: true,
            serialising_fences: false,
            line_order: true,
        }
    }
}

impl Rules {
    /// Whether a fence of this kind commits a vCPU's flushes and posted stores.
    pub fn fences(&self, kind: FenceKind) -> bool {
        match kind {
            FenceKind::Sfence | FenceKind::Mfence => true,
            FenceKind::Lfence => false,
            FenceKind::Locked => self.locked_fences,
            FenceKind::FailedCmpxchg => self.locked_fences && self.failed_cmpxchg_fences,
            FenceKind::Serialising => self.serialising_fences,
        }
    }
}

impl FromStr for Rules {
    type Err = String;

    /// Changes to the default, as `locked=off,tear=off`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut rules = Self::default();
        for change in text.split(',') {
            let switch = match change.split_once('=') {
                Some((name, "on")) => Some((name, true)),
                Some((name, "off")) => Some((name, false)),
                _ => None,
            };
            let place = switch.and_then(|(name, on)| {
                let place = match name {
                    "tear" => &mut rules.tear,
                    "locked" => &mut rules.locked_fences,
                    "cmpxchg" => &mut rules.failed_cmpxchg_fences,
                    "serialising" => &mut rules.serialising_fences,
                    "line-order" => &mut rules.line_order,
                    _ => return None,
                };
                Some((place, on))
            });
            let Some((place, on)) = place else {
                return Err(format!(
                    "{change:?} is no rule: write tear, locked, cmpxchg, serialising or line-order, and =on or =off; as \
                     locked=off,tear=off"
                ));
            };
            *place = on;
        }
        Ok(rules)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_changed_by_name() {
        let rules: Rules = "locked=off,serialising=on".parse().unwrap();
        assert_eq!(rules, Rules { locked_fences: false, serialising_fences: true, ..Rules::default() });
        assert!(rules.fences(FenceKind::Serialising) && rules.fences(FenceKind::Sfence));
        assert!(!rules.fences(FenceKind::Locked) && !rules.fences(FenceKind::FailedCmpxchg));
        assert_eq!(
            "tear=on,tear=off,line-order=off,cmpxchg=off".parse::<Rules>().unwrap(),
            Rules { tear: false, line_order: false, failed_cmpxchg_fences: false, ..Rules::default() }
        );
        for bad in ["", "locked", "locked=no", "lock=off", "tear=off,"] {
            assert!(bad.parse::<Rules>().unwrap_err().contains("is no rule"), "{bad}");
        }
    }
}
