//! Hardware breakpoints (SDM vol. 3, ch. 18.2).

use crate::cpu::{Cpu, control};
use crate::flags::bit;

impl Cpu {
    /// Bits of DR6 for the enabled breakpoints that a stretch of linear memory meets, among those whose DR7 kind is wanted.
    fn breakpoints(&self, va: u64, len: u64, wanted: impl Fn(u64) -> bool) -> u64 {
        let dr7 = self.debug.control;
        let mut hits = 0;
        for n in 0..4 {
            let (enabled, kind) = (dr7 >> (2 * n) & 3 != 0, dr7 >> (16 + 4 * n) & 3);
            // Lengths 1, 2, 8, 4 by their two bits; the address is taken as aligned to it.
            let size = [1, 2, 8, 4][(dr7 >> (18 + 4 * n) & 3) as usize];
            let at = self.debug.address[n] & !(size - 1);
            if enabled && wanted(kind) && at < va.saturating_add(len) && va < at.saturating_add(size) {
                hits |= 1 << n;
            }
        }
        hits
    }

    /// Notes data breakpoints that an access meets; they are delivered after the instruction.
    pub(crate) fn data_breakpoint(&mut self, va: u64, len: usize, write: bool) {
        if !self.tlb.is_closed() {
            return;
        }
        if self.has_watchpoints() {
            self.note_access(va, len, write);
        }
        if self.debug.control & 0xFF != 0 {
            let hits = self.breakpoints(va, len as u64, |kind| kind == 3 || write && kind == 1);
            self.progress.debug |= hits;
        }
    }

    /// DR6 bits if an instruction breakpoint is at this RIP.
    pub(crate) fn code_breakpoint(&self, rip: u64) -> Option<u64> {
        if self.debug.control & 0xFF == 0 {
            return None;
        }
        let va = self.seg_base[1].wrapping_add(rip);
        let hits = self.breakpoints(va, 1, |kind| kind == 0);
        (hits != 0).then_some(hits)
    }

    /// Misaligned accesses are #AC.
    pub(crate) fn checks_alignment(&self) -> bool {
        self.cr0 & control::CR0_AM != 0 && self.flags.control & bit::AC != 0 && self.cpl == 3
    }
}
