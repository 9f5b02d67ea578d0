use engine::ExitKind;
use engine::cpuid::CpuidTable;
use engine::state::{Activity, Segment};

use crate::cpu::{Cpu, control};
use crate::flags::bit;
use crate::rig::{CODE, DATA, fault};
use crate::run::Stop;
use crate::trap::vector;

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSI: usize = 6;
const RDI: usize = 7;

fn cpu(rax: u64) -> Cpu {
    let mut cpu = Cpu::for_test();
    cpu.gpr[RAX] = rax;
    cpu.gpr[RBX] = DATA;
    cpu
}

/// Executes one instruction that must succeed.
fn execute(cpu: &mut Cpu, code: &[u8]) {
    let stop = cpu.run_code(code, 1);
    assert!(matches!(stop, Stop::Budget | Stop::Attention), "{code:x?}: {stop:?} {:?}", cpu.cause);
    assert_eq!(cpu.rip(), CODE + code.len() as u64);
}

const GP0: (u8, Option<u32>) = (vector::GP, Some(0));
const UD: (u8, Option<u32>) = (vector::UD, None);

const MOV_CR0_RAX: &[u8] = &[0x0F, 0x22, 0xC0];
const MOV_CR3_RAX: &[u8] = &[0x0F, 0x22, 0xD8];
const MOV_CR4_RAX: &[u8] = &[0x0F, 0x22, 0xE0];
const MOV_CR8_RAX: &[u8] = &[0x44, 0x0F, 0x22, 0xC0];
const MOV_RAX_CR8: &[u8] = &[0x44, 0x0F, 0x20, 0xC0];
const RDMSR: &[u8] = &[0x0F, 0x32];
const WRMSR: &[u8] = &[0x0F, 0x30];
const RDTSC: &[u8] = &[0x0F, 0x31];

#[test]
fn control_registers_refuse_what_cannot_be() {
    let good = 0x8005_0033;
    for (code, value) in [
        (MOV_CR0_RAX, good & !control::CR0_PE),
        (MOV_CR0_RAX, good | control::CR0_NW),
        (MOV_CR0_RAX, good | 1 << 32),
        (MOV_CR0_RAX, good & !control::CR0_PG),
        (MOV_CR3_RAX, 1 << 40),
        (MOV_CR3_RAX, 1 << 63),
        (MOV_CR4_RAX, control::CR4_PAE | 1 << 13),
        (MOV_CR4_RAX, control::CR4_PAE | 1 << 18),
        (MOV_CR4_RAX, control::CR4_PAE | 1),
        (MOV_CR4_RAX, control::CR4_OSFXSR),
        (MOV_CR8_RAX, 16),
    ] {
        assert_eq!(fault(&mut cpu(value), code), GP0, "{code:x?} {value:#x}");
    }
    for code in [[0x0F, 0x22, 0xC8], [0x0F, 0x20, 0xC8], [0x0F, 0x20, 0xE8]] {
        assert_eq!(fault(&mut cpu(0), &code), UD, "{code:x?}");
    }
    let mut cpu = cpu(good | 1 << 28);
    execute(&mut cpu, MOV_CR0_RAX);
    assert_eq!(cpu.cr0, good, "reserved bits of the lower half are ignored");
    cpu.gpr[RAX] = 7;
    execute(&mut cpu, MOV_CR8_RAX);
    assert_eq!(cpu.lapic.cr8(), 7);
    cpu.gpr[RAX] = 0;
    execute(&mut cpu, MOV_RAX_CR8);
    assert_eq!(cpu.gpr[RAX], 7);
}

#[test]
fn privilege_is_asked_for() {
    let codes: [&[u8]; 22] = [
        MOV_CR0_RAX,
        MOV_RAX_CR8,
        RDMSR,
        WRMSR,
        &[0xF4],
        &[0x0F, 0x06],
        &[0x0F, 0x08],
        &[0x0F, 0x09],
        &[0x0F, 0x01, 0x3B],
        &[0x0F, 0x01, 0x13],
        &[0x0F, 0x01, 0x1B],
        &[0x0F, 0x01, 0xF0],
        &[0x0F, 0x01, 0xF8],
        &[0x0F, 0x00, 0xD0],
        &[0x0F, 0x00, 0xD8],
        &[0x0F, 0x21, 0xC0],
        &[0x0F, 0x23, 0xC0],
        &[0xFA],
        &[0xFB],
        &[0xEC],
        &[0xEE],
        &[0x6C],
    ];
    for code in codes {
        let mut cpu = cpu(0);
        cpu.cpl = 3;
        cpu.tr = Segment { selector: 0, base: DATA, limit: 0, attributes: 0x8B };
        cpu.mode_changed();
        assert_eq!(fault(&mut cpu, code), GP0, "{code:x?}");
    }
}

#[test]
fn model_specific_registers() {
    let read = |index: u64| {
        let mut cpu = cpu(0);
        cpu.gpr[RCX] = index;
        execute(&mut cpu, RDMSR);
        cpu.gpr[RDX] << 32 | cpu.gpr[RAX]
    };
    assert_eq!(read(0x1B), 0xFEE0_0900);
    assert_eq!(read(0xFE), 0x508);
    assert_eq!(read(0x277), 0x0007_0406_0007_0406);
    assert_eq!(read(0x8B), 1 << 32);
    assert_eq!(read(0x2FF), 0x806);
    assert_eq!(read(0x1A0), 1);
    for index in [0x3B, 0x48, 0x10A, 0x17B, 0x400, 0x802, 0x79, 0xC001_0015] {
        let mut cpu = cpu(0);
        cpu.gpr[RCX] = index;
        assert_eq!(fault(&mut cpu, RDMSR), GP0, "{index:#x}");
    }
    for (index, value) in [
        (0xC000_0080, 1 << 9),
        (0xC000_0080, control::EFER_SCE),
        (0xC000_0082, 1 << 63),
        (0xC000_0084, 1 << 32),
        (0xC000_0100, 0x8000_0000_0000),
        (0xC000_0103, 1 << 32),
        (0x175, 1 << 47),
        (0x277, 2),
        (0x200, 0x0702),
        (0x201, 0x400),
        (0x268, 0x0303),
        (0x2FF, 2),
        (0xFE, 0),
        (0x17A, 1),
        (0x1A0, 3),
        (0x1B, 0xFEE0_0500),
        (0x808, 0),
        (0xFFFF_FFFF, 0),
    ] {
        let mut cpu = cpu(value & 0xFFFF_FFFF);
        cpu.gpr[RDX] = value >> 32;
        cpu.gpr[RCX] = index;
        assert_eq!(fault(&mut cpu, WRMSR), GP0, "{index:#x} = {value:#x}");
    }
    for (index, value) in
        [(0x250, 0x0606_0606_0606_0606_u64), (0x20F, 0xFF_C000_0800), (0xC000_0082, 0xFFFF_FFFF_8100_0000)]
    {
        let mut cpu = cpu(value & 0xFFFF_FFFF);
        cpu.gpr[RDX] = value >> 32;
        cpu.gpr[RCX] = index;
        execute(&mut cpu, WRMSR);
        execute(&mut cpu, RDMSR);
        assert_eq!(cpu.gpr[RDX] << 32 | cpu.gpr[RAX], value, "{index:#x}");
    }
}

#[test]
fn time_is_counted_to_the_instruction() {
    let mut cpu = cpu(0);
    // nop; rdtsc; nop; nop; rdtsc in one block
    let program = [&[0x90], RDTSC, &[0x48, 0x89, 0xC6, 0x90], RDTSC].concat();
    assert_eq!(cpu.run_code(&program, 5), Stop::Budget);
    assert_eq!((cpu.gpr[RSI], cpu.gpr[RAX]), (1, 4));
    // Writing it, the local APIC's count goes on.
    cpu.gpr[RAX] = 1000;
    cpu.gpr[RCX] = 0x10;
    execute(&mut cpu, WRMSR);
    execute(&mut cpu, RDTSC);
    assert_eq!(cpu.gpr[RAX], 1001);
    let before = cpu.now();
    execute(&mut cpu, &[0xF3, 0x90]);
    assert_eq!(cpu.now() - before, 1 + crate::clock::PAUSE);
    cpu.cr4 |= control::CR4_TSD;
    cpu.cpl = 3;
    cpu.mode_changed();
    assert_eq!(fault(&mut cpu, RDTSC), GP0);
}

#[test]
fn random_numbers_depend_on_seed_and_time() {
    let draw = |seed, wait| {
        let mut cpu = cpu(0);
        cpu.shared.seed = seed;
        cpu.shared.clock.skipped = wait;
        execute(&mut cpu, &[0x48, 0x0F, 0xC7, 0xF0]);
        assert_eq!(cpu.flags.status(), bit::CF);
        cpu.gpr[RAX]
    };
    assert_eq!(draw(1, 5), draw(1, 5));
    assert_ne!(draw(1, 5), draw(2, 5));
    assert_ne!(draw(1, 5), draw(1, 6));
}

#[test]
fn tables_are_loaded_and_stored() {
    let mut cpu = cpu(0);
    cpu.poke(DATA, &[0x77, 0x01, 0, 0x10, 0x20, 0x30, 0x40, 0x80, 0xFF, 0xFF]);
    execute(&mut cpu, &[0x0F, 0x01, 0x13]);
    assert_eq!((cpu.gdt.base, cpu.gdt.limit), (0xFFFF_8040_3020_1000, 0x177));
    cpu.gpr[RBX] = DATA + 0x40;
    execute(&mut cpu, &[0x0F, 0x01, 0x03]);
    let mut image = [0; 10];
    cpu.peek_at(DATA + 0x40, &mut image);
    assert_eq!(image, [0x77, 0x01, 0, 0x10, 0x20, 0x30, 0x40, 0x80, 0xFF, 0xFF]);
    cpu.poke(DATA + 0x49, &[0x7F]);
    assert_eq!(fault(&mut cpu, &[0x0F, 0x01, 0x1B]), GP0, "not canonical");
}

/// With a descriptor table at DATA: 8 code, 0x10 data of level 3, 0x18 a task (16 bytes), 0x28 an LDT, 0x38 not present.
fn with_table() -> Cpu {
    let mut cpu = cpu(0);
    let descriptors: [u64; 9] = [
        0,
        0x00AF_9B00_0000_FFFF,
        0x00CF_F300_0000_FFFF,
        0x0000_8900_4000_0067,
        0,
        0x0000_8200_5000_000F,
        0xFFFF_8000,
        0x0000_0900_4000_0067,
        0,
    ];
    for (n, descriptor) in descriptors.into_iter().enumerate() {
        cpu.poke(DATA + 8 * n as u64, &descriptor.to_le_bytes());
    }
    cpu.gdt.base = DATA;
    cpu.gdt.limit = 0x47;
    cpu
}

#[test]
fn task_and_local_table_registers() {
    let ltr = &[0x0F, 0x00, 0xD8];
    let lldt = &[0x0F, 0x00, 0xD0];
    let mut cpu = with_table();
    cpu.gpr[RAX] = 0x18;
    execute(&mut cpu, ltr);
    assert_eq!((cpu.tr.base, cpu.tr.limit, cpu.tr.attributes), (0x4000, 0x67, 0x8B));
    let mut access = [0];
    cpu.peek_at(DATA + 0x18 + 5, &mut access);
    assert_eq!(access, [0x8B], "busy");
    assert_eq!(fault(&mut cpu, ltr), (vector::GP, Some(0x18)), "busy already");
    for (selector, expected) in [
        (0, GP0),
        (8, (vector::GP, Some(8))),
        (0x3B, (vector::NP, Some(0x38))),
        (0x40, (vector::GP, Some(0x40))),
        (0x1C, (vector::GP, Some(0x1C))),
    ] {
        cpu.gpr[RAX] = selector;
        assert_eq!(fault(&mut cpu, ltr), expected, "{selector:#x}");
    }
    cpu.gpr[RAX] = 0x28;
    execute(&mut cpu, lldt);
    assert_eq!((cpu.ldt.base, cpu.ldt.selector), (0xFFFF_8000_0000_5000, 0x28));
    cpu.gpr[RAX] = 2;
    execute(&mut cpu, lldt);
    assert_eq!(cpu.ldt.attributes, Segment::UNUSABLE);
    execute(&mut cpu, &[0x0F, 0x00, 0xC8]);
    assert_eq!(cpu.gpr[RAX] & 0xFFFF, 0x18, "str");
}

#[test]
fn descriptors_can_be_asked_about() {
    // lar eax, ecx; lsl eax, ecx; verr cx; verw cx
    let (lar, lsl) = (&[0x0F, 0x02, 0xC1], &[0x0F, 0x03, 0xC1]);
    let (verr, verw) = (&[0x0F, 0x00, 0xE1], &[0x0F, 0x00, 0xE9]);
    let mut cpu = with_table();
    let mut ask = |code: &[u8], selector: u64| {
        cpu.gpr[RAX] = 0x55;
        cpu.gpr[RCX] = selector;
        execute(&mut cpu, code);
        (cpu.flags.zf(), cpu.gpr[RAX])
    };
    assert_eq!(ask(lar, 8), (true, 0xAF_9B00));
    assert_eq!(ask(lar, 0x13), (true, 0xCF_F300));
    assert_eq!(ask(lar, 0x0B), (false, 0x55), "requested level");
    assert_eq!(ask(lar, 0), (false, 0x55));
    assert_eq!(ask(lar, 0x100), (false, 0x55));
    assert_eq!(ask(lsl, 8), (true, 0xFFFF_FFFF));
    assert_eq!(ask(lsl, 0x18), (true, 0x67));
    assert_eq!(ask(verr, 8), (true, 0x55));
    assert_eq!(ask(verw, 8), (false, 0x55));
    assert_eq!(ask(verw, 0x10), (true, 0x55));
    assert_eq!(ask(verr, 0x18), (false, 0x55));
}

#[test]
fn bases_of_fs_and_gs() {
    let wrfsbase_rax = &[0xF3, 0x48, 0x0F, 0xAE, 0xD0];
    let rdgsbase_rax = &[0xF3, 0x48, 0x0F, 0xAE, 0xC8];
    let mut cpu = cpu(0x7FFF_0000_1000);
    assert_eq!(fault(&mut cpu, wrfsbase_rax), UD, "CR4 says no");
    cpu.cr4 |= control::CR4_FSGSBASE;
    execute(&mut cpu, wrfsbase_rax);
    assert_eq!((cpu.segments[4].base, cpu.seg_base[4]), (0x7FFF_0000_1000, 0x7FFF_0000_1000));
    cpu.gpr[RAX] = 1 << 47;
    assert_eq!(fault(&mut cpu, wrfsbase_rax), GP0);
    cpu.msrs.kernel_gs_base = 0xFFFF_8000_0000_0000;
    execute(&mut cpu, &[0x0F, 0x01, 0xF8]);
    execute(&mut cpu, rdgsbase_rax);
    assert_eq!((cpu.gpr[RAX], cpu.msrs.kernel_gs_base), (0xFFFF_8000_0000_0000, 0));
}

#[test]
fn identity_comes_from_the_table() {
    let mut cpu = cpu(0xFFFF_FFFF_0000_0001);
    cpu.show(CpuidTable::x86_64_v2(2, 1_000_000).for_vcpu(1));
    execute(&mut cpu, &[0x0F, 0xA2]);
    assert_eq!(cpu.gpr[RAX], 0x0001_06CA);
    assert_eq!(cpu.gpr[RBX] >> 24, 1);
    assert_ne!(cpu.gpr[RDX] & 1 << 9, 0);
    cpu.gpr[RAX] = 1;
    cpu.lapic.set_base(0xFEE0_0000).unwrap();
    execute(&mut cpu, &[0x0F, 0xA2]);
    assert_eq!(cpu.gpr[RDX] & 1 << 9, 0, "no local APIC");
}

#[test]
fn ports_go_to_the_machine() {
    let mut cpu = cpu(0xFFFF_FFFF_FFFF_FFFF);
    cpu.gpr[RDX] = 0x3F8;
    assert_eq!(cpu.run_code(&[0xED], 5), Stop::Exit(ExitKind::IoRead { port: 0x3F8, size: 4 }));
    assert_eq!(cpu.rip(), CODE);
    cpu.answer(0x1234_5678);
    assert_eq!(cpu.run(1), Stop::Budget);
    assert_eq!(cpu.gpr[RAX], 0x1234_5678);
    let stop = cpu.run_code(&[0x66, 0xE7, 0x80], 5);
    assert_eq!(stop, Stop::Exit(ExitKind::IoWrite { port: 0x80, size: 2, value: 0x5678 }));
    assert_eq!(cpu.rip(), CODE + 3, "it has happened");
    assert_eq!(cpu.run(0), Stop::Budget);
}

#[test]
fn port_strings_repeat() {
    let mut cpu = cpu(0);
    cpu.gpr[RDX] = 0x60;
    cpu.gpr[RCX] = 3;
    cpu.gpr[RDI] = DATA;
    let mut stop = cpu.run_code(&[0xF3, 0x6C], 100);
    for byte in [7, 8, 9] {
        assert_eq!(stop, Stop::Exit(ExitKind::IoRead { port: 0x60, size: 1 }));
        cpu.answer(byte);
        stop = cpu.run(if byte == 9 { 1 } else { 100 });
    }
    assert_eq!((stop, cpu.gpr[RCX], cpu.gpr[RDI]), (Stop::Budget, 0, DATA + 3));
    cpu.gpr[RCX] = 2;
    cpu.gpr[RSI] = DATA + 1;
    for (n, value) in [8, 9].into_iter().enumerate() {
        let stop = if n == 0 { cpu.run_code(&[0xF3, 0x6E], 100) } else { cpu.run(100) };
        assert_eq!(stop, Stop::Exit(ExitKind::IoWrite { port: 0x60, size: 1, value }));
    }
    assert_eq!((cpu.gpr[RCX], cpu.gpr[RSI], cpu.rip()), (0, DATA + 3, CODE + 2));
}

#[test]
fn the_task_says_which_ports() {
    let mut cpu = cpu(0);
    cpu.cpl = 3;
    cpu.tr = Segment { selector: 8, base: DATA, limit: 0x67 + 0x20, attributes: 0x8B };
    cpu.poke(DATA + 102, &0x68_u16.to_le_bytes());
    cpu.poke(DATA + 0x68, &[0xFF; 0x20]);
    cpu.poke(DATA + 0x68 + 8, &[0b1110_0000]);
    cpu.mode_changed();
    cpu.gpr[RDX] = 0x42;
    assert!(matches!(cpu.run_code(&[0xEC], 1), Stop::Exit(ExitKind::IoRead { .. })));
    assert_eq!(fault(&mut cpu, &[0xED]), GP0, "0x45 is closed");
    cpu.gpr[RDX] = 0x110;
    assert_eq!(fault(&mut cpu, &[0xEC]), GP0, "beyond the map");
    cpu.flags.control |= bit::IOPL;
    assert!(matches!(cpu.run_code(&[0xEC], 1), Stop::Exit(ExitKind::IoRead { .. })));
}

#[test]
fn debug_registers() {
    let mut cpu = cpu(0x1000);
    execute(&mut cpu, &[0x0F, 0x23, 0xD8]);
    assert_eq!(cpu.debug.address[3], 0x1000);
    execute(&mut cpu, &[0x0F, 0x21, 0xF1]);
    assert_eq!(cpu.gpr[RCX], 0xFFFF_0FF0);
    cpu.gpr[RAX] = 1 << 32;
    assert_eq!(fault(&mut cpu, &[0x0F, 0x23, 0xF8]), GP0);
    cpu.cr4 |= control::CR4_DE;
    assert_eq!(fault(&mut cpu, &[0x0F, 0x21, 0xE0]), UD);
    cpu.debug.control |= 1 << 13;
    assert_eq!(fault(&mut cpu, &[0x0F, 0x21, 0xC0]), (vector::DB, None));
    assert_ne!(cpu.debug.status & 1 << 13, 0);
}

#[test]
fn halting_and_interrupts_on() {
    let mut cpu = cpu(0);
    execute(&mut cpu, &[0xFB]);
    assert!(cpu.shadow && cpu.flags.control & bit::IF != 0);
    cpu.shadow = false;
    execute(&mut cpu, &[0xFB]);
    assert!(!cpu.shadow, "they were on");
    execute(&mut cpu, &[0xFA]);
    assert_eq!(cpu.flags.control & bit::IF, 0);
    assert_eq!(cpu.run_code(&[0xF4], 5), Stop::Attention);
    assert_eq!((cpu.activity, cpu.rip()), (Activity::Halted, CODE + 1));
}

#[test]
fn no_operations_and_what_is_not_there() {
    let nops: [&[u8]; 5] = [
        &[0xF3, 0x0F, 0x1E, 0xFA],
        &[0xF3, 0x48, 0x0F, 0x1E, 0xC8],
        &[0x0F, 0x1F, 0x44, 0x00, 0x00],
        &[0x66, 0x90],
        &[0x0F, 0xAE, 0xE8],
    ];
    for code in nops {
        let mut cpu = cpu(7);
        execute(&mut cpu, code);
        assert_eq!(cpu.gpr[RAX], 7);
    }
    let undefined: [&[u8]; 7] = [
        &[0x0F, 0x0B],
        &[0x0F, 0xFF, 0xC0],
        &[0x0F, 0xB9, 0xC0],
        &[0x0F, 0xAA],
        &[0x0F, 0x01, 0xD0],
        &[0x0F, 0x01, 0xC8],
        &[0x0F, 0x01, 0xCA],
    ];
    for code in undefined {
        assert_eq!(fault(&mut cpu(0), code), UD, "{code:x?}");
    }
}
