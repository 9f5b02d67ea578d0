//! Turns of the vCPUs on their one host thread, and the messages between their local APICs.
//!
//! A vCPU runs until its quantum of instructions ends, it pauses or it halts; then the next one in order that can run has
//! its turn. Everything that decides is guest state and instruction counts, so the order is the same every time.

use engine::VcpuId;
use engine::state::{Activity, Segment, SystemRegisters, Turn};

use crate::cpu::{Cpu, control};
use crate::flags::bit;
use crate::insn::RIP;
use crate::lapic::{Delivery, Message};
use crate::shared::Shared;

/// Instructions of a turn, where there are several vCPUs.
pub(crate) const QUANTUM: u64 = 20_000;

impl Cpu {
    /// Hands a message that the local APIC has made to the scheduler, and has interrupts looked at again.
    pub(crate) fn send(&mut self, message: Option<Message>) {
        self.attention = true;
        if let Some(message) = message {
            self.shared.outbox.push((self.id, message));
        }
    }

    /// An interrupt message arrives. It may wake this vCPU.
    fn receive(&mut self, message: Message) {
        match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => self.lapic.raise(message.vector, message.level),
            Delivery::Nmi => self.nmi_pending |= self.activity != Activity::WaitForSipi,
            Delivery::Init => self.init(),
            Delivery::Startup => self.start(message.vector),
        }
    }

    /// INIT (SDM vol. 3, table 10-1): as after power-up, but caches, FPU, MSRs, TSC and the local APIC's address stay.
    fn init(&mut self) {
        let reset = engine::CpuState::reset(self.id);
        let system = reset.system;
        self.gpr[..16].copy_from_slice(&reset.registers.gpr);
        self.gpr[usize::from(RIP)] = reset.registers.rip;
        self.flags.set(reset.registers.rflags);
        self.segments = system.segments;
        self.ldt = system.ldt;
        self.tr = system.tr;
        self.gdt = system.gdt;
        self.idt = system.idt;
        self.cr0 = self.cr0 & (control::CR0_CD | control::CR0_NW) | control::CR0_ET;
        self.cr2 = 0;
        self.cr3 = 0;
        self.cr4 = 0;
        self.efer = 0;
        self.cpl = 0;
        self.debug = reset.debug;
        self.injected = None;
        self.shadow = false;
        self.nmi_pending = false;
        self.nmi_blocked = false;
        self.replay = (Vec::new(), 0);
        self.lapic.init();
        // The bootstrap processor goes on from the reset vector.
        self.activity = reset.activity;
        self.mode_changed();
        self.flush_tlb();
    }

    /// SIPI: begins at a page below 1 MiB, if it waits for that.
    fn start(&mut self, page: u8) {
        if self.activity != Activity::WaitForSipi {
            return;
        }
        let code = &mut self.segments[SystemRegisters::CS];
        let attributes = code.attributes;
        let base = u64::from(page) << 12;
        *code = Segment { selector: u16::from(page) << 8, base, limit: 0xFFFF, attributes };
        self.gpr[usize::from(RIP)] = 0;
        self.activity = Activity::Running;
        self.mode_changed();
    }

    /// It is within an instruction that reads from the machine, or has told it only a part of what it wrote.
    pub(crate) fn is_unfinished(&self) -> bool {
        !self.replay.0.is_empty() || !self.posted.is_empty()
    }

    /// It would execute something if it had its turn.
    fn is_ready(&self) -> bool {
        match self.activity {
            Activity::Running => true,
            Activity::Halted => self.wakes(),
            Activity::WaitForSipi => false,
        }
    }

    /// An interrupt that ends a HLT is pending.
    fn wakes(&self) -> bool {
        let maskable = self.flags.control & bit::IF != 0 && self.lapic.pending().is_some();
        maskable || self.nmi_pending && !self.nmi_blocked
    }
}

/// The vCPUs of a partition, and whose turn it is.
#[derive(Debug)]
pub(crate) struct Turns {
    cpus: Vec<Cpu>,
    /// Who runs, and holds what they share.
    current: usize,
    /// Instructions that are left of the turn.
    left: u64,
}

impl Turns {
    /// Of the vCPUs in order, at least one; the first has what they share.
    pub(crate) fn new(cpus: Vec<Cpu>) -> Self {
        Self { cpus, current: 0, left: QUANTUM }
    }

    /// Whose turn it is.
    pub(crate) fn cpu(&mut self) -> &mut Cpu {
        &mut self.cpus[self.current]
    }

    pub(crate) fn shared(&mut self) -> &mut Shared {
        &mut self.cpus[self.current].shared
    }

    /// Whose turn it is and how long.
    pub(crate) fn turn(&self) -> Turn {
        Turn { vcpu: self.current as VcpuId, left: self.left }
    }

    /// Replaces that; none is the turn at power-up. In words what cannot be.
    pub(crate) fn set_turn(&mut self, turn: Option<Turn>) -> Result<(), String> {
        let Turn { vcpu, left } = turn.unwrap_or(Turn { vcpu: 0, left: QUANTUM });
        if usize::from(vcpu) >= self.cpus.len() || left > QUANTUM {
            return Err(format!("a turn of {left} instructions of vCPU {vcpu}"));
        }
        self.hand_over(usize::from(vcpu));
        self.left = left;
        Ok(())
    }

    /// Their numbers.
    pub(crate) fn ids(&self) -> Vec<VcpuId> {
        self.cpus.iter().map(|cpu| cpu.id).collect()
    }

    pub(crate) fn all(&mut self) -> &mut [Cpu] {
        &mut self.cpus
    }

    /// Runs a function on a vCPU, whosoever turn it is, with what they share.
    pub(crate) fn with<T>(&mut self, vcpu: VcpuId, f: impl FnOnce(&mut Cpu) -> T) -> Option<T> {
        let index = usize::from(vcpu);
        if index >= self.cpus.len() {
            return None;
        }
        let current = self.current;
        self.hand_over(index);
        let result = f(&mut self.cpus[index]);
        self.hand_over(current);
        Some(result)
    }

    /// The one whose turn it is would execute something.
    pub(crate) fn is_ready(&self) -> bool {
        self.cpus[self.current].is_ready()
    }

    /// Moves what they share.
    pub(crate) fn hand_over(&mut self, to: usize) {
        if to != self.current {
            let [from, to] = {
                let [a, b] = self
                    .cpus
                    .get_disjoint_mut([self.current, to])
                    .unwrap_or_else(|_| unreachable!("two different vCPUs of this partition"));
                [a, b]
            };
            std::mem::swap(&mut from.shared, &mut to.shared);
        }
        self.current = to;
    }

    /// Lets the time of all local APICs come up to now, and delivers what they and the guest have sent.
    pub(crate) fn settle(&mut self) {
        let ticks = {
            let cpu = self.cpu();
            cpu.tsc().wrapping_sub(cpu.tsc_offset)
        };
        for cpu in &mut self.cpus {
            cpu.lapic.settle(ticks.wrapping_add(cpu.tsc_offset));
        }
        if self.shared().outbox.is_empty() {
            return;
        }
        for (sender, message) in std::mem::take(&mut self.shared().outbox) {
            self.deliver(message, Some(sender));
        }
    }

    /// Delivers a message of a vCPU or (`None`) of a device.
    pub(crate) fn deliver(&mut self, message: Message, sender: Option<VcpuId>) {
        let targets = self.cpus.iter_mut().filter(|cpu| cpu.lapic.answers(message.target, sender));
        if message.delivery == Delivery::LowestPriority {
            if let Some(cpu) = targets.min_by_key(|cpu| cpu.lapic.processor_priority()) {
                cpu.receive(message);
            }
        } else {
            targets.for_each(|cpu| cpu.receive(message));
        }
    }

    /// Gives the turn to the next vCPU that can run, from the current one on if its turn is not over. `false`: none can.
    pub(crate) fn choose(&mut self) -> bool {
        if self.left > 0 && self.cpus[self.current].is_ready() {
            return true;
        }
        let count = self.cpus.len();
        let next = (1..=count).map(|n| (self.current + n) % count).find(|&n| self.cpus[n].is_ready());
        let Some(next) = next else { return false };
        self.hand_over(next);
        self.left = QUANTUM;
        true
    }

    /// Instructions that the one whose turn it is may execute before another has to be chosen.
    pub(crate) fn quantum(&self) -> u64 {
        if self.cpus.len() == 1 { u64::MAX } else { self.left }
    }

    /// It has executed so many.
    pub(crate) fn spend(&mut self, instructions: u64) {
        self.left = self.left.saturating_sub(instructions);
    }

    /// It has nothing better to do.
    pub(crate) fn end_turn(&mut self) {
        self.left = 0;
    }

    /// Guest time in nanoseconds of the first timer that will interrupt.
    pub(crate) fn next_timer(&mut self) -> Option<u64> {
        self.first_timer(|_| true)
    }

    /// While all sleep: guest time of the first timer that will wake its vCPU.
    pub(crate) fn next_awakening(&mut self) -> Option<u64> {
        self.first_timer(|cpu| cpu.activity == Activity::Halted && cpu.flags.control & bit::IF != 0)
    }

    fn first_timer(&mut self, of: impl Fn(&Cpu) -> bool) -> Option<u64> {
        let clock = self.shared().clock;
        let now = self.cpu().now();
        let ticks = clock.ticks(now);
        let expiry = |cpu: &Cpu| {
            let ahead = cpu.lapic.timer_expiry()?.saturating_sub(ticks.wrapping_add(cpu.tsc_offset));
            Some(if ahead == 0 { now } else { clock.when(ticks.saturating_add(ahead)) })
        };
        self.cpus.iter().filter(|cpu| of(cpu)).filter_map(expiry).min()
    }
}
