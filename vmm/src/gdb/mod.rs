//! gdb's remote protocol: a debugger of the whole machine, with its vCPUs as threads.
//!
//! The guest stands still from its first instruction until gdb lets it run, and at each stop after that. A single step moves
//! one vCPU and nothing else. Only engines with a [`engine::debug::Debugger`] can be debugged.

mod guest;

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use engine::debug::{Points, Stop};
use engine::{GuestMemory, Partition, Processor, VcpuId};
use gdbstub::common::Signal;
use gdbstub::conn::ConnectionExt;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{GdbStub, MultiThreadStopReason};
use gdbstub::target::ext::breakpoints::WatchKind;

use crate::remote::Remote;
use crate::{Error, Result};
use guest::{Guest, tid};

/// Between two looks for a connection.
const POLL: Duration = Duration::from_millis(20);

/// Where the protocol is.
type Talk = GdbStubStateMachine<'static, Guest, TcpStream>;

/// The connection with gdb.
pub struct Gdb {
    guest: Guest,
    state: Option<Talk>,
    /// gdb says something while the guest runs.
    called: Arc<AtomicBool>,
    /// Asks the listening thread to listen for that.
    listen: Sender<()>,
}

impl std::fmt::Debug for Gdb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gdb").field("guest", &self.guest).finish_non_exhaustive()
    }
}

impl Gdb {
    /// Waits until gdb connects, or the machine is stopped.
    ///
    /// # Errors
    /// The host's refusal; the machine was stopped.
    pub fn accept(listener: &TcpListener, memory: GuestMemory, remote: &Remote) -> Result<Self> {
        let failed = |source| Error::Gdb { source };
        listener.set_nonblocking(true).map_err(failed)?;
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock && !remote.is_stopped() => {
                    std::thread::sleep(POLL);
                }
                Err(source) => return Err(failed(source)),
            }
        };
        stream.set_nonblocking(false).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let called = Arc::new(AtomicBool::new(false));
        let (listen, asked) = channel();
        let (ear, flag, remote) = (stream.try_clone().map_err(failed)?, Arc::clone(&called), remote.clone());
        let hear = move || {
            for () in asked {
                // Whatever comes, an end of the connection too, is the session's business.
                let _ = ear.peek(&mut [0]);
                flag.store(true, Ordering::Release);
                remote.wake();
            }
        };
        std::thread::Builder::new().name("gdb".to_owned()).spawn(hear).map_err(failed)?;
        let mut guest = Guest::new(memory);
        let state = GdbStub::new(stream).run_state_machine(&mut guest).map_err(broken)?;
        Ok(Self { guest, state: Some(state), called, listen })
    }

    /// gdb has said something since the guest runs.
    pub(crate) fn is_called(&self) -> bool {
        self.called.load(Ordering::Acquire)
    }

    /// Before a partition's first instruction.
    pub(crate) fn attach(
        &mut self,
        processor: &mut dyn Processor,
        partition: &dyn Partition,
        vcpus: &[VcpuId],
    ) -> Result<()> {
        if matches!(self.state, Some(GdbStubStateMachine::Running(_))) {
            let points = self.guest.points.clone();
            return set_points(processor, &points);
        }
        self.stopped(processor, partition, vcpus, 0, None)
    }

    /// The guest stands still; gives back when it is to run again. `stop` is missing where gdb itself wants it.
    pub(crate) fn stopped(
        &mut self,
        processor: &mut dyn Processor,
        partition: &dyn Partition,
        vcpus: &[VcpuId],
        vcpu: VcpuId,
        stop: Option<Stop>,
    ) -> Result<()> {
        let Some(state) = self.state.take() else { return Ok(()) };
        self.guest.vcpus = vcpus.iter().map(|vcpu| processor.save(*vcpu)).collect::<engine::Result<_>>()?;
        // What made the listening thread call is read here.
        let called = self.called.swap(false, Ordering::AcqRel);
        self.state = converse(state, &mut self.guest, vcpu, stop, called).unwrap_or_else(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "gdb is gone; the guest runs on");
            None
        });
        self.apply(processor, partition)
    }

    /// Carries out what gdb has asked for.
    fn apply(&mut self, processor: &mut dyn Processor, partition: &dyn Partition) -> Result<()> {
        if self.state.is_none() {
            // Nobody is there who could be told.
            self.guest.points = Points::default();
            self.guest.step = None;
        }
        for range in self.guest.written.drain(..) {
            partition.memory_written(range);
        }
        for vcpu in self.guest.changed.drain(..) {
            if let Some(state) = self.guest.vcpus.get(usize::from(vcpu)) {
                processor.restore(vcpu, state)?;
            }
        }
        set_points(processor, &self.guest.points)?;
        if let (Some(vcpu), Some(debugger)) = (self.guest.step.take(), processor.debugger()) {
            debugger.step(vcpu)?;
        }
        if self.state.is_some() {
            // The thread lives as long as this does.
            let _ = self.listen.send(());
        }
        Ok(())
    }
}

impl Drop for Gdb {
    /// The guest is off: gdb is told that what it debugs has exited.
    fn drop(&mut self) {
        if let Some(GdbStubStateMachine::Running(running)) = self.state.take() {
            // It may have gone.
            let _ = running.report_stop(&mut self.guest, MultiThreadStopReason::Exited(0));
        }
    }
}

/// Tells gdb of a stop and does what it asks for until the guest is to run; nothing is left when gdb has gone.
fn converse(
    mut state: Talk,
    guest: &mut Guest,
    vcpu: VcpuId,
    stop: Option<Stop>,
    mut called: bool,
) -> Result<Option<Talk>> {
    let interrupted =
        || Some(MultiThreadStopReason::SignalWithThread { tid: tid(vcpu), signal: Signal::SIGINT });
    if let Some(stop) = stop {
        state = match state {
            Talk::Running(running) => running.report_stop(guest, reason(stop, vcpu)).map_err(broken)?,
            other => other,
        };
    }
    loop {
        state = match state {
            Talk::Idle(mut idle) => match idle.borrow_conn().read() {
                Ok(byte) => idle.incoming_data(guest, byte).map_err(broken)?,
                Err(_) => return Ok(None),
            },
            Talk::Running(mut running) if std::mem::take(&mut called) => match waiting(running.borrow_conn())
            {
                // What was heard has been read in the meantime.
                Ok(None) => running.into(),
                Ok(Some(byte)) => running.incoming_data(guest, byte).map_err(broken)?,
                Err(_) => return Ok(None),
            },
            Talk::Running(running) => return Ok(Some(running.into())),
            Talk::CtrlCInterrupt(asked) => asked.interrupt_handled(guest, interrupted()).map_err(broken)?,
            Talk::Disconnected(_) => return Ok(None),
        };
    }
}

/// The next byte, if it has come.
fn waiting(conn: &mut TcpStream) -> std::io::Result<Option<u8>> {
    let there = ConnectionExt::peek(conn);
    conn.set_nonblocking(false)?;
    there?.map(|_| ConnectionExt::read(conn)).transpose()
}

fn set_points(processor: &mut dyn Processor, points: &Points) -> Result<()> {
    let debugger = processor.debugger().ok_or(Error::NoDebugger)?;
    debugger.set_points(points);
    Ok(())
}

fn reason(stop: Stop, vcpu: VcpuId) -> MultiThreadStopReason<u64> {
    let tid = tid(vcpu);
    match stop {
        Stop::Step => MultiThreadStopReason::SignalWithThread { tid, signal: Signal::SIGTRAP },
        Stop::Instruction => MultiThreadStopReason::SwBreak(tid),
        Stop::Data { address, store } => {
            let kind = if store { WatchKind::Write } else { WatchKind::Read };
            MultiThreadStopReason::Watch { tid, kind, addr: address }
        }
    }
}

fn broken(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Gdb { source: std::io::Error::other(error) }
}

#[cfg(test)]
mod tests;
