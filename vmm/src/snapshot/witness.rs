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
use engine::log::Log;
use engine::state::Segment;
use engine::{CpuState, Exit, ExitKind, GuestMemory, Partition, Processor, VcpuId};
use symbols::Memory as _;
use vm_memory::{Bytes, GuestAddress};

use super::read_set::{Bytewise, Carried, ReadSet};
use crate::Result;
use crate::layout::{DSM_MAILBOX, MemoryPlan, PAGE};
use crate::nvdimm::Nvdimms;
use crate::sight::VirtualMemory;

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
    /// Room for what the engine saw.
    log: Log,
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
            log: Log::default(),
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
        let mut log = std::mem::take(&mut self.log);
        events.drain(&mut log);
        log.events().for_each(|event| self.see(&event));
        self.log = log;
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

    /// A device has written memory, past the engine: what was carried there is gone.
    pub fn device_wrote(&mut self, range: &Range<u64>) {
        self.spoilt |= self.zones.iter().any(|zone| zone.start < range.end && range.start < zone.end);
        self.carried.retain(|byte, _| !range.contains(byte));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::MIB;
    use engine::event::StoreKind;

    const DIMM: u64 = 4 << 30;
    const PAGE_CACHE: u64 = 0x5000;
    const RIP: u64 = 0x100;

    fn witness() -> Witness {
        Witness::new(&MemoryPlan::new(64 * MIB, &[16 * MIB]).unwrap())
    }

    fn event(rip: u64, kind: EventKind) -> Event {
        Event { vcpu: 0, rip, instruction: 0, time: 0, place: 0, kind }
    }

    fn load(rip: u64, addr: u64, len: u8) -> Event {
        event(rip, EventKind::Load { addr, len })
    }

    fn store(rip: u64, addr: u64, len: u8) -> Event {
        event(rip, EventKind::Store { addr, data: [0; 64], len, kind: StoreKind::Cached })
    }

    /// REP MOVSQ of 32 bytes from the DIMM's begin to a page.
    fn carrying() -> Witness {
        let mut witness = witness();
        witness.current = Some(Move { vcpu: 0, rip: RIP, from: DIMM..DIMM + 32, to: PAGE_CACHE });
        for at in (0..32).step_by(8) {
            witness.see(&load(RIP, DIMM + at, 8));
            witness.see(&store(RIP, PAGE_CACHE + at, 8));
        }
        assert!(witness.looked_at.is_empty() && !witness.spoilt);
        assert_eq!(witness.carried.len(), 32);
        witness
    }

    fn looked_at(witness: &Witness) -> Vec<u64> {
        witness.looked_at.iter().map(|address| address - DIMM).collect()
    }

    #[test]
    fn what_is_carried_counts_where_it_is_looked_at() {
        let mut witness = carrying();
        witness.see(&load(1, PAGE_CACHE + 6, 4));
        assert_eq!(looked_at(&witness), [6, 7, 8, 9]);
        // Written over; what is loaded there is the DIMM's no longer.
        witness.see(&store(2, PAGE_CACHE + 16, 8));
        witness.see(&load(3, PAGE_CACHE + 16, 8));
        witness.see(&load(3, PAGE_CACHE + 32, 8));
        assert_eq!((looked_at(&witness).len(), witness.carried.len()), (4, 24));
        witness.device_wrote(&(PAGE_CACHE..PAGE_CACHE + 4));
        assert_eq!(witness.carried.len(), 20);
        assert!(!witness.spoilt);
    }

    #[test]
    fn what_does_not_go_straight_to_ram_is_looked_at() {
        // An instruction that was not foreseen; the foreseen one by another vCPU, from elsewhere, and to elsewhere.
        for (vcpu, rip, from, to) in
            [(0, 1, 0, 0), (1, RIP, 0, 0), (0, RIP, 64, 0), (0, RIP, 28, 28), (0, RIP, 0, 8), (0, RIP, 8, 0)]
        {
            let mut witness = witness();
            witness.current = Some(Move { vcpu: 0, rip: RIP, from: DIMM..DIMM + 32, to: PAGE_CACHE });
            witness.see(&Event { vcpu, ..load(rip, DIMM + from, 8) });
            witness.see(&Event { vcpu, ..store(rip, PAGE_CACHE + to, 8) });
            let expected: Vec<u64> = (from..from + 8).collect();
            assert_eq!(looked_at(&witness), expected, "{vcpu} {rip} {from} {to}");
            assert!(witness.carried.is_empty());
        }
    }

    #[test]
    fn what_is_never_stored_is_looked_at() {
        let mut witness = carrying();
        witness.see(&load(RIP, DIMM, 8));
        witness.look_at_loaded();
        assert_eq!(looked_at(&witness).len(), 8);
    }

    #[test]
    fn a_store_to_a_dimm_is_more_than_a_look() {
        let mut witness = carrying();
        witness.see(&store(1, DIMM + (1 << 20), 1));
        assert!(witness.spoilt);
    }
}
