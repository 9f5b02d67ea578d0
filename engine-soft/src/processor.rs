//! The one seat of a partition: every vCPU of it, run in turns.

use std::sync::Arc;

use engine::debug::{self, Debugger, Points};
use engine::{
    CodeStock, CpuState, Entry, Error, Exit, ExitKind, PartitionState, Processor, Result, Seat, VcpuId,
};

use crate::cpu::Cpu;
use crate::lapic::Message;
use crate::partition::Common;
use crate::run::Stop;
use crate::schedule::Turns;
use crate::shared::LOG_CAPACITY;

/// Instructions between two looks for a kick: well under a millisecond.
const KICK_INTERVAL: u64 = 50_000;

/// All vCPUs of a partition.
#[derive(Debug)]
pub(crate) struct Bench {
    turns: Turns,
    common: Arc<Common>,
    /// What the last exit asks of the next entry.
    owed: Owed,
    /// Where its code stays when it goes.
    stock: Option<CodeStock>,
    /// The vCPU that a debugger lets do one instruction, and the instructions retired before it.
    step: Option<(VcpuId, u64)>,
}

/// What the next entry has to bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owed {
    Nothing,
    /// The answer of a read, by its width in bytes.
    Data(u8),
    /// The passing of time, up to a deadline.
    Time(Option<u64>),
}

impl Bench {
    pub(crate) fn new(cpus: Vec<Cpu>, common: Arc<Common>, stock: Option<CodeStock>) -> Self {
        Self { turns: Turns::new(cpus), common, owed: Owed::Nothing, stock, step: None }
    }

    /// What has come from outside since the last run.
    fn enter(&mut self, entry: Entry) {
        for range in self.common.written() {
            self.turns.shared().memory_changed(range);
        }
        if self.common.events.adopt(self.turns.shared()) {
            let shared = self.turns.shared();
            shared.blocks.set_watching(shared.watch.is_on());
            self.turns.all().iter_mut().for_each(Cpu::flush_tlb);
        }
        self.common.events.hand_on(self.turns.shared());
        match (std::mem::replace(&mut self.owed, Owed::Nothing), entry) {
            (Owed::Data(size), Entry::Data(data)) => self.turns.cpu().answer(data & low_bytes(size)),
            (Owed::Time(_), Entry::Elapsed(nanoseconds)) => self.skip(nanoseconds),
            (Owed::Time(Some(deadline)), _) => {
                let now = self.turns.cpu().now();
                self.skip(deadline.saturating_sub(now));
            }
            // A read that is not answered is asked again.
            _ => {}
        }
        self.collect();
    }

    /// Delivers what devices have sent.
    fn collect(&mut self) {
        for msi in self.common.messages() {
            if let Some(message) = Message::from_msi(msi) {
                self.turns.deliver(message, None);
            }
        }
    }

    fn skip(&mut self, nanoseconds: u64) {
        let clock = &mut self.turns.shared().clock;
        clock.skipped = clock.skipped.saturating_add(nanoseconds);
    }

    /// Turn after turn until the machine is needed.
    fn turns(&mut self) -> ExitKind {
        loop {
            self.turns.settle();
            self.tell();
            if self.turns.cpu().is_unfinished() {
                if let Some(exit) = self.turn(1) {
                    return exit;
                }
                continue;
            }
            if self.common.kicked() {
                return ExitKind::Kicked;
            }
            let retired = self.turns.shared().retired;
            if let Some((vcpu, begun)) = self.step {
                self.turns.hand_over(vcpu.into());
                if retired > begun || !self.turns.is_ready() {
                    self.step = None;
                    return ExitKind::Debug(debug::Stop::Step);
                }
                if let Some(exit) = self.turn(1) {
                    if matches!(exit, ExitKind::Debug(_)) {
                        self.step = None;
                    }
                    return exit;
                }
                continue;
            }
            let left = self.common.limit().saturating_sub(retired);
            if left == 0 {
                return ExitKind::InstructionLimit;
            }
            if self.turns.shared().log.len() >= LOG_CAPACITY {
                return ExitKind::EventsFull;
            }
            if !self.turns.choose() {
                return ExitKind::Idle { deadline: self.turns.next_awakening() };
            }
            let deadline = self.turns.next_timer();
            let now = self.turns.cpu().now();
            // One instruction is one nanosecond; a timer that is due has been settled.
            let timer = deadline.map_or(u64::MAX, |deadline| deadline.saturating_sub(now).max(1));
            let budget = KICK_INTERVAL.min(left).min(timer).min(self.turns.quantum());
            if let Some(exit) = self.turn(budget) {
                return exit;
            }
        }
    }

    /// Runs the vCPU whose turn it is.
    fn turn(&mut self, budget: u64) -> Option<ExitKind> {
        let cpu = self.turns.cpu();
        let (retired, skipped) = (cpu.shared.retired, cpu.shared.clock.skipped);
        if let Some((vector, code)) = cpu.injected.take() {
            let begun = if vector < 32 { cpu.fault(vector, code) } else { cpu.interrupt(vector) };
            if let Err(exit) = begun {
                return Some(exit);
            }
        }
        let stop = cpu.run(budget);
        let (done, paused) = (cpu.shared.retired - retired, cpu.shared.clock.skipped != skipped);
        self.turns.spend(done);
        if paused {
            self.turns.end_turn();
        }
        match stop {
            Stop::Budget | Stop::Attention => None,
            Stop::Exit(kind) => self.exit(kind),
        }
    }

    /// What the machine has to see of an exit. The local APIC's page is not its business.
    fn exit(&mut self, kind: ExitKind) -> Option<ExitKind> {
        let cpu = self.turns.cpu();
        let tsc = cpu.tsc();
        let page = cpu.lapic.page_address();
        match kind {
            ExitKind::MmioRead { addr, size } if page == Some(addr & !0xFFF) => {
                let data = cpu.lapic.read_page((addr & 0xFFF) as usize, usize::from(size), tsc);
                cpu.answer(data);
                return None;
            }
            ExitKind::MmioWrite { addr, size, value } if page == Some(addr & !0xFFF) => {
                let message = cpu.lapic.write_page((addr & 0xFFF) as usize, usize::from(size), value, tsc);
                cpu.send(message);
                return None;
            }
            ExitKind::IoRead { size, .. } | ExitKind::MmioRead { size, .. } => self.owed = Owed::Data(size),
            _ => {}
        }
        Some(kind)
    }

    fn tell(&mut self) {
        let now = self.turns.cpu().now();
        let retired = self.turns.shared().retired;
        self.common.tell(now, retired);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let Some(stock) = self.stock.take().filter(|_| !std::thread::panicking()) else { return };
        let written = self.common.written();
        let model = self.turns.cpu().model;
        let shared = self.turns.shared();
        written.into_iter().for_each(|range| shared.memory_changed(range));
        std::mem::take(&mut shared.blocks).leave_to(&stock, &shared.ram, model);
    }
}

/// Mask of so many bytes.
fn low_bytes(size: u8) -> u64 {
    if size >= 8 { !0 } else { (1 << (u32::from(size) * 8)) - 1 }
}

impl Seat for Bench {
    fn vcpus(&self) -> Vec<VcpuId> {
        self.turns.ids()
    }

    fn bind(self: Box<Self>) -> Result<Box<dyn Processor>> {
        Ok(self)
    }
}

impl Processor for Bench {
    fn run(&mut self, entry: Entry) -> Result<Exit> {
        self.enter(entry);
        let kind = if self.common.events.is_full() { ExitKind::EventsFull } else { self.turns() };
        if let ExitKind::Idle { deadline } = kind {
            self.owed = Owed::Time(deadline);
        }
        self.tell();
        self.common.events.publish(self.turns.shared());
        Ok(Exit { vcpu: self.turns.cpu().id, kind })
    }

    fn save(&mut self, vcpu: VcpuId) -> Result<CpuState> {
        self.collect();
        self.turns.with(vcpu, Cpu::save).ok_or(Error::NoSuchVcpu(vcpu))
    }

    fn restore(&mut self, vcpu: VcpuId, state: &CpuState) -> Result<()> {
        self.collect();
        self.owed = Owed::Nothing;
        let restored = self.turns.with(vcpu, |cpu| {
            // Memory may have been replaced along with the state.
            cpu.shared.blocks.clear();
            cpu.restore(state)
        });
        restored.ok_or(Error::NoSuchVcpu(vcpu))?.map_err(Error::BadState)
    }

    fn save_partition(&mut self) -> Result<PartitionState> {
        let instructions = self.turns.shared().retired;
        let guest_time = self.turns.shared().clock.now(instructions);
        Ok(PartitionState { guest_time, instructions: Some(instructions), turn: Some(self.turns.turn()) })
    }

    fn restore_partition(&mut self, state: &PartitionState) -> Result<()> {
        let retired = state.instructions.unwrap_or(0);
        let skipped = state.guest_time.checked_sub(retired).ok_or_else(|| {
            Error::BadState(format!("{retired} instructions in {} ns; each takes one", state.guest_time))
        })?;
        self.turns.set_turn(state.turn).map_err(Error::BadState)?;
        self.owed = Owed::Nothing;
        self.turns.shared().retired = retired;
        self.turns.shared().clock.skipped = skipped;
        self.tell();
        Ok(())
    }

    fn debugger(&mut self) -> Option<&mut dyn Debugger> {
        Some(self)
    }
}

impl Debugger for Bench {
    fn set_points(&mut self, points: &Points) {
        let points = Arc::new(points.clone());
        self.turns.shared().blocks.clear();
        self.turns.all().iter_mut().for_each(|cpu| cpu.set_points(&points));
    }

    fn step(&mut self, vcpu: VcpuId) -> Result<()> {
        if !self.turns.ids().contains(&vcpu) {
            return Err(Error::NoSuchVcpu(vcpu));
        }
        self.step = Some((vcpu, self.turns.shared().retired));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
