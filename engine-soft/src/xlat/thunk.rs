//! The ways into translated code and out of it: written once, at the begin of the arena.

use std::mem::offset_of;

use super::emit::{Asm, CPU, RAX, RBX, RCX, RDI, RDX, RSI, RSP, Reg, Rm, SCRATCH, op, op2, word};
use super::registers::{PLACES, Place};
use crate::cpu::Cpu;
use crate::frame::Frame;
use crate::fx::FxArea;
use crate::insn::RIP;

/// Why translated code was left, and what it has to say about it.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Departure {
    pub(crate) reason: u64,
    pub(crate) detail: u64,
}

/// Values of [`Departure::reason`].
pub(crate) mod reason {
    /// Not at all: go on.
    pub(crate) const NONE: u64 = 0;
    /// To the instruction pointer in the vCPU.
    pub(crate) const JUMP: u64 = 1;
    /// To where an exit leads, which may be linked: `detail` is its site.
    pub(crate) const LINK: u64 = 2;
    /// The translation that was jumped to is dead: `detail` is its site.
    pub(crate) const DEAD: u64 = 3;
    /// The budget does not cover the translation of this site, which has taken it off.
    pub(crate) const BUDGET: u64 = 4;
    /// To look around.
    pub(crate) const LOOK: u64 = 5;
    /// An instruction trapped; `detail` were paid for and not done.
    pub(crate) const TRAPPED: u64 = 6;
}

/// A place in a translation: its number, and in the low bits that of an instruction or an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Site(pub(crate) u32);

impl Site {
    const BITS: u32 = 6;
    /// Translations that have a number.
    pub(crate) const MAX: usize = 1 << (32 - Self::BITS);

    pub(crate) fn new(translation: usize, part: usize) -> Self {
        Self((translation as u32) << Self::BITS | part as u32)
    }

    pub(crate) fn translation(self) -> usize {
        (self.0 >> Self::BITS) as usize
    }

    pub(crate) fn part(self) -> usize {
        (self.0 & ((1 << Self::BITS) - 1)) as usize
    }
}

/// Executes instructions by the interpreter.
pub(crate) type Execute = extern "sysv64" fn(*mut Cpu, Site) -> Departure;

/// Addresses of the ways.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Thunks {
    /// A function: (the frame's base, translated code) to a [`Departure`].
    pub(crate) enter: u64,
    /// To be called with a site in ECX: executes that instruction, and comes back unless it has to leave.
    pub(crate) execute: u64,
    /// The same to the end of the block, from which it does not come back.
    pub(crate) rest: u64,
    /// To be jumped to with a site in ECX.
    pub(crate) link: u64,
    pub(crate) dead: u64,
    pub(crate) budget: u64,
    /// To be jumped to with an instruction pointer in RAX.
    pub(crate) jump: u64,
    /// To be called with a site and one in ECX and an address in RDX: see [`super::watched`].
    pub(crate) record: u64,
    /// The same for a run, with the status flags in [`Frame::flags`]: see [`super::runs`].
    pub(crate) record_run: u64,
    /// To be called: the x87 registers become the guest's. RCX is lost.
    pub(crate) stack: u64,
}

/// Registers that a function has to keep, in the order they are pushed.
const KEPT: [Reg; 6] = [RBX, Reg(5), Reg(12), Reg(13), Reg(14), Reg(15)];

pub(super) const FLAGS: Rm = word(offset_of!(Frame, flags));
pub(super) const RESUME: Rm = word(offset_of!(Frame, resume));
pub(super) const HOST_STACK: Rm = word(offset_of!(Frame, host_stack));

/// A guest register in the vCPU that `at` points to.
pub(super) fn home(at: Reg, n: usize) -> Rm {
    Rm::Base(at, (offset_of!(Cpu, gpr) + 8 * n) as i32)
}

/// MXCSR in the vCPU that `at` points to.
fn mxcsr(at: Reg) -> Rm {
    Rm::Base(at, (offset_of!(Cpu, fx) + offset_of!(FxArea, mxcsr)) as i32)
}

/// Guest state to the vCPU. RCX stays.
fn save(asm: &mut Asm) {
    asm.save_flags();
    asm.store(FLAGS, RAX);
    super::x87::write_put_back(asm);
    asm.load(RAX, CPU);
    // stmxcsr, ldmxcsr
    asm.modrm(op2(0xAE), 4, 3, mxcsr(RAX));
    asm.modrm(op2(0xAE), 4, 2, word(offset_of!(Frame, host_mxcsr)));
    for (n, place) in PLACES.into_iter().enumerate() {
        match place {
            Place::Host(reg) => asm.store(home(RAX, n), reg),
            Place::Slot(_) => {
                asm.load(RDX, place.rm());
                asm.store(home(RAX, n), RDX);
            }
        }
    }
}

/// Guest state from the vCPU; then on at [`Frame::resume`].
fn restore(asm: &mut Asm) {
    asm.load(RCX, CPU);
    asm.modrm(op2(0xAE), 4, 2, mxcsr(RCX));
    for (n, place) in PLACES.into_iter().enumerate() {
        match place {
            Place::Host(reg) => asm.load(reg, home(RCX, n)),
            Place::Slot(_) => {
                asm.load(RAX, home(RCX, n));
                asm.store(place.rm(), RAX);
            }
        }
    }
    asm.modrm(op2(0xB7), 4, RAX.0, FLAGS);
    asm.restore_flags();
    asm.modrm(op(0xFF), 4, 4, RESUME);
}

/// Back to the caller of `enter`, with RAX and RDX as they are.
fn leave(asm: &mut Asm) {
    asm.load(RSP, HOST_STACK);
    asm.modrm(op(0x83), 8, 0, RSP);
    asm.immediate(1, 8);
    for reg in KEPT.into_iter().rev() {
        pop(asm, reg);
    }
    asm.raw(&[0xC3]);
}

fn push(asm: &mut Asm, reg: Reg) {
    asm.modrm(op(0xFF), 4, 6, reg);
}

fn pop(asm: &mut Asm, reg: Reg) {
    asm.modrm(op(0x8F), 4, 0, reg);
}

/// Writes the ways for an address, and says where they are.
pub(crate) fn write(origin: u64, execute: Execute, rest: Execute) -> (Vec<u8>, Thunks) {
    let mut asm = Asm::new(origin);
    let mut thunks = Thunks { enter: origin, ..Thunks::default() };

    for reg in KEPT {
        push(&mut asm, reg);
    }
    // The stack is aligned again, as calls want it.
    asm.modrm(op(0x83), 8, 5, RSP);
    asm.immediate(1, 8);
    let Rm::Base(_, host_stack) = HOST_STACK else { unreachable!("a word has a base") };
    asm.store(Rm::Base(RDI, host_stack), RSP);
    asm.load(RSP, RDI);
    asm.store(RESUME, RSI);
    let restored = asm.here();
    restore(&mut asm);

    let on = |asm: &mut Asm, way: &mut u64, function: Execute| {
        *way = origin + asm.bytes().len() as u64;
        asm.modrm(op(0x8F), 4, 0, RESUME);
        save(asm);
        asm.load(RDI, CPU);
        asm.modrm(op(0x8B), 4, RSI.0, RCX);
        asm.load(RBX, RSP);
        asm.load(RSP, HOST_STACK);
        asm.constant(RAX, function as usize as u64);
        asm.modrm(op(0xFF), 4, 2, RAX);
        asm.load(RSP, RBX);
        asm.modrm(op(0x85), 8, RAX.0, RAX);
        let on = asm.jump(0x84);
        asm.place(on, restored);
    };
    on(&mut asm, &mut thunks.execute, execute);
    let left = asm.here();
    leave(&mut asm);
    on(&mut asm, &mut thunks.rest, rest);
    asm.jump_to(left);

    for (way, reason) in [
        (&mut thunks.link, reason::LINK),
        (&mut thunks.dead, reason::DEAD),
        (&mut thunks.budget, reason::BUDGET),
    ] {
        *way = origin + asm.bytes().len() as u64;
        save(&mut asm);
        asm.modrm(op(0x8B), 4, RDX.0, RCX);
        asm.constant(RAX, reason);
        asm.jump_to(left);
    }

    thunks.jump = origin + asm.bytes().len() as u64;
    asm.store(SCRATCH, RAX);
    save(&mut asm);
    asm.load(RDX, SCRATCH);
    asm.store(home(RAX, usize::from(RIP)), RDX);
    asm.constant(RAX, reason::JUMP);
    asm.jump_to(left);

    thunks.stack = origin + asm.bytes().len() as u64;
    super::x87::write_fetch(&mut asm);

    thunks.record = origin + asm.bytes().len() as u64;
    super::watched::write(&mut asm);

    thunks.record_run = origin + asm.bytes().len() as u64;
    super::runs::write(&mut asm);
    (asm.bytes().to_vec(), thunks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_has_two_parts() {
        let site = Site::new(Site::MAX - 1, 63);
        assert_eq!((site.translation(), site.part()), (Site::MAX - 1, 63));
    }
}
