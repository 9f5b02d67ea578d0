//! The engine as executor, interpreting or translating: a vCPU at privilege level 3 with the scratch memory and the code page mapped
//! where they are on the host, under a kernel of nothing but an interrupt table.
#![expect(unsafe_code, reason = "the guest's memory is looked at by host address")]

use engine::GuestMemory;
use engine::cpuid::{CpuidTable, xsave};
use engine::state::{Activity, DescriptorTable, Segment, SystemRegisters};
use engine_soft::cpu::{Cpu, control};
use engine_soft::flags::Flags;
use engine_soft::fx::FxArea;
use engine_soft::insn::RIP;
use engine_soft::ram::Ram;
use engine_soft::run::Stop;
use engine_soft::xlat::Haste;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Mnemonic};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend as _};

use super::machine::{CODE, CODE_LIMIT, Executor, Fault, Mode, Outcome, SCRATCH, SCRATCH_LEN, State};
use super::native::Native;

const PAGE: u64 = 0x1000;
const CODE_PAGE: u64 = CODE & !(PAGE - 1);
/// Six page tables.
const TABLES: u64 = 0x1000;
/// The kernel's pages, for it alone.
const GDT: u64 = 0x8000;
const TSS: u64 = 0x8800;
const IDT: u64 = 0x9000;
const STACK: u64 = 0xB000;
/// Handlers lie this far apart; none is ever executed.
const HANDLERS: u64 = 0xC000;
const HANDLER_LEN: u64 = 16;
/// Bits of a page table's entry: present, accessed, and so on.
const KERNEL: u64 = 0x63;
const USER_READ: u64 = 0x25;
const USER: u64 = 0x67;

/// A vCPU and its memory.
pub struct Interpreter {
    cpu: Cpu,
    memory: GuestMemory,
    mode: Mode,
    /// 64-bit code is translated, at once.
    translates: bool,
    /// Instructions of the translated block that the one to be run is in: it and, if it goes on there, a jump to
    /// itself.
    count: u64,
}

impl Interpreter {
    /// With page tables in place.
    pub fn new() -> Self {
        let regions = [(0, 0xD000), (SCRATCH, SCRATCH_LEN), (CODE_PAGE, PAGE as usize)];
        let regions = regions.map(|(start, len)| (GuestAddress(start), len));
        let memory = GuestMemory::from_ranges(&regions).expect("memory");
        let put = |table: u64, index: u64, entry: u64| {
            memory.write_obj(entry, GuestAddress(table + 8 * index)).expect("tables");
        };
        let [directories, directory, scratch, code, kernel] = [1, 2, 3, 4, 5].map(|n| TABLES + n * PAGE);
        put(TABLES, 0, directories | USER);
        put(directories, 0, directory | USER);
        put(directory, 0, kernel | USER);
        put(directory, SCRATCH >> 21, scratch | USER);
        put(directory, CODE >> 21, code | USER);
        for page in (GDT..HANDLERS + PAGE).step_by(PAGE as usize) {
            put(kernel, page >> 12, page | KERNEL);
        }
        for page in (SCRATCH..SCRATCH + SCRATCH_LEN as u64).step_by(PAGE as usize) {
            put(scratch, page >> 12 & 511, page | USER);
        }
        put(code, CODE_PAGE >> 12 & 511, CODE_PAGE | USER_READ);
        put(GDT, 1, 0x00AF_9B00_0000_FFFF);
        put(TSS + 4, 0, STACK);
        // A handler that is reached with budget left halts.
        memory.write_slice(&[0xF4; PAGE as usize], GuestAddress(HANDLERS)).expect("handlers");
        for vector in 0..32 {
            let handler = HANDLERS + vector * HANDLER_LEN;
            // A 64-bit interrupt gate for privilege level 3, through selector 8.
            put(IDT, 2 * vector, handler & 0xFFFF | 8 << 16 | 0xEE00 << 32 | handler >> 16 << 48);
        }
        let mut cpu = Cpu::new(0);
        cpu.shared.ram = Ram::new(&memory);
        cpu.cr0 = control::CR0_PE | control::CR0_PG | control::CR0_WP | control::CR0_NE | control::CR0_MP;
        cpu.cr3 = TABLES;
        cpu.cr4 = control::CR4_PAE | control::CR4_OSFXSR | control::CR4_OSXMMEXCPT;
        cpu.efer = control::EFER_LME | control::EFER_LMA | control::EFER_SCE;
        cpu.gdt = DescriptorTable { base: GDT, limit: 15 };
        cpu.idt = DescriptorTable { base: IDT, limit: 32 * 16 - 1 };
        cpu.tr = Segment { selector: 0x40, base: TSS, limit: 0x67, attributes: 0x8B };
        cpu.activity = Activity::Running;
        Self { cpu, memory, mode: Mode::Long, translates: false, count: 1 }
    }

    /// Of x86-64-v3, its YMM registers switched on.
    pub fn wide(mut self) -> Self {
        self.cpu.show(CpuidTable::x86_64_v3(1, 1_000_000));
        self.cpu.cr4 |= control::CR4_OSXSAVE;
        self.cpu.xcr0 = xsave::ALL;
        self
    }

    /// That translates: an instruction and a jump after it make a block, which is run as a whole.
    pub fn translating(haste: Haste) -> Self {
        let mut translator = Self { translates: true, ..Self::new() };
        translator.cpu.shared.blocks.translate(haste);
        translator
    }

    /// Selectors as Linux gives them to a program.
    fn segments(&mut self) {
        let (code, data) = self.mode.selectors();
        let (code_base, data_base) = self.mode.bases();
        let flat = Segment { selector: data, base: 0, limit: !0, attributes: 0xC0F3 };
        let none = Segment { selector: 0, base: 0, limit: 0, attributes: Segment::UNUSABLE };
        let cs = Segment { selector: code, ..flat };
        let (cs, data) = match self.mode {
            Mode::Long => (Segment { attributes: 0xA0FB, ..cs }, flat),
            Mode::Protected32 => (Segment { attributes: 0xC0FB, ..cs }, flat),
            Mode::Protected16 => (
                Segment { base: code_base, limit: CODE_LIMIT, attributes: 0x00FB, ..cs },
                Segment { base: data_base, limit: SCRATCH_LEN as u32 - 1, attributes: 0x00F3, ..flat },
            ),
        };
        self.cpu.segments = [data; 6];
        self.cpu.segments[SystemRegisters::CS] = cs;
        self.cpu.segments[4] = Segment { base: Native::fs_base(), ..none };
        self.cpu.segments[5] = none;
        self.cpu.cpl = 3;
        self.cpu.mode_changed();
    }
}

impl Executor for Interpreter {
    fn load(&mut self, mode: Mode, code: &[u8]) {
        self.mode = mode;
        let mut page = vec![0xCC; PAGE as usize];
        let start = (CODE - CODE_PAGE) as usize;
        page[start..start + code.len()].copy_from_slice(code);
        self.count = 1;
        if self.translates && mode == Mode::Long {
            let i = Decoder::with_ip(64, code, CODE, DecoderOptions::NONE).decode();
            let repeats = i.is_string_instruction() && (i.has_rep_prefix() || i.has_repne_prefix());
            let flags = matches!(i.mnemonic(), Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq);
            if i.flow_control() == FlowControl::Next && !repeats && !flags {
                page[start + code.len()..][..2].copy_from_slice(&[0xEB, 0xFE]);
                self.count = 2;
            }
        }
        self.memory.write_slice(&page, GuestAddress(CODE_PAGE)).expect("code page");
        self.cpu.shared.memory_changed(CODE_PAGE..CODE_PAGE + PAGE);
        self.segments();
        self.cpu.flush_tlb();
    }

    fn scratch(&mut self) -> &mut [u8; SCRATCH_LEN] {
        let host = self.memory.get_host_address(GuestAddress(SCRATCH)).expect("scratch memory");
        // SAFETY: the region is that long, and nobody else touches it before `self` is borrowed again.
        unsafe { &mut *host.cast() }
    }

    fn run(&mut self, before: &State) -> Outcome {
        if self.cpu.cpl != 3 {
            self.segments();
        }
        let cpu = &mut self.cpu;
        cpu.gpr[..16].copy_from_slice(&before.gpr);
        let base = self.mode.bases().0;
        cpu.gpr[usize::from(RIP)] = CODE - base;
        cpu.flags = Flags::new(before.rflags & 0x24_0CD5 | 0x202);
        cpu.fx = FxArea::new(&before.fx);
        cpu.upper = before.upper;
        // A repeated string instruction takes several turns.
        for _ in 0..0x4000 {
            let stop = cpu.run(self.count);
            let halted = self.count > 1 && cpu.activity == Activity::Halted;
            assert!(stop == Stop::Budget || halted, "stopped by {stop:?}, {:?}", cpu.cause);
            if cpu.rip() != CODE - base {
                break;
            }
        }
        if std::mem::replace(&mut cpu.activity, Activity::Running) == Activity::Halted {
            cpu.gpr[usize::from(RIP)] = cpu.rip().wrapping_sub(1);
        }
        let mut state = State {
            fx: cpu.fx.bytes(),
            upper: cpu.upper,
            rip: cpu.rip().wrapping_add(base),
            rflags: cpu.flags.get(),
            ..before.clone()
        };
        state.gpr.copy_from_slice(&cpu.gpr[..16]);
        if cpu.cpl == 3 {
            return Outcome { state, fault: None };
        }
        let vector = (cpu.rip() - HANDLERS) / HANDLER_LEN;
        let address = (vector == 14).then_some(cpu.cr2);
        let pushed = |n: u64| self.memory.read_obj::<u64>(GuestAddress(STACK - 8 * n)).expect("stack");
        [state.gpr[4], state.rflags, state.rip] = [2, 3, 5].map(pushed);
        state.rip = state.rip.wrapping_add(base);
        let code = if cpu.gpr[4] == STACK - 48 { pushed(6) as u32 } else { 0 };
        Outcome { state, fault: Some(Fault { vector: vector as u8, code, address }) }
    }
}
