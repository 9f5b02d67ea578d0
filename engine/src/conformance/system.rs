//! Control registers, MSRs, CPUID, the time-stamp counter (SDM vol. 3, ch. 2; vol. 4).

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::bench::{Bench, Case, Outcome, cases, holds, same};
use super::scene::{self, DATA, PML4};
use crate::cpuid::CpuidTable;
use crate::msr;
use crate::state::gpr::{R8, R9, RAX, RBX, RCX, RDX};

pub(super) const CASES: &[Case] = cases!["system":
    cpuid_is_the_table,
    cpuid_beyond_the_table,
    tsc_never_goes_back,
    tsc_continues_from_the_state,
    rdtscp_tells_tsc_aux,
    msrs_are_as_restored,
    msrs_keep_what_is_written,
    unknown_msr,
    non_canonical_msr,
    efer_checks_its_bits,
    control_registers_read_back,
    cr8_is_the_task_priority,
    user_may_not_touch_the_system,
    descriptor_tables_read_back,
    fs_and_gs_bases,
    flags_that_popf_may_not_change,
];

fn cpuid(bench: &Bench<'_>, leaf: u32, subleaf: u32) -> Result<[u32; 4], super::Failure> {
    let m = bench.long(|a| a.cpuid())?;
    let end = m.given(RAX, leaf.into()).given(RCX, subleaf.into()).end()?.registers.gpr;
    Ok([end[RAX], end[RBX], end[RCX], end[RDX]].map(|register| register as u32))
}

fn cpuid_is_the_table(bench: &Bench<'_>) -> Outcome {
    let khz = bench.long(|a| a.nop())?.tsc_khz();
    let table = CpuidTable::x86_64_v2(1, khz).for_vcpu(0);
    for entry in &table.entries {
        let got = cpuid(bench, entry.leaf, entry.subleaf.unwrap_or(0))?;
        holds(
            || {
                format!(
                    "leaf {:#x}.{:x?} is {got:#x?}, not {:#x?}",
                    entry.leaf, entry.subleaf, entry.registers
                )
            },
            got == entry.registers,
        )?;
    }
    Ok(())
}

/// Leaves and sub-leaves that are not listed, within the range and beyond it.
fn cpuid_beyond_the_table(bench: &Bench<'_>) -> Outcome {
    let khz = bench.long(|a| a.nop())?.tsc_khz();
    let table = CpuidTable::x86_64_v2(1, khz).for_vcpu(0);
    let within = [(2, 0), (3, 0), (0xA, 0), (0xD, 1), (0x14, 0), (4, 7), (7, 1), (0xB, 9), (0x8000_0005, 0)];
    let beyond = [(0x17, 0), (0x2000_0000, 0), (0x4000_0000, 0), (0x8000_0009, 0), (0xC000_0000, 0)];
    for (leaf, subleaf) in within.into_iter().chain(beyond) {
        let (got, want) = (cpuid(bench, leaf, subleaf)?, table.lookup(leaf, subleaf));
        holds(|| format!("leaf {leaf:#x}.{subleaf} is {got:#x?}, not {want:#x?}"), got == want)?;
    }
    Ok(())
}

fn tsc_never_goes_back(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        let mut again = a.create_label();
        let mut fine = a.create_label();
        a.mov(edi, 1000)?;
        a.xor(ebx, ebx)?;
        a.set_label(&mut again)?;
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.cmp(rax, rbx)?;
        a.jae(fine)?;
        a.ud2()?;
        a.set_label(&mut fine)?;
        a.mov(rbx, rax)?;
        a.dec(edi)?;
        a.jnz(again)
    });
    let end = m?.end()?;
    holds(|| "the counter stood still".into(), end.registers.gpr[RBX] > 0)
}

fn tsc_continues_from_the_state(bench: &Bench<'_>) -> Outcome {
    let start = 1_u64 << 40;
    let m = bench.long(|a| a.rdtsc())?;
    let second = u64::from(m.tsc_khz()) * 1000;
    let end = m.with(|state| state.msrs.tsc = start).end()?.registers.gpr;
    let tsc = end[RDX] << 32 | end[RAX];
    holds(|| format!("rdtsc is {tsc:#x} after {start:#x}"), (start..start + 10 * second).contains(&tsc))
}

fn rdtscp_tells_tsc_aux(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| a.rdtscp())?;
    let end = m.with(|state| state.msrs.tsc_aux = 0x1234_5678).given(RCX, u64::MAX).end()?;
    same("ecx", end.registers.gpr[RCX], 0x1234_5678)
}

/// Every MSR of the neutral state, with a value it can have.
fn settings() -> Vec<(u32, u64)> {
    vec![
        (msr::TSC_AUX, 0x11),
        (msr::STAR, 0x0013_0008_0000_0000),
        (msr::LSTAR, 0xFFFF_8000_0000_1234),
        (msr::CSTAR, 0xFFFF_8000_0000_5678),
        (msr::FMASK, 0x4_7700),
        (msr::KERNEL_GS_BASE, 0xFFFF_9000_0000_0000),
        (msr::SYSENTER_CS, 0x10),
        (msr::SYSENTER_ESP, 0xFFFF_8000_0000_9ABC),
        (msr::SYSENTER_EIP, 0xFFFF_8000_0000_DEF0),
        (msr::PAT, 0x0007_0106_0007_0106),
        (msr::MTRR_DEF_TYPE, 0xC00),
        (msr::FS_BASE, 0x1234_5678),
        (msr::GS_BASE, 0xFFFF_8888_0000_0000),
    ]
}

fn msrs_are_as_restored(bench: &Bench<'_>) -> Outcome {
    for (index, value) in settings() {
        let m = bench.long(|a| a.rdmsr())?.given(RCX, index.into()).with(|state| {
            match index {
                msr::FS_BASE => state.system.segments[4].base = value,
                msr::GS_BASE => state.system.segments[5].base = value,
                _ => state.msrs.get_mut(index).into_iter().for_each(|register| *register = value),
            };
        });
        let mut m = m;
        let end = m.end()?.registers.gpr;
        same(&format!("MSR {index:#x}"), end[RDX] << 32 | end[RAX], value)?;
    }
    Ok(())
}

fn msrs_keep_what_is_written(bench: &Bench<'_>) -> Outcome {
    for (index, value) in settings() {
        let m = bench.long(|a| {
            a.wrmsr()?;
            a.xor(eax, eax)?;
            a.xor(edx, edx)?;
            a.rdmsr()
        })?;
        let mut m = m.given(RCX, index.into()).given(RAX, value & 0xFFFF_FFFF).given(RDX, value >> 32);
        let mut state = m.end()?;
        let end = state.registers.gpr;
        same(&format!("MSR {index:#x}"), end[RDX] << 32 | end[RAX], value)?;
        let saved = match index {
            msr::FS_BASE => state.system.segments[4].base,
            msr::GS_BASE => state.system.segments[5].base,
            _ => state.msrs.get_mut(index).copied().unwrap_or(!value),
        };
        same(&format!("saved MSR {index:#x}"), saved, value)?;
    }
    Ok(())
}

fn unknown_msr(bench: &Bench<'_>) -> Outcome {
    bench.long(|a| a.rdmsr())?.given(RCX, 0x1234_5678).expect_trap(13, Some(0))?;
    bench.long(|a| a.wrmsr())?.given(RCX, 0x1234_5678).expect_trap(13, Some(0)).map(drop)
}

fn non_canonical_msr(bench: &Bench<'_>) -> Outcome {
    for index in [msr::LSTAR, msr::KERNEL_GS_BASE, msr::FS_BASE] {
        let mut m = bench.long(|a| a.wrmsr())?.given(RCX, index.into()).given(RDX, 0x8000);
        m.expect_trap(13, Some(0))?;
    }
    Ok(())
}

/// LME cannot be written while paging is on, and bits that the model lacks never.
fn efer_checks_its_bits(bench: &Bench<'_>) -> Outcome {
    for value in [0x801, 0x8D01, 0x2_0D01] {
        let mut m = bench.long(|a| a.wrmsr())?.given(RCX, msr::EFER.into()).given(RAX, value);
        m.expect_trap(13, Some(0))?;
    }
    Ok(())
}

fn control_registers_read_back(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.mov(rax, cr0)?;
        a.or(eax, 0x8)?;
        a.mov(cr0, rax)?;
        a.mov(rax, cr0)?;
        a.mov(rbx, cr3)?;
        a.mov(rcx, cr4)?;
        a.or(ecx, 0x80)?;
        a.mov(cr4, rcx)?;
        a.mov(rcx, cr4)?;
        a.mov(rdx, 0x1234_5678_9ABC_u64)?;
        a.mov(cr2, rdx)?;
        a.xor(edx, edx)?;
        a.mov(rdx, cr2)?;
        a.clts()?;
        a.smsw(r8d)
    });
    let end = m?.end()?;
    same("cr0", end.registers.gpr[RAX], 0x8001_003B)?;
    same("cr3", end.registers.gpr[RBX], PML4)?;
    same("cr4", end.registers.gpr[RCX], 0x6A0)?;
    same("cr2", end.registers.gpr[RDX], 0x1234_5678_9ABC)?;
    same("smsw after clts", end.registers.gpr[R8] & 0xFFFF, 0x33)?;
    same("saved cr0", end.system.cr0, 0x8001_0033)?;
    same("saved cr2", end.system.cr2, 0x1234_5678_9ABC)?;
    same("saved cr4", end.system.cr4, 0x6A0)
}

fn cr8_is_the_task_priority(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.mov(eax, 9)?;
        a.mov(cr8, rax)?;
        a.mov(rbx, cr8)?;
        a.mov(ecx, 0xFEE0_0080_u32)?;
        a.mov(r9d, dword_ptr(rcx))?;
        a.mov(dword_ptr(rcx), 0x50)?;
        a.mov(rdx, cr8)
    });
    let end = m?.end()?;
    same("cr8", end.registers.gpr[RBX], 9)?;
    same("task priority register", end.registers.gpr[R9], 0x90)?;
    same("cr8 after a write there", end.registers.gpr[RDX], 5)?;
    same("saved cr8", end.system.cr8, 5)
}

fn user_may_not_touch_the_system(bench: &Bench<'_>) -> Outcome {
    type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let forbidden: [Program; 9] = [
        |a| a.hlt(),
        |a| a.cli(),
        |a| a.rdmsr(),
        |a| a.mov(rax, cr0),
        |a| a.mov(cr3, rax),
        |a| a.invlpg(ptr(DATA)),
        |a| a.lgdt(ptr(DATA)),
        |a| a.wbinvd(),
        |a| a.swapgs(),
    ];
    for program in forbidden {
        bench.long(program)?.with(scene::user).expect_trap(13, Some(0))?;
    }
    Ok(())
}

fn descriptor_tables_read_back(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.sgdt(ptr(DATA))?;
        a.sidt(ptr(DATA + 16))?;
        a.str(eax)?;
        a.sldt(ebx)
    });
    let mut m = m?;
    let end = m.end()?;
    same("gdt limit", m.read::<u16>(DATA)?, end.system.gdt.limit)?;
    same("gdt base", m.read::<u64>(DATA + 2)?, scene::GDT)?;
    same("idt limit", m.read::<u16>(DATA + 16)?, 0xFFF)?;
    same("idt base", m.read::<u64>(DATA + 18)?, scene::IDT)?;
    same("tr", end.registers.gpr[RAX], scene::selector::TSS.into())?;
    same("ldtr", end.registers.gpr[RBX], 0)
}

fn fs_and_gs_bases(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.mov(rax, DATA)?;
        a.wrfsbase(rax)?;
        a.add(rax, 8)?;
        a.wrgsbase(rax)?;
        a.rdgsbase(rdx)?;
        a.xor(ecx, ecx)?;
        a.mov(rbx, qword_ptr(rcx + 0x10).fs())?;
        a.mov(r9, qword_ptr(rcx + 0x10).gs())
    })?;
    let mut m = m.with(|state| state.system.cr4 |= 1 << 16);
    m.write(DATA + 0x10, 1_u64)?;
    m.write(DATA + 0x18, 2_u64)?;
    let end = m.end()?;
    same("by fs", end.registers.gpr[RBX], 1)?;
    same("by gs", end.registers.gpr[R9], 2)?;
    same("rdgsbase", end.registers.gpr[RDX], DATA + 8)?;
    bench.long(|a| a.rdfsbase(rax))?.expect_trap(6, None).map(drop)
}

/// In ring 3 with IOPL 0, POPF leaves IF and IOPL alone.
fn flags_that_popf_may_not_change(bench: &Bench<'_>) -> Outcome {
    let m = bench.long(|a| {
        a.push(0x3246)?;
        a.popfq()?;
        a.pushfq()?;
        a.pop(rax)?;
        a.int3()
    })?;
    let trap = m.with(scene::user).expect_trap(3, None)?;
    same("rflags", trap.state.registers.gpr[RAX], 0x46)?;
    let m = bench.long(|a| {
        a.push(0x3246)?;
        a.popfq()?;
        a.pushfq()?;
        a.pop(rax)?;
        a.cli()
    });
    same("rflags in ring 0", m?.end()?.registers.gpr[RAX], 0x3246)
}
