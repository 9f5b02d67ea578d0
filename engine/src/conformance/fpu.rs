//! x87, MMX and SSE (SDM vol. 1, ch. 8 to 11).

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::bench::{Bench, Case, Outcome, cases, same};
use super::scene::DATA;
use crate::state::Fpu;
use crate::state::gpr::{RAX, RBX, RCX};

pub(super) const CASES: &[Case] = cases!["fpu":
    x87_arithmetic,
    x87_rounding,
    x87_comparison,
    sse_arithmetic,
    sse_integers,
    sse_comparison,
    mmx_and_x87_share_registers,
    mmx_fills_the_exponent,
    restored_registers_are_seen,
    saved_state_is_the_guests,
    fxsave_and_fxrstor,
    task_switched_flag,
    emulation_and_os_support,
    reserved_mxcsr_bits,
    unaligned_fxsave,
];

fn x87_arithmetic(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.fninit()?;
        a.fld(qword_ptr(DATA))?;
        a.fmul(qword_ptr(DATA + 8))?;
        a.fld1()?;
        a.faddp(st1, st0)?;
        a.fsqrt()?;
        a.fstp(qword_ptr(DATA + 16))
    })?;
    m.write(DATA, 2.5_f64.to_bits())?;
    m.write(DATA + 8, 6.0_f64.to_bits())?;
    m.end()?;
    same("sqrt(2.5 * 6 + 1)", m.read::<u64>(DATA + 16)?, 4.0_f64.to_bits())
}

fn x87_rounding(bench: &Bench<'_>) -> Outcome {
    for (control, rounded) in [(0x037F_u16, 2_u32), (0x077F, 1), (0x0B7F, 2), (0x0F7F, 1)] {
        let mut m = bench.long(|a| {
            a.fninit()?;
            a.fldcw(word_ptr(DATA))?;
            a.fld(qword_ptr(DATA + 8))?;
            a.fistp(dword_ptr(DATA + 16))
        })?;
        m.write(DATA, control)?;
        m.write(DATA + 8, 1.5_f64.to_bits())?;
        m.end()?;
        same(&format!("1.5 under control word {control:#x}"), m.read::<u32>(DATA + 16)?, rounded)?;
    }
    Ok(())
}

fn x87_comparison(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.fninit()?;
        a.fldz()?;
        a.fld1()?;
        a.fcomi(st0, st1)?;
        a.seta(al)?;
        a.fld(qword_ptr(DATA))?;
        a.fucomi(st0, st1)?;
        a.setp(bl)?;
        a.fnstsw(ax)?;
        a.mov(ecx, eax)
    })?;
    m.write(DATA, f64::NAN.to_bits())?;
    let end = m.end()?.registers.gpr;
    same("unordered", end[RBX], 1)?;
    // Three values: the top is 5. A quiet NaN does not disturb FUCOMI.
    same("status word", end[RCX] & 0x3800, 5 << 11)?;
    same("invalid operation", end[RCX] & 1, 0)
}

fn sse_arithmetic(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.movapd(xmm0, xmmword_ptr(DATA))?;
        a.mulpd(xmm0, xmmword_ptr(DATA + 16))?;
        a.addsd(xmm0, xmm0)?;
        a.movapd(xmmword_ptr(DATA + 32), xmm0)?;
        a.cvttsd2si(rax, xmm0)?;
        a.cvtsi2sd(xmm1, rax)?;
        a.movq(rbx, xmm1)
    })?;
    for (n, value) in (0..).zip([1.5, 3.0, 7.0, -2.0_f64]) {
        m.write(DATA + n * 8, value.to_bits())?;
    }
    let end = m.end()?.registers.gpr;
    same("low", m.read::<u64>(DATA + 32)?, 21.0_f64.to_bits())?;
    same("high", m.read::<u64>(DATA + 40)?, (-6.0_f64).to_bits())?;
    same("truncated", end[RAX], 21)?;
    same("converted", end[RBX], 21.0_f64.to_bits())
}

fn sse_integers(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.movdqa(xmm0, xmmword_ptr(DATA))?;
        a.pcmpeqb(xmm0, xmmword_ptr(DATA + 16))?;
        a.pmovmskb(eax, xmm0)?;
        a.pshufd(xmm1, xmmword_ptr(DATA), 0x1B)?;
        a.movdqa(xmmword_ptr(DATA + 32), xmm1)?;
        a.pshufb(xmm1, xmmword_ptr(DATA + 16))?;
        a.movd(ebx, xmm1)?;
        a.popcnt(ecx, eax)
    })?;
    m.write(DATA, 0x0706_0504_0302_0100_u64)?;
    m.write(DATA + 8, 0x0F0E_0D0C_0B0A_0908_u64)?;
    m.write(DATA + 16, 0x0F06_0D04_0B02_0900_u64)?;
    let end = m.end()?.registers.gpr;
    same("mask of the equal", end[RAX], 0x55)?;
    same("reversed", m.read::<u64>(DATA + 32)?, 0x0B0A_0908_0F0E_0D0C)?;
    // Bytes 0, 9, 2, 11 of the reversed.
    same("shuffled", end[RBX], 0x070E_050C)?;
    same("count", end[RCX], 4)
}

fn sse_comparison(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.movsd_2(xmm0, qword_ptr(DATA))?;
        a.ucomisd(xmm0, xmm0)?;
        a.setp(al)?;
        a.cmpunordsd(xmm0, xmm0)?;
        a.movq(rbx, xmm0)
    })?;
    m.write(DATA, f64::NAN.to_bits())?;
    let end = m.end()?.registers.gpr;
    same("unordered", end[RAX], 1)?;
    same("mask", end[RBX], u64::MAX)
}

fn mmx_and_x87_share_registers(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.fninit()?;
        a.mov(rax, 0x1122_3344_5566_7788_u64)?;
        a.movq(mm3, rax)?;
        a.paddb(mm3, mm3)?;
        a.movq(rbx, mm3)?;
        a.fxsave64(ptr(DATA))?;
        a.emms()
    })?;
    let end = m.end()?;
    same("sum", end.registers.gpr[RBX], 0x2244_6688_AACC_EE10)?;
    // All registers valid, the top is 0.
    same("abridged tags", m.read::<u8>(DATA + 4)?, 0xFF)?;
    same("mm3", m.read::<u64>(DATA + 32 + 3 * 16)?, 0x2244_6688_AACC_EE10)?;
    same("tags after emms", end.fpu.bytes()[4], 0)
}

fn mmx_fills_the_exponent(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.movq(mm3, rax)?;
        a.fxsave64(ptr(DATA))
    })?;
    m.end()?;
    same("exponent", m.read::<u16>(DATA + 32 + 3 * 16 + 8)?, 0xFFFF)
}

/// An image with a value in every register; the x87 stack holds 0 to 7 as integers.
fn image() -> [u8; Fpu::SIZE] {
    let mut image = Fpu::default().bytes();
    image[0..2].copy_from_slice(&0x027F_u16.to_le_bytes());
    image[4] = 0xFF;
    image[24..28].copy_from_slice(&0x5F80_u32.to_le_bytes());
    for (n, register) in image[32..160].chunks_exact_mut(16).enumerate() {
        register[..8].copy_from_slice(&(0x8000_0000_0000_0000 | n as u64).to_le_bytes());
        register[8..10].copy_from_slice(&0x403E_u16.to_le_bytes());
    }
    for (n, byte) in image[160..416].iter_mut().enumerate() {
        *byte = n as u8;
    }
    image
}

fn restored_registers_are_seen(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.fxsave64(ptr(DATA))?;
        a.stmxcsr(dword_ptr(DATA + 0x200))?;
        a.fnstcw(word_ptr(DATA + 0x204))?;
        a.movq(rax, xmm9)
    })?;
    let mut m = m.with(|state| state.fpu = Fpu::new(&image()));
    let end = m.end()?;
    same("mxcsr", m.read::<u32>(DATA + 0x200)?, 0x5F80)?;
    same("control word", m.read::<u16>(DATA + 0x204)?, 0x027F)?;
    same("xmm9", end.registers.gpr[RAX], 0x9796_9594_9392_9190)?;
    for at in (32..416).step_by(8) {
        let want = u64::from_le_bytes(std::array::from_fn(|n| image()[at + n]));
        same(&format!("byte {at} of the image"), m.read::<u64>(DATA + at as u64)?, want)?;
    }
    Ok(())
}

fn saved_state_is_the_guests(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.fninit()?;
        a.fld1()?;
        a.mov(eax, 0x3F80)?;
        a.mov(dword_ptr(DATA), eax)?;
        a.ldmxcsr(dword_ptr(DATA))?;
        a.mov(rax, 0x1122_3344_5566_7788_u64)?;
        a.movq(xmm15, rax)
    })?;
    let saved = m.end()?.fpu.bytes();
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| saved[at + n]));
    same("control word", word(0) & 0xFFFF, 0x37F)?;
    same("top of stack", word(2) >> 11 & 7, 7)?;
    same("abridged tags", saved[4], 0x80)?;
    same("mxcsr", word(24) & 0xFFFF_FFFF, 0x3F80)?;
    same("significand of 1", word(32), 1 << 63)?;
    same("exponent of 1", word(40) & 0xFFFF, 0x3FFF)?;
    same("xmm15", word(160 + 15 * 16), 0x1122_3344_5566_7788)
}

fn fxsave_and_fxrstor(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| {
        a.fxrstor64(ptr(DATA))?;
        a.fxsave64(ptr(DATA + 0x400))
    })?;
    m.write_bytes(DATA, &image())?;
    m.end()?;
    for at in (32..416).step_by(8) {
        same(&format!("byte {at}"), m.read::<u64>(DATA + 0x400 + at)?, m.read::<u64>(DATA + at)?)?;
    }
    same("mxcsr", m.read::<u32>(DATA + 0x400 + 24)?, 0x5F80)
}

fn task_switched_flag(bench: &Bench<'_>) -> Outcome {
    type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let programs: [Program; 4] =
        [|a| a.fld1(), |a| a.movaps(xmm0, xmm1), |a| a.wait(), |a| a.fxsave64(ptr(DATA))];
    for program in programs {
        bench.long(program)?.with(|state| state.system.cr0 |= 8).expect_trap(7, None)?;
    }
    Ok(())
}

fn emulation_and_os_support(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| a.addps(xmm0, xmm1))?.with(|state| state.system.cr0 |= 4);
    m.expect_trap(6, None)?;
    let mut m = bench.long(|a| a.addps(xmm0, xmm1))?.with(|state| state.system.cr4 &= !0x200);
    m.expect_trap(6, None)?;
    let mut m = bench.long(|a| a.fld1())?.with(|state| state.system.cr0 = state.system.cr0 & !2 | 4);
    m.expect_trap(7, None).map(drop)
}

fn reserved_mxcsr_bits(bench: &Bench<'_>) -> Outcome {
    let mut m = bench.long(|a| a.ldmxcsr(dword_ptr(DATA)))?;
    m.write(DATA, 0x1_1F80_u32)?;
    m.expect_trap(13, Some(0)).map(drop)
}

fn unaligned_fxsave(bench: &Bench<'_>) -> Outcome {
    bench.long(|a| a.fxsave64(ptr(DATA + 8)))?.expect_trap(13, Some(0)).map(drop)
}
