//! A vCPU on a bench: 64-bit mode, privilege level 0, flat memory, for tests of single instructions and short programs.

use engine::GuestMemory;
use engine::state::{Activity, Segment, SystemRegisters};
use vm_memory::{Bytes, GuestAddress};

use crate::cpu::{Cpu, control};
#[cfg(test)]
use crate::decode::decode;
use crate::insn::RIP;
use crate::ram::Ram;
use crate::run::Stop;
#[cfg(test)]
use crate::trap::{Cause, Trap};

/// Size of the bench's memory in bytes; linear addresses up to 1 GiB equal physical ones.
pub const SIZE: usize = 16 << 20;
/// Where programs are put.
pub const CODE: u64 = 0x10_0000;
/// Where they find their data: below, on and above are memory.
pub const DATA: u64 = 0x20_0000;
/// Initial stack pointer.
pub const STACK: u64 = 0x30_0000;
/// Page tables.
const TABLES: u64 = 0x1000;

impl Cpu {
    /// In 64-bit mode with everything mapped writable, for user and supervisor. No interrupt table: an exception is a
    /// [`engine::ExitKind::Shutdown`], and [`Cpu::cause`] tells which.
    #[must_use]
    pub fn for_test() -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), SIZE)]);
        let memory = memory.unwrap_or_else(|error| panic!("16 MiB of memory: {error}"));
        let put = |at: u64, value: u64| {
            memory.write_obj(value, GuestAddress(at)).unwrap_or_else(|error| panic!("page tables: {error}"));
        };
        put(TABLES, (TABLES + 0x1000) | 0x27);
        put(TABLES + 0x1000, (TABLES + 0x2000) | 0x27);
        for n in 0..512 {
            put(TABLES + 0x2000 + 8 * n, n << 21 | 0xE7);
        }
        let mut cpu = Self::new(0);
        cpu.shared.ram = Ram::new(&memory);
        cpu.cr0 = control::CR0_PE | control::CR0_PG | control::CR0_WP | control::CR0_NE | control::CR0_MP;
        cpu.cr3 = TABLES;
        cpu.cr4 = control::CR4_PAE | control::CR4_OSFXSR | control::CR4_OSXMMEXCPT | control::CR4_PGE;
        cpu.efer = control::EFER_LME | control::EFER_LMA | control::EFER_SCE | control::EFER_NXE;
        let data = Segment { selector: 0x18, base: 0, limit: !0, attributes: 0xC093 };
        cpu.segments = [data; 6];
        cpu.segments[SystemRegisters::CS] = Segment { selector: 0x10, attributes: 0xA09B, ..data };
        cpu.idt.limit = 0;
        cpu.activity = Activity::Running;
        cpu.gpr[4] = STACK;
        cpu.gpr[usize::from(RIP)] = CODE;
        cpu.mode_changed();
        cpu.flush_tlb();
        cpu
    }

    /// Writes into guest-physical memory, as a loader does.
    ///
    /// # Panics
    /// Beyond [`SIZE`].
    pub fn poke(&mut self, at: u64, bytes: &[u8]) {
        for (n, &byte) in bytes.iter().enumerate() {
            assert!(self.shared.ram.write(at + n as u64, &[byte]), "no memory at {at:#x}");
        }
        self.shared.memory_changed(at..at + bytes.len() as u64);
    }

    /// Reads guest-physical memory.
    ///
    /// # Panics
    /// Beyond [`SIZE`].
    pub fn peek_at(&self, at: u64, bytes: &mut [u8]) {
        for (n, byte) in bytes.iter_mut().enumerate() {
            let mut one = [0];
            assert!(self.shared.ram.read(at + n as u64, &mut one), "no memory at {at:#x}");
            *byte = one[0];
        }
    }

    /// Puts a program at [`CODE`] and executes `count` instructions of it.
    pub fn run_code(&mut self, code: &[u8], count: u64) -> Stop {
        self.poke(CODE, code);
        self.gpr[usize::from(RIP)] = CODE;
        self.run(count)
    }
}

/// Executes one instruction that must fault; tells how.
#[cfg(test)]
pub(crate) fn fault(cpu: &mut Cpu, code: &[u8]) -> (u8, Option<u32>) {
    let bytes = [code, &[0; 15]].concat();
    let insn = decode(64, &bytes, cpu.model).unwrap_or_else(|| panic!("{code:x?} is cut short")).insn;
    cpu.gpr[usize::from(RIP)] = CODE + code.len() as u64;
    let Err(Trap) = (insn.exec)(cpu, &insn) else { panic!("{code:x?} has not faulted") };
    match cpu.cause {
        Cause::Exception { vector, code } => (vector, code),
        other => panic!("{code:x?}: {other:?}"),
    }
}
