//! The engine's interpreter as executor: a vCPU at privilege level 3 with the scratch memory and the code page mapped
//! where they are on the host.
#![expect(unsafe_code, reason = "the guest's memory is looked at by host address")]

use engine::GuestMemory;
use engine::state::{Activity, Segment, SystemRegisters};
use engine_soft::cpu::{Cpu, control};
use engine_soft::flags::Flags;
use engine_soft::fx::FxArea;
use engine_soft::insn::RIP;
use engine_soft::ram::Ram;
use engine_soft::run::Stop;
use engine_soft::trap::Cause;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend as _};

use super::machine::{CODE, Executor, Fault, Mode, Outcome, SCRATCH, SCRATCH_LEN, State};
use super::native::Native;

const PAGE: u64 = 0x1000;
const CODE_PAGE: u64 = CODE & !(PAGE - 1);
/// Page tables, and behind them nothing.
const TABLES: u64 = 0x1000;
const PRESENT_USER: u64 = 0x25;
const WRITABLE_DIRTY: u64 = 0x42;

/// A vCPU and its memory.
pub struct Interpreter {
    cpu: Cpu,
    memory: GuestMemory,
    mode: Mode,
}

impl Interpreter {
    /// With page tables in place.
    pub fn new() -> Self {
        let regions = [(0, 0x6000), (SCRATCH, SCRATCH_LEN), (CODE_PAGE, PAGE as usize)];
        let regions = regions.map(|(start, len)| (GuestAddress(start), len));
        let memory = GuestMemory::from_ranges(&regions).expect("memory");
        let put = |table: u64, index: u64, entry: u64| {
            memory.write_obj(entry, GuestAddress(table + 8 * index)).expect("page tables");
        };
        let [directories, directory, scratch, code] = [1, 2, 3, 4].map(|n| TABLES + n * PAGE);
        put(TABLES, 0, directories | PRESENT_USER | WRITABLE_DIRTY);
        put(directories, 0, directory | PRESENT_USER | WRITABLE_DIRTY);
        put(directory, SCRATCH >> 21, scratch | PRESENT_USER | WRITABLE_DIRTY);
        put(directory, CODE >> 21, code | PRESENT_USER | WRITABLE_DIRTY);
        for page in (SCRATCH..SCRATCH + SCRATCH_LEN as u64).step_by(PAGE as usize) {
            put(scratch, page >> 12 & 511, page | PRESENT_USER | WRITABLE_DIRTY);
        }
        put(code, CODE_PAGE >> 12 & 511, CODE_PAGE | PRESENT_USER);
        let mut cpu = Cpu::new(0);
        cpu.shared.ram = Ram::new(&memory);
        cpu.cr0 = control::CR0_PE | control::CR0_PG | control::CR0_WP | control::CR0_NE | control::CR0_MP;
        cpu.cr3 = TABLES;
        cpu.cr4 = control::CR4_PAE | control::CR4_OSFXSR | control::CR4_OSXMMEXCPT;
        cpu.efer = control::EFER_LME | control::EFER_LMA | control::EFER_SCE;
        cpu.idt.limit = 0;
        cpu.activity = Activity::Running;
        Self { cpu, memory, mode: Mode::Long }
    }

    /// Selectors as Linux gives them to a program.
    fn segments(&mut self) {
        let flat = Segment { selector: 0x2B, base: 0, limit: !0, attributes: 0xC0F3 };
        let none = Segment { selector: 0, base: 0, limit: 0, attributes: Segment::UNUSABLE };
        self.cpu.segments = [flat; 6];
        self.cpu.segments[SystemRegisters::CS] = match self.mode {
            Mode::Long => Segment { selector: 0x33, attributes: 0xA0FB, ..flat },
            Mode::Protected32 => Segment { selector: 0x23, attributes: 0xC0FB, ..flat },
        };
        self.cpu.segments[4] = Segment { base: Native::fs_base(), ..none };
        self.cpu.segments[5] = none;
        self.cpu.cpl = 3;
        self.cpu.mode_changed();
        self.cpu.flush_tlb();
    }
}

impl Executor for Interpreter {
    fn load(&mut self, mode: Mode, code: &[u8]) {
        self.mode = mode;
        let mut page = vec![0xCC; PAGE as usize];
        let start = (CODE - CODE_PAGE) as usize;
        page[start..start + code.len()].copy_from_slice(code);
        self.memory.write_slice(&page, GuestAddress(CODE_PAGE)).expect("code page");
        self.cpu.shared.memory_changed(CODE_PAGE..CODE_PAGE + PAGE);
        self.segments();
    }

    fn scratch(&mut self) -> &mut [u8; SCRATCH_LEN] {
        let host = self.memory.get_host_address(GuestAddress(SCRATCH)).expect("scratch memory");
        // SAFETY: the region is that long, and nobody else touches it before `self` is borrowed again.
        unsafe { &mut *host.cast() }
    }

    fn run(&mut self, before: &State) -> Outcome {
        let cpu = &mut self.cpu;
        cpu.gpr[..16].copy_from_slice(&before.gpr);
        cpu.gpr[usize::from(RIP)] = CODE;
        cpu.flags = Flags::new(before.rflags & 0x24_0CD5 | 0x202);
        cpu.fx = FxArea::new(&before.fx);
        cpu.cpl = 3;
        let mut fault = None;
        // A repeated string instruction takes several turns.
        for _ in 0..0x4000 {
            match cpu.run(1) {
                Stop::Budget => {}
                Stop::Exit(_) => {
                    fault = match cpu.cause {
                        Cause::Exception { vector, code } => Some(Fault {
                            vector,
                            code: code.unwrap_or(0),
                            address: (vector == 14).then_some(cpu.cr2),
                        }),
                        other => panic!("stopped by {other:?}"),
                    };
                    break;
                }
                other => panic!("stopped by {other:?}"),
            }
            if cpu.rip() != CODE {
                break;
            }
        }
        let mut state =
            State { fx: cpu.fx.bytes(), rip: cpu.rip(), rflags: cpu.flags.get(), ..before.clone() };
        state.gpr.copy_from_slice(&cpu.gpr[..16]);
        Outcome { state, fault }
    }
}
