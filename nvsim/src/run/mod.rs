//! `nvsim run`: boots a guest and stays until it powers off.

mod console;
mod control;
mod plan;
mod record;
mod stand;
mod summary;
mod terminal;
mod verdict;
mod warm;

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use guest_agent::Job;
use guest_image::Store;
use vmm::{Keyboard, Machine, Outcome, Remote, Snapshot, StopReason, Wiring};

use crate::cli::RunArgs;
use console::Console;
use control::{Control, Report};
pub use plan::{Plan, Start};
use stand::Stand;
pub use stand::sight;
use summary::Summary;
use terminal::{Input, Terminal};
use verdict::Verdict;
pub use verdict::code::NEVER_CAME;
use warm::{Wanted, Warm};

/// What is noted in a snapshot: its agent waits for something to do.
pub const WAITING: &str = "waits for a command";
/// What is noted in a snapshot: its job goes on.
pub const RUNNING: &str = "runs its command";

/// What a run does beside running.
#[derive(Debug, Default)]
pub struct Errand {
    /// Go on from this snapshot instead of booting.
    pub from: Option<Snapshot>,
    /// Keep a snapshot on the way.
    pub keep: Option<Keep>,
}

/// A snapshot to be kept.
#[derive(Debug)]
pub struct Keep {
    /// Its file, which must not exist.
    pub file: PathBuf,
    /// The instruction; none: when the job has ended.
    pub at: Option<u64>,
}

/// Runs a guest.
pub fn run(args: RunArgs, errand: Errand) -> Result<ExitCode> {
    let started = Instant::now();
    let job = plan::job(&args)?;
    let remote = Remote::default();
    let told = Report::default();
    // Everything that can be refused is refused before the terminal changes.
    let terminal = if job.is_none() { Terminal::take().context("Cannot use the terminal")? } else { None };
    let interactive = job.is_none();
    let request_job = job.unwrap_or_else(|| shell(terminal.as_ref()));
    let Errand { from, keep } = errand;
    let goes_on = from.as_ref().map(|snapshot| snapshot.info().note);
    let stay = keep.as_ref().is_some_and(|keep| keep.at.is_none());
    let plan = match from {
        Some(snapshot) => Plan::from(snapshot, args.engine, request_job, stay)?,
        None => Plan::new(&args, request_job, interactive, stay)?,
    };

    let console = match (&args.console, interactive) {
        (Some(path), _) => Console::file(path)?,
        (None, true) => Console::stdout(Keyboard::new(remote.clone())),
        (None, false) => Console::nowhere(),
    };
    let keyboard = console.keyboard();
    // An own initrd may have no agent that would ever be ready.
    let mut control = Control::new(&plan.request, &told, interactive)
        .holding(keyboard.clone().filter(|_| args.initrd.is_none()));
    // Where runs never repeat nothing is gained from starting them alike.
    let repeats = plan.engine.repeats();
    if repeats || keep.is_some() {
        control = control.resting(remote.clone());
    }
    if goes_on.as_deref() == Some(WAITING) {
        control = control.asking_again(&plan.request);
    }
    let dismissal = control.dismissal();
    let wiring = Wiring {
        console: Box::new(console),
        control: Box::new(control),
        dimms: plan.dimms,
        remote: remote.clone(),
    };
    let (mut machine, warm) = match plan.start {
        Start::From(snapshot) => (Machine::from_snapshot(&snapshot, wiring, plan.engine)?, None),
        Start::Boot(spec, image) => {
            let mut machine = Machine::new(*spec, wiring, plan.engine)?;
            args.disk.iter().try_for_each(|disk| machine.plug(disk))?;
            let starts_warm = repeats && !args.cold && args.disk.is_empty();
            let warm = starts_warm.then(|| Warm::new(&Store::of_user()?, &machine, &image)).transpose()?;
            (machine, warm)
        }
    };
    machine.set_interactive(interactive);
    machine.stop_at(keep.as_ref().and_then(|keep| keep.at));
    let kernel = machine.kernel().clone();
    // Whoever wants to see all that is done to the DIMMs, or to stop anywhere, sees the probing too.
    let sees_probing = args.record.is_some()
        || args.cut.is_some()
        || args.gdb.is_some()
        || keep.as_ref().is_some_and(|keep| keep.at.is_some());
    let start = warm.as_ref().map_or(warm::Start::Cold, |warm| warm.start(&mut machine, !sees_probing));
    let wanted = match start {
        warm::Start::Cold => warm.map(|warm| Wanted { warm, when: warm::Start::Booted }),
        // How long an interactive guest idles its user decides.
        warm::Start::Booted if !sees_probing && !interactive && !args.nvdimm.is_empty() => {
            machine.witness();
            warm.map(|warm| Wanted { warm, when: warm::Start::Probed })
        }
        warm::Start::Booted | warm::Start::Probed => None,
    };
    if let Some(spec) = record::spec(&args, plan.origin, &kernel)? {
        machine.record(spec);
    }
    if let Some(keyboard) = keyboard {
        listen(keyboard, &remote, terminal.is_some())?;
    }
    terminal::on_signal({
        let remote = remote.clone();
        move || remote.stop(StopReason::Stopped)
    })
    .context("Cannot handle signals")?;
    if let Some(limit) = args.timeout {
        let remote = remote.clone();
        std::thread::spawn(move || {
            std::thread::sleep(limit);
            remote.stop(StopReason::Timeout);
        });
    }
    if let Some(address) = &args.gdb {
        let listener =
            TcpListener::bind(address).with_context(|| format!("Cannot wait for gdb at {address}"))?;
        let place = listener.local_addr().context("Cannot wait for gdb")?;
        eprintln!("nvsim: the guest stands still until gdb connects: target remote {place}");
        machine.debug(&listener)?;
    }
    let ready = Instant::now();
    let mut keep = keep;
    let kept_at = |machine: &mut Machine, outcome: &Outcome| -> Result<bool> {
        let due = |keep: &mut Keep| match keep.at {
            Some(_) => *outcome == Outcome::InstructionLimit,
            None => *outcome == Outcome::Paused && told.told().status.is_some(),
        };
        let Some(keep) = keep.take_if(due) else { return Ok(*outcome == Outcome::Paused) };
        let note = if keep.at.is_some() { RUNNING } else { WAITING };
        machine.snapshot()?.noted(note).save(&keep.file, true)?;
        machine.stop_at(None);
        if keep.at.is_none() {
            dismissal.dismiss();
            remote.wake();
        }
        Ok(true)
    };
    let report = warm::run(&mut machine, wanted, &told, kept_at);
    drop(terminal);
    let report = report.map_err(|error| match (&args.record, error.downcast_ref()) {
        (Some(path), Some(vmm::Error::Trace(_))) => error.context(path.display().to_string()),
        _ => error,
    })?;
    if let Some(keep) = keep {
        eprintln!("nvsim: the run ended before a snapshot could be kept in {}", keep.file.display());
    }

    let told = told.told();
    let verdict = Verdict::of(&report, &told, !interactive);
    if let Some(message) = &verdict.message {
        let style = crate::cli::ERROR;
        anstream::eprintln!("{style}nvsim:{style:#} {message}");
    }
    let stands = Stand::all(&machine, &report, &kernel);
    stands.iter().for_each(|stand| eprintln!("{stand}"));
    if args.json {
        let times = (ready - started, ready.elapsed());
        let summary =
            Summary::new(&machine, &report, &told, &verdict, times, start, args.hash).standing(&stands);
        summary.write(args.summary.as_deref())?;
    }
    Ok(ExitCode::from(verdict.code))
}

fn shell(terminal: Option<&Terminal>) -> Job {
    let term = std::env::var("TERM").ok().filter(|_| terminal.is_some()).unwrap_or_else(|| "dumb".to_owned());
    let (rows, columns) = terminal.and_then(Terminal::size).unwrap_or((0, 0));
    Job::Shell { term, rows, columns }
}

/// Standard input becomes the keyboard. A pipe's end is Ctrl-D, so that a shell fed from it ends too: again and again,
/// because it counts only for a program that reads at that moment. A shell's line editor takes one from before it read
/// for a character: Ctrl-U rids its line of that.
fn listen(keyboard: Keyboard, remote: &Remote, person: bool) -> Result<()> {
    const END: &[u8] = b"\x15\x04";
    const AGAIN: Duration = Duration::from_millis(200);
    let remote = remote.clone();
    let mut last = b'\n';
    terminal::listen(person, move |input| match input {
        Input::Keys(bytes) => {
            last = bytes.last().copied().unwrap_or(last);
            keyboard.press(&bytes);
        }
        Input::Stop => remote.stop(StopReason::Stopped),
        Input::Closed => {
            if last != b'\n' {
                keyboard.press(b"\n");
            }
            loop {
                if keyboard.is_empty() {
                    keyboard.press(END);
                }
                std::thread::sleep(AGAIN);
            }
        }
    })
    .context("Cannot read standard input")
}
