//! Exact memory events by single-stepping (Linux Documentation/virt/kvm/api.rst, KVM_SET_GUEST_DEBUG).
//!
//! While anything is watched, a vCPU executes one instruction a KVM_RUN. What the instruction will touch is told before it
//! runs, and read after. The single-step flag is in the guest's RFLAGS, so whatever saves, loads or masks RFLAGS is dealt with:
//!
//! - Interrupts are kept away (KVM_GUESTDBG_BLOCKIRQ). When there may be one, KVM is made to accept it, and it is
//!   delivered in software; page faults are foreseen and delivered so too, as are INT n and UD. SYSCALL, SYSRET and STI
//!   are executed in software. PUSHF's image is mended.
//! - Repeated string instructions trap after each element; away from what is watched they are executed in software.
//! - HLT waits here, looking for an interrupt. PAUSE is nothing: KVM or the processor may take it for a reason to leave the
//!   guest, and the trap would come after the next instruction.
//! - The time-stamp counter and the timer that waits for it are of a time of the guest's own: see [`time`].
//! - The trap of MOV SS comes one instruction late, so the next one is told along with it.
//! - The flag is set anew for each instruction: IRET and POPF load it away, and KVM forgets it where it emulates.
//!
//! An exception that was not foreseen (say #GP of a WRMSR) runs its handler unseen: it is counted and reported.
//! Guests that single-step themselves, or set debug registers, do not see their own traps meanwhile.

mod deliver;
mod effects;
mod events;
mod instruction;
mod place;
mod strings;
mod time;
mod walk;
mod xsave;

use std::time::Duration;

use engine::event::{Event, EventKind, FenceKind, StoreKind};
use engine::{GuestMemory, Result, VcpuId};
use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, Register};
use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_MP_STATE_HALTED,
    KVM_MP_STATE_RUNNABLE, kvm_guest_debug, kvm_mp_state, kvm_regs, kvm_sregs,
};
use kvm_ioctls::{SyncReg, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use crate::refused;
use deliver::{Delivery, Registers};
use effects::{Access, Touch};
pub(crate) use events::{Events, Taken, Watch};
use walk::{Paging, Want};

const IF: u64 = 1 << 9;
const TF: u64 = 1 << 8;
const ZF: u64 = 1 << 6;
const MSR_STAR: u32 = 0xC000_0081;
const MSR_LSTAR: u32 = 0xC000_0082;
const MSR_SFMASK: u32 = 0xC000_0084;
const PAGE: u64 = 4096;

/// An interrupt is looked for when something may have caused one, and, in instructions, this often besides: of a timer that does not
/// wait for the time-stamp counter only KVM knows. It fires by the host's time, so it is always due, and its handler takes
/// thousands of instructions: this way it is a small part of what is executed.
const BETWEEN_LOOKS: u32 = 1 << 15;
/// A vCPU that is halted looks whenever it has napped so often.
const NAPS: u32 = 16;
/// So many looks find what a timer sends: KVM makes an interrupt of it at the end of the first.
const LOOKS_FOR_TIMER: u8 = 2;
/// What KVM shows of a vCPU at the end of a KVM_RUN, without being asked.
const SHOWN: [SyncReg; 2] = [SyncReg::Register, SyncReg::SystemRegister];
/// A halted vCPU looks for an interrupt this often.
pub(crate) const NAP: Duration = Duration::from_micros(200);

/// Bytes in a watched range that an instruction is about to touch.
#[derive(Debug, Clone, Copy)]
struct Piece {
    addr: u64,
    len: u64,
    touch: Touch,
}

/// An instruction that KVM has begun.
#[derive(Debug, Clone)]
struct Begun {
    rip: u64,
    instruction: Instruction,
    pieces: Vec<Piece>,
    /// The number of its place; 0 where that is not known.
    place: u32,
    /// It may send an interrupt, or have one accepted that waits.
    calls: bool,
    /// The instruction behind a MOV SS.
    behind: Option<Box<Begun>>,
}

/// What comes of looking at the next instruction.
enum Next {
    /// It is KVM's to execute.
    Run(Begun),
    /// It was executed in software.
    Executed,
    /// A part of it was.
    Partly,
    /// It raised an exception, whose handler was entered in software.
    Raised,
}

/// A vCPU that is being stepped.
pub(crate) struct Stepper {
    id: VcpuId,
    memory: GuestMemory,
    regs: kvm_regs,
    sregs: kvm_sregs,
    info: InstructionInfoFactory,
    accesses: Vec<Access>,
    begun: Option<Begun>,
    /// It has executed HLT.
    pub(crate) halted: bool,
    /// Interrupts wait for one more instruction.
    shadow: bool,
    /// So many looks are worth while: something may have interrupted it.
    looks: u8,
    /// One of them now, even if the guest accepts no interrupts: it may be an NMI.
    urgent: bool,
    /// Messages to local APICs so far.
    messages: u64,
    /// Instructions since it last looked.
    since_look: u32,
    /// The time-stamp counter at the next instruction.
    tsc: Option<u64>,
    /// The instructions that all had executed when it last had nothing to do.
    idle: Option<u64>,
    /// KVM_RUNs of one instruction, and interrupts that came between.
    steps: u64,
    interrupts: u64,
    log: Vec<Event>,
    /// The instruction pointer whose place was asked for.
    asked: Option<u64>,
    /// It has flushed or posted something that no fence has followed, or may have before it was watched.
    unfenced: bool,
    /// Exceptions whose handlers ran unseen.
    unseen: u64,
}

impl std::fmt::Debug for Stepper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stepper")
            .field("rip", &self.regs.rip)
            .field("halted", &self.halted)
            .finish_non_exhaustive()
    }
}

impl Stepper {
    /// Begins to step a vCPU that runs or is halted; `None` where it waits to be started.
    pub(crate) fn begin(fd: &mut VcpuFd, id: VcpuId, memory: &GuestMemory) -> Result<Option<Self>> {
        let state = fd.get_mp_state().map_err(refused("KVM_GET_MP_STATE"))?.mp_state;
        let halted = state == KVM_MP_STATE_HALTED;
        if !halted && state != KVM_MP_STATE_RUNNABLE {
            return Ok(None);
        }
        if halted {
            let running = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
            fd.set_mp_state(running).map_err(refused("KVM_SET_MP_STATE"))?;
        }
        let mut stepper = Self::new(id, memory, halted);
        stepper.regs = fd.get_regs().map_err(refused("KVM_GET_REGS"))?;
        stepper.sregs = fd.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
        stepper.sregs.interrupt_bitmap = [0; 4];
        SHOWN.into_iter().for_each(|registers| fd.set_sync_valid_reg(registers));
        if let Some(delivery) = take_injected(fd)? {
            stepper.enter_or_inject(fd, delivery)?;
        }
        Ok(Some(stepper))
    }

    fn new(id: VcpuId, memory: &GuestMemory, halted: bool) -> Self {
        Self {
            id,
            memory: memory.clone(),
            regs: kvm_regs::default(),
            sregs: kvm_sregs::default(),
            info: InstructionInfoFactory::new(),
            accesses: Vec::new(),
            begun: None,
            halted,
            shadow: false,
            looks: LOOKS_FOR_TIMER,
            urgent: true,
            messages: 0,
            since_look: 0,
            tsc: None,
            idle: None,
            steps: 0,
            interrupts: 0,
            log: Vec::new(),
            asked: None,
            unfenced: true,
            unseen: 0,
        }
    }

    /// Lets the vCPU run as before.
    pub(crate) fn end(self, fd: &mut VcpuFd) -> Result<()> {
        SHOWN.into_iter().for_each(|registers| fd.clear_sync_valid_reg(registers));
        fd.set_guest_debug(&kvm_guest_debug::default()).map_err(refused("KVM_SET_GUEST_DEBUG"))?;
        if self.halted {
            let halted = kvm_mp_state { mp_state: KVM_MP_STATE_HALTED };
            fd.set_mp_state(halted).map_err(refused("KVM_SET_MP_STATE"))?;
        }
        tracing::debug!(self.steps, self.interrupts, "no longer stepped");
        if self.unseen > 0 {
            tracing::warn!(
                "{} exceptions within the window were not foreseen: what their handlers did was not seen",
                self.unseen
            );
        }
        Ok(())
    }

    /// Reads the time, and has the timer fire if it is due.
    pub(crate) fn tell_time(&mut self, fd: &VcpuFd, events: &Events, khz: u32) -> Result<()> {
        let mut time = events.time();
        self.tsc = time.tsc(events.number(), khz);
        if self.tsc.is_some_and(|tsc| time.fires(self.id, tsc)) {
            // To KVM any deadline but 0 has passed.
            crate::state::set_deadline(fd, 1)?;
            self.looks = LOOKS_FOR_TIMER;
        }
        Ok(())
    }

    /// Is an interrupt to be looked for before the next instruction?
    pub(crate) fn looks_for_interrupt(&mut self, events: &Events) -> bool {
        let messages = events.messages();
        if std::mem::replace(&mut self.messages, messages) != messages {
            self.looks = self.looks.max(1);
            self.urgent = true;
        }
        let is_worth_it = self.looks > 0 || self.since_look >= BETWEEN_LOOKS;
        !self.shadow && (self.urgent || (self.accepts() && is_worth_it))
    }

    /// Does the guest accept interrupts?
    fn accepts(&self) -> bool {
        self.halted || self.regs.rflags & IF != 0
    }

    /// Opens the vCPU to interrupts, so that a KVM_RUN that is broken off at once accepts one.
    pub(crate) fn open(&self, fd: &VcpuFd) -> Result<()> {
        debug(fd, KVM_GUESTDBG_ENABLE)
    }

    /// Delivers what KVM has accepted.
    pub(crate) fn accept(&mut self, fd: &VcpuFd) -> Result<()> {
        if self.accepts() {
            self.looks = self.looks.saturating_sub(1);
        }
        (self.urgent, self.since_look) = (false, 0);
        if let Some(delivery) = take_injected(fd)? {
            // Another one may wait for this one's end.
            self.looks = self.looks.max(1);
            self.interrupts += 1;
            self.halted = false;
            self.enter_or_inject(fd, delivery)?;
        }
        Ok(())
    }

    /// It is halted and has no interrupt. If nobody else has done anything since it last found that, time leaps.
    pub(crate) fn wait(&mut self, events: &Events, khz: u32) {
        let number = events.number();
        if self.idle.replace(number) == Some(number) {
            events.time().leap(number, khz);
        }
        self.since_look = self.since_look.saturating_add(BETWEEN_LOOKS / NAPS);
    }

    /// Looks at the next instruction. `true`: KVM is to execute it; `false`: that is done.
    pub(crate) fn prepare(&mut self, fd: &VcpuFd, watch: &Watch, events: &Events) -> Result<bool> {
        self.shadow = false;
        self.since_look = self.since_look.saturating_add(1);
        match self.look(fd, self.regs.rip, watch, events)? {
            Next::Executed => {
                events.count();
                Ok(false)
            }
            Next::Partly | Next::Raised => Ok(false),
            Next::Run(mut begun) => {
                let i = &begun.instruction;
                if i.mnemonic() == Mnemonic::Mov && i.op0_register() == Register::SS {
                    self.shadow = true;
                    if let Next::Run(next) = self.look(fd, i.next_ip(), watch, events)? {
                        begun.behind = Some(Box::new(next));
                    }
                }
                self.begun = Some(begun);
                self.steps += 1;
                if self.steps.is_multiple_of(1 << 13) {
                    let (rip, steps, interrupts) = (self.regs.rip, self.steps, self.interrupts);
                    tracing::debug!("stepping: {steps} steps, {interrupts} interrupts, at {rip:#x}");
                }
                debug(fd, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ)?;
                Ok(true)
            }
        }
    }

    /// The instruction that was begun has not been executed.
    pub(crate) fn abandon(&mut self) {
        self.begun = None;
    }

    /// The instruction that was begun is over: tells what it did; `who` is the vCPU and guest time.
    pub(crate) fn complete(&mut self, fd: &VcpuFd, who: (VcpuId, u64), events: &Events) -> Result<()> {
        let Some(begun) = self.begun.take() else { return Ok(()) };
        self.read(fd);
        if begun.calls || effects::touches_apic(&begun.instruction) {
            events.message();
        }
        self.tell(&begun, who, events);
        let mut last = &begun;
        if let Some(behind) = &begun.behind
            && self.regs.rip != begun.instruction.next_ip()
        {
            self.shadow = false;
            self.tell(behind, who, events);
            last = behind;
        }
        if !instruction::leads_to(&last.instruction, self.regs.rip) {
            self.unseen += 1;
            tracing::warn!(
                "an exception of the instruction at {:#x} ({}) was not foreseen; the guest is at {:#x}",
                last.rip,
                last.instruction,
                self.regs.rip
            );
        }
        events.append(&mut self.log);
        Ok(())
    }

    fn tell(&mut self, begun: &Begun, (vcpu, time): (VcpuId, u64), events: &Events) {
        let i = &begun.instruction;
        if matches!(i.mnemonic(), Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq) {
            self.mend_pushed_flags();
        }
        let failed = effects::is_exchange(i) && self.regs.rflags & ZF == 0;
        let over = self.regs.rip != begun.rip;
        let number = if over { events.count() } else { events.number() };
        let (rip, place) = (begun.rip, begun.place);
        let (unfenced, told) = (&mut self.unfenced, &mut self.log);
        let mut log = |kind| {
            if concerns(&kind, unfenced) {
                told.push(Event { vcpu, rip, instruction: number, time, place, kind });
            }
        };
        for piece in &begun.pieces {
            let Piece { addr, len, touch } = *piece;
            match touch {
                Touch::Load => log(EventKind::Load { addr, len: len as u8 }),
                Touch::Flush(kind) => log(EventKind::Flush { line: addr & !63, kind }),
                Touch::Store(_) if failed => {}
                Touch::Store(kind) => {
                    let mut data = [0; 64];
                    let _ = self.memory.read_slice(&mut data[..len as usize], GuestAddress(addr));
                    log(EventKind::Store { addr, data, len: len as u8, kind });
                }
            }
        }
        match effects::fence_kind(i) {
            Some(FenceKind::Locked) if failed => log(EventKind::Fence { kind: FenceKind::LockedFailed }),
            Some(kind) => log(EventKind::Fence { kind }),
            None => {}
        }
    }

    /// The single-step flag was ours.
    fn mend_pushed_flags(&self) {
        let paging = Paging::of(&self.memory, &self.regs, &self.sregs);
        if let Ok(at) = paging.translate(self.regs.rsp.wrapping_add(1), Want::Write)
            && let Ok(byte) = self.memory.read_obj::<u8>(GuestAddress(at))
        {
            let _ = self.memory.write_obj(byte & !((TF >> 8) as u8), GuestAddress(at));
        }
    }

    /// Registers as KVM showed them when KVM_RUN ended.
    fn read(&mut self, fd: &VcpuFd) {
        let shown = fd.sync_regs();
        (self.regs, self.sregs) = (shown.regs, shown.sregs);
        self.sregs.interrupt_bitmap = [0; 4];
    }

    /// Gives KVM the general registers, which software has changed.
    fn write_general(&self, fd: &VcpuFd) -> Result<()> {
        fd.set_regs(&self.regs).map_err(refused("KVM_SET_REGS"))
    }

    /// Gives KVM all registers.
    fn write(&self, fd: &VcpuFd) -> Result<()> {
        self.write_general(fd)?;
        crate::state::set_system(fd, &self.sregs).map_err(refused("KVM_SET_SREGS"))
    }

    /// Enters a handler in software; `false`, and nothing has changed, where that is no plain case.
    fn enter(&mut self, fd: &VcpuFd, delivery: Delivery) -> Result<bool> {
        let mut registers = Registers { memory: &self.memory, regs: &mut self.regs, sregs: &mut self.sregs };
        let entered = registers.deliver(delivery).is_some();
        if entered {
            self.write(fd)?;
        }
        Ok(entered)
    }

    /// Enters a handler in software, or has KVM do it, so that it runs unseen.
    fn enter_or_inject(&mut self, fd: &VcpuFd, delivery: Delivery) -> Result<()> {
        if self.enter(fd, delivery)? {
            return Ok(());
        }
        self.unseen += 1;
        tracing::warn!(
            "{delivery:?} at {:#x} is delivered by KVM: what its handler does is not seen",
            self.regs.rip
        );
        inject(fd, delivery)
    }
}

/// Is it an event? A fence is if it is one for its own sake, or has something to order.
fn concerns(kind: &EventKind, unfenced: &mut bool) -> bool {
    match kind {
        EventKind::Flush { .. } | EventKind::Store { kind: StoreKind::NonTemporal, .. } => *unfenced = true,
        EventKind::Fence { kind: FenceKind::Locked } if !*unfenced => return false,
        // Whether these are fences is for the medium to say: they close nothing.
        EventKind::Fence { kind: FenceKind::LockedFailed | FenceKind::Serialising } => return *unfenced,
        EventKind::Fence { .. } => *unfenced = false,
        EventKind::Store { .. } | EventKind::Load { .. } => {}
    }
    true
}

fn debug(fd: &VcpuFd, control: u32) -> Result<()> {
    fd.set_guest_debug(&kvm_guest_debug { control, ..Default::default() })
        .map_err(refused("KVM_SET_GUEST_DEBUG"))
}

/// Takes away what KVM would deliver at the next entry.
fn take_injected(fd: &VcpuFd) -> Result<Option<Delivery>> {
    let mut events = fd.get_vcpu_events().map_err(refused("KVM_GET_VCPU_EVENTS"))?;
    let external = |vector| Delivery { vector, error_code: None, fault: false, software: false };
    let delivery = if events.exception.injected != 0 || events.exception.pending != 0 {
        let error_code = (events.exception.has_error_code != 0).then_some(events.exception.error_code);
        let vector = events.exception.nr;
        (events.exception.injected, events.exception.pending) = (0, 0);
        Delivery { vector, error_code, fault: !matches!(vector, 1 | 3 | 4), software: false }
    } else if events.interrupt.injected != 0 {
        events.interrupt.injected = 0;
        external(events.interrupt.nr)
    } else if events.nmi.injected != 0 {
        events.nmi.injected = 0;
        events.nmi.masked = 1;
        external(2)
    } else {
        return Ok(None);
    };
    fd.set_vcpu_events(&events).map_err(refused("KVM_SET_VCPU_EVENTS"))?;
    Ok(Some(delivery))
}

/// Lets KVM deliver at the next entry.
fn inject(fd: &VcpuFd, delivery: Delivery) -> Result<()> {
    let mut events = fd.get_vcpu_events().map_err(refused("KVM_GET_VCPU_EVENTS"))?;
    if delivery.vector >= 32 {
        (events.interrupt.injected, events.interrupt.nr) = (1, delivery.vector);
    } else if delivery.vector == 2 {
        events.nmi.injected = 1;
    } else {
        (events.exception.injected, events.exception.nr) = (1, delivery.vector);
        events.exception.has_error_code = delivery.error_code.is_some().into();
        events.exception.error_code = delivery.error_code.unwrap_or(0);
    }
    fd.set_vcpu_events(&events).map_err(refused("KVM_SET_VCPU_EVENTS"))
}

#[cfg(test)]
mod tests {
    use super::walk::tests::memory;
    use super::*;

    #[test]
    fn an_interrupt_is_looked_for_when_there_may_be_one() {
        let events = Events::default();
        let mut stepper = Stepper::new(0, &memory(), false);
        assert!(stepper.looks_for_interrupt(&events), "nobody knows what was before");
        (stepper.looks, stepper.urgent) = (0, false);
        stepper.regs.rflags = IF;
        assert!(!stepper.looks_for_interrupt(&events));
        events.message();
        stepper.regs.rflags = 0;
        assert!(stepper.looks_for_interrupt(&events), "it may be an NMI");
        stepper.urgent = false;
        assert!(!stepper.looks_for_interrupt(&events), "it is none, and not accepted");
        stepper.regs.rflags = IF;
        assert!(stepper.looks_for_interrupt(&events), "the message is not forgotten");
        stepper.shadow = true;
        assert!(!stepper.looks_for_interrupt(&events), "behind STI");
        (stepper.shadow, stepper.looks, stepper.since_look) = (false, 0, BETWEEN_LOOKS);
        assert!(stepper.looks_for_interrupt(&events), "there are timers that tell nobody");
    }

    #[test]
    fn a_halted_vcpu_looks_now_and_then() {
        let events = Events::default();
        let mut stepper = Stepper::new(0, &memory(), true);
        (stepper.looks, stepper.urgent) = (0, false);
        let naps = (0..100).take_while(|_| {
            let sleeps = !stepper.looks_for_interrupt(&events);
            stepper.wait(&events, 1_000_000);
            sleeps
        });
        assert_eq!(naps.count() as u32, NAPS);
    }

    #[test]
    fn time_leaps_to_the_first_of_all_deadlines_when_nobody_does_anything() {
        let events = Events::default();
        let mut steppers = [0, 1].map(|id| Stepper::new(id, &memory(), true));
        events.time().begin(1000, 0, 0);
        events.time().arm(0, 9000);
        events.time().arm(1, 5000);
        let mut wait = |id: usize| {
            steppers[id].wait(&events, 1_000_000);
            events.time().tsc(events.number(), 1_000_000)
        };
        assert_eq!(wait(0), Some(1000));
        events.count();
        assert_eq!(wait(0), Some(1001), "the other vCPU has done something");
        assert_eq!(wait(0), Some(5000));
        assert_eq!(wait(0), Some(5000), "before it has found its timer");
    }
}
