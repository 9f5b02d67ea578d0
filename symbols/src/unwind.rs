//! Call chains of the kernel, from one set of registers and the stack (Linux Documentation/arch/x86/orc-unwinder.rst; the
//! frames of exceptions: Intel SDM vol. 3, 6.14, and `struct pt_regs`).
//!
//! Where ORC tells nothing (code made at run time, a module without tables) the nearest word on the stack that follows a
//! call stands in, marked as a guess.

use crate::orc::{Base, Kind};
use crate::{Code, KERNEL_HALF, Memory};

/// The longest chain; the kernel's own stacks are not deeper.
pub const DEPTH: usize = 64;
/// How far a guess looks, in words.
const SEARCH: u64 = 128;

/// Registers by which the first frame is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Registers {
    /// RIP.
    pub ip: u64,
    /// RSP.
    pub sp: u64,
    /// RBP.
    pub bp: u64,
    /// RDX, RDI, R10 and R13: code that aligns its stack keeps the old one in these.
    pub dx: u64,
    /// See `dx`.
    pub di: u64,
    /// See `dx`.
    pub r10: u64,
    /// See `dx`.
    pub r13: u64,
}

/// One function of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Of the first, and of one that an exception stopped, where it is; of another, where it goes on.
    pub ip: u64,
    /// Whether this is no more than likely.
    pub guess: bool,
}

/// A call chain, the innermost function first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// Its functions.
    pub frames: Vec<Frame>,
    /// Whether it goes to the outermost function or to user space; else something in between was not understood.
    pub whole: bool,
    /// The general registers that it depends on, beside the instruction pointer, by their numbers in instructions.
    pub registers: Vec<u8>,
}

/// Numbers of registers.
mod number {
    pub const DX: u8 = 2;
    pub const SP: u8 = 4;
    pub const BP: u8 = 5;
    pub const DI: u8 = 7;
    pub const R10: u8 = 10;
    pub const R13: u8 = 13;
}

/// Where the registers of an exception lie: `struct pt_regs`.
mod saved {
    pub const R13: u64 = 16;
    pub const BP: u64 = 32;
    pub const R10: u64 = 56;
    pub const DX: u64 = 96;
    pub const DI: u64 = 112;
    pub const IP: u64 = 128;
    pub const CS: u64 = 8;
    pub const SP: u64 = 24;
}

/// What a step gives.
enum Step {
    Next(State),
    /// The outermost function, or user space.
    End,
    Lost,
}

#[derive(Clone, Copy)]
struct State {
    registers: Registers,
    /// Stopped here, so that the instruction at the address counts, and not the call before it.
    stopped: bool,
    guess: bool,
    /// RBP is still what it was at first, and so are RDX, RDI, R10 and R13.
    own_bp: bool,
    own_rest: bool,
}

impl Chain {
    /// It depends on a register, if that is still what it was.
    fn needs(&mut self, register: u8, own: bool) {
        if own && !self.registers.contains(&register) {
            self.registers.push(register);
        }
    }
}

impl Code {
    /// The chain of calls that led to where these registers are.
    pub fn unwind(&self, registers: Registers, memory: &mut dyn Memory) -> Chain {
        let mut chain = Chain::default();
        let mut state = State { registers, stopped: true, guess: false, own_bp: true, own_rest: true };
        if registers.ip < KERNEL_HALF {
            // User space has no tables that we know.
            chain.frames.push(Frame { ip: registers.ip, guess: false });
            return chain;
        }
        chain.registers.push(number::SP);
        while chain.frames.len() < DEPTH {
            let Registers { ip, sp, .. } = state.registers;
            chain.frames.push(Frame { ip, guess: state.guess });
            let step = match self.step(state, memory, &mut chain) {
                Step::Lost => self.guess(state, memory),
                step => step,
            };
            match step {
                Step::Next(next) if (next.registers.sp, next.registers.ip) == (sp, ip) => break,
                Step::Next(next) => state = next,
                Step::End => {
                    chain.whole = chain.frames.iter().all(|frame| !frame.guess);
                    break;
                }
                Step::Lost => break,
            }
        }
        chain
    }

    fn step(&self, state: State, memory: &mut dyn Memory, chain: &mut Chain) -> Step {
        let own = state.registers;
        let Some(orc) = self.orc(if state.stopped { own.ip } else { own.ip.wrapping_sub(1) }) else {
            return Step::Lost;
        };
        match orc.kind {
            Kind::End => return Step::End,
            Kind::Undefined => return Step::Lost,
            _ => {}
        }
        match orc.sp {
            Base::Bp | Base::BpIndirect => chain.needs(number::BP, state.own_bp),
            Base::R10 => chain.needs(number::R10, state.own_rest),
            Base::R13 => chain.needs(number::R13, state.own_rest),
            Base::Dx => chain.needs(number::DX, state.own_rest),
            Base::Di => chain.needs(number::DI, state.own_rest),
            Base::Sp | Base::SpIndirect | Base::Undefined | Base::PreviousSp => {}
        }
        let offset = |address: u64, offset: i16| address.wrapping_add_signed(offset.into());
        let border = match orc.sp {
            Base::Sp => Some(offset(own.sp, orc.sp_offset)),
            Base::Bp => Some(offset(own.bp, orc.sp_offset)),
            Base::SpIndirect => memory.word(own.sp).map(|word| offset(word, orc.sp_offset)),
            Base::BpIndirect => memory.word(offset(own.bp, orc.sp_offset)),
            Base::R10 => Some(own.r10),
            Base::R13 => Some(own.r13),
            Base::Dx => Some(own.dx),
            Base::Di => Some(own.di),
            Base::Undefined | Base::PreviousSp => None,
        };
        let Some(border) = border else { return Step::Lost };
        let mut next = own;
        let read = |memory: &mut dyn Memory, at: u64| memory.word(border.wrapping_add(at));
        // An exception's frame begins at the border, or behind the general registers.
        let exception = match orc.kind {
            Kind::Registers => Some(saved::IP),
            Kind::Interrupt => Some(0),
            _ => None,
        };
        match exception {
            Some(frame) => {
                let all = (|| {
                    let cs = read(memory, frame + saved::CS)?;
                    next.ip = read(memory, frame)?;
                    next.sp = read(memory, frame + saved::SP)?;
                    if orc.kind == Kind::Registers {
                        next.bp = read(memory, saved::BP)?;
                        next.dx = read(memory, saved::DX)?;
                        next.di = read(memory, saved::DI)?;
                        next.r10 = read(memory, saved::R10)?;
                        next.r13 = read(memory, saved::R13)?;
                    }
                    Some(cs)
                })();
                match all {
                    None => return Step::Lost,
                    Some(cs) if cs & 3 != 0 => return Step::End,
                    Some(_) => {}
                }
            }
            None => {
                let Some(ip) = memory.word(border.wrapping_sub(8)) else { return Step::Lost };
                // What the callee left in the others is not its caller's.
                next = Registers { ip, sp: border, bp: own.bp, ..Registers::default() };
            }
        }
        let mut own_bp = false;
        if exception.is_none() || orc.kind == Kind::Interrupt {
            let saved = match orc.bp {
                Base::PreviousSp => memory.word(offset(border, orc.bp_offset)),
                Base::Bp => {
                    chain.needs(number::BP, state.own_bp);
                    memory.word(offset(own.bp, orc.bp_offset))
                }
                _ => {
                    own_bp = state.own_bp;
                    Some(own.bp)
                }
            };
            let Some(bp) = saved else { return Step::Lost };
            next.bp = bp;
        }
        if next.ip < KERNEL_HALF {
            return Step::Lost;
        }
        let own_rest = state.own_rest && orc.kind == Kind::Interrupt;
        Step::Next(State { registers: next, stopped: exception.is_some(), guess: state.guess, own_bp, own_rest })
    }

    /// The nearest word on the stack that can be a return address.
    fn guess(&self, state: State, memory: &mut dyn Memory) -> Step {
        let own = state.registers;
        for n in 0..SEARCH {
            let at = own.sp.wrapping_add(8 * n);
            let Some(word) = memory.word(at) else { return Step::Lost };
            if self.is_code(word) && follows_call(word, memory) {
                let registers = Registers { ip: word, sp: at.wrapping_add(8), ..own };
                return Step::Next(State { registers, stopped: false, guess: true, ..state });
            }
        }
        Step::Lost
    }
}

/// Whether the instruction before an address can be a call: relative, or through a register or a word of memory.
fn follows_call(address: u64, memory: &mut dyn Memory) -> bool {
    let mut before = [0; 5];
    if !memory.read(address.wrapping_sub(5), &mut before) {
        return false;
    }
    let indirect = |at: usize| before[at] == 0xff && before[at + 1] >> 3 & 7 == 2;
    before[0] == 0xe8 || indirect(3) || indirect(2)
}
