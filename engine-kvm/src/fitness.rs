//! Can this host's KVM run our guests? Opening /dev/kvm proves nothing: some hosts offer one whose ring 0 runs in an
//! instruction emulator that stops at the first instruction it lacks. So a small guest tries, in long mode and against the
//! clock, what kernels use and such emulators lack.

mod guest;

use std::fmt;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use engine::cpuid::CpuidTable;
use engine::{Built, Engine, Entry, ExitKind, PartitionSpec};

use crate::Kvm;
use guest::Stage;

/// The whole test ends by now, whatever the guest does.
const DEADLINE: Duration = Duration::from_millis(700);
/// [`guest::LOOPS`] rounds of two instructions: at most this long. Real processors need 0.1 ms, KVM in a software
/// processor 5 ms, an instruction emulator 150 ms.
const PATIENCE: Duration = Duration::from_millis(100);

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fitness {
    /// It runs our guests.
    Fit,
    /// There is a KVM, but it cannot.
    Unfit {
        /// What it failed at.
        reason: String,
    },
    /// There is no KVM to be opened.
    Absent {
        /// What is missing, and how to get it.
        reason: String,
    },
}

impl fmt::Display for Fitness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fit => f.write_str("fit"),
            Self::Unfit { reason } => write!(f, "unfit: {reason}"),
            Self::Absent { reason } => write!(f, "absent: {reason}"),
        }
    }
}

/// Runs the self-test guest; takes some milliseconds where KVM is fit, and less than a second everywhere.
#[must_use]
pub fn fitness() -> Fitness {
    let kvm = match Kvm::open() {
        Ok(kvm) => kvm,
        Err(error) => return Fitness::Absent { reason: chain(&error) },
    };
    match examine(&kvm) {
        Ok(()) => Fitness::Fit,
        Err(reason) => Fitness::Unfit { reason },
    }
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Why not, if so.
fn examine(kvm: &Kvm) -> Result<(), String> {
    let refused = |error: engine::Error| chain(&error);
    let tsc_khz = kvm.tsc_khz(2_000_000);
    let cpuid = CpuidTable::x86_64_v2(1, tsc_khz);
    let memory = guest::memory()?;
    let Built { partition, seats } =
        kvm.build(&PartitionSpec { vcpus: 1, cpuid, tsc_khz, seed: 0 }, &memory).map_err(refused)?;
    let seat = seats.into_iter().next().ok_or("the partition has no seat")?;
    let mut vcpu = seat.bind().map_err(refused)?;
    let start = vcpu.save(0).map_err(refused)?;
    vcpu.restore(0, &guest::entry(start)).map_err(refused)?;

    let (done, over) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if over.recv_timeout(DEADLINE) == Err(mpsc::RecvTimeoutError::Timeout) {
                partition.kick();
            }
        });
        let verdict =
            watch(&mut |entry| vcpu.run(entry).map(|exit| exit.kind).map_err(|error| chain(&error)));
        drop(done);
        verdict
    })
}

/// Follows the guest through its stages.
fn watch(run: &mut dyn FnMut(Entry) -> Result<ExitKind, String>) -> Result<(), String> {
    let mut stage = Stage::Entry;
    let mut since = Instant::now();
    let mut entry = Entry::Resume;
    loop {
        let exit = run(entry).map_err(|error| format!("{error}, while it tried {stage}"))?;
        entry = Entry::Resume;
        match exit {
            ExitKind::IoWrite { port: guest::PORT, value, .. } => {
                if stage == Stage::Loop && since.elapsed() > PATIENCE {
                    return Err(format!(
                        "too slow: {} instructions took {} ms; its guests run in an instruction emulator",
                        2 * guest::LOOPS,
                        since.elapsed().as_millis()
                    ));
                }
                since = Instant::now();
                stage = Stage::numbered(value).ok_or(format!("the guest went astray after {stage}"))?;
                if stage == Stage::Done {
                    return Ok(());
                }
            }
            ExitKind::IoRead { port: guest::PORT, .. } => entry = Entry::Data(guest::TOKEN),
            ExitKind::MmioRead { addr: guest::DEVICE, size: 4 } => entry = Entry::Data(guest::TOKEN),
            ExitKind::MmioWrite { addr: guest::DEVICE, size: 4, value: guest::TOKEN } => {}
            ExitKind::Kicked => {
                return Err(format!("no progress in {} ms, while it tried {stage}", DEADLINE.as_millis()));
            }
            ExitKind::Stuck { rip, bytes } => {
                return Err(format!("it cannot execute {stage} (at {rip:#x}: {bytes:02x?})"));
            }
            ExitKind::Shutdown => return Err(format!("{stage} ended in a triple fault")),
            other => return Err(format!("unexpected {other:?}, while it tried {stage}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(exits: &[ExitKind]) -> Result<(), String> {
        let mut exits = exits.iter().copied();
        watch(&mut |_| exits.next().ok_or("over".into()))
    }

    fn reach(stage: Stage) -> ExitKind {
        ExitKind::IoWrite { port: guest::PORT, size: 1, value: stage as u32 }
    }

    #[test]
    fn a_guest_that_ends_is_fit() {
        assert_eq!(told(&[reach(Stage::Cmpxchg16b), reach(Stage::Done)]), Ok(()));
    }

    #[test]
    fn the_reason_names_the_instruction() {
        let stuck = ExitKind::Stuck { rip: 0x8000, bytes: [0xF0; 15] };
        let reason = told(&[reach(Stage::Cmpxchg16b), stuck]).expect_err("it is stuck");
        assert!(reason.contains("lock cmpxchg16b") && reason.contains("0x8000"), "{reason}");
        let reason = told(&[reach(Stage::Mmio), ExitKind::Shutdown]).expect_err("it is over");
        assert!(reason.contains("memory-mapped"), "{reason}");
        assert!(told(&[ExitKind::Kicked]).expect_err("it hangs").contains("no progress"));
        assert!(told(&[]).expect_err("the engine failed").contains("long mode"));
    }

    #[test]
    fn a_wrong_value_on_the_device_is_not_fit() {
        let wrong = ExitKind::MmioWrite { addr: guest::DEVICE, size: 4, value: 1 };
        assert!(told(&[reach(Stage::Mmio), wrong]).is_err());
    }
}
