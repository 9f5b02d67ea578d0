//! Many machines from one snapshot: `restore FILE COUNT`, with a snapshot that `nvsim snapshot save` made after a command.
//!
//! A first machine runs `true` in its guest and ends; what was translated of the guest's code stays with the snapshot. Then
//! COUNT further machines are brought back, one after another, and each runs `true`; all of them stay as they are then,
//! within their run, until the last one is there. Prints, as JSON, the seconds that each took to be brought back, those until
//! its command had ended, and the MiB by which this process grew for each, from the second one on: anonymous memory, copies of
//! the snapshot's pages among it, and memory files, where code is. The first machine's seconds come first.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use guest_agent::{Event, HostSession, Job, Request};
use vmm::devices::{SerialBackend, Unconnected};
use vmm::nvdimm::{Entropy, OpenDimms};
use vmm::{CpuModel, EngineChoice, Machine, Remote, Snapshot, Wiring};

type Failure = Box<dyn std::error::Error>;

/// The control channel of a guest that is asked for `true`, and stands still when that is done.
struct Asking {
    session: HostSession,
    done: Sender<()>,
    on: Option<Receiver<()>>,
}

impl SerialBackend for Asking {
    fn input(&mut self) -> Option<u8> {
        self.session.to_guest()
    }

    fn output(&mut self, byte: u8) {
        let mut event = self.session.on_guest_byte(byte);
        while let Some(heard) = event {
            if let Event::Exited(_) = heard
                && let Some(on) = self.on.take()
            {
                // The other side has gone when the measurement is over.
                let _ = self.done.send(());
                let _ = on.recv();
            }
            event = self.session.next_event();
        }
    }
}

/// Memory that this process has made, in MiB: all but what is a file's.
fn own_memory() -> Result<f64, Failure> {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    let made = rollup.lines().filter(|line| line.starts_with("Pss_Anon:") || line.starts_with("Pss_Shmem:"));
    let kib: Vec<u64> = made.filter_map(|line| line.split_whitespace().nth(1)?.parse().ok()).collect();
    let [anonymous, shared] = kib[..] else {
        return Err("smaps_rollup does not tell kinds of memory".into());
    };
    Ok((anonymous + shared) as f64 / 1024.0)
}

fn machine(snapshot: &Snapshot, done: Sender<()>, on: Receiver<()>) -> Result<Machine, Failure> {
    let job = Job::Program(vec![b"true".to_vec()]);
    let request = Request { pmem: Vec::new(), job, stay: false };
    let control = Asking { session: HostSession::with_waiting_agent(&request), done, on: Some(on) };
    let wiring = Wiring {
        console: Box::new(Unconnected),
        control: Box::new(control),
        dimms: OpenDimms::open(&[], &Entropy::from_seed(0))?,
        remote: Remote::default(),
    };
    let engine = vmm::open_engine(EngineChoice::Soft, CpuModel::V2)?.engine;
    Ok(Machine::from_snapshot(snapshot, wiring, engine)?)
}

fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().collect();
    let [_, file, count] = words.as_slice() else { return Err("usage: restore FILE COUNT".into()) };
    let snapshot = Snapshot::open(Path::new(file))?;
    let (mut seconds, mut ended, mut memory) = (vec![], vec![], vec![]);
    let (mut waiting, mut threads) = (vec![], vec![]);
    for number in 0..=count.parse()? {
        let (done, is_done) = channel();
        let (go_on, on) = channel();
        let start = Instant::now();
        let mut machine = machine(&snapshot, done, on)?;
        seconds.push(start.elapsed().as_secs_f64());
        let thread = std::thread::spawn(move || machine.run().map(|report| report.outcome));
        if is_done.recv().is_err() {
            let outcome = thread.join().map_err(|_| "a machine's thread panicked")??;
            return Err(format!("a machine ended with {outcome:?} before its command had").into());
        }
        ended.push(start.elapsed().as_secs_f64());
        if number == 0 {
            drop(go_on);
            thread.join().map_err(|_| "a machine's thread panicked")??;
            continue;
        }
        threads.push(thread);
        memory.push(own_memory()?);
        waiting.push(go_on);
    }
    drop(waiting);
    for thread in threads {
        let outcome = thread.join().map_err(|_| "a machine's thread panicked")??;
        if outcome != vmm::Outcome::PowerOff {
            return Err(format!("a machine ended with {outcome:?}").into());
        }
    }
    let growth: Vec<f64> = memory.windows(2).map(|pair| pair[1] - pair[0]).collect();
    println!("{}", serde_json::json!({ "seconds": seconds, "ended": ended, "mib": growth }));
    Ok(())
}
