//! What a program on the host cannot show: control registers, pending exceptions, pointers, 32-bit images, the kind of
//! stores.

use engine::event::{EventKind, StoreKind};
use engine::state::{Segment, SystemRegisters};

use crate::cpu::{Cpu, control};
use crate::fx::{fcw, fsw, mxcsr};
use crate::insn::RIP;
use crate::rig::{CODE, DATA, fault};
use crate::run::Stop;
use crate::trap::vector;

const RAX: usize = 0;
const RDI: usize = 7;

const MOVAPS_XMM1_RAX: &[u8] = &[0x0F, 0x28, 0x08];
const PADDB_MM0_MM1: &[u8] = &[0x0F, 0xFC, 0xC1];
const PADDB_XMM0_XMM1: &[u8] = &[0x66, 0x0F, 0xFC, 0xC1];
const FLD1: &[u8] = &[0xD9, 0xE8];
const FADD_M64_RAX: &[u8] = &[0xDC, 0x00];
const FADD_ST0_ST1: &[u8] = &[0xD8, 0xC1];
const FWAIT: &[u8] = &[0x9B];
const FNSTSW_AX: &[u8] = &[0xDF, 0xE0];
const FNSAVE_RAX: &[u8] = &[0xDD, 0x30];
const FNSTENV_RAX: &[u8] = &[0xD9, 0x30];
const FLDCW_RAX: &[u8] = &[0xD9, 0x28];
const FXSAVE_RAX: &[u8] = &[0x0F, 0xAE, 0x00];
const FXRSTOR_RAX: &[u8] = &[0x0F, 0xAE, 0x08];
const FXSAVE64_RAX: &[u8] = &[0x48, 0x0F, 0xAE, 0x00];
const LDMXCSR_RAX: &[u8] = &[0x0F, 0xAE, 0x10];
const DIVPS_XMM0_XMM1: &[u8] = &[0x0F, 0x5E, 0xC1];
const MOVNTI_RAX_RBX: &[u8] = &[0x48, 0x0F, 0xC3, 0x18];
const MOVNTDQ_RAX_XMM0: &[u8] = &[0x66, 0x0F, 0xE7, 0x00];
const MOVNTQ_RAX_MM0: &[u8] = &[0x0F, 0xE7, 0x00];
const MASKMOVDQU_XMM0_XMM1: &[u8] = &[0x66, 0x0F, 0xF7, 0xC1];
const PREFETCHT0_NOWHERE: &[u8] = &[0x0F, 0x18, 0x0C, 0x25, 0, 0, 0, 0x80];

const UD: (u8, Option<u32>) = (vector::UD, None);
const NM: (u8, Option<u32>) = (vector::NM, None);
const MF: (u8, Option<u32>) = (vector::MF, None);
const XM: (u8, Option<u32>) = (vector::XM, None);
const GP0: (u8, Option<u32>) = (vector::GP, Some(0));

fn cpu() -> Cpu {
    let mut cpu = Cpu::for_test();
    cpu.gpr[RAX] = DATA;
    cpu
}

/// Executes one instruction that must succeed.
fn execute(cpu: &mut Cpu, code: &[u8]) {
    let stop = cpu.run_code(code, 1);
    assert_eq!(stop, Stop::Budget, "{code:x?}: {:?}", cpu.cause);
    assert_eq!(cpu.rip(), CODE + code.len() as u64);
}

fn bytes<const N: usize>(cpu: &Cpu, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    cpu.peek_at(at, &mut bytes);
    bytes
}

/// With an invalid operation pending.
fn pending() -> Cpu {
    let mut cpu = cpu();
    cpu.fx.fcw = fcw::INITIAL & !fsw::IE;
    cpu.fx.fsw = fsw::IE;
    cpu.fx.settle();
    cpu
}

#[test]
fn control_registers_decide_who_may_compute() {
    // (CR0 bits, CR4 bits cleared): what SSE, MMX, x87 and FXSAVE do.
    let cases = [
        (control::CR0_TS, 0, [NM; 4]),
        (control::CR0_EM, 0, [UD, UD, NM, NM]),
        (control::CR0_EM | control::CR0_TS, 0, [UD, UD, NM, NM]),
    ];
    for (cr0, cr4, expected) in cases {
        for (code, expected) in [PADDB_XMM0_XMM1, PADDB_MM0_MM1, FLD1, FXSAVE_RAX].into_iter().zip(expected) {
            let mut cpu = cpu();
            cpu.cr0 |= cr0;
            cpu.cr4 &= !cr4;
            assert_eq!(fault(&mut cpu, code), expected, "{code:x?} with CR0 {cr0:x}");
        }
    }
    let mut cpu = cpu();
    cpu.cr4 &= !control::CR4_OSFXSR;
    assert_eq!(fault(&mut cpu, PADDB_XMM0_XMM1), UD);
    execute(&mut cpu, PADDB_MM0_MM1);
    execute(&mut cpu, FXSAVE_RAX);
    cpu.cr0 |= control::CR0_TS | control::CR0_EM;
    execute(&mut cpu, MOVNTI_RAX_RBX);
    execute(&mut cpu, PREFETCHT0_NOWHERE);
}

#[test]
fn waiting_heeds_task_switches_only_where_it_is_told_to() {
    let mut cpu = cpu();
    cpu.cr0 |= control::CR0_TS;
    assert_eq!(fault(&mut cpu, FWAIT), NM);
    cpu.cr0 &= !control::CR0_MP;
    execute(&mut cpu, FWAIT);
    cpu.cr0 |= control::CR0_EM;
    execute(&mut cpu, FWAIT);
}

#[test]
fn a_pending_exception_stops_what_waits() {
    for code in [FWAIT, FLD1, FADD_M64_RAX, PADDB_MM0_MM1, FLDCW_RAX] {
        assert_eq!(fault(&mut pending(), code), MF, "{code:x?}");
    }
    for code in [FNSTSW_AX, FNSAVE_RAX, FNSTENV_RAX, FXSAVE_RAX, FXRSTOR_RAX, PADDB_XMM0_XMM1] {
        execute(&mut pending(), code);
    }
}

#[test]
fn saving_the_environment_masks_and_saving_all_initialises() {
    let mut cpu = pending();
    execute(&mut cpu, FNSTENV_RAX);
    assert_eq!((cpu.fx.fcw, cpu.fx.fsw), (fcw::INITIAL, fsw::IE));
    execute(&mut cpu, FNSAVE_RAX);
    assert_eq!((cpu.fx.fcw, cpu.fx.fsw, cpu.fx.ftw), (fcw::INITIAL, 0, 0));
}

#[test]
fn pointers_are_the_guests() {
    let mut cpu = cpu();
    execute(&mut cpu, FLD1);
    assert_eq!((cpu.fx.fip, cpu.fx.fdp, cpu.fx.fop), (CODE, 0, 0));
    cpu.poke(CODE + 0x100, FADD_M64_RAX);
    cpu.gpr[usize::from(RIP)] = CODE + 0x100;
    assert_eq!(cpu.run(1), Stop::Budget);
    assert_eq!((cpu.fx.fip, cpu.fx.fdp, cpu.fx.fop), (CODE + 0x100, DATA, 0));
    // ST(1) is empty: an unmasked stack fault leaves the opcode too.
    cpu.fx.fcw &= !fsw::IE;
    execute(&mut cpu, FADD_ST0_ST1);
    assert_eq!((cpu.fx.fip, cpu.fx.fdp, cpu.fx.fop), (CODE, DATA, 0x0C1));
    assert_ne!(cpu.fx.fsw & fsw::ES, 0);
    execute(&mut cpu, FNSTENV_RAX);
    assert_eq!(bytes::<28>(&cpu, DATA)[12..24], [0, 0, 0x10, 0, 0, 0, 0xC1, 0, 0, 0, 0x20, 0]);
}

#[test]
fn alignment_and_reserved_bits_are_protection_faults() {
    let mut cpu = cpu();
    cpu.gpr[RAX] += 8;
    for code in [MOVAPS_XMM1_RAX, FXSAVE_RAX, FXRSTOR_RAX, MOVNTDQ_RAX_XMM0] {
        assert_eq!(fault(&mut cpu, code), GP0, "{code:x?}");
    }
    cpu.gpr[RAX] = DATA;
    cpu.poke(DATA, &0x1_0000_u32.to_le_bytes());
    assert_eq!(fault(&mut cpu, LDMXCSR_RAX), GP0);
    cpu.poke(DATA + 24, &0x1_0000_u32.to_le_bytes());
    cpu.fx.xmm[3] = 5;
    assert_eq!(fault(&mut cpu, FXRSTOR_RAX), GP0);
    assert_eq!((cpu.fx.xmm[3], cpu.fx.mxcsr), (5, mxcsr::INITIAL));
}

#[test]
fn unmasked_simd_exceptions_are_xm_or_ud() {
    let mut cpu = cpu();
    cpu.fx.xmm[0] = u128::from(1.0_f32.to_bits());
    cpu.fx.mxcsr = 0;
    let before = cpu.fx.xmm;
    // 1/0 in one lane, 0/0 in the others.
    assert_eq!(fault(&mut cpu, DIVPS_XMM0_XMM1), XM);
    assert_eq!((cpu.fx.mxcsr, cpu.fx.xmm), (5, before));
    cpu.cr4 &= !control::CR4_OSXMMEXCPT;
    assert_eq!(fault(&mut cpu, DIVPS_XMM0_XMM1), UD);
}

#[test]
fn images_outside_64_bit_mode_have_eight_registers() {
    let mut cpu = cpu();
    cpu.fx.xmm = std::array::from_fn(|n| n as u128 + 1);
    cpu.fx.fip = 0x1_2345_6789;
    cpu.poke(DATA, &[0xEE; 512]);
    execute(&mut cpu, FXSAVE64_RAX);
    let wide: [u8; 512] = bytes(&cpu, DATA);
    assert_eq!((wide[12], wide[160 + 15 * 16], wide[416]), (1, 16, 0xEE));
    cpu.poke(DATA, &[0xEE; 512]);
    cpu.segments[SystemRegisters::CS] = Segment { attributes: 0xC09B, ..cpu.segments[SystemRegisters::CS] };
    cpu.mode_changed();
    execute(&mut cpu, FXSAVE_RAX);
    let narrow: [u8; 512] = bytes(&cpu, DATA);
    assert_eq!((narrow[8], narrow[12], narrow[160 + 7 * 16], narrow[160 + 8 * 16]), (0x89, 0, 8, 0xEE));
    cpu.fx.xmm = [99; 16];
    execute(&mut cpu, FXRSTOR_RAX);
    assert_eq!((cpu.fx.xmm[7], cpu.fx.xmm[8]), (8, 99));
}

#[test]
fn non_temporal_stores_say_so() {
    let mut cpu = cpu();
    cpu.shared.watch.ranges.push(DATA..DATA + 0x1000);
    cpu.flush_tlb();
    cpu.gpr[RDI] = DATA + 0x40;
    // Bytes 0, 2, 3 and 15.
    cpu.fx.xmm[1] = 0x80 << 120 | 0x8080_0080;
    for code in [MOVNTI_RAX_RBX, MOVNTDQ_RAX_XMM0, MOVNTQ_RAX_MM0, MASKMOVDQU_XMM0_XMM1] {
        execute(&mut cpu, code);
    }
    let stores: Vec<(u64, u8)> = cpu
        .shared
        .log
        .events()
        .filter_map(|event| match event.kind {
            EventKind::Store { addr, len, kind: StoreKind::NonTemporal, .. } => Some((addr - DATA, len)),
            _ => None,
        })
        .collect();
    assert_eq!(stores, [(0, 8), (0, 16), (0, 8), (0x40, 1), (0x42, 2), (0x4F, 1)]);
    assert_eq!(cpu.shared.log.len(), stores.len());
}
