//! The translation of a block.
//!
//! It begins by taking its instructions off the budget, and leaves if that does not cover them. Then come the
//! instructions, and behind the last one the ways out that are seldom taken: accesses that the translation cache does not
//! know, and exits that are not linked yet.

use std::mem::offset_of;

use engine::cpuid::CpuModel;
use iced_x86::{Code as Opcode, Decoder, DecoderOptions, FlowControl, Instruction};

use super::emit::{Asm, Jump, Label, RCX, Reg, Rm, word};
use super::flags::{Settling, Unsettled};
use super::groups::{Groups, Probed};
use super::stress::Stress;
use super::thunk::{Site, Thunks};
use super::watched::{Noted, noted};
use crate::frame::Frame;
use crate::insn::Insn;

/// Linkable exits of a translation.
pub(crate) const MAX_EXITS: usize = 2;

/// What a translation is made of.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    /// The instructions as the interpreter has them,
    pub(crate) insns: &'a [Insn],
    /// and their bytes.
    pub(crate) bytes: &'a [u8],
    /// Instruction pointer of the first.
    pub(crate) rip: u64,
    /// The run loop has to look around behind the last one.
    pub(crate) sync: bool,
    /// At privilege level 3.
    pub(crate) user: bool,
}

/// Host code, and what has to be known of it.
#[derive(Debug)]
pub(crate) struct Code {
    pub(crate) bytes: Vec<u8>,
    /// Linkable exits: offset of the jump's displacement, and the instruction pointer it leads to.
    pub(crate) exits: Vec<(usize, u64)>,
    /// The interpreter does the last instruction, or may, and that one tells where to go on.
    pub(crate) leaves: bool,
    /// What each instruction does that can log that itself.
    pub(crate) noted: Vec<Option<Noted>>,
    /// Behind the last instruction code goes on where that one leads on to what follows it: a repeated string instruction
    /// may have RIP at itself.
    pub(crate) falls: bool,
}

/// An access that has to be done by the interpreter.
#[derive(Debug, Clone, Copy)]
struct Slow {
    jump: Jump,
    insn: usize,
    settling: Option<Settling>,
    /// The interpreter goes on to the end of the block: the access is the first of a group.
    rest: Option<Probed>,
    /// Its store can be logged: the register that its address is in, and where it is done once that is made a host address.
    watched: Option<(Reg, Label)>,
}

/// A translation in the making.
#[derive(Debug)]
pub(crate) struct Body<'a> {
    pub(crate) asm: Asm,
    pub(crate) thunks: Thunks,
    pub(crate) rip: u64,
    pub(crate) user: bool,
    /// Fences are logged.
    pub(crate) watching: bool,
    pub(crate) bmi2: bool,
    pub(crate) model: CpuModel,
    stress: Option<Stress>,
    pub(crate) exits: Vec<(Jump, u64)>,
    /// Number of the translation.
    pub(crate) number: usize,
    insns: &'a [Insn],
    pub(crate) forms: Vec<Instruction>,
    /// Bytes of all instructions.
    code: &'a [u8],
    slow: Vec<Slow>,
    /// The instruction being translated.
    pub(crate) current: usize,
    /// Of each instruction that has been translated, where what follows it begins.
    pub(crate) behind: Vec<Label>,
    /// What each instruction does that can log that itself.
    pub(crate) noted: Vec<Option<Noted>>,
    /// Flags that are put right only where they are seen.
    pub(crate) unsettled: Option<Unsettled>,
    /// Accesses that are near one another.
    pub(crate) groups: Groups,
    /// The current instruction probes for a group.
    pub(crate) probing: Option<Probed>,
    /// An instruction before this one has found that vectors may be moved.
    pub(crate) vectors_usable: bool,
}

/// How to translate.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) thunks: Thunks,
    pub(crate) watching: bool,
    pub(crate) bmi2: bool,
    /// Each access is probed for alone.
    pub(crate) alone: bool,
    pub(crate) model: CpuModel,
    pub(crate) stress: Option<Stress>,
}

/// Translates for an address.
pub(crate) fn translate(source: &Source<'_>, origin: u64, number: usize, setting: Setting) -> Code {
    let forms = decode(source);
    let groups = if setting.alone { Groups::default() } else { Groups::of(&forms) };
    let noted = if setting.watching { noted(&forms, source.sync) } else { vec![None; forms.len()] };
    let mut body = Body {
        asm: Asm::new(origin),
        thunks: setting.thunks,
        rip: source.rip,
        user: source.user,
        watching: setting.watching,
        bmi2: setting.bmi2,
        model: setting.model,
        stress: setting.stress,
        exits: Vec::new(),
        number,
        insns: source.insns,
        forms,
        code: source.bytes,
        slow: Vec::new(),
        current: 0,
        behind: Vec::new(),
        noted,
        unsettled: None,
        groups,
        probing: None,
        vectors_usable: false,
    };
    body.pay();
    let leaves = body.instructions(source.sync);
    let falls = body.forms.last().is_some_and(falls);
    body.ways_out(!leaves || falls);
    let exits = body.exits.iter().map(|&(jump, target)| (jump.displacement(), target)).collect();
    Code { bytes: body.asm.bytes().to_vec(), exits, leaves, noted: body.noted, falls }
}

/// The instructions once more, in the decoder's form; an invalid one where the interpreter sees another.
fn decode(source: &Source<'_>) -> Vec<Instruction> {
    let mut at = 0;
    let mut forms = Vec::with_capacity(source.insns.len());
    let mut decoder = Decoder::with_ip(64, source.bytes, source.rip, DecoderOptions::NONE);
    for insn in source.insns {
        // Where the interpreter sees another instruction, its length counts.
        if decoder.set_position(at).is_ok() {
            decoder.set_ip(source.rip.wrapping_add(at as u64));
        }
        let i = decoder.decode();
        let same = !i.is_invalid() && i.len() == usize::from(insn.len) && i.code() as u16 == insn.code;
        forms.push(if same { i } else { Instruction::default() });
        at += usize::from(insn.len);
    }
    forms
}

impl Body<'_> {
    /// Takes the block's instructions off the budget.
    fn pay(&mut self) {
        const REMAINING: usize = offset_of!(Frame, remaining);
        self.asm.load(RCX, word(REMAINING));
        self.asm.lea(RCX, Rm::Base(RCX, -(self.insns.len() as i32)));
        self.asm.store(word(REMAINING), RCX);
        // The upper half is zero unless the whole is negative.
        self.asm.modrm(super::emit::op(0x8B), 4, RCX.0, word(REMAINING + 4));
        let enough = self.asm.jump(0xE3);
        self.asm.constant(RCX, Site::new(self.number, 0).0.into());
        self.asm.go(0xE9, self.thunks.budget);
        self.asm.land(enough);
    }

    fn instructions(&mut self, sync: bool) -> bool {
        let last = self.forms.len() - 1;
        for k in 0..=last {
            let i = &self.forms[k].clone();
            self.current = k;
            let ends = i.flow_control() != FlowControl::Next || repeats(i);
            let leaves = k == last && (sync || ends || i.is_invalid());
            let (code, slow, exits) = (self.asm.here(), self.slow.len(), self.exits.len());
            let (vectors_usable, unsettled) = (self.vectors_usable, self.unsettled);
            let probed = self.groups.probed;
            let done = if leaves && sync && !falls(i) {
                None
            } else if leaves {
                self.flow(i)
            } else {
                self.data(k, i)
            };
            if done.is_none() {
                self.asm.cut(code);
                self.slow.truncate(slow);
                self.exits.truncate(exits);
                (self.vectors_usable, self.unsettled) = (vectors_usable, unsettled);
                self.groups.probed = probed;
                self.probing = None;
                let settling = self.settling();
                self.interpret(k, settling);
            }
            self.behind.push(self.asm.here());
            let rest = self.probing.take();
            self.slow[slow..].iter_mut().for_each(|slow| slow.rest = rest);
            if leaves {
                if falls(i) {
                    self.exit(i.next_ip());
                }
                return true;
            }
        }
        let end = self.insns.iter().fold(self.rip, |rip, insn| rip.wrapping_add(insn.len.into()));
        self.exit(end);
        false
    }

    /// Bytes of an instruction.
    pub(crate) fn encoding(&self, k: usize) -> &[u8] {
        let at = self.forms[k].ip().wrapping_sub(self.rip) as usize;
        self.code.get(at..at + self.forms[k].len()).unwrap_or_default()
    }

    /// Has the interpreter execute an instruction, with flags as it would have left them.
    fn interpret(&mut self, k: usize, settling: Option<Settling>) {
        if let Some(settling) = settling {
            self.settle(settling);
        }
        self.asm.constant(RCX, Site::new(self.number, k).0.into());
        self.asm.go(0xE8, self.thunks.execute);
    }

    /// Has it execute the current one, elsewhere, and skips the rest of its translation.
    pub(crate) fn slow(&mut self) {
        let jump = self.asm.jump(0xE9);
        let settling = self.settling();
        self.slow.push(Slow { jump, insn: self.current, settling, rest: None, watched: None });
    }

    /// The access that has last been given a slow path is a store to an address in this register, and goes on here once RDX
    /// makes a host address of that: it can do so from watched memory, where nobody sees flags.
    pub(crate) fn goes_on_watched(&mut self, va: Reg) {
        let here = self.asm.here();
        if self.noted[self.current].is_some()
            && let Some(slow) = self.slow.last_mut()
        {
            slow.watched = Some((va, here));
        }
    }

    /// What has to be done to flags before the current instruction shows them.
    fn settling(&self) -> Option<Settling> {
        self.unsettled.filter(|unsettled| self.current <= unsettled.until).map(|unsettled| unsettled.settling)
    }

    /// Under stress, once in so many times.
    pub(crate) fn happens(&mut self, once_in: u64) -> bool {
        self.stress.as_mut().is_some_and(|stress| stress.happens(once_in))
    }

    /// Code goes on behind the last instruction if it `goes_on`.
    fn ways_out(&mut self, goes_on: bool) {
        for Slow { jump, insn, settling, rest, watched } in std::mem::take(&mut self.slow) {
            self.asm.land(jump);
            if let Some((va, done)) = watched {
                self.log_run(insn, va);
                let logged = self.log(insn, va);
                self.asm.place(logged, done);
            }
            if let Some(probed) = rest {
                self.interpret_rest(insn, settling, probed);
                continue;
            }
            self.interpret(insn, settling);
            if goes_on || insn + 1 < self.forms.len() {
                self.asm.jump_to(self.behind[insn]);
            }
        }
        for n in 0..self.exits.len() {
            let (jump, _) = self.exits[n];
            self.asm.land(jump);
            self.asm.constant(RCX, Site::new(self.number, n).0.into());
            self.asm.go(0xE9, self.thunks.link);
        }
    }
}

/// An instruction that ends its block and is followed by code. That of a STI is linked, as it changes no translation of
/// addresses.
fn falls(i: &Instruction) -> bool {
    repeats(i) || i.code() == Opcode::Sti
}

/// A string instruction that may leave RIP at itself.
fn repeats(i: &Instruction) -> bool {
    i.is_string_instruction() && (i.has_rep_prefix() || i.has_repne_prefix())
}
