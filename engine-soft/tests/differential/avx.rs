//! What x86-64-v3 adds: AVX, AVX2, FMA, F16C with all of the YMM registers, and BMI1, BMI2, LZCNT, MOVBE.

use engine_soft::exec::fpu::avx;
use engine_soft::exec::integer::bmi;
use engine_soft::xlat::Haste;
use iced_x86::{Instruction, Mnemonic as M};

use super::campaign::Campaign;
use super::draw::Draw;
use super::fpu;
use super::interpreter::Interpreter;
use super::machine::{Mode, Outcome, SCRATCH_LEN, State};
use super::native::Native;

/// Indices of a gather, in bytes of either size, so small that the guard catches what they reach.
fn indices(i: &Instruction, state: &mut State, draw: &mut Draw) {
    let size = if format!("{:?}", i.mnemonic()).contains("gatherd") { 4 } else { 8 };
    let register = i.memory_index().number();
    for at in (0..32).step_by(size) {
        let index = match draw.below(24) {
            0 => draw.below(0x4000) as i64 - 0x2000,
            _ => draw.below(0x80) as i64 - 0x40,
        };
        let (half, shift) = (at / 16, 8 * (at % 16));
        let lane = u128::from(index as u64) & u128::MAX >> (128 - 8 * size);
        let mask = u128::MAX >> (128 - 8 * size) << shift;
        let xmm = fpu::at::XMM + 16 * register..fpu::at::XMM + 16 * register + 16;
        let old = match half {
            0 => u128::from_le_bytes(state.fx[xmm.clone()].try_into().expect("16 bytes")),
            _ => state.upper[register],
        };
        let new = old & !mask | lane << shift;
        match half {
            0 => state.fx[xmm].copy_from_slice(&new.to_le_bytes()),
            _ => state.upper[register] = new,
        }
    }
}

fn prepare(i: &Instruction, state: &mut State, memory: &mut [u8; SCRATCH_LEN], draw: &mut Draw) {
    fpu::prepare(i, state, memory, draw);
    for half in &mut state.upper {
        *half = u128::from_le_bytes(fpu::vector(draw));
    }
    if i.memory_index().is_vector_register() {
        indices(i, state, draw);
    }
    if i.op_count() > 2 && matches!(i.mnemonic(), M::Vpcmpestri | M::Vpcmpestrm) && draw.once_in(2) {
        (state.gpr[0], state.gpr[2]) = (draw.below(20), draw.below(20));
    }
}

/// As of SSE; and which byte of a masked store across pages a fault tells of is no rule that could be found.
fn settle(i: &Instruction, before: &State, outcome: &mut Outcome) {
    fpu::settle(i, before, outcome);
    let masked = matches!(i.mnemonic(), M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq);
    if let Some(address) = outcome.fault.as_mut().and_then(|fault| fault.address.as_mut())
        && masked
    {
        *address &= !0xFFF;
    }
}

/// The undefined flags of the general instructions.
fn settle_general(i: &Instruction, _: &State, outcome: &mut Outcome) {
    const PF: u64 = 1 << 2;
    const AF: u64 = 1 << 4;
    const SF: u64 = 1 << 7;
    const OF: u64 = 1 << 11;
    outcome.state.rflags &= !match i.mnemonic() {
        M::Tzcnt | M::Lzcnt => OF | SF | AF | PF,
        M::Bextr => AF | SF | PF,
        M::Andn | M::Blsi | M::Blsmsk | M::Blsr | M::Bzhi => AF | PF,
        _ => 0,
    };
}

const VECTORS: Campaign = Campaign {
    modes: &[Mode::Long, Mode::Protected32],
    accepts: avx::is_avx,
    excluded: &[],
    prepare,
    settle,
};

const GENERAL: Campaign = Campaign {
    modes: &[Mode::Long, Mode::Protected32, Mode::Protected16],
    accepts: |i| bmi::lookup(i).is_some(),
    excluded: &[],
    prepare: |_, _, _, _| {},
    settle: settle_general,
};

/// Whether the host can be asked.
fn host_knows() -> bool {
    let missing = avx::missing();
    if !missing.is_empty() {
        println!("skipped: the host has no {}", missing.join(", "));
    }
    missing.is_empty()
}

fn agrees(campaign: &Campaign, subject: &mut Interpreter) {
    if host_knows() {
        let report = campaign.run(&mut Native::take(), subject);
        println!("{} forms, {} cases", report.forms, report.cases);
        assert!(report.forms > 30, "only {} forms", report.forms);
    }
}

#[test]
fn every_vector_form_agrees_with_the_host() {
    agrees(&VECTORS, &mut Interpreter::new().wide());
}

#[test]
fn every_general_form_agrees_with_the_host() {
    agrees(&GENERAL, &mut Interpreter::new().wide());
}

#[test]
fn so_does_every_vector_form_translated() {
    let mut translator = Interpreter::translating(Haste::AtOnce).wide();
    agrees(&VECTORS, &mut translator);
    let exact = Campaign { modes: &[Mode::Long], settle: |_, _, _| {}, ..VECTORS };
    if host_knows() {
        exact.run(&mut Interpreter::new().wide(), &mut translator);
    }
}

#[test]
fn so_does_every_general_form_translated() {
    let mut translator = Interpreter::translating(Haste::AtOnce).wide();
    agrees(&GENERAL, &mut translator);
    let exact = Campaign { modes: &[Mode::Long], settle: |_, _, _| {}, ..GENERAL };
    exact.run(&mut Interpreter::new().wide(), &mut translator);
}

/// With slow paths, single-instruction blocks and a host without BMI2.
#[test]
fn and_under_stress() {
    let mut translator = Interpreter::translating(Haste::Stressed(1)).wide();
    for campaign in [VECTORS, GENERAL] {
        let campaign = Campaign { modes: &[Mode::Long], ..campaign };
        agrees(&campaign, &mut translator);
    }
}

#[test]
fn the_smaller_model_has_none_of_them() {
    use super::machine::{CODE, Executor};
    for code in [
        // vzeroupper; vpaddd ymm0, ymm1, ymm2; andn eax, ebx, ecx; movbe eax, [rsp]; xgetbv
        &[0xC5, 0xF8, 0x77][..],
        &[0xC5, 0xF5, 0xFE, 0xC2],
        &[0xC4, 0xE2, 0x60, 0xF2, 0xC1],
        &[0x0F, 0x38, 0xF0, 0x04, 0x24],
        &[0x0F, 0x01, 0xD0],
    ] {
        let mut interpreter = Interpreter::new();
        interpreter.load(Mode::Long, code);
        let outcome = interpreter.run(&State::default());
        assert_eq!(outcome.fault.map(|fault| fault.vector), Some(6), "{code:x?}");
        assert_eq!(outcome.state.rip, CODE);
    }
}
