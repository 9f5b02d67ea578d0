//! What a guest's kernel is doing, seen from outside: its memory by virtual address (Intel SDM vol. 3, 4.5), the names of
//! its code, its call chains.

use engine::place::{Trail, Word};
use engine::{CpuState, GuestMemory, VcpuId};
use symbols::{Chain, Code, Kernel, Memory, Registers};
use vm_memory::{Bytes, GuestAddress};

use crate::layout::PAGE;

/// Bits of table entries: the page is there; the entry is a large page; the address.
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const CR0_PG: u64 = 1 << 31;
const CR4_LA57: u64 = 1 << 12;

/// Guest memory by virtual address, through the page tables of one processor as they are now. Nothing is written, not even
/// accessed bits.
#[derive(Debug)]
pub struct VirtualMemory<'a> {
    memory: &'a GuestMemory,
    /// The topmost table; none while paging is off.
    tables: Option<u64>,
    levels: u32,
    /// The page translated last: stacks are read word by word.
    last: Option<(u64, u64)>,
}

impl<'a> VirtualMemory<'a> {
    /// As a processor in this state sees it.
    #[must_use]
    pub fn new(memory: &'a GuestMemory, state: &CpuState) -> Self {
        let system = &state.system;
        let tables = (system.cr0 & CR0_PG != 0).then_some(system.cr3 & ADDRESS);
        Self { memory, tables, levels: if system.cr4 & CR4_LA57 == 0 { 4 } else { 5 }, last: None }
    }

    /// The guest-physical address of a virtual one.
    #[must_use]
    pub fn translate(&self, address: u64) -> Option<u64> {
        let Some(mut table) = self.tables else { return Some(address) };
        for level in (0..self.levels).rev() {
            let shift = 12 + 9 * level;
            let entry: u64 =
                self.memory.read_obj(GuestAddress(table + (address >> shift & 0x1ff) * 8)).ok()?;
            if entry & PRESENT == 0 {
                return None;
            }
            if level == 0 || (level <= 2 && entry & LARGE != 0) {
                let within = (1 << shift) - 1;
                return Some(entry & ADDRESS & !within | address & within);
            }
            table = entry & ADDRESS;
        }
        None
    }

    fn page(&mut self, page: u64) -> Option<u64> {
        match self.last {
            Some((known, place)) if known == page => Some(place),
            _ => {
                let place = self.translate(page)?;
                self.last = Some((page, place));
                Some(place)
            }
        }
    }
}

impl Memory for VirtualMemory<'_> {
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> bool {
        let mut done = 0;
        while done < bytes.len() {
            let Some(at) = address.checked_add(done as u64) else { return false };
            let within = at % PAGE;
            let piece = (bytes.len() - done).min((PAGE - within) as usize);
            let Some(place) = self.page(at - within) else { return false };
            let part = &mut bytes[done..done + piece];
            if self.memory.read_slice(part, GuestAddress(place + within)).is_err() {
                return false;
            }
            done += piece;
        }
        true
    }
}

/// Memory that remembers what was read of it, word by word.
struct Reading<'a> {
    memory: VirtualMemory<'a>,
    words: Vec<Word>,
}

impl Memory for Reading<'_> {
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> bool {
        let done = self.memory.read(address, bytes);
        if let len @ 1..=8 = bytes.len() {
            let mut value = [0; 8];
            value[..len].copy_from_slice(bytes);
            let value = done.then(|| u64::from_le_bytes(value));
            self.words.push(Word { address, len: len as u8, value });
        }
        done
    }
}

/// Where a processor stood: its state, and its stack, which the guest may have used again since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stand {
    /// Which.
    pub vcpu: VcpuId,
    /// Its state.
    pub state: CpuState,
    stack: Vec<u8>,
}

impl Stand {
    /// Bytes of a stack of Linux, and their alignment.
    const STACK: u64 = 16 << 10;

    /// A processor as it is now.
    #[must_use]
    pub fn new(vcpu: VcpuId, state: CpuState, memory: &GuestMemory) -> Self {
        let sp = registers(&state).sp;
        let mut stack = vec![0; (Self::STACK - sp % Self::STACK) as usize];
        if !VirtualMemory::new(memory, &state).read(sp, &mut stack) {
            stack.clear();
        }
        Self { vcpu, state, stack }
    }

    /// Memory as it was, as far as it is kept.
    fn memory<'a>(&'a self, memory: &'a GuestMemory) -> impl FnMut(u64, &mut [u8]) -> bool + 'a {
        let sp = registers(&self.state).sp;
        let mut now = VirtualMemory::new(memory, &self.state);
        move |address, bytes| {
            let kept = address.checked_sub(sp).and_then(|at| {
                let at = usize::try_from(at).ok()?;
                self.stack.get(at..at.checked_add(bytes.len())?)
            });
            match kept {
                Some(kept) => {
                    bytes.copy_from_slice(kept);
                    true
                }
                None => now.read(address, bytes),
            }
        }
    }
}

/// The registers from which a call chain is found.
#[must_use]
pub fn registers(state: &CpuState) -> Registers {
    let gpr = &state.registers.gpr;
    Registers {
        ip: state.registers.rip,
        sp: gpr[4],
        bp: gpr[5],
        dx: gpr[2],
        di: gpr[7],
        r10: gpr[10],
        r13: gpr[13],
    }
}

/// The code of a guest's kernel, with the modules that it has loaded.
#[derive(Debug, Clone)]
pub struct Sight {
    code: Code,
}

impl Sight {
    /// A guest that runs this kernel, at the addresses at which it is linked.
    #[must_use]
    pub fn new(kernel: Kernel) -> Self {
        Self { code: Code::new(kernel) }
    }

    /// What is known of its code.
    #[must_use]
    pub fn code(&self) -> &Code {
        &self.code
    }

    /// The guest was reset: its modules are gone.
    pub fn reset(&mut self) {
        self.code.forget_modules();
    }

    /// Where a processor is, and by which calls it got there; and what that was found by, unless it may be told better later.
    pub fn chain(&mut self, memory: &GuestMemory, state: &CpuState) -> (Chain, Option<Trail>) {
        let registers = registers(state);
        let mut reading = Reading { memory: VirtualMemory::new(memory, state), words: Vec::new() };
        self.code.notice(registers.ip, &mut reading.memory);
        let mut chain = self.code.unwind(registers, &mut reading);
        if self.learns(&chain, &mut reading.memory) {
            reading.words.clear();
            chain = self.code.unwind(registers, &mut reading);
        }
        let settled = chain.whole || !chain.frames.iter().any(|frame| self.code.is_strange(frame.ip));
        let Reading { mut words, .. } = reading;
        words.sort_unstable_by_key(|word| (word.address, word.len));
        words.dedup();
        let gpr = &state.registers.gpr;
        let registers = chain.registers.iter().map(|&n| (n, gpr[usize::from(n)])).collect();
        let trail = Trail { rip: state.registers.rip, registers, words };
        (chain, settled.then_some(trail))
    }

    /// Where a processor stood, and by which calls it had got there.
    pub fn chain_of(&mut self, memory: &GuestMemory, stand: &Stand) -> Chain {
        let (registers, mut memory) = (registers(&stand.state), stand.memory(memory));
        self.code.notice(registers.ip, &mut memory);
        let chain = self.code.unwind(registers, &mut memory);
        if self.learns(&chain, &mut memory) { self.code.unwind(registers, &mut memory) } else { chain }
    }

    /// A module further up that is not known yet makes the rest of a chain a guess. Whether one is known now.
    fn learns(&mut self, chain: &Chain, memory: &mut dyn Memory) -> bool {
        if chain.whole {
            return false;
        }
        let known = self.code.modules().len();
        chain.frames.iter().for_each(|frame| self.code.notice(frame.ip, memory));
        self.code.modules().len() != known
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{MIB, MemoryPlan};

    /// Paging with a 4 KiB page at 0x40_1000, a 2 MiB page at 0x60_0000, and a table entry that points into itself.
    fn guest() -> (GuestMemory, CpuState) {
        let plan = MemoryPlan::new(64 * MIB, &[]).unwrap();
        let memory = crate::memory::map(&plan, &[]).unwrap();
        let put = |at: u64, entry: u64| memory.write_obj(entry, GuestAddress(at)).unwrap();
        put(0x1000, 0x2003);
        put(0x1008, 0x1003);
        put(0x2000, 0x3003);
        put(0x3000 + 2 * 8, 0x4003);
        put(0x3000 + 3 * 8, 0x20_0083);
        put(0x4000 + 8, 0x5003);
        put(0x4000 + 16, u64::MAX);
        put(0x5ff8, 0x1122_3344_5566_7788);
        put(0x20_0010, 42);
        let mut state = CpuState::reset(0);
        (state.system.cr0, state.system.cr3) = (CR0_PG, 0x1000);
        (memory, state)
    }

    #[test]
    fn small_and_large_pages_are_found_and_what_is_missing_is_not() {
        let (memory, state) = guest();
        let mut seen = VirtualMemory::new(&memory, &state);
        assert_eq!(seen.word(0x40_1ff8), Some(0x1122_3344_5566_7788));
        assert_eq!(seen.word(0x60_0010), Some(42));
        assert_eq!(seen.word(0x40_0000), None);
        // Half of it lies beyond the page that is there; the next entry points beyond memory.
        assert_eq!(seen.word(0x40_1ffc), None);
        assert_eq!(seen.word(u64::MAX - 3), None);
        assert_eq!(seen.translate(0x60_0010), Some(0x20_0010));
        // The table that is its own child.
        assert_eq!(seen.word(0x80_4020_1000), Some(0x2003));
    }

    #[test]
    fn without_paging_addresses_are_physical() {
        let (memory, mut state) = guest();
        state.system.cr0 = 0;
        assert_eq!(VirtualMemory::new(&memory, &state).word(0x1000), Some(0x2003));
    }
}
