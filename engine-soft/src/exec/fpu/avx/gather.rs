//! VGATHERDPS, VPGATHERQQ and the like: a vector of loads, each with its own address.
//!
//! Elements are loaded from the first on. One that is done has its mask cleared, so that after a fault in a later one the
//! instruction goes on where it was (SDM vol. 2, VGATHERDPS).

use iced_x86::{Instruction, Mnemonic as M};

use super::masked::{bytes, register};
use super::usable;
use crate::cpu::Cpu;
use crate::insn::{Exec, Insn, ZERO, prefix};
use crate::trap::{Cause, Step};

pub(super) fn lookup(i: &Instruction) -> Option<Exec> {
    Some(match i.mnemonic() {
        M::Vgatherdps | M::Vpgatherdd => gather::<4, 4>,
        M::Vgatherdpd | M::Vpgatherdq => gather::<4, 8>,
        M::Vgatherqps | M::Vpgatherqd => gather::<8, 4>,
        M::Vgatherqpd | M::Vpgatherqq => gather::<8, 8>,
        _ => return None,
    })
}

/// Indices of `INDEX` bytes, elements of `SIZE`. A fault leaves what Intel's CPUs leave: the destination is untouched beyond
/// what is done, but for the upper half that any write to an XMM register clears; the mask is that of every element that
/// the register has room for.
fn gather<const INDEX: usize, const SIZE: usize>(cpu: &mut Cpu, insn: &Insn) -> Step {
    usable(cpu)?;
    let [to, _, by] = insn.r;
    let width = if insn.prefixes & prefix::WIDE != 0 { 32 } else { 16 };
    let count = width / INDEX.max(SIZE);
    let indices = bytes(cpu.ymm(insn.index));
    let (old, chosen) = (bytes(cpu.ymm(to)), bytes(cpu.ymm(by)));
    let (mut result, mut mask) = (old, [0; 32]);
    for element in mask[..width].chunks_exact_mut(SIZE).zip(chosen.chunks_exact(SIZE)) {
        element.0.fill(if element.1[SIZE - 1] >> 7 != 0 { 0xFF } else { 0 });
    }
    for n in 0..count {
        let element = n * SIZE..(n + 1) * SIZE;
        if mask[element.start] == 0 {
            continue;
        }
        let index = &indices[n * INDEX..(n + 1) * INDEX];
        let fill = if index[INDEX - 1] >> 7 != 0 { 0xFF } else { 0 };
        let mut wide = [fill; 8];
        wide[..INDEX].copy_from_slice(index);
        let ahead = u64::from_le_bytes(wide) << (insn.scale & 3);
        let at = Insn { index: ZERO, disp: insn.disp.wrapping_add(ahead), ..*insn };
        let loaded = match SIZE {
            4 => cpu.load::<u32>(&at).map(u64::from),
            _ => cpu.load::<u64>(&at),
        };
        match loaded {
            Ok(value) => {
                result[element.clone()].copy_from_slice(&value.to_le_bytes()[..SIZE]);
                result[width..].fill(0);
            }
            Err(trap) => {
                // A question to the machine starts all over, with its earlier answers.
                if matches!(cpu.cause, Cause::Exception { .. }) {
                    cpu.set_ymm(to, register(&result));
                    cpu.set_ymm(by, register(&mask));
                }
                return Err(trap);
            }
        }
        mask[element].fill(0);
    }
    result[count * SIZE..].fill(0);
    cpu.set_ymm(to, register(&result));
    cpu.set_ymm(by, [0; 2]);
    Ok(())
}
