//! Draws encodings and operands for many forms, runs each case on two executors, and compares what they leave.

use std::collections::BTreeMap;
use std::fmt::Write;

use iced_x86::{Code, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};

use super::draw::Draw;
use super::form::{self, Encoding};
use super::machine::{CODE, Executor, GPR, GUARD, Mode, Outcome, SCRATCH, SCRATCH_LEN, State};

/// Cases run from one encoding.
const PER_ENCODING: u64 = 25;

/// Which forms are run, and how.
#[derive(Clone, Copy)]
pub struct Campaign {
    /// Modes to run in.
    pub modes: &'static [Mode],
    /// Whether the family executes this instruction.
    pub accepts: fn(&Instruction) -> bool,
    /// Forms of the family that the host cannot or must not run for us.
    pub excluded: &'static [Code],
    /// Makes drawn registers and memory fit the instruction; the memory operand's registers are set after it. The slice is
    /// the memory at [`SCRATCH`].
    pub prepare: fn(&Instruction, &mut State, &mut [u8; SCRATCH_LEN], &mut Draw),
    /// Clears what the SDM leaves undefined; called on both outcomes.
    pub settle: fn(&Instruction, before: &State, &mut Outcome),
}

/// What was run.
#[derive(Debug, Default)]
pub struct Report {
    /// Forms with at least one case.
    pub forms: usize,
    /// Cases.
    pub cases: u64,
    /// First difference and number of differing cases, a form.
    pub failures: BTreeMap<String, (u64, String)>,
}

impl Campaign {
    /// Runs every form of the family.
    ///
    /// # Panics
    /// If anything differs, with the first difference of each form; if a form cannot be drawn.
    pub fn run(&self, oracle: &mut dyn Executor, subject: &mut dyn Executor) -> Report {
        let cases = number("NVSIM_DIFF_CASES", 1000);
        let seed = number("NVSIM_DIFF_SEED", 0);
        let only = std::env::var("NVSIM_DIFF_CODE").unwrap_or_default();
        let mut report = Report::default();
        for &mode in self.modes {
            for code in
                Code::values().filter(|c| !self.excluded.contains(c) && format!("{c:?}").starts_with(&only))
            {
                let mut draw = Draw::new(seed ^ (code as u64 * 0x1_0001) ^ u64::from(mode.bits()) << 32);
                let (mut done, mut refused) = (0, 0);
                while done < cases && (done > 0 || refused < 64) {
                    let Some(encoding) = form::draw(code, mode, &mut draw) else { break };
                    if (self.accepts)(&encoding.instruction) {
                        self.try_encoding(mode, &encoding, &mut draw, oracle, subject, &mut report);
                        done += PER_ENCODING;
                    } else {
                        refused += 1;
                    }
                }
                report.forms += usize::from(done > 0);
                report.cases += done;
            }
        }
        report.verdict();
        report
    }

    fn try_encoding(
        &self,
        mode: Mode,
        encoding: &Encoding,
        draw: &mut Draw,
        oracle: &mut dyn Executor,
        subject: &mut dyn Executor,
        report: &mut Report,
    ) {
        let i = &encoding.instruction;
        oracle.load(mode, &encoding.bytes);
        subject.load(mode, &encoding.bytes);
        let mut memory = [0; SCRATCH_LEN];
        for chunk in memory.chunks_exact_mut(8) {
            chunk.copy_from_slice(&draw.bits().to_le_bytes());
        }
        for _ in 0..PER_ENCODING {
            let Some(before) = self.draw_state(mode, i, &mut memory, draw) else { continue };
            *oracle.scratch() = memory;
            *subject.scratch() = memory;
            let mut expected = oracle.run(&before);
            let mut actual = subject.run(&before);
            for outcome in [&mut expected, &mut actual] {
                canonical(mode, outcome);
                (self.settle)(i, &before, outcome);
            }
            let difference = compare(&expected, &actual, &memory, oracle.scratch(), subject.scratch());
            if let Some(difference) = difference {
                let entry = report.failures.entry(format!("{mode:?} {:?}", i.code())).or_default();
                entry.0 += 1;
                if entry.1.is_empty() {
                    entry.1 = format!("{i} [{:02x?}]\n{difference}    before: {before:x?}", encoding.bytes);
                }
            }
        }
    }

    /// Registers and memory for a case, such that every access stays near the scratch memory.
    fn draw_state(
        &self,
        mode: Mode,
        i: &Instruction,
        memory: &mut [u8; SCRATCH_LEN],
        draw: &mut Draw,
    ) -> Option<State> {
        (0..8).find_map(|_| {
            let mut state = State::default();
            let data = mode.bases().1;
            state.gpr.iter_mut().for_each(|r| *r = draw.value());
            state.rflags = draw.bits() & 0xCD5 | 2;
            if !draw.once_in(3) {
                state.rflags &= !0x400;
            }
            state.gpr[4] = draw.target(16).wrapping_sub(data) & if draw.once_in(4) { !0 } else { !7 };
            for n in 0..i.op_count() {
                match i.op_kind(n) {
                    OpKind::MemorySegRSI | OpKind::MemorySegESI | OpKind::MemorySegSI => {
                        state.gpr[6] = draw.target(16).wrapping_sub(data);
                    }
                    OpKind::MemoryESRDI
                    | OpKind::MemoryESEDI
                    | OpKind::MemoryESDI
                    | OpKind::MemorySegRDI
                    | OpKind::MemorySegEDI
                    | OpKind::MemorySegDI => state.gpr[7] = draw.target(16).wrapping_sub(data),
                    _ => {}
                }
            }
            if i.has_rep_prefix() || i.has_repne_prefix() {
                state.gpr[1] = if draw.once_in(8) { draw.below(0x3000) } else { draw.below(48) };
            }
            if mode != Mode::Long {
                state.gpr.iter_mut().for_each(|r| *r &= 0xFFFF_FFFF);
                state.gpr[8..].fill(0);
            }
            if mode == Mode::Protected16 {
                state.gpr[4] &= 0xFFFF;
            }
            put_value(memory, state.gpr[4].wrapping_add(data), draw);
            let target = draw.target(8);
            put_value(memory, target, draw);
            (self.prepare)(i, &mut state, memory, draw);
            aim(mode, i, &mut state, target, draw);
            if mode != Mode::Long {
                state.gpr.iter_mut().for_each(|r| *r &= 0xFFFF_FFFF);
            }
            if mode == Mode::Protected16 {
                // Limits keep every access inside. An interrupt may cost a 16-bit stack pointer its upper half.
                state.gpr[4] &= 0xFFFF;
                return Some(state);
            }
            near_scratch(i, &state).then_some(state)
        })
    }
}

/// A likely operand at an address, if it is in the scratch memory.
fn put_value(memory: &mut [u8; SCRATCH_LEN], address: u64, draw: &mut Draw) {
    let at = address.wrapping_sub(SCRATCH) as usize;
    if let Some(bytes) = memory.get_mut(at..).and_then(|m| m.get_mut(..8)) {
        bytes.copy_from_slice(&draw.value().to_le_bytes());
    }
}

/// Sets the memory operand's registers so that it lies at `target`, if they allow it.
fn aim(mode: Mode, i: &Instruction, state: &mut State, target: u64, draw: &mut Draw) {
    let (base, index) = (i.memory_base(), i.memory_index());
    let number = |r: Register| (r.is_gpr() && !r.is_gpr8()).then(|| r.number());
    let offset = target.wrapping_sub(mode.bases().1).wrapping_sub(segment_base(i.memory_segment()));
    let offset = offset.wrapping_sub(i.memory_displacement64());
    let scale = u64::from(i.memory_index_scale());
    let aimed = match (number(base), number(index)) {
        (Some(b), Some(x)) if b == x => Some((b, offset / (scale + 1))),
        (Some(b), Some(x)) => Some((b, offset.wrapping_sub(state.gpr[x].wrapping_mul(scale)))),
        (Some(b), None) if index == Register::AL => Some((b, offset.wrapping_sub(state.gpr[0] & 0xFF))),
        (Some(b), None) => Some((b, offset)),
        (None, Some(x)) => Some((x, offset / scale)),
        (None, None) => None,
    };
    if let Some((register, value)) = aimed {
        let part = match if base == Register::None { index.size() } else { base.size() } {
            8 => !0,
            4 => 0xFFFF_FFFF,
            _ => 0xFFFF,
        };
        // Above the address, anything.
        state.gpr[register] = value & part | draw.bits() & !part;
    }
}

fn segment_base(segment: Register) -> u64 {
    if segment == Register::FS { super::native::Native::fs_base() } else { 0 }
}

fn near_scratch(i: &Instruction, state: &State) -> bool {
    let near = SCRATCH - GUARD + 0x400..SCRATCH + SCRATCH_LEN as u64 + GUARD - 0x400;
    // Of a gather, the base is near and the indices are small.
    let gathers = i.memory_index().is_vector_register();
    gathers
        || InstructionInfoFactory::new().info(i).used_memory().iter().all(|memory| {
            let address = memory.virtual_address(0, |register, _, _| {
                Some(match register {
                    Register::RIP | Register::EIP => i.next_ip(),
                    _ if register.is_segment_register() => segment_base(register),
                    _ if register.is_gpr64() => state.gpr[register.number()],
                    _ if register.is_gpr32() => state.gpr[register.number()] & 0xFFFF_FFFF,
                    _ if register.is_gpr16() => state.gpr[register.number()] & 0xFFFF,
                    _ => state.gpr[register.number() & 3] & 0xFF,
                })
            });
            address.is_some_and(|a| near.contains(&a) && near.contains(&a.wrapping_add(bit_offset(i, state))))
        })
}

/// How far from the addressed word BT and its like go, in bytes.
fn bit_offset(i: &Instruction, state: &State) -> u64 {
    let strings = matches!(i.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
    if !strings || i.op1_kind() != OpKind::Register {
        return 0;
    }
    let number = state.gpr[i.op1_register().full_register().number()];
    let number = match i.op1_register().size() {
        2 => number as i16 as i64,
        4 => number as i32 as i64,
        _ => number as i64,
    };
    (number >> 3) as u64
}

/// Takes away what no instruction is about: RF of a fault's image, what the kernel puts behind the XMM registers, and the
/// upper halves where there are none.
fn canonical(mode: Mode, outcome: &mut Outcome) {
    outcome.state.rflags &= !0x1_0000;
    outcome.state.fx[416..].fill(0);
    if mode != Mode::Long {
        outcome.state.gpr.iter_mut().for_each(|r| *r &= 0xFFFF_FFFF);
        outcome.state.gpr[8..].fill(0);
        outcome.state.rip &= 0xFFFF_FFFF;
    }
}

fn compare(
    expected: &Outcome,
    actual: &Outcome,
    before: &[u8; SCRATCH_LEN],
    expected_memory: &[u8; SCRATCH_LEN],
    actual_memory: &[u8; SCRATCH_LEN],
) -> Option<String> {
    let (e, a) = (&expected.state, &actual.state);
    if e == a && expected.fault == actual.fault && expected_memory == actual_memory {
        return None;
    }
    let mut text = String::new();
    let mut line = |what: &str, e: &dyn std::fmt::Debug, a: &dyn std::fmt::Debug| {
        let _ = writeln!(text, "    {what}: host {e:x?}, engine {a:x?}");
    };
    if expected.fault != actual.fault {
        line("fault", &expected.fault, &actual.fault);
    }
    for (n, name) in GPR.iter().enumerate().filter(|(n, _)| e.gpr[*n] != a.gpr[*n]) {
        line(name, &e.gpr[n], &a.gpr[n]);
    }
    if e.rip != a.rip {
        line("rip - start", &e.rip.wrapping_sub(CODE), &a.rip.wrapping_sub(CODE));
    }
    if e.rflags != a.rflags {
        line("rflags", &e.rflags, &a.rflags);
    }
    for n in (0..16).filter(|n| e.upper[*n] != a.upper[*n]) {
        line(&format!("upper half of ymm{n}"), &e.upper[n], &a.upper[n]);
    }
    for n in (0..512).step_by(16).filter(|n| e.fx[*n..n + 16] != a.fx[*n..n + 16]) {
        line(&format!("fx[{n}]"), &&e.fx[n..n + 16], &&a.fx[n..n + 16]);
    }
    let mut differing = (0..SCRATCH_LEN).filter(|n| expected_memory[*n] != actual_memory[*n]);
    if let Some(first) = differing.next() {
        let last = differing.next_back().unwrap_or(first);
        let end = (last + 1).min(first + 16);
        let _ = writeln!(
            text,
            "    memory[{first:#x}..={last:#x}]: was {:02x?}, host {:02x?}, engine {:02x?}",
            &before[first..end],
            &expected_memory[first..end],
            &actual_memory[first..end]
        );
    }
    Some(text)
}

impl Report {
    fn verdict(&self) {
        if self.failures.is_empty() {
            return;
        }
        let mut text = format!("{} of {} forms differ:\n", self.failures.len(), self.forms);
        for (form, (count, example)) in &self.failures {
            let _ = writeln!(text, "{form}: {count} cases, first: {example}");
        }
        panic!("{text}");
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}
