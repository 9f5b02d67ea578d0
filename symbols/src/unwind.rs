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

/// The registers of one function. Those that only few functions find their caller by are not read from the stack before they
/// are wanted: a chain is to depend on nothing that it can do without.
#[derive(Clone, Copy)]
struct State {
    ip: u64,
    sp: u64,
    bp: Value,
    dx: Value,
    di: Value,
    r10: Value,
    r13: Value,
    /// Stopped here, so that the instruction at the address counts, and not the call before it.
    stopped: bool,
    guess: bool,
}

/// What a register held.
#[derive(Clone, Copy)]
enum Value {
    /// What it holds at first; and its number.
    Own(u64, u8),
    /// A word of memory.
    At(u64),
    /// Its function does not keep what its caller had there.
    Gone,
}

impl Value {
    /// It is wanted, and the chain depends on where it comes from.
    fn take(self, memory: &mut dyn Memory, chain: &mut Chain) -> Option<u64> {
        match self {
            Self::Own(value, register) => {
                chain.needs(register);
                Some(value)
            }
            Self::At(address) => memory.word(address),
            Self::Gone => Some(0),
        }
    }
}

impl State {
    fn first(registers: Registers) -> Self {
        let Registers { ip, sp, bp, dx, di, r10, r13 } = registers;
        Self {
            ip,
            sp,
            bp: Value::Own(bp, number::BP),
            dx: Value::Own(dx, number::DX),
            di: Value::Own(di, number::DI),
            r10: Value::Own(r10, number::R10),
            r13: Value::Own(r13, number::R13),
            stopped: true,
            guess: false,
        }
    }
}

impl Chain {
    fn needs(&mut self, register: u8) {
        if !self.registers.contains(&register) {
            self.registers.push(register);
        }
    }
}

impl Code {
    /// The chain of calls that led to where these registers are.
    pub fn unwind(&self, registers: Registers, memory: &mut dyn Memory) -> Chain {
        let mut chain = Chain::default();
        let mut state = State::first(registers);
        if registers.ip < KERNEL_HALF {
            // User space has no tables that we know.
            chain.frames.push(Frame { ip: registers.ip, guess: false });
            return chain;
        }
        chain.needs(number::SP);
        while chain.frames.len() < DEPTH {
            let State { ip, sp, guess, .. } = state;
            chain.frames.push(Frame { ip, guess });
            let step = match self.step(state, memory, &mut chain) {
                Step::Lost => self.guess(state, memory),
                step => step,
            };
            match step {
                Step::Next(next) if (next.sp, next.ip) == (sp, ip) => break,
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

    fn step(&self, own: State, memory: &mut dyn Memory, chain: &mut Chain) -> Step {
        let Some(orc) = self.orc(if own.stopped { own.ip } else { own.ip.wrapping_sub(1) }) else {
            return Step::Lost;
        };
        match orc.kind {
            Kind::End => return Step::End,
            Kind::Undefined => return Step::Lost,
            _ => {}
        }
        let offset = |address: u64, offset: i16| address.wrapping_add_signed(offset.into());
        let border = match orc.sp {
            Base::Sp => Some(offset(own.sp, orc.sp_offset)),
            Base::Bp => own.bp.take(memory, chain).map(|bp| offset(bp, orc.sp_offset)),
            Base::SpIndirect => memory.word(own.sp).map(|word| offset(word, orc.sp_offset)),
            Base::BpIndirect => {
                own.bp.take(memory, chain).and_then(|bp| memory.word(offset(bp, orc.sp_offset)))
            }
            Base::R10 => own.r10.take(memory, chain),
            Base::R13 => own.r13.take(memory, chain),
            Base::Dx => own.dx.take(memory, chain),
            Base::Di => own.di.take(memory, chain),
            Base::Undefined | Base::PreviousSp => None,
        };
        let Some(border) = border else { return Step::Lost };
        // An exception's frame begins at the border, or behind the general registers.
        let exception = match orc.kind {
            Kind::Registers => Some(border.wrapping_add(saved::IP)),
            Kind::Interrupt => Some(border),
            _ => None,
        };
        let mut next = State { stopped: exception.is_some(), ..own };
        let found = match exception {
            Some(frame) => match memory.word(frame.wrapping_add(saved::CS)) {
                Some(cs) if cs & 3 != 0 => return Step::End,
                cs => {
                    cs.and_then(|_| Some((memory.word(frame)?, memory.word(frame.wrapping_add(saved::SP))?)))
                }
            },
            None => memory.word(border.wrapping_sub(8)).map(|ip| (ip, border)),
        };
        let Some(found) = found else { return Step::Lost };
        (next.ip, next.sp) = found;
        let at = |offset: u64| Value::At(border.wrapping_add(offset));
        match orc.kind {
            Kind::Registers => {
                (next.dx, next.di) = (at(saved::DX), at(saved::DI));
                (next.r10, next.r13) = (at(saved::R10), at(saved::R13));
            }
            Kind::Interrupt => {}
            // What the callee left in the others is not its caller's.
            _ => {
                (next.dx, next.di, next.r10, next.r13) = (Value::Gone, Value::Gone, Value::Gone, Value::Gone)
            }
        }
        next.bp = match (orc.kind, orc.bp) {
            (Kind::Registers, _) => at(saved::BP),
            (_, Base::PreviousSp) => Value::At(offset(border, orc.bp_offset)),
            (_, Base::Bp) => match own.bp.take(memory, chain) {
                Some(bp) => Value::At(offset(bp, orc.bp_offset)),
                None => return Step::Lost,
            },
            _ => own.bp,
        };
        if next.ip < KERNEL_HALF { Step::Lost } else { Step::Next(next) }
    }

    /// The nearest word on the stack that can be a return address.
    fn guess(&self, own: State, memory: &mut dyn Memory) -> Step {
        for n in 0..SEARCH {
            let at = own.sp.wrapping_add(8 * n);
            let Some(word) = memory.word(at) else { return Step::Lost };
            if self.is_code(word) && follows_call(word, memory) {
                return Step::Next(State {
                    ip: word,
                    sp: at.wrapping_add(8),
                    stopped: false,
                    guess: true,
                    ..own
                });
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
