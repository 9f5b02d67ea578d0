//! Identity, time, model-specific registers, segment bases, interrupts on and off (SDM vol. 2: CPUID, RDTSC, RDTSCP,
//! RDPMC, RDRAND, RDMSR, WRMSR, SWAPGS, RDFSBASE and its like, CLI, STI, HLT, PAUSE).

use engine::cpuid::{CpuModel, xsave};
use engine::event::FenceKind;
use engine::state::{Activity, SystemRegisters};
use iced_x86::{Code, Instruction};

use crate::clock;
use crate::cpu::{Cpu, control};
use crate::flags::bit;
use crate::insn::{Exec, Insn};
use crate::mmu::canonical;
use crate::trap::Step;
use crate::width::Width;

pub(super) fn lookup(i: &Instruction) -> Option<Exec> {
    Some(match i.code() {
        Code::Cpuid => cpuid,
        Code::Rdtsc => rdtsc,
        Code::Rdtscp => rdtscp,
        Code::Rdpmc => rdpmc,
        Code::Rdrand_r16 => rdrand::<u16>,
        Code::Rdrand_r32 => rdrand::<u32>,
        Code::Rdrand_r64 => rdrand::<u64>,
        Code::Rdmsr => rdmsr,
        Code::Wrmsr => wrmsr,
        Code::Swapgs => swapgs,
        Code::Rdfsbase_r32 => read_base::<u32, { SystemRegisters::FS }>,
        Code::Rdfsbase_r64 => read_base::<u64, { SystemRegisters::FS }>,
        Code::Rdgsbase_r32 => read_base::<u32, { SystemRegisters::GS }>,
        Code::Rdgsbase_r64 => read_base::<u64, { SystemRegisters::GS }>,
        Code::Wrfsbase_r32 => write_base::<u32, { SystemRegisters::FS }>,
        Code::Wrfsbase_r64 => write_base::<u64, { SystemRegisters::FS }>,
        Code::Wrgsbase_r32 => write_base::<u32, { SystemRegisters::GS }>,
        Code::Wrgsbase_r64 => write_base::<u64, { SystemRegisters::GS }>,
        Code::Cli => cli,
        Code::Sti => sti,
        Code::Hlt => hlt,
        Code::Pause => pause,
        _ => return None,
    })
}

/// Numbers in [`Cpu::gpr`].
const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const RBX: u8 = 3;

/// Bit of CPUID leaf 1, EDX: a local APIC that is enabled.
const APIC: u32 = 1 << 9;
/// Bit of CPUID leaf 1, ECX: CR4.OSXSAVE.
const OSXSAVE: u32 = 1 << 27;

fn cpuid(cpu: &mut Cpu, _: &Insn) -> Step {
    let (leaf, subleaf) = (cpu.get::<u32>(RAX), cpu.get::<u32>(RCX));
    let [eax, mut ebx, mut ecx, mut edx] = cpu.cpuid.lookup(leaf, subleaf);
    if leaf == 1 && !cpu.lapic.enabled() {
        edx &= !APIC;
    }
    if leaf == 1 && cpu.cr4 & control::CR4_OSXSAVE != 0 {
        ecx |= OSXSAVE;
    }
    if (leaf, subleaf) == (0xD, 0) && cpu.model == CpuModel::V3 {
        ebx = xsave::size(cpu.xcr0) as u32;
    }
    for (register, value) in [(RAX, eax), (RBX, ebx), (RCX, ecx), (RDX, edx)] {
        cpu.put(register, value);
    }
    cpu.fence(FenceKind::Serialising);
    Ok(())
}

fn put_pair(cpu: &mut Cpu, value: u64) {
    cpu.put(RAX, value as u32);
    cpu.put(RDX, (value >> 32) as u32);
}

fn may_read_time(cpu: &mut Cpu) -> Step {
    if cpu.cpl != 0 && cpu.cr4 & control::CR4_TSD != 0 { cpu.gp() } else { Ok(()) }
}

fn rdtsc(cpu: &mut Cpu, _: &Insn) -> Step {
    may_read_time(cpu)?;
    let tsc = cpu.tsc();
    put_pair(cpu, tsc);
    Ok(())
}

fn rdtscp(cpu: &mut Cpu, insn: &Insn) -> Step {
    rdtsc(cpu, insn)?;
    cpu.put(RCX, cpu.msrs.tsc_aux as u32);
    Ok(())
}

/// There are no performance counters, so no index is valid.
fn rdpmc(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.gp()
}

/// A function of seed, vCPU and time: a saved state needs no generator beside it.
fn rdrand<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let stream = mix(cpu.shared.seed ^ mix(u64::from(cpu.id)));
    let value = mix(stream ^ mix(cpu.tsc()));
    cpu.put(insn.r[0], W::of(value));
    cpu.flags.set_status(bit::CF);
    Ok(())
}

/// A bijection without visible pattern: xor-shifts and odd multiplications.
fn mix(value: u64) -> u64 {
    let a = (value ^ value >> 32).wrapping_add(0x9E37_79B9_7F4A_7C15).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    let b = (a ^ a >> 29).wrapping_mul(0xCA5A_8263_95DB_0CF5);
    b ^ b >> 32
}

fn rdmsr(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.privileged()?;
    let value = cpu.read_msr(cpu.get(RCX))?;
    put_pair(cpu, value);
    Ok(())
}

fn wrmsr(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.privileged()?;
    let (index, low, high) = (cpu.get(RCX), cpu.get::<u32>(RAX), cpu.get::<u32>(RDX));
    cpu.write_msr(index, u64::from(high) << 32 | u64::from(low))?;
    cpu.fence(FenceKind::Serialising);
    Ok(())
}

fn swapgs(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.privileged()?;
    let base = cpu.segments[SystemRegisters::GS].base;
    let other = std::mem::replace(&mut cpu.msrs.kernel_gs_base, base);
    cpu.set_segment_base(SystemRegisters::GS, other);
    Ok(())
}

fn may_access_bases(cpu: &mut Cpu) -> Step {
    if cpu.cr4 & control::CR4_FSGSBASE == 0 { cpu.ud() } else { Ok(()) }
}

fn read_base<W: Width, const SEGMENT: usize>(cpu: &mut Cpu, insn: &Insn) -> Step {
    may_access_bases(cpu)?;
    cpu.put(insn.r[0], W::of(cpu.segments[SEGMENT].base));
    Ok(())
}

fn write_base<W: Width, const SEGMENT: usize>(cpu: &mut Cpu, insn: &Insn) -> Step {
    may_access_bases(cpu)?;
    let base = cpu.get::<W>(insn.r[0]).zext();
    if !canonical(base) {
        return cpu.gp();
    }
    cpu.set_segment_base(SEGMENT, base);
    Ok(())
}

/// CPL or virtual-8086 mode against IOPL.
fn may_mask_interrupts(cpu: &mut Cpu) -> Step {
    let iopl = (cpu.flags.control & bit::IOPL) >> 12;
    let level = if cpu.flags.control & bit::VM != 0 { 3 } else { u64::from(cpu.cpl) };
    if level > iopl { cpu.gp() } else { Ok(()) }
}

fn cli(cpu: &mut Cpu, _: &Insn) -> Step {
    may_mask_interrupts(cpu)?;
    cpu.flags.control &= !bit::IF;
    Ok(())
}

/// Interrupts come only after the next instruction, if they were off.
fn sti(cpu: &mut Cpu, _: &Insn) -> Step {
    may_mask_interrupts(cpu)?;
    if cpu.flags.control & bit::IF == 0 {
        cpu.flags.control |= bit::IF;
        cpu.shadow = true;
    }
    Ok(())
}

fn hlt(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.privileged()?;
    cpu.activity = Activity::Halted;
    cpu.attention = true;
    Ok(())
}

/// Guest time runs ahead, and another vCPU may run.
fn pause(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.shared.clock.skipped = cpu.shared.clock.skipped.saturating_add(clock::PAUSE);
    cpu.attention = true;
    Ok(())
}
