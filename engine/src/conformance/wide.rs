//! AVX and XSAVE on a CPU of x86-64-v3 (SDM vol. 1, ch. 13 and 14). An engine that has none on this host passes.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::bench::{Bench, Case, Failure, Outcome, cases, same};
use super::machine::Machine;
use super::scene::{DATA, Mode};
use crate::cpuid::xsave;
use crate::state::gpr::{RAX, RBX, RCX, RDX};

pub(super) const CASES: &[Case] = cases!["wide":
    halves_survive_exits_and_interrupts,
    legacy_and_vex_writes_of_an_xmm_register,
    switched_off_is_undefined,
    task_switched_flag,
    the_smaller_model_has_no_xsave,
    xcr0_takes_what_there_is,
    cpuid_follows_control_registers,
    xsave_writes_what_is_asked_for,
    xsaveopt_leaves_initial_components,
    xrstor_brings_back_or_initialises,
    xrstor_refuses,
    alignment,
];

type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Has something in each half of each YMM register.
fn filled(m: Machine<'_>) -> Machine<'_> {
    m.with(|state| {
        let mut image = state.fpu.bytes();
        for (n, byte) in image[160..416].iter_mut().enumerate() {
            *byte = n as u8;
        }
        state.fpu = crate::state::Fpu::new(&image).with_upper(std::array::from_fn(upper));
    })
}

/// The upper half that [`filled`] gives a register.
fn upper(n: usize) -> u128 {
    (n as u128 + 1) * 0x0101_0101_0101_0101_0101_0101_0101_0101
}

/// Runs a case, if there is a machine for it.
fn on(m: Result<Option<Machine<'_>>, Failure>, case: impl FnOnce(Machine<'_>) -> Outcome) -> Outcome {
    m?.map_or(Ok(()), case)
}

fn halves_survive_exits_and_interrupts(bench: &Bench<'_>) -> Outcome {
    let program: Program = |a| {
        a.vpaddb(ymm3, ymm3, ymm3)?;
        a.int3()?;
        a.vmovdqu(ymmword_ptr(DATA), ymm3)?;
        a.int3()?;
        a.vpaddb(ymm4, ymm3, ymm3)
    };
    on(bench.wide(program), |m| {
        let mut m = filled(m);
        for _ in 0..2 {
            let trap = m.expect_trap(3, None)?;
            same("upper half of ymm3", trap.state.fpu.upper[3], 2 * upper(3))?;
            same("upper half of ymm15", trap.state.fpu.upper[15], upper(15))?;
        }
        let end = m.end()?;
        same("stored", m.read::<u128>(DATA + 16)?, 2 * upper(3))?;
        same("upper half of ymm4", end.fpu.upper[4], 4 * upper(3))?;
        same("xmm3", end.fpu.bytes()[160 + 48], 0x60)
    })
}

fn legacy_and_vex_writes_of_an_xmm_register(bench: &Bench<'_>) -> Outcome {
    let program: Program = |a| {
        a.paddb(xmm1, xmm2)?;
        a.vpaddb(xmm2, xmm2, xmm2)?;
        a.movq(xmm4, rax)?;
        a.vmovd(xmm5, eax)
    };
    on(bench.wide(program), |m| {
        let end = filled(m).end()?;
        for (n, want) in [(1, upper(1)), (2, 0), (3, upper(3)), (4, upper(4)), (5, 0)] {
            same(&format!("upper half of ymm{n}"), end.fpu.upper[n], want)?;
        }
        Ok(())
    })?;
    on(bench.wide(|a| a.vzeroupper()), |m| {
        let end = filled(m).end()?;
        same("upper half of ymm0", end.fpu.upper[0], 0)?;
        same("upper half of ymm15", end.fpu.upper[15], 0)?;
        same("xmm15", end.fpu.bytes()[415], 0xFF)
    })?;
    on(bench.wide(|a| a.vzeroall()), |m| same("xmm15", filled(m).end()?.fpu.bytes()[415], 0))
}

fn switched_off_is_undefined(bench: &Bench<'_>) -> Outcome {
    let programs: [Program; 3] =
        [|a| a.vaddps(xmm0, xmm1, xmm2), |a| a.vzeroupper(), |a| a.vmovdqu(ymm0, ymmword_ptr(DATA))];
    for program in programs {
        on(bench.wide(program), |m| {
            m.with(|state| state.system.cr4 &= !(1 << 18)).expect_trap(6, None).map(drop)
        })?;
        for xcr0 in [1, 3] {
            // #UD comes before #NM.
            on(bench.wide(program), |m| {
                let m = m.with(|state| (state.system.xcr0, state.system.cr0) = (xcr0, state.system.cr0 | 8));
                let mut m = m;
                m.expect_trap(6, None).map(drop)
            })?;
        }
        // CR0.EM and CR4.OSFXSR are SSE's.
        on(bench.wide(program), |m| {
            let m = m.with(|state| {
                state.system.cr0 = state.system.cr0 & !2 | 4;
                state.system.cr4 &= !0x200;
            });
            let mut m = m;
            m.end().map(drop)
        })?;
    }
    let programs: [Program; 2] = [|a| a.xgetbv(), |a| a.xsave64(ptr(DATA))];
    for program in programs {
        on(bench.wide(program), |m| {
            m.with(|state| state.system.cr4 &= !(1 << 18)).expect_trap(6, None).map(drop)
        })?;
    }
    Ok(())
}

fn task_switched_flag(bench: &Bench<'_>) -> Outcome {
    let programs: [Program; 4] = [
        |a| a.vaddps(xmm0, xmm1, xmm2),
        |a| a.vzeroupper(),
        |a| a.xsave64(ptr(DATA)),
        |a| a.xrstor64(ptr(DATA)),
    ];
    for program in programs {
        on(bench.wide(program), |m| m.with(|state| state.system.cr0 |= 8).expect_trap(7, None).map(drop))?;
    }
    // BMI is of general registers.
    on(bench.wide(|a| a.andn(eax, ebx, ecx)), |m| m.with(|state| state.system.cr0 |= 8).end().map(drop))
}

fn the_smaller_model_has_no_xsave(bench: &Bench<'_>) -> Outcome {
    let programs: [Program; 2] = [|a| a.xgetbv(), |a| a.vzeroupper()];
    for program in programs {
        bench.long(program)?.expect_trap(6, None)?;
    }
    let mut m = bench.machine(1, Mode::Long, |a| {
        a.mov(rax, cr4)?;
        a.bts(rax, 18)?;
        a.mov(cr4, rax)
    })?;
    m.expect_trap(13, Some(0)).map(drop)
}

fn xcr0_takes_what_there_is(bench: &Bench<'_>) -> Outcome {
    let program: Program = |a| {
        a.xsetbv()?;
        a.xgetbv()
    };
    for value in [1, 3, 7] {
        on(bench.wide(program), |m| {
            let end = m.given(RAX, value).end()?;
            same("XCR0", end.system.xcr0, value)?;
            same("EDX:EAX", (end.registers.gpr[RAX], end.registers.gpr[RDX]).0, value)
        })?;
    }
    // No x87; AVX without SSE; components that are not there, or of a register that is not there.
    for (value, high, index) in [(6, 0, 0), (5, 0, 0), (0xF, 0, 0), (7, 1, 0), (7, 0, 1)] {
        on(bench.wide(program), |m| {
            let mut m = m.given(RAX, value).given(RDX, high).given(RCX, index);
            m.expect_trap(13, Some(0)).map(drop)
        })?;
    }
    on(bench.wide(|a| a.xgetbv()), |m| m.given(RCX, 7).expect_trap(13, Some(0)).map(drop))
}

fn cpuid_follows_control_registers(bench: &Bench<'_>) -> Outcome {
    let program: Program = |a| {
        a.mov(eax, 1)?;
        a.cpuid()?;
        a.shr(ecx, 27)?;
        a.and(ecx, 1)?;
        a.mov(r8, rcx)?;
        a.mov(eax, 0xD)?;
        a.xor(ecx, ecx)?;
        a.cpuid()
    };
    for (xcr0, osxsave) in [(1, 1), (3, 1), (7, 1), (7, 0)] {
        on(bench.wide(program), |m| {
            let m = m.with(|state| {
                state.system.xcr0 = xcr0;
                state.system.cr4 = state.system.cr4 & !(1 << 18) | osxsave << 18;
            });
            let mut m = m;
            let gpr = m.end()?.registers.gpr;
            same("OSXSAVE", gpr[8], osxsave)?;
            same("components", gpr[RAX], 7)?;
            same("size of those that are on", gpr[RBX], xsave::size(xcr0) as u64)?;
            same("size of all", gpr[RCX], xsave::SIZE as u64)
        })?;
    }
    Ok(())
}

/// The area is at [`DATA`], filled with this.
const OLD: u64 = 0xA5A5_A5A5_A5A5_A5A5;

fn blot(m: &Machine<'_>) -> Outcome {
    (0..128).try_for_each(|n| m.write(DATA + 8 * n, OLD))
}

fn xsave_writes_what_is_asked_for(bench: &Bench<'_>) -> Outcome {
    for asked in 0..8 {
        on(bench.wide(|a| a.xsave64(ptr(DATA))), |m| {
            let mut m = filled(m).given(RAX, asked);
            blot(&m)?;
            // What is asked for is told, the rest of XSTATE_BV stays.
            m.write(DATA + 512, 6_u64)?;
            let end = m.end()?;
            let word = |at: u64| m.read::<u64>(DATA + at);
            let image = end.fpu.bytes();
            let old = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| image[at + n]));
            let chosen = |bits: u64, new: u64| if asked & bits != 0 { new } else { OLD };
            same("XSTATE_BV", word(512)?, 6 & !asked | asked & 6)?;
            same("control word", word(0)? & 0xFFFF, chosen(1, 0x37F) & 0xFFFF)?;
            same("mxcsr", word(24)? & 0xFFFF_FFFF, chosen(6, 0x1F80) & 0xFFFF_FFFF)?;
            same("st7", word(32 + 7 * 16)?, chosen(1, 0))?;
            same("xmm15", word(160 + 15 * 16)?, chosen(2, old(160 + 15 * 16)))?;
            same("behind the registers", word(416)?, OLD)?;
            same("XCOMP_BV", word(520)?, OLD)?;
            same("the header's end", word(568)?, OLD)?;
            same("upper half of ymm0", word(576)?, chosen(4, upper(0) as u64))?;
            same("upper half of ymm15", word(576 + 248)?, chosen(4, (upper(15) >> 64) as u64))?;
            same("behind the area", word(832)?, OLD)
        })?;
    }
    Ok(())
}

fn xsaveopt_leaves_initial_components(bench: &Bench<'_>) -> Outcome {
    let program: Program = |a| {
        a.fninit()?;
        a.vzeroall()?;
        a.xsaveopt64(ptr(DATA))
    };
    on(bench.wide(program), |m| {
        let mut m = filled(m).given(RAX, 7);
        blot(&m)?;
        m.write(DATA + 512, 7_u64)?;
        m.end()?;
        // A CPU may take x87 for used though it is initial.
        same("XSTATE_BV", m.read::<u64>(DATA + 512)? & 6, 0)?;
        same("xmm0", m.read::<u64>(DATA + 160)?, OLD)?;
        same("upper half of ymm0", m.read::<u64>(DATA + 576)?, OLD)?;
        same("mxcsr", m.read::<u32>(DATA + 24)?, 0x1F80)
    })
}

fn xrstor_brings_back_or_initialises(bench: &Bench<'_>) -> Outcome {
    for asked in 0..8_u64 {
        for live in 0..8_u64 {
            on(bench.wide(|a| a.xrstor64(ptr(DATA))), |m| {
                let mut m = filled(m).given(RAX, asked);
                for at in (0..832).step_by(8) {
                    m.write(DATA + at, 0_u64)?;
                }
                m.write(DATA, 0x027F_u16)?;
                m.write(DATA + 24, 0x5F80_u32)?;
                m.write(DATA + 160, 0x1122_u64)?;
                m.write(DATA + 512, live)?;
                m.write(DATA + 576, 0x3344_u64)?;
                let end = m.end()?;
                let image = end.fpu.bytes();
                let chosen = |bit: u64, old: u64, new: u64, initial: u64| match (asked & bit, live & bit) {
                    (0, _) => old,
                    (_, 0) => initial,
                    _ => new,
                };
                let control = u64::from(image[0]) | u64::from(image[1]) << 8;
                let low = u64::from_le_bytes(std::array::from_fn(|n| image[160 + n]));
                let mxcsr = u32::from_le_bytes(std::array::from_fn(|n| image[24 + n]));
                same("control word", control, chosen(1, 0x37F, 0x27F, 0x37F))?;
                same("xmm0", low, chosen(2, 0x0706_0504_0302_0100, 0x1122, 0))?;
                same("mxcsr", mxcsr, if asked & 6 != 0 { 0x5F80 } else { 0x1F80 })?;
                same("upper half of ymm0", end.fpu.upper[0] as u64, chosen(4, upper(0) as u64, 0x3344, 0))
            })?;
        }
    }
    Ok(())
}

fn xrstor_refuses(bench: &Bench<'_>) -> Outcome {
    // A component that is not there; compaction; the header's reserved bytes; MXCSR.
    for (at, value) in [(512, 8_u64), (520, 1 << 63), (528, 1), (24, 0x1_1F80)] {
        on(bench.wide(|a| a.xrstor64(ptr(DATA))), |m| {
            let mut m = m.given(RAX, 7);
            m.write(DATA + at, value)?;
            m.expect_trap(13, Some(0)).map(drop)
        })?;
    }
    // AVX in the area, but not in XCR0.
    on(bench.wide(|a| a.xrstor64(ptr(DATA))), |m| {
        let mut m = m.given(RAX, 7).with(|state| state.system.xcr0 = 3);
        m.write(DATA + 512, 4_u64)?;
        m.expect_trap(13, Some(0)).map(drop)
    })
}

fn alignment(bench: &Bench<'_>) -> Outcome {
    let programs: [Program; 5] = [
        |a| a.xsave64(ptr(DATA + 32)),
        |a| a.xrstor64(ptr(DATA + 16)),
        |a| a.vmovaps(ymm0, ymmword_ptr(DATA + 16)),
        |a| a.vmovdqa(xmmword_ptr(DATA + 8), xmm0),
        |a| a.vmovntdq(ymmword_ptr(DATA + 16), ymm0),
    ];
    for program in programs {
        on(bench.wide(program), |mut m| m.expect_trap(13, Some(0)).map(drop))?;
    }
    on(bench.wide(|a| a.vaddps(ymm0, ymm1, ymmword_ptr(DATA + 1))), |mut m| m.end().map(drop))
}
