//! PID 1: brings the guest up, runs one job, leaves.

mod channel;
mod job;
mod pmem;
mod power;
mod setup;
mod signals;
mod sys;

use std::path::PathBuf;

use guest_agent::{Exited, FromGuest, Hello, Job, Pmem, VERSION};

use channel::Channel;
use signals::Signals;
use sys::Leave;

/// The devices that a machine can have.
const DEVICES: usize = 8;

/// Where a script is put.
const SCRIPT: &str = "/run/nvsim-script";

/// The life of the guest.
pub fn run() -> ! {
    let mut troubles = setup::setup();
    let mut signals = Signals::new().unwrap_or_else(|e| {
        println!("nvsim: no signals: {e}");
        power::leave(Leave::PowerOff)
    });
    let mut channel = Channel::open().unwrap_or_else(|e| {
        troubles.push(format!("cannot open the control channel: {e}"));
        None
    });
    let left = match &mut channel {
        Some(channel) => serve(channel, &mut signals, troubles),
        None => alone(&mut signals, troubles),
    };
    power::leave(left)
}

/// A boot that a host watches.
fn serve(channel: &mut Channel, signals: &mut Signals, mut troubles: Vec<String>) -> Leave {
    // Where there are no DIMMs there is nothing to look at.
    let dimms = setup::has_nvdimms();
    troubles.extend(if dimms { setup::hold_devices() } else { setup::bring_devices() });
    channel.send(&FromGuest::Booted);
    channel.flush();
    if dimms {
        troubles.extend(setup::bring_devices());
        channel.send(&FromGuest::Probed);
        channel.flush();
    }
    channel.send(&FromGuest::Hello(Hello {
        version: VERSION,
        kernel: setup::release(),
        uptime: setup::uptime(),
    }));
    let mut troubles = Some(troubles);
    let exited = loop {
        let request = match channel.request() {
            Ok(request) => request,
            Err(e) => {
                channel.send(&FromGuest::Log(format!("no request: {e}")));
                channel.flush();
                return Leave::PowerOff;
            }
        };
        // Devices are brought up for the first request.
        if let Some(troubles) = troubles.take() {
            for line in troubles {
                channel.send(&FromGuest::Log(line));
            }
            pmem::bring_up(&request.pmem, true, |line| channel.send(&FromGuest::Log(line)));
        }
        channel.send(&FromGuest::Ready(setup::uptime()));
        match (work(&request.job, channel, signals), request.stay) {
            (Ok(exited), true) => {
                channel.send(&FromGuest::Exited(exited));
                channel.flush();
            }
            (exited, _) => break exited,
        }
    };
    for line in power::quiesce() {
        channel.send(&FromGuest::Log(line));
    }
    let leave = exited.err().unwrap_or(Leave::PowerOff);
    // A job that powers the machine off has done what it set out to do; one that reboots is run again.
    if leave == Leave::PowerOff {
        channel.send(&FromGuest::Exited(exited.unwrap_or(Exited::Status(0))));
    }
    channel.flush();
    leave
}

/// Does what is asked for.
fn work(job: &Job, channel: &mut Channel, signals: &mut Signals) -> Result<Exited, Leave> {
    match job {
        Job::Shell { term, rows, columns } => {
            let console = console();
            if *rows > 0 && *columns > 0 {
                let terminal = std::fs::File::open(&console);
                let _ = terminal.and_then(|terminal| sys::set_window(&terminal, *rows, *columns));
            }
            job::shell(&console, term, signals, Some(channel))
        }
        job => match job::command(job, SCRIPT.as_ref()) {
            Ok(mut command) => job::run(&mut command, signals, |message| channel.send(&message)),
            Err(e) => {
                channel.send(&FromGuest::Log(format!("cannot run the job: {e}")));
                Ok(Exited::Status(127))
            }
        },
    }
}

/// A boot that nobody watches: a shell on the console. Nothing is formatted unasked.
fn alone(signals: &mut Signals, mut troubles: Vec<String>) -> Leave {
    troubles.extend(setup::bring_devices());
    troubles.iter().for_each(|line| println!("nvsim: {line}"));
    pmem::bring_up(&[Pmem::default(); DEVICES], false, |line| println!("nvsim: {line}"));
    let ended = job::shell(&console(), "vt100", signals, None);
    power::quiesce().iter().for_each(|line| println!("nvsim: {line}"));
    ended.err().unwrap_or(Leave::PowerOff)
}

/// The device behind /dev/console, which itself cannot be a controlling terminal.
fn console() -> PathBuf {
    let active = std::fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    PathBuf::from("/dev").join(active.split_whitespace().last().unwrap_or("ttyS0"))
}
