//! Flags that the architecture leaves undefined: who can see them, and how they become what the interpreter leaves.
//!
//! Most often another instruction replaces them before anybody looks, unless a load or store in between faults, say. Then
//! the code behind the multiplication or shift stays as it is, and its flags are put right on the seldom taken way to the
//! interpreter.

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::body::Body;
use super::emit::{RAX, op};
use super::registers::{Place, place};

/// How flags become the interpreter's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settling {
    /// After a shift: AF clear, and OF as told.
    Shift(Overflow),
    /// After a multiplication of this width: SF, ZF and PF of the product's low half, which is here, and AF clear.
    Product(u8, Place),
}

/// What OF is to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overflow {
    Clear,
    Keep,
    /// Whether sign and carry differ.
    Turns,
}

/// Flags that have not been put right.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unsettled {
    pub(crate) settling: Settling,
    /// The instruction that replaces them.
    pub(crate) until: usize,
}

/// Who can see flags before they are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    Never,
    /// Only the interpreter, called for an access, and no later than for this instruction.
    Slowly(usize),
    Anyhow,
}

impl Body<'_> {
    /// Somebody may look at some of these flags after instruction `k`, before they are replaced.
    pub(crate) fn visible(&self, k: usize, flags: u32) -> bool {
        self.seen(k, flags, None) != Seen::Never
    }

    /// Who may look at these flags after instruction `k`. To put them right takes the value that is in `low` now.
    fn seen(&self, k: usize, flags: u32, low: Option<Place>) -> Seen {
        let (mut slow, mut lost) = (false, false);
        for (n, i) in self.forms.iter().enumerate().skip(k + 1) {
            let access = !is_private(i);
            let changed = i.rflags_modified() & flags;
            let partly = changed != 0 && changed != flags;
            if i.rflags_read() & flags != 0 || access && (lost || !is_plain_access(i)) || partly {
                return Seen::Anyhow;
            }
            slow |= access;
            if changed != 0 {
                return if slow { Seen::Slowly(n) } else { Seen::Never };
            }
            lost |= i.op0_kind() == OpKind::Register && low.is_some() && place(i.op0_register()) == low;
        }
        Seen::Anyhow
    }

    /// Puts flags right that instruction `k`, the current one, has left: now, later, or never.
    pub(crate) fn settle_if_seen(&mut self, k: usize, flags: u32, settling: Settling) {
        let low = match settling {
            Settling::Product(_, low) => Some(low),
            Settling::Shift(_) => None,
        };
        match self.seen(k, flags, low) {
            Seen::Never => {}
            Seen::Slowly(until) => self.unsettled = Some(Unsettled { settling, until }),
            Seen::Anyhow => self.settle(settling),
        }
    }

    /// Puts them right here. Scratch registers are lost.
    pub(crate) fn settle(&mut self, settling: Settling) {
        match settling {
            Settling::Shift(overflow) => {
                self.asm.save_flags();
                self.put_shift_right(overflow);
                self.asm.restore_flags();
            }
            Settling::Product(width, low) => {
                // setc dl: carry and overflow are the same here.
                self.asm.raw(&[0x0F, 0x92, 0xC2]);
                let low = self.in_register(low, RAX);
                self.asm.modrm(op(0x85), width, low.0, low);
                // lahf; and ah, not AF; or ah, dl; mov al, dl
                self.asm.raw(&[0x9F, 0x80, 0xE4, 0xEF, 0x08, 0xD4, 0x88, 0xD0]);
                self.asm.restore_flags();
            }
        }
    }

    /// Puts right in AX what a shift has left. RCX is lost.
    pub(crate) fn put_shift_right(&mut self, overflow: Overflow) {
        // and ah, not AF
        self.asm.raw(&[0x80, 0xE4, 0xEF]);
        match overflow {
            Overflow::Keep => {}
            // mov al, 0
            Overflow::Clear => self.asm.raw(&[0xB0, 0]),
            // mov cl, ah; mov al, ah; shr al, 7; and cl, 1; xor al, cl
            Overflow::Turns => {
                self.asm.raw(&[0x88, 0xE1, 0x88, 0xE0, 0xC0, 0xE8, 7, 0x80, 0xE1, 1, 0x30, 0xC8]);
            }
        }
    }
}

/// Instructions that change the flags they change whatever their operands are, and go wrong only by an access.
fn is_plain(i: &Instruction) -> bool {
    let known = matches!(
        i.mnemonic(),
        M::Mov
            | M::Add
            | M::Or
            | M::Adc
            | M::Sbb
            | M::And
            | M::Sub
            | M::Xor
            | M::Cmp
            | M::Test
            | M::Inc
            | M::Dec
            | M::Neg
            | M::Not
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Bswap
            | M::Imul
            | M::Mul
    );
    let general =
        (0..i.op_count()).all(|n| i.op_kind(n) != OpKind::Register || place(i.op_register(n)).is_some());
    known && general && !(i.mnemonic() == M::Mul && i.op0_register().size() < 4)
}

/// An instruction that no fault, interrupt or look from outside can come with, and that changes the flags it changes
/// whatever its operands are.
fn is_private(i: &Instruction) -> bool {
    let registers = i.op_kinds().all(|kind| kind != OpKind::Memory);
    let fixed = matches!(i.mnemonic(), M::Shl | M::Shr | M::Sar)
        && i.op0_kind() == OpKind::Register
        && place(i.op0_register()).is_some()
        && i.op1_kind() != OpKind::Register
        && i.immediate(1) & 31 != 0;
    registers && is_plain(i) || i.mnemonic() == M::Lea || fixed
}

/// An instruction that shows flags only if its access is the interpreter's.
fn is_plain_access(i: &Instruction) -> bool {
    is_plain(i) && i.op_kinds().any(|kind| kind == OpKind::Memory)
}
