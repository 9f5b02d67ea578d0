//! The general-purpose data instructions.

use engine_soft::exec::integer;
use engine_soft::xlat::Haste;
use iced_x86::{Code, Instruction, Mnemonic as M, OpKind, Register};

use super::campaign::{Campaign, Report};
use super::draw::Draw;
use super::interpreter::Interpreter;
use super::machine::{Mode, Outcome, SCRATCH, SCRATCH_LEN, State};
use super::native::Native;

const CF: u64 = 1;
const PF: u64 = 4;
const AF: u64 = 0x10;
const ZF: u64 = 0x40;
const SF: u64 = 0x80;
const OF: u64 = 0x800;

/// Forms that the host does not run as the CPU we show would, or that would take a thread's segments away.
const EXCLUDED: &[Code] = &[
    // With BMI1 and ABM on the host these are other instructions.
    Code::Tzcnt_r16_rm16,
    Code::Tzcnt_r32_rm32,
    Code::Tzcnt_r64_rm64,
    Code::Lzcnt_r16_rm16,
    Code::Lzcnt_r32_rm32,
    Code::Lzcnt_r64_rm64,
    // Loads of segment registers: the rig does not save them, and FS is the host thread's.
    Code::Mov_Sreg_rm16,
    Code::Mov_Sreg_r32m16,
    Code::Mov_Sreg_r64m16,
    Code::Popw_DS,
    Code::Popd_DS,
    Code::Popw_ES,
    Code::Popd_ES,
    Code::Popw_SS,
    Code::Popd_SS,
    Code::Popw_FS,
    Code::Popd_FS,
    Code::Popq_FS,
    Code::Popw_GS,
    Code::Popd_GS,
    Code::Popq_GS,
    Code::Les_r16_m1616,
    Code::Les_r32_m1632,
    Code::Lds_r16_m1616,
    Code::Lds_r32_m1632,
    Code::Lss_r16_m1616,
    Code::Lss_r32_m1632,
    Code::Lss_r64_m1664,
    Code::Lfs_r16_m1616,
    Code::Lfs_r32_m1632,
    Code::Lfs_r64_m1664,
    Code::Lgs_r16_m1616,
    Code::Lgs_r32_m1632,
    Code::Lgs_r64_m1664,
];

fn run(modes: &'static [Mode], accepts: fn(&Instruction) -> bool) -> Report {
    let campaign = Campaign { modes, accepts, excluded: EXCLUDED, prepare, settle };
    campaign.run(&mut Native::take(), &mut Interpreter::new())
}

/// The translator against the host, and against the interpreter in every bit, undefined ones too.
fn translated(accepts: fn(&Instruction) -> bool, haste: Haste) {
    let campaign = Campaign { modes: &[Mode::Long], accepts, excluded: EXCLUDED, prepare, settle };
    let mut translator = Interpreter::translating(haste);
    campaign.run(&mut Native::take(), &mut translator);
    let exact = Campaign { settle: |_, _, _| {}, ..campaign };
    exact.run(&mut Interpreter::new(), &mut translator);
}

#[test]
fn translated_without_memory() {
    translated(|i| ours(i) && !has_memory(i), Haste::AtOnce);
}

#[test]
fn translated_with_memory() {
    translated(|i| ours(i) && has_memory(i), Haste::AtOnce);
}

#[test]
fn translated_under_stress() {
    translated(ours, Haste::Stressed(1));
}

fn ours(i: &Instruction) -> bool {
    integer::lookup(i).is_some()
}

#[test]
fn in_64_bit_mode_without_memory() {
    run(&[Mode::Long], |i| ours(i) && !has_memory(i));
}

#[test]
fn in_64_bit_mode_with_memory() {
    run(&[Mode::Long], |i| ours(i) && has_memory(i));
}

#[test]
fn in_32_bit_mode_without_memory() {
    run(&[Mode::Protected32], |i| ours(i) && !has_memory(i));
}

#[test]
fn in_32_bit_mode_with_memory() {
    run(&[Mode::Protected32], |i| ours(i) && has_memory(i));
}

#[test]
fn in_16_bit_mode() {
    run(&[Mode::Protected16], ours);
}

fn has_memory(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) || i.is_string_instruction()
}

/// Keeps implicit operands near the scratch memory, and makes the interesting cases likely.
fn prepare(i: &Instruction, state: &mut State, memory: &mut [u8; SCRATCH_LEN], draw: &mut Draw) {
    match i.mnemonic() {
        M::Bt | M::Bts | M::Btr | M::Btc
            if i.op0_kind() == OpKind::Memory && i.op1_kind() == OpKind::Register =>
        {
            // As far as the guard reaches.
            let bits = draw.of(&[64, 0x2000, 0x10_0000]);
            set(state, i.op1_register(), draw.below(2 * bits).wrapping_sub(bits));
        }
        M::Enter | M::Leave => {
            state.gpr[5] = state.gpr[4].wrapping_add(draw.below(0x800)).wrapping_sub(0x400)
        }
        M::Popf | M::Popfd | M::Popfq => {
            // No single step, no alignment checks on the stub's way out.
            for base in [SCRATCH, 0] {
                let at = state.gpr[4].wrapping_sub(base) as usize;
                for (n, flag) in [(1, 1), (2, 4)] {
                    if let Some(byte) = memory.get_mut(at.wrapping_add(n)) {
                        *byte &= !flag;
                    }
                }
            }
        }
        M::Movsb | M::Movsw | M::Movsd | M::Movsq if draw.once_in(2) => {
            // Overlapping, in either direction.
            state.gpr[7] = state.gpr[6].wrapping_add(draw.below(64)).wrapping_sub(32);
        }
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq if draw.once_in(3) => state.gpr[7] = state.gpr[6],
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq | M::Scasb | M::Scasw | M::Scasd | M::Scasq
            if draw.once_in(2) =>
        {
            // A run of equal elements, that some other one ends.
            state.gpr[0] = 0;
            for pointer in [state.gpr[6], state.gpr[7]] {
                for base in [SCRATCH, 0] {
                    let at = pointer.wrapping_sub(base) as usize;
                    let run = at.saturating_sub(64).min(SCRATCH_LEN)..at.saturating_add(64).min(SCRATCH_LEN);
                    memory[run].fill(0);
                }
            }
            memory[draw.below(SCRATCH_LEN as u64) as usize] = 1;
        }
        M::Div | M::Idiv if draw.once_in(2) => {
            // An upper half that does not overflow at once.
            state.gpr[2] = if draw.once_in(2) { 0 } else { (state.gpr[0] as i64 >> 63) as u64 };
        }
        M::Cmpxchg if draw.once_in(2) && i.op0_kind() == OpKind::Register => {
            let equal = state.gpr[i.op0_register().full_register().number()];
            state.gpr[0] = equal;
        }
        _ => {}
    }
}

fn set(state: &mut State, register: Register, value: u64) {
    state.gpr[register.full_register().number()] = value;
}

/// Clears what the SDM leaves undefined.
fn settle(i: &Instruction, before: &State, outcome: &mut Outcome) {
    outcome.state.rflags &= !undefined_flags(i, before);
    if outcome.fault.is_some() {
        return;
    }
    let count = shift_count(i, before);
    match i.mnemonic() {
        // Of a source of 0 (ZF says so) the destination, of double shifts by more than the width everything.
        M::Bsf | M::Bsr if outcome.state.rflags & ZF != 0 => set(&mut outcome.state, i.op0_register(), 0),
        M::Bswap if i.op0_register().is_gpr16() => set(&mut outcome.state, i.op0_register(), 0),
        M::Shld | M::Shrd if i.memory_size().size() == 2 && count > 16 => {}
        _ => {}
    }
}

fn undefined_flags(i: &Instruction, before: &State) -> u64 {
    let count = shift_count(i, before);
    let width = match i.op0_kind() {
        OpKind::Register => i.op0_register().size(),
        _ => i.memory_size().size(),
    };
    let bits = 8 * width as u64;
    match i.mnemonic() {
        M::And | M::Or | M::Xor | M::Test => AF,
        M::Shl | M::Sal | M::Shr | M::Sar | M::Shld | M::Shrd if count == 0 => 0,
        M::Shl | M::Sal | M::Shr if count > bits => AF | OF | CF,
        M::Shl | M::Sal | M::Shr | M::Sar => AF | if count == 1 { 0 } else { OF },
        M::Shld | M::Shrd if count > bits => AF | OF | CF | SF | ZF | PF,
        M::Shld | M::Shrd => AF | if count == 1 { 0 } else { OF },
        M::Rol | M::Ror | M::Rcl | M::Rcr if count > 1 => OF,
        M::Mul | M::Imul => SF | ZF | AF | PF,
        M::Div | M::Idiv => SF | ZF | AF | PF | CF | OF,
        M::Bt | M::Bts | M::Btr | M::Btc => OF | SF | AF | PF,
        M::Bsf | M::Bsr => CF | OF | SF | AF | PF,
        M::Daa | M::Das => OF,
        M::Aaa | M::Aas => OF | SF | ZF | PF,
        M::Aam | M::Aad => OF | AF | CF,
        _ => 0,
    }
}

/// The masked count of a shift.
fn shift_count(i: &Instruction, before: &State) -> u64 {
    let last = i.op_count().saturating_sub(1);
    let count = match i.op_kind(last) {
        OpKind::Register => before.gpr[1],
        OpKind::Immediate8 => i.immediate(last),
        _ => return 0,
    };
    let wide = i.op0_register().is_gpr64() || i.memory_size().size() == 8 && i.op0_kind() == OpKind::Memory;
    count & if wide { 63 } else { 31 }
}
