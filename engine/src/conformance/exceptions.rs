//! Faults and traps: vector, error code, what they push (SDM vol. 3, ch. 7).

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::bench::{Bench, Case, Outcome, cases, same};
use super::scene::{self, CODE, DATA, KERNEL_STACK, STACK, selector};
use crate::ExitKind::Shutdown;
use crate::state::gpr::{RAX, RSP};

pub(super) const CASES: &[Case] = cases!["exceptions":
    divide_error,
    invalid_opcode,
    general_protection,
    interrupt_beyond_the_table,
    stack_fault,
    absent_segment,
    breakpoint_and_int_n,
    frame_of_a_fault,
    fault_is_restartable,
    single_step,
    hardware_breakpoint,
    x87_error_is_reported,
    double_fault,
    triple_fault,
    protected_mode_faults,
    segment_checks,
    real_mode_faults,
    user_fault_switches_stacks,
    interrupt_stack_table,
];

/// The program must fault at its `at`th byte.
fn faults(
    bench: &Bench<'_>,
    what: &str,
    (vector, error, at): (u8, Option<u32>, u64),
    program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Outcome {
    let trap = bench.long(program)?.expect_trap(vector, error)?;
    same(&format!("rip of {what}"), trap.rip, CODE + at)?;
    same(&format!("cs of {what}"), trap.cs, selector::CODE64)
}

fn divide_error(bench: &Bench<'_>) -> Outcome {
    faults(bench, "div by zero", (0, None, 2), |a| {
        a.xor(ecx, ecx)?;
        a.div(ecx)
    })?;
    // -2^31 / -1 does not fit.
    faults(bench, "idiv overflow", (0, None, 9), |a| {
        a.mov(eax, 0x8000_0000_u32)?;
        a.cdq()?;
        a.or(ecx, -1)?;
        a.idiv(ecx)
    })?;
    // 2 * 2^64 / 1 does not fit.
    faults(bench, "div overflow", (0, None, 10), |a| {
        a.mov(edx, 2)?;
        a.mov(ecx, 1)?;
        a.div(rcx)
    })
}

fn invalid_opcode(bench: &Bench<'_>) -> Outcome {
    faults(bench, "ud2", (6, None, 0), |a| a.ud2())?;
    faults(bench, "lock on a register form", (6, None, 0), |a| a.db(&[0xF0, 0x01, 0xC0]))?;
    faults(bench, "push es in 64-bit mode", (6, None, 0), |a| a.db(&[0x06]))?;
    faults(bench, "lea of a register", (6, None, 0), |a| a.db(&[0x8D, 0xC0]))?;
    faults(bench, "mov to cs", (6, None, 0), |a| a.db(&[0x8E, 0xC8]))
}

fn general_protection(bench: &Bench<'_>) -> Outcome {
    faults(bench, "a non-canonical load", (13, Some(0), 10), |a| {
        a.mov(rax, 0x8000_0000_0000_u64)?;
        a.mov(rbx, qword_ptr(rax))
    })?;
    faults(bench, "reserved CR4 bits", (13, Some(0), 5), |a| {
        a.mov(eax, 0x8000_0000_u32)?;
        a.mov(cr4, rax)
    })?;
    faults(bench, "paging without protection", (13, Some(0), 5), |a| {
        a.mov(eax, 0x8000_0010_u32)?;
        a.mov(cr0, rax)
    })?;
    faults(bench, "a selector beyond the table", (13, Some(0x100), 5), |a| {
        a.mov(eax, 0x100)?;
        a.mov(ds, ax)
    })?;
    faults(bench, "a code segment as stack", (13, Some(8), 5), |a| {
        a.mov(eax, u32::from(selector::CODE64))?;
        a.mov(ss, ax)
    })?;
    faults(bench, "an unaligned movaps", (13, Some(0), 0), |a| a.movaps(xmm0, xmmword_ptr(DATA + 1)))
}

/// The limit holds up to vector 0x5F.
fn interrupt_beyond_the_table(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| a.int(0x60))?.with(|state| state.system.idt.limit = 0x5FF);
    m.expect_trap(13, Some(0x60 << 3 | 2)).map(drop)
}

fn stack_fault(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.mov(rbp, 0x8000_0000_0000_u64)?;
        a.mov(rax, qword_ptr(rbp))
    });
    m?.expect_trap(12, Some(0)).map(drop)
}

fn absent_segment(bench: &Bench<'_>) -> Outcome {
    let load = u32::from(selector::ABSENT);
    faults(bench, "mov ds", (11, Some(load), 5), |a| {
        a.mov(eax, load)?;
        a.mov(ds, ax)
    })?;
    faults(bench, "mov ss", (12, Some(load), 5), |a| {
        a.mov(eax, load)?;
        a.mov(ss, ax)
    })
}

/// Traps point behind their instruction.
fn breakpoint_and_int_n(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.int3()?;
        a.int(0x42)?;
        a.int(3)
    })?;
    same("rip of int3", m.expect_trap(3, None)?.rip, CODE + 1)?;
    same("rip of int 0x42", m.expect_trap(0x42, None)?.rip, CODE + 3)?;
    same("rip of int 3", m.expect_trap(3, None)?.rip, CODE + 5)?;
    m.end().map(drop)
}

fn frame_of_a_fault(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| a.ud2())?;
    // The stack is aligned down to 16 bytes before the frame; a fault pushes RF set.
    let mut m = m.given(RSP, STACK - 4).with(|state| state.registers.rflags = 0x8D7);
    let trap = m.expect_trap(6, None)?;
    same("rsp", trap.rsp, STACK - 4)?;
    same("ss", trap.ss, selector::DATA)?;
    same("rflags", trap.rflags, 0x1_08D7)?;
    same("the frame's place", trap.frame, STACK - 16 - 40)?;
    same("rflags in the handler", trap.state.registers.rflags & 0x1_0300, 0)
}

fn fault_is_restartable(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.ud2()?;
        a.mov(eax, 0x77)
    })?;
    let trap = m.expect_trap(6, None)?;
    same("rip", m.expect_trap(6, None)?.rip, trap.rip)?;
    m.write(trap.frame, trap.rip + 2)?;
    same("rax", m.end()?.registers.gpr[RAX], 0x77)
}

fn single_step(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.pushfq()?;
        a.or(dword_ptr(rsp), 0x100)?;
        a.popfq()?;
        a.nop()?;
        a.mov(eax, 1)?;
        a.nop()
    })?;
    // After POPF itself there is no trap; then one after each instruction, until the frame's TF is cleared.
    let first = m.expect_trap(1, None)?;
    same("dr6", first.state.debug.status & 0x400F, 0x4000)?;
    let second = m.expect_trap(1, None)?;
    same("one instruction", second.rip - first.rip, 5)?;
    same("TF in the frame", second.rflags & 0x100, 0x100)?;
    m.write(second.frame + 16, second.rflags & !0x100)?;
    m.end().map(drop)
}

fn hardware_breakpoint(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.nop()?;
        a.mov(dword_ptr(DATA), 1)?;
        a.nop()
    })?;
    // DR0: 4-byte writes to DATA. A data breakpoint traps after its instruction.
    let mut m = m.with(|state| {
        state.debug.address[0] = DATA;
        state.debug.control = 0xD_0402;
    });
    let trap = m.expect_trap(1, None)?;
    same("dr6", trap.state.debug.status & 0x400F, 1)?;
    same("stored", m.read::<u32>(DATA)?, 1)?;
    m.end().map(drop)
}

fn x87_error_is_reported(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.fninit()?;
        a.push(0x37B)?;
        a.fldcw(word_ptr(rsp))?;
        a.fld1()?;
        a.fldz()?;
        a.fdivp(st1, st0)?;
        a.nop()?;
        a.wait()
    });
    m?.expect_trap(16, None).map(drop)
}

/// A fault of the contributory class while another one is delivered.
fn double_fault(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.mov(eax, 0x100)?;
        a.mov(ds, ax)
    })?;
    // No room for vector 13: #GP, and #GP again.
    let mut m = m.with(|state| state.system.idt.limit = 13 * 16 - 1);
    m.expect_trap(8, Some(0)).map(drop)
}

fn triple_fault(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| a.ud2())?.with(|state| state.system.idt.limit = 0);
    m.expect(Shutdown)
}

fn protected_mode_faults(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.protected(|a| {
        a.xor(ecx, ecx)?;
        a.div(ecx)
    })?;
    let trap = m.expect_trap(0, None)?;
    same("eip", trap.rip, CODE + 2)?;
    same("cs", trap.cs, selector::CODE32)?;
    let mut m = bench.protected(|a| {
        a.mov(eax, 0x7FFF_FFFF)?;
        a.add(eax, 1)?;
        a.into()
    })?;
    same("eip after into", m.expect_trap(4, None)?.rip, CODE + 11)?;
    let mut m = bench.protected(|a| {
        a.mov(eax, 9)?;
        a.mov(dword_ptr(DATA + 4), 8)?;
        a.bound(eax, dword_ptr(DATA))
    })?;
    m.expect_trap(5, None)?;
    Ok(())
}

/// A null selector may be loaded but not used; limits, direction and writability hold.
fn segment_checks(bench: &Bench<'_>) -> Outcome {
    for (segment, offset) in [(0, 0), (selector::SHORT, 0x1000), (selector::SHORT, 0xFFD)] {
        let m = bench.protected(|a| {
            a.mov(eax, u32::from(segment))?;
            a.mov(fs, ax)?;
            a.mov(eax, dword_ptr(offset).fs())
        });
        m?.expect_trap(13, Some(0))?;
    }
    let m = bench.protected(|a| {
        a.mov(eax, u32::from(selector::CONSTANT))?;
        a.mov(fs, ax)?;
        a.mov(dword_ptr(DATA).fs(), eax)
    });
    m?.expect_trap(13, Some(0)).map(drop)
}

fn real_mode_faults(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.real(|a| {
        a.xor(cx, cx)?;
        a.div(cx)
    })?;
    let trap = m.expect_trap(0, None)?;
    same("ip", trap.rip, 2)?;
    same("cs", trap.cs, 0x1000)?;
    let mut m = bench.real(|a| {
        a.int(0x33)?;
        a.mov(ax, 0x55)
    })?;
    same("ip after int", m.expect_trap(0x33, None)?.rip, 2)?;
    same("ax", m.end()?.registers.gpr[RAX], 0x55)
}

fn user_fault_switches_stacks(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| a.hlt())?.with(scene::user);
    let trap = m.expect_trap(13, Some(0))?;
    same("cs", trap.cs, selector::USER_CODE64)?;
    same("ss", trap.ss, selector::USER_DATA)?;
    same("rsp", trap.rsp, STACK)?;
    same("the frame's place", trap.frame, KERNEL_STACK - 40)?;
    same("ss in the handler", trap.state.system.segments[2].selector, 0)
}

fn interrupt_stack_table(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| a.ud2())?;
    m.write(scene::IDT + 6 * 16 + 4, 1_u8)?;
    m.write(scene::TSS + 0x24, DATA + 0x1000)?;
    let trap = m.expect_trap(6, None)?;
    same("the frame's place", trap.frame, DATA + 0x1000 - 40)?;
    same("rsp", trap.rsp, STACK)
}
