//! From linear to guest-physical addresses, with the fault that the processor would raise (SDM vol. 3, 4.5 to 4.7).
//!
//! An exception that KVM delivers cannot be followed into its handler, so page faults are foreseen here and delivered by
//! [`super::deliver`].

use engine::GuestMemory;
use kvm_bindings::{kvm_regs, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};

const CR0_PG: u64 = 1 << 31;
const CR0_WP: u64 = 1 << 16;
const CR4_LA57: u64 = 1 << 12;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;
const RFLAGS_AC: u64 = 1 << 18;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// What an access is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    Read,
    Write,
    Execute,
}

/// Why an address cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Miss {
    /// A page fault with this error code.
    Fault(u32),
    /// Not an address: #GP, or #SS of the stack.
    NotCanonical,
    /// Paging of a kind that is not walked here.
    Unknown,
}

/// How the vCPU translates now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paging<'a> {
    memory: &'a GuestMemory,
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    user: bool,
    /// Supervisor code may touch user pages (RFLAGS.AC).
    allowed: bool,
}

impl<'a> Paging<'a> {
    pub(super) fn of(memory: &'a GuestMemory, regs: &kvm_regs, sregs: &kvm_sregs) -> Self {
        Self {
            memory,
            cr0: sregs.cr0,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            efer: sregs.efer,
            user: sregs.ss.dpl == 3,
            allowed: regs.rflags & RFLAGS_AC != 0,
        }
    }

    /// As an implicit access of the processor sees it: to descriptor tables, and to the stack of a handler.
    pub(super) fn supervisor(mut self) -> Self {
        self.user = false;
        self.allowed = false;
        self
    }

    /// Is this long mode, with paging that is walked here?
    pub(super) fn is_long(&self) -> bool {
        self.efer & EFER_LMA != 0 && self.cr4 & CR4_LA57 == 0
    }

    /// The guest-physical address of `linear`, and nothing changed.
    pub(super) fn translate(&self, linear: u64, want: Want) -> Result<u64, Miss> {
        self.walk(linear, want).map(|walk| walk.address)
    }

    /// The guest-physical address for a store that is made in the processor's stead: accessed and dirty bits are set.
    pub(super) fn translate_for_store(&self, linear: u64) -> Result<u64, Miss> {
        Ok(self.mark(&self.walk(linear, Want::Write)?, DIRTY))
    }

    /// The same for a load, which sets accessed bits.
    pub(super) fn translate_for_load(&self, linear: u64) -> Result<u64, Miss> {
        Ok(self.mark(&self.walk(linear, Want::Read)?, 0))
    }

    /// Leaves the processor's marks in the tables; the last entry has one more.
    fn mark(&self, walk: &Walk, last: u64) -> u64 {
        for (n, &(at, entry)) in walk.entries[..walk.depth].iter().enumerate() {
            let bits = if n + 1 == walk.depth { ACCESSED | last } else { ACCESSED };
            if entry & bits != bits {
                let _ = self.memory.write_obj(entry | bits, GuestAddress(at));
            }
        }
        walk.address
    }

    fn walk(&self, linear: u64, want: Want) -> Result<Walk, Miss> {
        if self.cr0 & CR0_PG == 0 {
            return Ok(Walk { address: linear & 0xFFFF_FFFF, entries: [(0, 0); 4], depth: 0 });
        }
        if !self.is_long() {
            return Err(Miss::Unknown);
        }
        if (linear as i64) << 16 >> 16 != linear as i64 {
            return Err(Miss::NotCanonical);
        }
        let no_execute = self.efer & EFER_NXE != 0;
        let (mut table, mut rights, mut forbidden) = (self.cr3 & ADDRESS, WRITABLE | USER, 0);
        let mut walk = Walk { address: 0, entries: [(0, 0); 4], depth: 0 };
        for level in (0..4).rev() {
            let shift = 12 + 9 * level;
            let at = table + (linear >> shift & 0x1FF) * 8;
            let entry: u64 = self.memory.read_obj(GuestAddress(at)).unwrap_or(0);
            if entry & PRESENT == 0 {
                return Err(self.fault(want, false));
            }
            walk.entries[walk.depth] = (at, entry);
            walk.depth += 1;
            rights &= entry;
            forbidden |= entry & NO_EXECUTE;
            if level == 0 || (level < 3 && entry & LARGE != 0) {
                let inside = (1_u64 << shift) - 1;
                walk.address = entry & ADDRESS & !inside | linear & inside;
                let execute = !(no_execute && forbidden != 0);
                return if self.may(want, rights, execute) { Ok(walk) } else { Err(self.fault(want, true)) };
            }
            table = entry & ADDRESS;
        }
        Err(Miss::Unknown)
    }

    fn may(&self, want: Want, rights: u64, execute: bool) -> bool {
        let (writable, user) = (rights & WRITABLE != 0, rights & USER != 0);
        if self.user && !user {
            return false;
        }
        let kernel_on_user = !self.user && user;
        match want {
            Want::Execute => execute && !(kernel_on_user && self.cr4 & CR4_SMEP != 0),
            Want::Read => self.smap_allows(kernel_on_user),
            Want::Write => {
                (writable || (!self.user && self.cr0 & CR0_WP == 0)) && self.smap_allows(kernel_on_user)
            }
        }
    }

    fn smap_allows(&self, kernel_on_user: bool) -> bool {
        !kernel_on_user || self.cr4 & CR4_SMAP == 0 || self.allowed
    }

    fn fault(&self, want: Want, present: bool) -> Miss {
        let fetch = want == Want::Execute && (self.efer & EFER_NXE != 0 || self.cr4 & CR4_SMEP != 0);
        let code = u32::from(present)
            | u32::from(want == Want::Write) << 1
            | u32::from(self.user) << 2
            | u32::from(fetch) << 4;
        Miss::Fault(code)
    }
}

/// A way through the tables.
struct Walk {
    address: u64,
    /// Where each entry stands and what it held, from the top.
    entries: [(u64, u64); 4],
    depth: usize,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Tables at 0x1000 to 0x4000 that map 2 MiB from 0 by pages: all are the kernel's and writable, but for the
    /// last three: 0x1FD000 is the user's, 0x1FE000 read-only, 0x1FF000 missing.
    pub(in crate::step) fn memory() -> GuestMemory {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x20_0000)]).unwrap();
        let put = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at)).unwrap();
        for (table, next) in [(0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000)] {
            put(table, next | PRESENT | WRITABLE | USER);
        }
        for page in 0..0x1FD {
            put(0x4000 + page * 8, page << 12 | PRESENT | WRITABLE);
        }
        put(0x4000 + 0x1FD * 8, 0x1FD << 12 | PRESENT | WRITABLE | USER | NO_EXECUTE);
        put(0x4000 + 0x1FE * 8, 0x1FE << 12 | PRESENT);
        memory
    }

    pub(in crate::step) fn long_mode() -> kvm_sregs {
        kvm_sregs {
            cr0: CR0_PG | CR0_WP | 1,
            cr3: 0x1000,
            cr4: 0x20 | CR4_SMAP | CR4_SMEP,
            efer: EFER_LMA | EFER_NXE,
            ..Default::default()
        }
    }

    #[test]
    fn rights_decide() {
        let memory = memory();
        let mut sregs = long_mode();
        let mut regs = kvm_regs::default();
        let paging = Paging::of(&memory, &regs, &sregs);
        assert_eq!(paging.translate(0x5123, Want::Write), Ok(0x5123));
        assert_eq!(paging.translate(0x1F_F000, Want::Read), Err(Miss::Fault(0)));
        assert_eq!(paging.translate(0x1F_F000, Want::Write), Err(Miss::Fault(2)));
        assert_eq!(paging.translate(0x1F_E000, Want::Write), Err(Miss::Fault(3)));
        assert_eq!(paging.translate(0x1F_D000, Want::Read), Err(Miss::Fault(1)), "SMAP");
        assert_eq!(paging.translate(0x1F_D000, Want::Execute), Err(Miss::Fault(0x11)), "SMEP");
        assert_eq!(paging.translate(1 << 47, Want::Read), Err(Miss::NotCanonical));
        regs.rflags = RFLAGS_AC;
        assert_eq!(Paging::of(&memory, &regs, &sregs).translate(0x1F_D008, Want::Write), Ok(0x1F_D008));
        sregs.ss.dpl = 3;
        let paging = Paging::of(&memory, &regs, &sregs);
        assert_eq!(paging.translate(0x1F_D008, Want::Write), Ok(0x1F_D008));
        assert_eq!(paging.translate(0x1F_D008, Want::Execute), Err(Miss::Fault(0x15)));
        assert_eq!(paging.translate(0x5000, Want::Read), Err(Miss::Fault(5)));
        assert_eq!(paging.supervisor().translate(0x5000, Want::Read), Ok(0x5000));
    }

    #[test]
    fn a_store_in_the_processors_stead_leaves_its_marks() {
        let memory = memory();
        let sregs = long_mode();
        let paging = Paging::of(&memory, &kvm_regs::default(), &sregs);
        let entry = || memory.read_obj::<u64>(GuestAddress(0x4000 + 5 * 8)).unwrap();
        paging.translate(0x5000, Want::Write).unwrap();
        assert_eq!(entry() & (ACCESSED | DIRTY), 0);
        paging.translate_for_store(0x5000).unwrap();
        assert_eq!(entry() & (ACCESSED | DIRTY), ACCESSED | DIRTY);
    }
}
