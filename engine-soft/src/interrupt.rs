//! Delivery of exceptions and interrupts (SDM vol. 3, ch. 6).

use engine::ExitKind;
use engine::event::StoreKind;
use engine::state::{Segment, SystemRegisters};

use crate::cpu::Cpu;
use crate::flags::bit;
use crate::insn::{FLAT, FLAT_STACK, RIP};
use crate::segment::{error_code, is_null, null_stack, rpl};
use crate::trap::{Cause, Step, Trap, vector};

const RIP_SLOT: usize = RIP as usize;
const RSP: usize = 4;
const CS: usize = SystemRegisters::CS;
const SS: usize = SystemRegisters::SS;

/// Where an event comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// INT n, INT3, INTO: the gate's privilege counts.
    Software,
    /// Anything else.
    Hardware,
}

/// An event on its way to its handler.
#[derive(Debug, Clone, Copy)]
struct Event {
    vector: u8,
    code: Option<u32>,
    source: Source,
    /// RFLAGS to be saved.
    flags: u64,
}

/// A gate of the interrupt descriptor table.
#[derive(Debug, Clone, Copy)]
struct Gate {
    selector: u16,
    offset: u64,
    /// Interrupt stack table entry; 0: none.
    stack: u8,
    /// 2, 4 or 8: how wide the saved registers are.
    width: u64,
    /// Clears IF.
    masks: bool,
}

impl Cpu {
    /// Delivers a fault of the instruction at RIP.
    ///
    /// # Errors
    /// Triple fault.
    pub(crate) fn fault(&mut self, vector: u8, code: Option<u32>) -> Result<(), ExitKind> {
        // A debug fault is an instruction breakpoint, which the handler resumes from by setting RF itself.
        let resume = if matches!(vector, vector::DB | vector::BP | vector::OF) { 0 } else { bit::RF };
        self.deliver_all(vector, code, self.flags.get() | resume)
    }

    /// Delivers a trap after an instruction.
    ///
    /// # Errors
    /// Triple fault.
    pub(crate) fn trap(&mut self, vector: u8) -> Result<(), ExitKind> {
        self.deliver_all(vector, None, self.flags.get())
    }

    /// Delivers an interrupt from outside, or an NMI.
    ///
    /// # Errors
    /// Triple fault.
    pub(crate) fn interrupt(&mut self, vector: u8) -> Result<(), ExitKind> {
        self.deliver_all(vector, None, self.flags.get())
    }

    /// INT n and its kin: a fault on the way is one of this instruction.
    pub(crate) fn software_interrupt(&mut self, vector: u8) -> Step {
        let flags = self.flags.get();
        self.deliver(Event { vector, code: None, source: Source::Software, flags })?;
        self.progress.interrupted = true;
        Ok(())
    }

    /// Delivers, and what goes wrong on the way, up to the double fault.
    fn deliver_all(&mut self, mut vector: u8, mut code: Option<u32>, flags: u64) -> Result<(), ExitKind> {
        let stepping = std::mem::replace(&mut self.progress.stepping, true);
        self.progress.delivering = true;
        let outcome = loop {
            match self.deliver(Event { vector, code, source: Source::Hardware, flags }) {
                Ok(()) => break Ok(()),
                Err(Trap) => match self.cause {
                    Cause::Exception { .. } if vector == vector::DF => break Err(ExitKind::Shutdown),
                    Cause::Exception { vector: second, .. } if doubles(vector, second) => {
                        (vector, code) = (vector::DF, Some(0));
                    }
                    Cause::Exception { vector: second, code: its } => (vector, code) = (second, its),
                    // A handler's stack or table that is no memory cannot be answered for.
                    Cause::Exit(_) | Cause::Restart => break Err(ExitKind::Shutdown),
                },
            }
        };
        self.progress.stepping = stepping;
        self.progress.delivering = false;
        outcome
    }

    fn deliver(&mut self, event: Event) -> Step {
        if self.real && self.flags.control & bit::VM == 0 {
            return self.deliver_real(event);
        }
        let gate = self.gate(event)?;
        let external = u32::from(event.source == Source::Hardware);
        if is_null(gate.selector) {
            return self.raise(vector::GP, Some(external));
        }
        let with_external = |code: Option<u32>| code.map(|code| code | external);
        let code = with_external(error_code(gate.selector));
        let descriptor = match self.descriptor(gate.selector, vector::GP) {
            Ok(descriptor) => descriptor,
            Err(Trap) => return self.mark_external(external),
        };
        let long = self.is_long_mode_active();
        if !descriptor.is_code()
            || descriptor.dpl() > self.cpl
            || long && (!descriptor.is_long() || descriptor.is_big())
        {
            return self.raise(vector::GP, code);
        }
        if !descriptor.is_present() {
            return self.raise(vector::NP, code);
        }
        let cpl = if descriptor.is_conforming() { self.cpl } else { descriptor.dpl() };
        if long {
            self.enter_long(event, gate, descriptor, cpl)
        } else {
            self.enter_legacy(event, gate, descriptor, cpl)
        }
    }

    /// Adds the EXT bit to the selector error that was just raised.
    fn mark_external(&mut self, external: u32) -> Step {
        if let Cause::Exception { vector, code: Some(code) } = self.cause
            && vector != vector::PF
        {
            self.cause = Cause::Exception { vector, code: Some(code | external) };
        }
        Err(Trap)
    }

    /// The gate of a vector, checked.
    fn gate(&mut self, event: Event) -> Step<Gate> {
        let long = self.is_long_mode_active();
        let size = if long { 16 } else { 8 };
        let offset = u64::from(event.vector) * size;
        let code = u32::from(event.vector) << 3 | 2 | u32::from(event.source == Source::Hardware);
        if offset + size - 1 > u64::from(self.idt.limit) {
            return self.raise(vector::GP, Some(code));
        }
        let at = self.idt.base.wrapping_add(offset);
        let low: u64 = self.load_system(if long { at } else { at & 0xFFFF_FFFF })?;
        let high: u64 = if long { self.load_system(at.wrapping_add(8))? } else { 0 };
        let kind = low >> 40 & 0x1F;
        let width = match kind {
            0xE | 0xF => {
                if long {
                    8
                } else {
                    4
                }
            }
            6 | 7 if !long => 2,
            _ => return self.raise(vector::GP, Some(code)),
        };
        if event.source == Source::Software && ((low >> 45 & 3) as u8) < self.cpl {
            return self.raise(vector::GP, Some(code));
        }
        if low >> 47 & 1 == 0 {
            return self.raise(vector::NP, Some(code));
        }
        let mut offset = low & 0xFFFF | low >> 32 & 0xFFFF_0000 | high << 32;
        if width == 2 {
            offset &= 0xFFFF;
        }
        let stack = if long { (low >> 32 & 7) as u8 } else { 0 };
        Ok(Gate { selector: (low >> 16) as u16, offset, stack, width, masks: kind & 1 == 0 })
    }

    fn enter_long(
        &mut self,
        event: Event,
        gate: Gate,
        descriptor: crate::segment::Descriptor,
        cpl: u8,
    ) -> Step {
        let inner = cpl < self.cpl;
        let top = if gate.stack != 0 {
            self.task_stack(0x24 + 8 * (u64::from(gate.stack) - 1))?
        } else if inner {
            self.task_stack(4 + 8 * u64::from(cpl))?
        } else {
            self.gpr[RSP]
        };
        let mut frame = [0; 6];
        let saved = [
            self.gpr[RIP_SLOT],
            u64::from(self.segments[CS].selector),
            event.flags,
            self.gpr[RSP],
            u64::from(self.segments[SS].selector),
        ];
        let used = match event.code {
            Some(code) => {
                frame[0] = u64::from(code);
                frame[1..].copy_from_slice(&saved);
                6
            }
            None => {
                frame[..5].copy_from_slice(&saved);
                5
            }
        };
        let bytes: [u8; 48] = std::array::from_fn(|n| frame[n / 8].to_le_bytes()[n % 8]);
        let sp = (top & !0xF).wrapping_sub(8 * used);
        self.store_as(cpl, FLAT_STACK, sp, &bytes[..8 * used as usize])?;
        let segment = self.accept(descriptor, gate.selector & !3 | u16::from(cpl))?;
        self.segments[CS] = segment;
        if inner {
            self.segments[SS] = null_stack(u16::from(cpl), cpl);
        }
        self.gpr[RSP] = sp;
        self.enter(gate, cpl);
        Ok(())
    }

    fn enter_legacy(
        &mut self,
        event: Event,
        gate: Gate,
        descriptor: crate::segment::Descriptor,
        cpl: u8,
    ) -> Step {
        let inner = cpl < self.cpl;
        let external = u32::from(event.source == Source::Hardware);
        let (stack, pointer) =
            if inner { self.legacy_task_stack(cpl, external)? } else { (self.segments[SS], self.gpr[RSP]) };
        let big = stack.attributes & Segment::BIG != 0;
        let mask = if big { 0xFFFF_FFFF } else { 0xFFFF };
        let mut frame = Vec::with_capacity(24);
        let mut save = |value: u64| frame.extend_from_slice(&value.to_le_bytes()[..gate.width as usize]);
        if let Some(code) = event.code {
            save(u64::from(code));
        }
        save(self.gpr[RIP_SLOT]);
        save(u64::from(self.segments[CS].selector));
        save(event.flags);
        if inner {
            save(self.gpr[RSP]);
            save(u64::from(self.segments[SS].selector));
        }
        let sp = pointer.wrapping_sub(frame.len() as u64) & mask;
        let last = sp.saturating_add(frame.len() as u64 - 1);
        let down = stack.attributes & 12 == 4;
        let outside =
            if down { sp <= u64::from(stack.limit) || last > mask } else { last > u64::from(stack.limit) };
        if outside {
            return self.raise(vector::SS, Some(external));
        }
        if gate.offset > u64::from(descriptor.segment(0).limit) {
            return self.raise(vector::GP, Some(external));
        }
        self.store_as(cpl, FLAT, stack.base.wrapping_add(sp) & 0xFFFF_FFFF, &frame)?;
        self.segments[CS] = self.accept(descriptor, gate.selector & !3 | u16::from(cpl))?;
        self.segments[SS] = stack;
        self.gpr[RSP] = if big { sp } else { self.gpr[RSP] & !mask | sp };
        self.enter(gate, cpl);
        Ok(())
    }

    /// The last steps of either: nothing fails any more.
    fn enter(&mut self, gate: Gate, cpl: u8) {
        self.cpl = cpl;
        self.gpr[RIP_SLOT] = gate.offset;
        self.flags.control &= !(bit::TF | bit::NT | bit::RF | bit::VM);
        if gate.masks {
            self.flags.control &= !bit::IF;
        }
        self.shadow = false;
        self.mode_changed();
    }

    /// Stores a frame with the rights of the new level.
    fn store_as(&mut self, cpl: u8, seg: u8, at: u64, bytes: &[u8]) -> Step {
        let half = self.tlb.enter_level(cpl == 3);
        // Without compatibility mode's truncation, whatever is interrupted.
        let active = self.is_long_mode_active();
        let long = std::mem::replace(&mut self.long, active);
        let mut done = self.check_linear(seg, at, bytes.len(), 1);
        if done.is_ok() {
            done = self.store_pieces(at, bytes, StoreKind::Cached);
        }
        self.long = long;
        self.tlb.leave_supervisor(half);
        done
    }

    /// A stack pointer of the 64-bit task state.
    fn task_stack(&mut self, offset: u64) -> Step<u64> {
        if offset + 7 > u64::from(self.tr.limit) {
            return self.raise(vector::TS, error_code(self.tr.selector));
        }
        self.load_system(self.tr.base.wrapping_add(offset))
    }

    /// The stack of an inner level, from the 32-bit or 16-bit task state.
    fn legacy_task_stack(&mut self, cpl: u8, external: u32) -> Step<(Segment, u64)> {
        let wide = self.tr.attributes & 8 != 0;
        let offset = if wide { 4 + 8 * u64::from(cpl) } else { 2 + 4 * u64::from(cpl) };
        if offset + if wide { 5 } else { 3 } > u64::from(self.tr.limit) {
            return self.raise(vector::TS, error_code(self.tr.selector).map(|code| code | external));
        }
        let at = self.tr.base.wrapping_add(offset) & 0xFFFF_FFFF;
        let (pointer, selector) = if wide {
            (u64::from(self.load_system::<u32>(at)?), self.load_system::<u16>(at + 4)?)
        } else {
            (u64::from(self.load_system::<u16>(at)?), self.load_system::<u16>(at + 2)?)
        };
        let code = error_code(selector).map(|code| code | external);
        if is_null(selector) {
            return self.raise(vector::TS, code);
        }
        let descriptor = self.descriptor(selector, vector::TS)?;
        if rpl(selector) != cpl || descriptor.dpl() != cpl || !descriptor.is_writable_data() {
            return self.raise(vector::TS, code);
        }
        if !descriptor.is_present() {
            return self.raise(vector::SS, code);
        }
        Ok((self.accept(descriptor, selector)?, pointer))
    }

    /// Real mode: the interrupt vector table.
    fn deliver_real(&mut self, event: Event) -> Step {
        let offset = u64::from(event.vector) * 4;
        if offset + 3 > u64::from(self.idt.limit) {
            return self.raise(vector::GP, Some(0));
        }
        let target: u32 = self.load_system(self.idt.base.wrapping_add(offset) & 0xFFFF_FFFF)?;
        let sp = self.gpr[RSP].wrapping_sub(6) & 0xFFFF;
        let words =
            [self.gpr[RIP_SLOT] as u16, self.segments[CS].selector, event.flags as u16].map(u16::to_le_bytes);
        self.store_bytes(SS as u8, sp, words.as_flattened(), StoreKind::Cached)?;
        self.gpr[RSP] = self.gpr[RSP] & !0xFFFF | sp;
        self.segments[CS] = self.real_segment(CS, (target >> 16) as u16);
        self.gpr[RIP_SLOT] = u64::from(target & 0xFFFF);
        self.flags.control &= !(bit::IF | bit::TF | bit::AC | bit::RF);
        self.shadow = false;
        self.mode_changed();
        Ok(())
    }
}

/// Two exceptions, the second in the delivery of the first, make a double fault (SDM vol. 3, table 6-5).
fn doubles(first: u8, second: u8) -> bool {
    let contributory = |v: u8| matches!(v, vector::DE | vector::TS | vector::NP | vector::SS | vector::GP);
    contributory(first) && contributory(second)
        || first == vector::PF && (contributory(second) || second == vector::PF)
}
