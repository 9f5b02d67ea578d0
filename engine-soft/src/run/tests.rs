use engine::ExitKind;
use engine::state::Segment;

use crate::cpu::Cpu;
use crate::flags::bit;
use crate::insn::RIP;
use crate::rig::{CODE, DATA};
use crate::run::Stop;
use crate::trap::{Cause, vector};

const RAX: usize = 0;
const RCX: usize = 1;
const RSP: usize = 4;
const RIP_SLOT: usize = RIP as usize;

/// An address that is mapped and has no memory.
const HOLE: u64 = 0x2000_0000;
const IDT: u64 = 0x8000;
const GDT: u64 = 0x9000;
/// Handler of vector `v` is at `HANDLERS + 16 * v`: it halts.
const HANDLERS: u64 = 0xA000;

/// A vCPU whose exceptions arrive somewhere.
fn with_handlers() -> Cpu {
    let mut cpu = Cpu::for_test();
    for v in 0..256_u64 {
        let at = HANDLERS + 16 * v;
        let gate = at & 0xFFFF | 0x10 << 16 | 0x8E00 << 32 | at >> 16 << 48;
        cpu.poke(IDT + 16 * v, &gate.to_le_bytes());
        cpu.poke(at, &[0xF4]);
    }
    for (n, descriptor) in [0, 0, 0x00AF_9B00_0000_FFFF_u64, 0x00CF_9300_0000_FFFF].into_iter().enumerate() {
        cpu.poke(GDT + 8 * n as u64, &descriptor.to_le_bytes());
    }
    (cpu.idt.base, cpu.idt.limit) = (IDT, 0xFFF);
    (cpu.gdt.base, cpu.gdt.limit) = (GDT, 31);
    cpu
}

/// Where the handler of a vector begins.
fn handler(vector: u8) -> u64 {
    HANDLERS + 16 * u64::from(vector)
}

/// A quadword of the stack.
fn stacked(cpu: &Cpu, depth: u64) -> u64 {
    let mut bytes = [0; 8];
    cpu.peek_at(cpu.gpr[RSP] + 8 * depth, &mut bytes);
    u64::from_le_bytes(bytes)
}

/// Counts RCX down and RAX up.
const LOOP: [u8; 8] = [0x48, 0xFF, 0xC0, 0x48, 0xFF, 0xC9, 0x75, 0xF8];

#[test]
fn stops_at_the_instruction_whatever_the_blocks() {
    for count in 1..40 {
        let mut whole = Cpu::for_test();
        whole.gpr[RCX] = 10;
        assert_eq!(whole.run_code(&LOOP, count), Stop::Budget);
        let mut single = Cpu::for_test();
        single.gpr[RCX] = 10;
        single.poke(CODE, &LOOP);
        for _ in 0..count {
            assert_eq!(single.run(1), Stop::Budget);
        }
        assert_eq!(whole.gpr, single.gpr, "after {count}");
        assert_eq!(whole.shared.retired, count);
        assert_eq!(single.shared.retired, count);
    }
}

#[test]
fn a_store_into_the_next_instruction_is_seen() {
    let mut cpu = Cpu::for_test();
    // mov byte [rip + 1], 7; add al, 5
    let code = [0xC6, 0x05, 1, 0, 0, 0, 7, 0x04, 5];
    assert_eq!(cpu.run_code(&code, 2), Stop::Budget);
    assert_eq!(cpu.gpr[RAX], 7);
    assert_eq!(cpu.shared.retired, 2);
}

#[test]
fn a_store_into_another_block_is_seen() {
    let mut cpu = Cpu::for_test();
    // 0: add al, 1; jmp 8 | 8: mov byte [rip - 14], 16 (the add's immediate); jmp 0
    let code = [0x04, 1, 0xEB, 4, 0x90, 0x90, 0x90, 0x90, 0xC6, 0x05, 0xF2, 0xFF, 0xFF, 0xFF, 16, 0xEB, 0xEF];
    assert_eq!(cpu.run_code(&code, 6), Stop::Budget);
    assert_eq!(cpu.gpr[RAX], 17);
}

#[test]
fn data_beside_code_is_just_data() {
    let mut cpu = Cpu::for_test();
    // inc qword [rip + 0x100]; jmp back
    let code = [0x48, 0xFF, 0x05, 0, 1, 0, 0, 0xEB, 0xF7];
    assert_eq!(cpu.run_code(&code, 100), Stop::Budget);
    let mut count = [0; 8];
    cpu.peek_at(CODE + 7 + 0x100, &mut count);
    assert_eq!(u64::from_le_bytes(count), 50);
}

#[test]
fn both_pages_of_an_instruction_are_looked_after() {
    let mut cpu = Cpu::for_test();
    let at = CODE + 0xFFD;
    // mov eax, imm32, its immediate across the page
    cpu.poke(at, &[0xB8, 1, 2, 3, 4]);
    for second in [3_u8, 9] {
        cpu.poke(at + 3, &[second]);
        cpu.gpr[RIP_SLOT] = at;
        assert_eq!(cpu.run(1), Stop::Budget);
        assert_eq!(cpu.gpr[RAX], 0x0400_0201 | u64::from(second) << 16);
    }
}

#[test]
fn a_read_of_a_hole_is_answered_and_counts_once() {
    let mut cpu = Cpu::for_test();
    // nop; mov eax, [HOLE]; inc eax
    let code = [0x90, 0x8B, 0x04, 0x25, 0, 0, 0, 0x20, 0xFF, 0xC0];
    assert_eq!(cpu.run_code(&code, 3), Stop::Exit(ExitKind::MmioRead { addr: HOLE, size: 4 }));
    assert_eq!((cpu.shared.retired, cpu.rip()), (1, CODE + 1));
    cpu.answer(0x1234);
    assert_eq!(cpu.run(2), Stop::Budget);
    assert_eq!(cpu.gpr[RAX], 0x1235);
    assert_eq!(cpu.shared.retired, 3);
}

#[test]
fn a_write_to_a_hole_is_seen_when_it_is_done() {
    let mut cpu = Cpu::for_test();
    cpu.gpr[RAX] = 0xABCD;
    // nop; mov [HOLE], ax; nop
    let code = [0x90, 0x66, 0x89, 0x04, 0x25, 0, 0, 0, 0x20, 0x90];
    let exit = ExitKind::MmioWrite { addr: HOLE, size: 2, value: 0xABCD };
    assert_eq!(cpu.run_code(&code, 3), Stop::Exit(exit));
    assert_eq!((cpu.shared.retired, cpu.rip()), (2, CODE + 9));
    assert_eq!(cpu.run(1), Stop::Budget);
    assert_eq!(cpu.rip(), CODE + 10);
}

#[test]
fn a_modification_of_a_hole_asks_then_tells() {
    let mut cpu = Cpu::for_test();
    cpu.flags.set(bit::CF);
    // adc byte [HOLE], 1
    let code = [0x80, 0x14, 0x25, 0, 0, 0, 0x20, 1];
    assert_eq!(cpu.run_code(&code, 1), Stop::Exit(ExitKind::MmioRead { addr: HOLE, size: 1 }));
    cpu.answer(5);
    let exit = ExitKind::MmioWrite { addr: HOLE, size: 1, value: 7 };
    assert_eq!(cpu.run(1), Stop::Exit(exit));
    assert!(!cpu.flags.cf());
}

#[test]
fn a_page_fault_saves_what_the_handler_wants() {
    let mut cpu = with_handlers();
    // mov [0x40000123], eax: beyond what is mapped
    assert_eq!(cpu.run_code(&[0x89, 0x04, 0x25, 0x23, 0x01, 0, 0x40], 1), Stop::Budget);
    assert_eq!(cpu.rip(), handler(vector::PF));
    assert_eq!(cpu.cr2, 0x4000_0123);
    assert_eq!(stacked(&cpu, 0), 2);
    assert_eq!(stacked(&cpu, 1), CODE);
    assert_eq!(stacked(&cpu, 2), 0x10);
    assert_eq!(stacked(&cpu, 3) & bit::RF, bit::RF);
    assert_eq!(cpu.gpr[RSP] & 15, 0);
}

#[test]
fn a_fault_on_the_way_to_the_handler_is_a_double_fault_then_a_shutdown() {
    let mut cpu = with_handlers();
    cpu.poke(IDT + 16 * u64::from(vector::PF) + 5, &[0x0E]);
    let code = [0x89, 0x04, 0x25, 0, 0, 0, 0x40];
    assert_eq!(cpu.run_code(&code, 1), Stop::Budget);
    assert_eq!((cpu.rip(), stacked(&cpu, 0)), (handler(vector::DF), 0));
    cpu.poke(IDT + 16 * u64::from(vector::DF) + 5, &[0x0E]);
    assert_eq!(cpu.run_code(&code, 1), Stop::Exit(ExitKind::Shutdown));
}

#[test]
fn single_steps_come_after_each_instruction() {
    let mut cpu = with_handlers();
    cpu.flags.control |= bit::TF;
    assert_eq!(cpu.run_code(&[0x90, 0x90], 1), Stop::Budget);
    assert_eq!((cpu.rip(), stacked(&cpu, 0)), (handler(vector::DB), CODE + 1));
    assert_eq!(cpu.debug.status & 1 << 14, 1 << 14);
    assert_eq!(cpu.flags.control & bit::TF, 0);
}

#[test]
fn a_software_interrupt_is_not_stepped_into() {
    let mut cpu = with_handlers();
    cpu.flags.control |= bit::TF;
    assert_eq!(cpu.run_code(&[0xCD, 0x50], 1), Stop::Budget);
    assert_eq!((cpu.rip(), stacked(&cpu, 0)), (handler(0x50), CODE + 2));
    assert_eq!(stacked(&cpu, 2) & bit::TF, bit::TF);
}

#[test]
fn instruction_breakpoints_come_before_and_data_breakpoints_after() {
    let mut cpu = with_handlers();
    cpu.debug.address = [CODE + 1, DATA + 4, 0, 0];
    // DR0 at instructions; DR1 at stores of four bytes.
    cpu.debug.control = 1 | 4 | 0xD << 20;
    cpu.mode_changed();
    // nop; nop; mov [DATA], rax
    let code = [0x90, 0x90, 0x48, 0x89, 0x04, 0x25, 0, 0, 0x20, 0];
    assert_eq!(cpu.run_code(&code, 1), Stop::Budget);
    assert_eq!(cpu.rip(), CODE + 1);
    cpu.run(1);
    assert_eq!((cpu.rip(), stacked(&cpu, 0)), (handler(vector::DB), CODE + 1));
    assert_eq!(cpu.debug.status & 15, 1);
    cpu.gpr[RIP_SLOT] = CODE + 1;
    cpu.flags.control |= bit::RF;
    assert_eq!(cpu.run(2), Stop::Budget);
    assert_eq!((cpu.rip(), stacked(&cpu, 0)), (handler(vector::DB), CODE + 10));
    assert_eq!(cpu.debug.status & 15, 3);
}

#[test]
fn interrupts_wait_for_one_instruction_after_sti() {
    let mut cpu = with_handlers();
    cpu.lapic.write_page(0xF0, 4, 0x1FF, 0);
    cpu.lapic.raise(0x40, false);
    // sti; nop; nop
    assert_eq!(cpu.run_code(&[0xFB, 0x90, 0x90], 2), Stop::Budget);
    assert_eq!(cpu.rip(), CODE + 2);
    cpu.run(1);
    assert_eq!((cpu.rip(), stacked(&cpu, 0)), (handler(0x40) + 1, CODE + 2));
    assert_eq!(cpu.flags.control & bit::IF, 0);
}

#[test]
fn a_return_to_user_mode_and_an_interrupt_from_it_change_stacks() {
    const TSS: u64 = 0xB000;
    const KERNEL_STACK: u64 = 0x28_0000;
    let mut cpu = with_handlers();
    cpu.poke(TSS + 4, &KERNEL_STACK.to_le_bytes());
    cpu.tr = Segment { selector: 0x28, base: TSS, limit: 0x67, attributes: 0x8B };
    cpu.poke(GDT + 32, &0x00CF_F300_0000_FFFF_u64.to_le_bytes());
    cpu.poke(GDT + 40, &0x00AF_FB00_0000_FFFF_u64.to_le_bytes());
    cpu.gdt.limit = 47;
    for value in [0x23, DATA + 0x1000, bit::IF | 2, 0x2B, CODE + 0x100] {
        cpu.gpr[RSP] -= 8;
        cpu.poke(cpu.gpr[RSP], &u64::to_le_bytes(value));
    }
    // ud2 in user mode
    cpu.poke(CODE + 0x100, &[0x0F, 0x0B]);
    assert_eq!(cpu.run_code(&[0x48, 0xCF], 1), Stop::Budget);
    assert_eq!((cpu.cpl, cpu.rip(), cpu.gpr[RSP]), (3, CODE + 0x100, DATA + 0x1000));
    assert_eq!(cpu.run(1), Stop::Budget);
    assert_eq!((cpu.cpl, cpu.rip()), (0, handler(vector::UD)));
    assert_eq!(cpu.gpr[RSP], KERNEL_STACK - 40);
    assert_eq!((stacked(&cpu, 1), stacked(&cpu, 3), stacked(&cpu, 4)), (0x2B, DATA + 0x1000, 0x23));
    assert_eq!(cpu.cause, Cause::Exception { vector: vector::UD, code: None });
}

#[test]
fn a_full_code_cache_starts_afresh() {
    let mut cpu = Cpu::for_test();
    cpu.gpr[RCX] = 1000;
    cpu.poke(CODE, &LOOP);
    assert_eq!(cpu.run(50), Stop::Budget);
    cpu.shared.blocks.clear();
    assert_eq!(cpu.run(50), Stop::Budget);
    assert_eq!(cpu.shared.retired, 100);
    assert_eq!(cpu.gpr[RAX], 34);
}
