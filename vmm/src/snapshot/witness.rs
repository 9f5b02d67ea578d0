//! Sees what a guest learns of its NV-DIMMs: each load of their ranges, and each call. Makes a [`ReadSet`] of it, or nothing
//! where the guest did more than to look.
//!
//! Linux reads the first page of a block device for its partition table, looks at a few bytes of it, and drops it again. What
//! else is in that page, a file system's counters for one, is in RAM then, but has decided nothing. So REP MOVS from a DIMM to
//! RAM is followed: it leaves nothing of what it carries in a register. The page that it carries to is watched from then on, and
//! a load there is a look at the DIMM's byte. Any other load of a DIMM is a look at once.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use engine::event::{Event, EventKind};
use engine::state::Segment;
use engine::{CpuState, Exit, ExitKind, GuestMemory, Partition, Processor, VcpuId};
use symbols::Memory as _;
use vm_memory::{Bytes, GuestAddress};

use super::read_set::{Bytewise, Carried, ReadSet};
use crate::Result;
use crate::layout::{DSM_MAILBOX, MemoryPlan};
use crate::nvdimm::Nvdimms;
use crate::sight::VirtualMemory;

const PAGE: u64 = 4096;
/// Bytes carried or looked at, beyond which it is no probing any more.
const LIMIT: usize = 1 << 20;
/// RFLAGS: strings go downwards.
const DF: u64 = 1 << 10;

/// A REP MOVS that is about to be executed: bytes in one page each, by guest-physical address.
#[derive(Debug, Clone)]
struct Move {
    vcpu: VcpuId,
    rip: u64,
    from: Range<u64>,
    to: u64,
}

/// Follows a guest from where it knows nothing of its DIMMs.
#[derive(Debug)]
pub struct Witness {
    zones: Vec<Range<u64>>,
    ram: Vec<Range<u64>>,
    /// Pages of RAM that something was carried to.
    pages: BTreeSet<u64>,
    /// Bytes of RAM by address, and the bytes of the DIMMs that they are copies of.
    carried: BTreeMap<u64, u64>,
    /// Bytes of the DIMMs that were looked at.
    looked_at: BTreeSet<u64>,
    current: Option<Move>,
    /// What the current one has loaded and not yet stored.
    loaded: Option<Range<u64>>,
    /// The guest has done more than to look.
    spoilt: bool,
}

impl Witness {
    /// Of a machine with this memory.
    pub fn new(plan: &MemoryPlan) -> Self {
        Self {
            zones: plan.persistent().to_vec(),
            ram: plan.ram().to_vec(),
            pages: BTreeSet::new(),
            carried: BTreeMap::new(),
            looked_at: BTreeSet::new(),
            current: None,
            loaded: None,
            spoilt: false,
        }
    }

    /// Begins to look. An engine that sees no loads, or cannot stop before them, is no use.
    pub fn attach(&mut self, partition: &dyn Partition) {
        self.spoilt |= partition.memory_events().is_none_or(|events| !events.ask_places(true));
        self.watch(partition);
    }

    fn watch(&self, partition: &dyn Partition) {
        let pages = self.pages.iter().map(|&page| page..page + PAGE);
        let ranges: Vec<_> = self.zones.iter().cloned().chain(pages).collect();
        if let Some(events) = partition.memory_events() {
            events.watch(if self.spoilt { &[] } else { &ranges }, true);
        }
    }

    /// After each exit: takes what the engine saw. It asks for the place of each instruction that is about to touch what is
    /// watched, and so there is time to look where that would carry something.
    ///
    /// # Errors
    /// The engine's.
    pub fn after_run(
        &mut self,
        exit: Exit,
        partition: &dyn Partition,
        processor: &mut dyn Processor,
        memory: &GuestMemory,
    ) -> Result<()> {
        let Some(events) = partition.memory_events().filter(|_| !self.spoilt) else { return Ok(()) };
        events.drain(&mut |event| self.see(event));
        if exit.kind == ExitKind::UnknownPlace {
            self.look_at_loaded();
            self.current = self.movement(exit.vcpu, &processor.save(exit.vcpu)?, memory);
            let page = self.current.as_ref().map(|current| current.to & !(PAGE - 1));
            if page.is_some_and(|page| self.pages.insert(page)) {
                self.watch(partition);
            }
        }
        if self.carried.len().max(self.looked_at.len()) > LIMIT {
            self.spoilt = true;
        }
        if self.spoilt {
            self.watch(partition);
        }
        Ok(())
    }

    /// What the next instruction would carry from a DIMM to RAM, if it is such a one.
    fn movement(&self, vcpu: VcpuId, state: &CpuState, memory: &GuestMemory) -> Option<Move> {
        let mut virtual_memory = VirtualMemory::new(memory, state);
        let registers = &state.registers;
        let rip = registers.rip;
        let mut code = [0; 3];
        let read = virtual_memory.read(rip, &mut code);
        // REP MOVSB, MOVSD, MOVSQ, as compilers and kernels write them in 64-bit mode.
        let width = match code {
            [0xF3, 0xA4, _] => 1,
            [0xF3, 0xA5, _] => 4,
            [0xF3, 0x48, 0xA5] => 8,
            _ => return None,
        };
        let is_64_bit = state.system.segments[1].attributes & Segment::LONG != 0;
        if !read || !is_64_bit || registers.rflags & DF != 0 {
            return None;
        }
        let [count, source, target] = [1, 6, 7].map(|n| registers.gpr[n]);
        let room = |address: u64| PAGE - address % PAGE;
        let len = count.checked_mul(width)?.min(room(source)).min(room(target));
        let (from, to) = (virtual_memory.translate(source)?, virtual_memory.translate(target)?);
        let reaches = |range: &Range<u64>, at: u64| range.contains(&at);
        let fits = self.zones.iter().any(|zone| reaches(zone, from))
            && self.ram.iter().any(|ram| reaches(ram, to))
            // Devices look there.
            && !reaches(&DSM_MAILBOX, to);
        fits.then_some(Move { vcpu, rip, from: from..from + len, to })
    }

    fn see(&mut self, event: &Event) {
        let is_current =
            self.current.as_ref().is_some_and(|own| (own.vcpu, own.rip) == (event.vcpu, event.rip));
        match event.kind {
            EventKind::Load { addr, len } if self.is_of_dimm(addr) => {
                self.look_at_loaded();
                let bytes = addr..addr + u64::from(len);
                let moves = self
                    .current
                    .as_ref()
                    .filter(|own| is_current && own.from.contains(&bytes.start) && bytes.end <= own.from.end);
                if moves.is_some() {
                    self.loaded = Some(bytes);
                } else {
                    self.looked_at.extend(bytes);
                }
            }
            EventKind::Load { addr, len } => {
                self.look_at_loaded();
                let originals = self.carried.range(addr..addr + u64::from(len));
                self.looked_at.extend(originals.map(|(_, original)| *original));
            }
            EventKind::Store { addr, .. } if self.is_of_dimm(addr) => self.spoilt = true,
            EventKind::Store { addr, len, .. } => {
                let bytes = addr..addr + u64::from(len);
                let from = self.loaded.take_if(|loaded| {
                    let own = self.current.as_ref().filter(|_| is_current);
                    own.is_some_and(|own| {
                        own.to + (loaded.start - own.from.start) == addr
                            && loaded.end - loaded.start == u64::from(len)
                    })
                });
                self.look_at_loaded();
                match from {
                    Some(from) => self.carried.extend(bytes.zip(from)),
                    None => bytes.for_each(|byte| {
                        self.carried.remove(&byte);
                    }),
                }
            }
            EventKind::Flush { .. } | EventKind::Fence { .. } => {}
        }
    }

    /// What was loaded and did not go straight to where it was expected is known to the guest.
    fn look_at_loaded(&mut self) {
        self.looked_at.extend(self.loaded.take().into_iter().flatten());
    }

    fn is_of_dimm(&self, address: u64) -> bool {
        self.zones.iter().any(|zone| zone.contains(&address))
    }

    /// What was seen until the guest rested, if it has done no more than to look.
    pub fn finish(mut self, nvdimms: &Nvdimms, memory: &GuestMemory) -> Option<ReadSet> {
        self.look_at_loaded();
        let calls = nvdimms.answered().filter(|_| !self.spoilt)?.to_vec();
        let mut looked_at: Vec<Bytewise> = Vec::new();
        for address in self.looked_at {
            // Nothing was stored there since.
            let byte: u8 = memory.read_obj(GuestAddress(address)).ok()?;
            match looked_at.last_mut() {
                Some(last) if last.address + last.bytes.len() as u64 == address => last.bytes.push(byte),
                _ => looked_at.push(Bytewise { address, bytes: vec![byte] }),
            }
        }
        let mut carried: Vec<Carried> = Vec::new();
        for (to, from) in self.carried {
            match carried.last_mut() {
                Some(last) if (last.to + last.len, last.from + last.len) == (to, from) => last.len += 1,
                _ => carried.push(Carried { to, from, len: 1 }),
            }
        }
        Some(ReadSet { calls, looked_at, carried })
    }
}
