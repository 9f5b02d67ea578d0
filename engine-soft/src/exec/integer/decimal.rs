//! What only 16-bit and 32-bit code has: the decimal adjustments, BOUND and ARPL.

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::operand::{Int, Mem, Place, Reg};
use crate::cpu::Cpu;
use crate::flags::{Flags, bit};
use crate::insn::{Exec, Insn};
use crate::trap::{Step, vector};

const AL: u8 = 0;
const AH: u8 = 1;
const AX: u8 = 0;

pub(super) fn lookup(i: &Instruction) -> Option<Exec> {
    let exec: Exec = match i.mnemonic() {
        M::Daa => decimal::<false>,
        M::Das => decimal::<true>,
        M::Aaa => ascii::<false>,
        M::Aas => ascii::<true>,
        M::Aam => aam,
        M::Aad => aad,
        M::Bound if i.op0_register().size() == 2 => bound::<u16>,
        M::Bound => bound::<u32>,
        M::Arpl => match i.op0_kind() {
            OpKind::Register => arpl::<Reg<0>>,
            _ => arpl::<Mem>,
        },
        _ => return None,
    };
    Some(exec)
}

/// SF, ZF and PF of a byte; CF and AF as told; OF clear.
fn adjusted(flags: &mut Flags, value: u8, carry: bool, auxiliary: bool) {
    flags.shifted(value, carry, false);
    let status = flags.status();
    flags.set_status(status | if auxiliary { bit::AF } else { 0 });
}

/// DAA, DAS.
fn decimal<const SUBTRACT: bool>(cpu: &mut Cpu, _: &Insn) -> Step {
    let old: u8 = cpu.get(AL);
    let (carry, auxiliary) = (cpu.flags.cf(), cpu.flags.af());
    let low = old & 15 > 9 || auxiliary;
    let high = old > 0x99 || carry;
    let change = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
    let new = if SUBTRACT { old.wrapping_sub(change) } else { old.wrapping_add(change) };
    // A borrow of the low digit's step alone shows in DAS only.
    let carry = high || SUBTRACT && low && old < 6;
    cpu.put(AL, new);
    adjusted(&mut cpu.flags, new, carry, low);
    Ok(())
}

/// AAA, AAS: on 16 bits, so that the step carries into AH.
fn ascii<const SUBTRACT: bool>(cpu: &mut Cpu, _: &Insn) -> Step {
    let old: u16 = cpu.get(AX);
    let adjust = old & 15 > 9 || cpu.flags.af();
    let new = match (adjust, SUBTRACT) {
        (false, _) => old,
        (true, false) => old.wrapping_add(0x106),
        (true, true) => old.wrapping_sub(6).wrapping_sub(0x100),
    };
    cpu.put(AX, new & 0xFF0F);
    adjusted(&mut cpu.flags, new as u8 & 15, adjust, adjust);
    Ok(())
}

fn aam(cpu: &mut Cpu, insn: &Insn) -> Step {
    let (value, base) = (cpu.get::<u8>(AL), insn.imm as u8);
    let (Some(quotient), Some(remainder)) = (value.checked_div(base), value.checked_rem(base)) else {
        return cpu.raise(vector::DE, None);
    };
    cpu.put(AH, quotient);
    cpu.put(AL, remainder);
    adjusted(&mut cpu.flags, remainder, false, false);
    Ok(())
}

fn aad(cpu: &mut Cpu, insn: &Insn) -> Step {
    let (low, high): (u8, u8) = (cpu.get(AL), cpu.get(AH));
    let value = high.wrapping_mul(insn.imm as u8).wrapping_add(low);
    cpu.put(AX, u16::from(value));
    adjusted(&mut cpu.flags, value, false, false);
    Ok(())
}

fn bound<W: Int>(cpu: &mut Cpu, insn: &Insn) -> Step {
    let index = cpu.get::<W>(insn.r[0]).sext() as i64;
    let lower: W = cpu.load(insn)?;
    if index < lower.sext() as i64 {
        return cpu.raise(vector::BR, None);
    }
    let behind = Insn { disp: insn.disp.wrapping_add(W::BYTES as u64), ..*insn };
    let upper: W = cpu.load(&behind)?;
    if index > upper.sext() as i64 {
        return cpu.raise(vector::BR, None);
    }
    Ok(())
}

/// Raises a selector's requested privilege level.
fn arpl<D: Place>(cpu: &mut Cpu, insn: &Insn) -> Step {
    if cpu.real {
        return cpu.ud();
    }
    let least = cpu.get::<u16>(insn.r[1]) & 3;
    let old: u16 = D::read(cpu, insn)?;
    let raised = old & 3 < least;
    if raised {
        D::write(cpu, insn, old & !3 | least)?;
    }
    let rest = cpu.flags.status() & !bit::ZF;
    cpu.flags.set_status(rest | if raised { bit::ZF } else { 0 });
    Ok(())
}
