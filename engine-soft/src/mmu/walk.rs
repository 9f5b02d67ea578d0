//! The page walk: 4-level, PAE and 32-bit paging, and none (SDM vol. 3, 4.3 to 4.8).

use engine::cpuid::PHYSICAL_ADDRESS_BITS;
use engine::event::StoreKind;

use super::Access;
use super::tlb::{Entry, property};
use crate::cpu::{Cpu, control};
use crate::trap::{Step, vector};

/// Bits of a paging-structure entry.
mod pte {
    pub(super) const PRESENT: u64 = 1 << 0;
    pub(super) const WRITE: u64 = 1 << 1;
    pub(super) const USER: u64 = 1 << 2;
    pub(super) const ACCESSED: u64 = 1 << 5;
    pub(super) const DIRTY: u64 = 1 << 6;
    pub(super) const LARGE: u64 = 1 << 7;
    pub(super) const GLOBAL: u64 = 1 << 8;
    pub(super) const NO_EXECUTE: u64 = 1 << 63;
}

/// Error-code bits of #PF.
mod code {
    pub(super) const PRESENT: u32 = 1 << 0;
    pub(super) const WRITE: u32 = 1 << 1;
    pub(super) const USER: u32 = 1 << 2;
    pub(super) const RESERVED: u32 = 1 << 3;
    pub(super) const FETCH: u32 = 1 << 4;
}

const PHYSICAL: u64 = (1 << PHYSICAL_ADDRESS_BITS) - 1;
/// Address bits above the model's physical width, up to bit 51.
const BEYOND: u64 = ((1 << 52) - 1) & !PHYSICAL;

/// Why a walk failed: the page is not there, or an entry has a reserved bit set.
enum Broken {
    Absent,
    Reserved,
}

/// A leaf as it was found.
struct Leaf {
    /// Physical address of the byte asked for.
    gpa: u64,
    shift: u64,
    /// WRITE and USER: of all levels. NO_EXECUTE: of any. GLOBAL and DIRTY: of the leaf.
    rights: u64,
    /// Guest-physical addresses and values of the entries on the way, the leaf last.
    path: [(u64, u64); 4],
    depth: usize,
    /// Bytes of an entry.
    width: u64,
}

impl Leaf {
    /// No paging: everything is allowed.
    fn flat(va: u64) -> Self {
        let rights = pte::WRITE | pte::USER | pte::DIRTY;
        Self { gpa: va & 0xFFFF_FFFF, shift: 12, rights, path: [(0, 0); 4], depth: 0, width: 8 }
    }
}

impl Cpu {
    /// Translates, sets accessed and dirty bits, and remembers. The caller has checked that the address is canonical.
    ///
    /// Gives the guest-physical address.
    pub(crate) fn translate(&mut self, va: u64, access: Access) -> Step<u64> {
        Ok(self.page(va, access)? & !0xFFF | va & 0xFFF)
    }

    /// As [`Cpu::translate`], for instructions.
    pub(crate) fn translate_code(&mut self, va: u64) -> Step<u64> {
        let user = self.tlb.is_user();
        let page = match self.code_pages.find(va, user) {
            Some(page) => page,
            None => {
                let page = self.page(va, Access::Execute)?;
                if page & property::SHIFT != 0 && !self.code_pages.keep(va, user, page) {
                    self.forget_jumps();
                }
                page
            }
        };
        Ok(page & !0xFFF | va & 0xFFF)
    }

    /// The guest-physical page that an access may go on to and, of RAM, its properties.
    fn page(&mut self, va: u64, access: Access) -> Step<u64> {
        let wanted = match access {
            Access::Read => 0,
            Access::Write => property::WRITE,
            Access::Execute => property::EXECUTE,
        };
        if let Some(page) = self.tlb.known(va)
            && page & wanted == wanted
        {
            let gpa = page & !0xFFF;
            if access == Access::Write && !self.shared.has_code(gpa) && !self.shared.watch.covers(gpa) {
                self.tlb.unprotect(va);
            }
            return Ok(page);
        }
        self.look_up(va, access)
    }

    /// Walks, sets accessed and dirty bits, and remembers. Gives the guest-physical page and, of RAM, its properties.
    fn look_up(&mut self, va: u64, access: Access) -> Step<u64> {
        let user = self.tlb.is_user();
        let leaf = match self.walk(va) {
            Ok(leaf) => leaf,
            Err(Broken::Absent) => return self.page_fault(va, access, user, 0),
            Err(Broken::Reserved) => {
                return self.page_fault(va, access, user, code::PRESENT | code::RESERVED);
            }
        };
        let rights = leaf.rights;
        let reachable = !user || rights & pte::USER != 0;
        let writable = reachable && (rights & pte::WRITE != 0 || !user && self.cr0 & control::CR0_WP == 0);
        let executable = reachable && rights & pte::NO_EXECUTE == 0;
        let allowed = match access {
            Access::Read => reachable,
            Access::Write => writable,
            Access::Execute => executable,
        };
        if !allowed {
            return self.page_fault(va, access, user, code::PRESENT);
        }
        let dirty = access == Access::Write || rights & pte::DIRTY != 0;
        for level in 0..leaf.depth {
            let (at, old) = leaf.path[level];
            let last = level + 1 == leaf.depth;
            // PAE's page-directory-pointer entries have no accessed bit.
            let no_flags = level == 0 && leaf.width == 8 && !self.four_level();
            let new = old
                | if no_flags { 0 } else { pte::ACCESSED }
                | if last && access == Access::Write { pte::DIRTY } else { 0 };
            if new != old {
                self.store_entry(at, new, leaf.width)?;
            }
        }
        let page = leaf.gpa & !0xFFF;
        if let Some(host) = self.shared.ram.host(page) {
            let linear = va & !0xFFF;
            let watched = self.shared.watch.is_on() && self.shared.watch.covers(page);
            let read = !(watched && self.shared.watch.loads);
            let write = writable && dirty && !watched && !self.shared.has_code(page);
            let mut properties = leaf.shift;
            if writable && dirty {
                properties |= property::WRITE;
            }
            if executable {
                properties |= property::EXECUTE;
            }
            if rights & pte::GLOBAL != 0 && self.cr4 & control::CR4_PGE != 0 {
                properties |= property::GLOBAL;
            }
            let addend = host.wrapping_sub(linear);
            self.tlb.fill(va, Entry { read, write, addend, page: page | properties });
            return Ok(page | properties);
        }
        Ok(page)
    }

    /// Where an address leads, whoever may go there; nothing is set and nothing remembered.
    pub(crate) fn leads_to(&self, va: u64) -> Option<u64> {
        self.walk(va).ok().map(|leaf| leaf.gpa)
    }

    fn four_level(&self) -> bool {
        self.efer & control::EFER_LMA != 0
    }

    fn walk(&self, va: u64) -> Result<Leaf, Broken> {
        if self.cr0 & control::CR0_PG == 0 {
            return Ok(Leaf::flat(va));
        }
        if self.cr4 & control::CR4_PAE == 0 {
            return self.walk_32(va);
        }
        let levels = if self.four_level() { 4 } else { 3 };
        // Bits that the format reserves beside the address: PAE has no ignored bits above the address.
        let no_execute = self.efer & control::EFER_NXE != 0;
        let mut reserved = BEYOND | if no_execute { 0 } else { pte::NO_EXECUTE };
        let mut table = self.cr3 & PHYSICAL & !0xFFF;
        if levels == 3 {
            reserved |= 0x7FF << 52;
            table = self.cr3 & 0xFFFF_FFE0;
        }
        let mut rights = pte::WRITE | pte::USER;
        let mut path = [(0, 0); 4];
        for depth in 0..levels {
            let shift = 12 + 9 * (levels - 1 - depth) as u64;
            let index_bits = if levels == 3 && depth == 0 { 3 } else { 0x1FF };
            let at = table + (va >> shift & index_bits) * 8;
            let entry = self.load_entry(at, 8);
            path[depth] = (at, entry);
            if entry & pte::PRESENT == 0 {
                return Err(Broken::Absent);
            }
            if levels == 3 && depth == 0 {
                // A page-directory-pointer entry has an address and nothing else.
                if entry & (BEYOND | 0xFFF << 52 | 0x1E6) != 0 {
                    return Err(Broken::Reserved);
                }
                table = entry & PHYSICAL & !0xFFF;
                continue;
            }
            if entry & reserved != 0 || shift == 39 && entry & pte::LARGE != 0 {
                return Err(Broken::Reserved);
            }
            rights &= entry | !(pte::WRITE | pte::USER);
            rights |= entry & pte::NO_EXECUTE;
            let leaf = shift == 12 || entry & pte::LARGE != 0;
            if !leaf {
                table = entry & PHYSICAL & !0xFFF;
                continue;
            }
            let offset = (1 << shift) - 1;
            if shift > 12 && entry & offset & !0x1FFF != 0 {
                return Err(Broken::Reserved);
            }
            rights |= entry & (pte::GLOBAL | pte::DIRTY);
            let gpa = entry & PHYSICAL & !offset & !0xFFF | va & offset;
            return Ok(Leaf { gpa, shift, rights, path, depth: depth + 1, width: 8 });
        }
        Err(Broken::Reserved)
    }

    fn walk_32(&self, va: u64) -> Result<Leaf, Broken> {
        let mut path = [(0, 0); 4];
        let at = (self.cr3 & 0xFFFF_F000) + (va >> 22 & 0x3FF) * 4;
        let entry = self.load_entry(at, 4);
        path[0] = (at, entry);
        if entry & pte::PRESENT == 0 {
            return Err(Broken::Absent);
        }
        let mut rights = entry & (pte::WRITE | pte::USER);
        if entry & pte::LARGE != 0 && self.cr4 & control::CR4_PSE != 0 {
            if entry & 1 << 21 != 0 {
                return Err(Broken::Reserved);
            }
            rights |= entry & (pte::GLOBAL | pte::DIRTY);
            // PSE-36: bits 13 to 20 hold address bits 32 to 39.
            let gpa = entry & 0xFFC0_0000 | (entry >> 13 & 0xFF) << 32 | va & 0x3F_FFFF;
            return Ok(Leaf { gpa, shift: 22, rights, path, depth: 1, width: 4 });
        }
        let at = (entry & 0xFFFF_F000) + (va >> 12 & 0x3FF) * 4;
        let entry = self.load_entry(at, 4);
        path[1] = (at, entry);
        if entry & pte::PRESENT == 0 {
            return Err(Broken::Absent);
        }
        rights = rights & entry | entry & (pte::GLOBAL | pte::DIRTY);
        let gpa = entry & 0xFFFF_F000 | va & 0xFFF;
        Ok(Leaf { gpa, shift: 12, rights, path, depth: 2, width: 4 })
    }

    /// A paging-structure entry; all ones where there is no memory.
    fn load_entry(&self, gpa: u64, width: u64) -> u64 {
        let mut bytes = [0xFF; 8];
        self.shared.ram.read(gpa, &mut bytes[..width as usize]);
        if width == 4 {
            u64::from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        } else {
            u64::from_le_bytes(bytes)
        }
    }

    fn store_entry(&mut self, gpa: u64, value: u64, width: u64) -> Step {
        self.store_physical(gpa, &value.to_le_bytes()[..width as usize], StoreKind::Cached)
    }

    /// #PF at a linear address.
    #[cold]
    fn page_fault<T>(&mut self, va: u64, access: Access, user: bool, mut error: u32) -> Step<T> {
        self.cr2 = va;
        match access {
            Access::Read => {}
            Access::Write => error |= code::WRITE,
            Access::Execute => {
                let pae = self.cr4 & control::CR4_PAE != 0;
                if pae && self.efer & control::EFER_NXE != 0 {
                    error |= code::FETCH;
                }
            }
        }
        if user {
            error |= code::USER;
        }
        self.raise(vector::PF, Some(error))
    }

    /// Empties the jump caches.
    pub(crate) fn forget_jumps(&mut self) {
        self.progress.forget();
        self.tlb.forget_jumps();
    }

    /// Forgets all translations: CR0.PG, CR4.PGE, CR4.PAE and the like changed.
    pub fn flush_tlb(&mut self) {
        self.tlb.flush();
        self.code_pages.flush();
        self.forget_jumps();
    }

    /// Forgets the translations that are not global: CR3 was loaded.
    pub fn flush_tlb_local(&mut self) {
        self.tlb.flush_local();
        self.code_pages.flush_local();
        self.progress.forget_local();
        self.tlb.forget_local_jumps();
    }

    /// INVLPG.
    pub fn flush_tlb_page(&mut self, va: u64) {
        self.tlb.flush_page(va);
        self.code_pages.flush_page(va);
        self.forget_jumps();
    }
}
