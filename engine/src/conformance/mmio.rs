//! Accesses to holes in the memory map: every width, read-modify-write, strings, page crossings.

use iced_x86::code_asm::*;

use super::bench::{Bench, Case, Failure, Outcome, cases, same};
use super::machine::Machine;
use super::scene::{DATA, DEVICE, END};
use crate::ExitKind::{IoWrite, MmioRead, MmioWrite};
use crate::state::CpuState;
use crate::state::gpr::{RAX, RBX, RCX, RDI, RSI, RSP};

pub(super) const CASES: &[Case] = cases!["mmio":
    stores_of_every_width,
    loads_of_every_width,
    loads_extend,
    compare_only_reads,
    arithmetic_reads_then_writes,
    exchange_reads_then_writes,
    stack_through_the_device,
    strings_to_and_from_the_device,
    unaligned_within_a_page,
    page_crossing_store,
    page_crossing_load,
    between_memory_and_device,
    sixteen_bytes,
];

fn read(offset: u64, size: u8) -> crate::ExitKind {
    MmioRead { addr: DEVICE + offset, size }
}

fn write(offset: u64, size: u8, value: u64) -> crate::ExitKind {
    MmioWrite { addr: DEVICE + offset, size, value }
}

fn stores_of_every_width(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.mov(byte_ptr(rdi), al)?;
        a.mov(byte_ptr(rdi + 1), ah)?;
        a.mov(word_ptr(rdi + 2), ax)?;
        a.mov(dword_ptr(rdi + 4), eax)?;
        a.mov(qword_ptr(rdi + 8), rax)?;
        a.mov(qword_ptr(rdi + 16), -2)?;
        a.mov(byte_ptr(rdi + 24), 0x7F)
    })?;
    let mut m = m.given(RDI, DEVICE).given(RAX, 0x1122_3344_5566_7788);
    m.expect(write(0, 1, 0x88))?;
    m.expect(write(1, 1, 0x77))?;
    m.expect(write(2, 2, 0x7788))?;
    m.expect(write(4, 4, 0x5566_7788))?;
    m.expect(write(8, 8, 0x1122_3344_5566_7788))?;
    m.expect(write(16, 8, !1))?;
    m.expect(write(24, 1, 0x7F))?;
    m.end().map(drop)
}

fn loads_of_every_width(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.mov(al, byte_ptr(rdi))?;
        a.mov(bx, word_ptr(rdi + 2))?;
        a.mov(ecx, dword_ptr(rdi + 4))?;
        a.mov(rsi, qword_ptr(rdi + 8))
    })?;
    let ones = u64::MAX;
    let mut m = m.given(RDI, DEVICE).given(RAX, ones).given(RBX, ones).given(RCX, ones);
    m.expect_read(read(0, 1), 0x11)?;
    m.expect_read(read(2, 2), 0x2222)?;
    m.expect_read(read(4, 4), 0x3333_3333)?;
    m.expect_read(read(8, 8), 0x4444_4444_4444_4444)?;
    let end = m.end()?;
    same("rax", end.registers.gpr[RAX], 0xFFFF_FFFF_FFFF_FF11)?;
    same("rbx", end.registers.gpr[RBX], 0xFFFF_FFFF_FFFF_2222)?;
    same("rcx", end.registers.gpr[RCX], 0x3333_3333)?;
    same("rsi", end.registers.gpr[RSI], 0x4444_4444_4444_4444)
}

fn loads_extend(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.movzx(eax, byte_ptr(rdi))?;
        a.movsx(rbx, byte_ptr(rdi))?;
        a.movsx(ecx, word_ptr(rdi))?;
        a.movsxd(rsi, dword_ptr(rdi))
    })?;
    let mut m = m.given(RDI, DEVICE);
    m.expect_read(read(0, 1), 0x80)?;
    m.expect_read(read(0, 1), 0x80)?;
    m.expect_read(read(0, 2), 0x8000)?;
    m.expect_read(read(0, 4), 0x8000_0000)?;
    let end = m.end()?;
    same("movzx", end.registers.gpr[RAX], 0x80)?;
    same("movsx byte", end.registers.gpr[RBX], 0xFFFF_FFFF_FFFF_FF80)?;
    same("movsx word", end.registers.gpr[RCX], 0xFFFF_8000)?;
    same("movsxd", end.registers.gpr[RSI], 0xFFFF_FFFF_8000_0000)
}

fn compare_only_reads(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.cmp(dword_ptr(rdi), 5)?;
        a.sete(bl)?;
        a.test(byte_ptr(rdi), 2)?;
        a.setne(cl)
    })?;
    let mut m = m.given(RDI, DEVICE);
    m.expect_read(read(0, 4), 5)?;
    m.expect_read(read(0, 1), 2)?;
    let end = m.end()?;
    same("equal", end.registers.gpr[RBX], 1)?;
    same("bit set", end.registers.gpr[RCX], 1)
}

fn arithmetic_reads_then_writes(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.add(dword_ptr(rdi), eax)?;
        a.setb(bl)?;
        a.lock().or(byte_ptr(rdi), 0x80)?;
        a.inc(word_ptr(rdi))?;
        a.not(qword_ptr(rdi))?;
        a.shl(dword_ptr(rdi), 4)
    })?;
    let mut m = m.given(RDI, DEVICE).given(RAX, 0x20);
    m.expect_read(read(0, 4), 0xFFFF_FFF0)?;
    m.expect(write(0, 4, 0x10))?;
    m.expect_read(read(0, 1), 1)?;
    m.expect(write(0, 1, 0x81))?;
    m.expect_read(read(0, 2), 0xFFFF)?;
    m.expect(write(0, 2, 0))?;
    m.expect_read(read(0, 8), 1)?;
    m.expect(write(0, 8, !1))?;
    m.expect_read(read(0, 4), 0x1234_5678)?;
    m.expect(write(0, 4, 0x2345_6780))?;
    same("carry", m.end()?.registers.gpr[RBX], 1)
}

fn exchange_reads_then_writes(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| a.xchg(dword_ptr(rdi), eax))?.given(RDI, DEVICE).given(RAX, 0x77);
    m.expect_read(read(0, 4), 0x99)?;
    m.expect(write(0, 4, 0x77))?;
    same("rax", m.end()?.registers.gpr[RAX], 0x99)
}

fn stack_through_the_device(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.push(qword_ptr(rdi))?;
        a.pop(rax)?;
        a.push(rax)?;
        a.pop(qword_ptr(rdi + 8))
    })?;
    let mut m = m.given(RDI, DEVICE);
    m.expect_read(read(0, 8), 0x1234_5678_9ABC_DEF0)?;
    m.expect(write(8, 8, 0x1234_5678_9ABC_DEF0))?;
    let end = m.end()?;
    same("rax", end.registers.gpr[RAX], 0x1234_5678_9ABC_DEF0)?;
    same("rsp", end.registers.gpr[RSP], super::scene::STACK)
}

fn strings_to_and_from_the_device(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.rep().movsb()?;
        a.mov(rsi, rdi)?;
        a.mov(rdi, DATA + 0x100)?;
        a.mov(ecx, 2)?;
        a.rep().movsd()?;
        a.mov(rdi, DEVICE)?;
        a.mov(eax, 0x55)?;
        a.mov(ecx, 2)?;
        a.rep().stosw()
    })?;
    let mut m = m.given(RSI, DATA).given(RDI, DEVICE + 2).given(RCX, 2);
    m.write(DATA, 0xBBAA_u16)?;
    m.expect(write(2, 1, 0xAA))?;
    m.expect(write(3, 1, 0xBB))?;
    m.expect_read(read(4, 4), 0x1111_1111)?;
    m.expect_read(read(8, 4), 0x2222_2222)?;
    m.expect(write(0, 2, 0x55))?;
    m.expect(write(2, 2, 0x55))?;
    let end = m.end()?;
    same("copied", m.read::<u64>(DATA + 0x100)?, 0x2222_2222_1111_1111)?;
    same("rcx", end.registers.gpr[RCX], 0)?;
    same("rdi", end.registers.gpr[RDI], DEVICE + 4)
}

fn unaligned_within_a_page(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.mov(dword_ptr(rdi + 1), eax)?;
        a.mov(rax, qword_ptr(rdi + 3))
    })?;
    play(m.given(RDI, DEVICE).given(RAX, 0x1122_3344), |device, end| {
        same("stored", device.word(1) as u32, 0x1122_3344)?;
        same("loaded", end.registers.gpr[RAX], device.word(3))
    })
}

fn page_crossing_store(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.mov(qword_ptr(rdi + 0xFFD), rax)?;
        a.mov(word_ptr(rdi + 0x1FFF), ax)
    })?;
    play(m.given(RDI, DEVICE).given(RAX, 0x1122_3344_5566_7788), |device, _| {
        same("quadword", device.word(0xFFD), 0x1122_3344_5566_7788)?;
        same("word", device.word(0x1FFF) as u16, 0x7788)
    })
}

fn page_crossing_load(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.mov(rax, qword_ptr(rdi + 0xFFB))?;
        a.mov(ebx, dword_ptr(rdi + 0xFFF))
    })?;
    play(m.given(RDI, DEVICE), |device, end| {
        same("quadword", end.registers.gpr[RAX], device.word(0xFFB))?;
        same("doubleword", end.registers.gpr[RBX] as u32, device.word(0xFFF) as u32)
    })
}

/// The linear page after the last data page is the device.
fn between_memory_and_device(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.mov(rax, qword_ptr(rdi - 4))?;
        a.mov(qword_ptr(rdi - 3), rbx)
    })?;
    // 2 MiB at 1 GiB - 2 MiB become memory; what follows is the device.
    let m = m.given(RDI, DEVICE).given(RBX, 0x0807_0605_0403_0201);
    m.write(super::scene::PD + 511 * 8, 0x20_0087_u64)?;
    m.write(0x3F_FFFC, 0xDDCC_BBAA_u32)?;
    let memory = m.memory.clone();
    play(m, |device, end| {
        // The device's first bytes are 0, 1, 2, 3.
        same("loaded", end.registers.gpr[RAX], 0x0302_0100_DDCC_BBAA)?;
        let tail: u32 = vm_memory::Bytes::read_obj(&memory, vm_memory::GuestAddress(0x3F_FFFC))
            .map_err(|error| Failure(error.to_string()))?;
        same("stored in memory", tail, 0x0302_01AA)?;
        // Five bytes of the store, then what was there.
        same("stored in the device", device.word(0), 0x0706_0508_0706_0504)
    })
}

fn sixteen_bytes(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.movdqu(xmm0, xmmword_ptr(rdi))?;
        a.movaps(xmmword_ptr(rdi + 0x20), xmm0)
    })?;
    play(m.given(RDI, DEVICE), |device, _| {
        same("low", device.word(0x20), device.word(0))?;
        same("high", device.word(0x28), device.word(8))
    })
}

/// Three pages of a device; byte `n` holds `n` at first.
struct Device(Vec<u8>);

impl Device {
    fn word(&self, offset: usize) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|n| self.0.get(offset + n).copied().unwrap_or(0)))
    }
}

/// Plays the device until the program ends; how an access is cut into exits is the engine's choice.
fn play(m: Machine<'_>, judge: impl FnOnce(&Device, &CpuState) -> Outcome) -> Outcome {
    let mut m = m.staying();
    let mut device = Device((0..0x3000).map(|n| n as u8).collect());
    loop {
        let kind = m.next()?;
        let place = |addr: u64| addr.checked_sub(DEVICE).and_then(|offset| usize::try_from(offset).ok());
        match kind {
            MmioRead { addr, .. } => m.answer(device.word(place(addr).unwrap_or(0x3000))),
            MmioWrite { addr, size, value } => {
                let start = place(addr).unwrap_or(0x3000);
                let slot = device.0.get_mut(start..start + usize::from(size));
                let slot = slot.ok_or_else(|| Failure(format!("a store to {addr:#x}")))?;
                slot.copy_from_slice(&value.to_le_bytes()[..usize::from(size)]);
            }
            IoWrite { port, .. } if port == u16::from(END) => break,
            other => return Err(Failure(format!("unexpected {other:x?}"))),
        }
    }
    let end = m.save(0)?;
    judge(&device, &end)
}
