use engine::state::{Activity, DebugRegisters};
use proptest::prelude::*;

use super::*;
use crate::clock::Clock;

/// A long-mode state at a privilege level.
fn long_mode(cpl: u8) -> CpuState {
    let mut state = CpuState::reset(0);
    let level = u32::from(cpl) << 5;
    let system = &mut state.system;
    for segment in &mut system.segments {
        *segment = Segment { selector: 0x18, base: 0, limit: !0, attributes: 0xC093 | level };
    }
    system.segments[SystemRegisters::CS].attributes = 0xA09B | level;
    system.cr0 = 0x8005_0033;
    system.cr3 = 0x12_3000;
    system.cr4 = control::CR4_PAE | control::CR4_OSFXSR | control::CR4_FSGSBASE;
    system.efer = EFER;
    system.tr = Segment { selector: 0x40, base: 0xFFFF_FE00_0000_3000, limit: 0x206F, attributes: 0x8B };
    state.registers.rip = 0xFFFF_FFFF_8100_0000;
    state
}

fn canon(value: u64) -> u64 {
    ((value as i64) << 16 >> 16) as u64
}

prop_compose! {
    fn states()(
        cpl in prop::sample::select(vec![0_u8, 3]),
        gpr: [u64; 16],
        rflags: u64,
        rip: u64,
        bases: [u64; 4],
        system: [u64; 2],
        msrs: [u64; 4],
        tsc in 0_u64..1 << 60,
        fpu in prop::collection::vec(any::<u8>(), 512),
        address: [u64; 4],
        cr8 in 0_u64..16,
        shadow: bool,
        pending: bool,
        blocked: bool,
        activity in prop::sample::select(vec![Activity::Running, Activity::Halted, Activity::WaitForSipi]),
        injected in prop::option::of(prop::sample::select(vec![(3, None), (14, Some(6)), (13, Some(0x18)), (0x40, None)])),
        x2apic: bool,
        deadline: u64,
    ) -> CpuState {
        let mut state = long_mode(cpl);
        state.registers = Registers { gpr, rip: canon(rip), rflags: rflags & RFLAGS & !bit::VM | bit::FIXED };
        let [fs, gs, gdt, idt] = bases.map(canon);
        state.system.segments[SystemRegisters::FS].base = fs;
        state.system.segments[SystemRegisters::GS].base = gs;
        state.system.gdt.base = gdt;
        state.system.idt.base = idt;
        state.system.cr2 = system[0];
        state.system.cr3 = system[1] >> (64 - PHYSICAL_ADDRESS_BITS);
        state.msrs.star = msrs[0];
        state.msrs.lstar = canon(msrs[1]);
        state.msrs.kernel_gs_base = canon(msrs[2]);
        state.msrs.tsc_aux = msrs[3] >> 32;
        state.msrs.tsc = tsc;
        let mut image = [0; Fpu::SIZE];
        image.copy_from_slice(&fpu);
        image[26..28].fill(0);
        // What the registers hold of it.
        state.fpu = Fpu::new(&FxArea::new(&image).bytes());
        state.debug = DebugRegisters { address, status: 0xFFFF_0FF0, control: 0x400 };
        state.events = PendingEvents { injected, interrupt_shadow: shadow, nmi_pending: pending, nmi_blocked: blocked };
        state.activity = activity;
        let mut lapic = Lapic::new(0);
        if x2apic {
            lapic.set_base(lapic.base() | 1 << 10).unwrap();
            let _ = lapic.write_msr(0x80F, 0x1FF, tsc);
            let _ = lapic.write_msr(0x832, 0x4_00EC, tsc);
        }
        lapic.set_deadline(deadline, tsc);
        lapic.set_cr8(cr8);
        lapic.raise(0x31, false);
        state.system.cr8 = cr8;
        state.system.apic_base = lapic.base();
        state.lapic = lapic.save(tsc);
        state.msrs.tsc_deadline = lapic.deadline(tsc);
        state
    }
}

proptest! {
    #[test]
    fn what_is_restored_is_saved(state in states(), khz in 1_000_000_u32..4_000_000) {
        let mut cpu = Cpu::new(0);
        cpu.shared.clock = Clock::new(khz);
        cpu.shared.clock.skipped = 12_345_678;
        cpu.restore(&state).unwrap();
        prop_assert_eq!(cpu.save(), state);
    }

    #[test]
    fn nonsense_is_refused_or_kept(state in states(), word: u64, which in 0_usize..14) {
        let mut state = state;
        let system = &mut state.system;
        let place = match which {
            0 => &mut system.cr0,
            1 => &mut system.cr3,
            2 => &mut system.cr4,
            3 => &mut system.cr8,
            4 => &mut system.efer,
            5 => &mut system.apic_base,
            6 => &mut state.registers.rflags,
            7 => &mut state.registers.rip,
            8 => &mut state.msrs.lstar,
            9 => &mut state.msrs.pat,
            10 => &mut state.msrs.mtrr_def_type,
            11 => &mut state.debug.control,
            12 => &mut system.tr.base,
            _ => &mut system.segments[SystemRegisters::CS].base,
        };
        *place = word;
        let mut cpu = Cpu::new(0);
        let before = cpu.save();
        match cpu.restore(&state) {
            Ok(()) => prop_assert_eq!(cpu.save(), state),
            Err(complaint) => {
                prop_assert!(!complaint.is_empty());
                prop_assert_eq!(cpu.save(), before);
            }
        }
    }
}

#[test]
fn reset_is_a_state() {
    for vcpu in [0, 3] {
        let state = CpuState::reset(vcpu);
        let mut cpu = Cpu::new(vcpu);
        assert_eq!(cpu.save(), state);
        cpu.restore(&state).unwrap();
        assert_eq!(cpu.save(), state);
    }
}

#[test]
fn contradictions_are_named() {
    type Spoil = fn(&mut CpuState);
    let cases: [(&str, Spoil); 10] = [
        ("RFLAGS", |s| s.registers.rflags = 0),
        ("CR0", |s| s.system.cr0 &= !control::CR0_PE),
        ("long mode", |s| s.system.efer &= !control::EFER_LMA),
        ("PAE", |s| s.system.cr4 = 0),
        ("CR8", |s| s.system.cr8 = 3),
        ("RIP", |s| s.registers.rip = 1 << 63),
        ("MSR 0x277", |s| s.msrs.pat = 2),
        ("MXCSR", |s| {
            let mut image = s.fpu.bytes();
            image[26] = 1;
            s.fpu = Fpu::new(&image);
        }),
        ("error code", |s| s.events.injected = Some((3, Some(0)))),
        ("not of vCPU 0", |s| s.lapic.set(0x20, 5 << 24)),
    ];
    for (word, spoil) in cases {
        let mut state = long_mode(0);
        spoil(&mut state);
        let complaint = Cpu::new(0).restore(&state).unwrap_err();
        assert!(complaint.contains(word), "{complaint}");
    }
}
