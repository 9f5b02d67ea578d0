//! Boots a kernel under the interpreter and under the translator, compares the state of every vCPU all along, and names the
//! first instruction that the two disagree on: `lockstep KERNEL INITRD COMMAND-LINE [VCPUS [INSTRUCTIONS]]`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::PoisonError;

use engine::Engine;
use engine_soft::Soft;
use engine_soft::lockstep::{Milestone, Milestones, Window, first_difference};
use vmm::boot::{BootSpec, Kernel};
use vmm::devices::Unconnected;
use vmm::nvdimm::{Entropy, OpenDimms};
use vmm::{Machine, MachineSpec, Remote, Wiring};

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, kernel, initrd, line, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: lockstep KERNEL INITRD COMMAND-LINE [VCPUS [INSTRUCTIONS]]");
        return ExitCode::from(2);
    };
    let number = |n: usize, default: u64| rest.get(n).map_or(Ok(default), |text| text.parse());
    let compared = number(0, 1).and_then(|vcpus| Ok((vcpus, number(1, 700_000_000)?)));
    let outcome = compared.map_err(Failure::from).and_then(|(vcpus, length)| {
        first_difference(length, |which, window| {
            let engine = if which == 0 { Soft::interpreter() } else { Soft::new() };
            run(kernel, initrd, line, vcpus as u8, Box::new(engine), window)
        })
    });
    match outcome {
        Ok(None) => {
            println!("no difference");
            ExitCode::SUCCESS
        }
        Ok(Some(difference)) => {
            println!("after {} instructions:\n{}", difference.instruction, difference.before);
            println!("then interpreted:\n{}then translated:\n{}", difference.after[0], difference.after[1]);
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// One run up to the window's end.
fn run(
    kernel: &str,
    initrd: &str,
    line: &str,
    vcpus: u8,
    engine: Box<dyn Engine>,
    window: Window,
) -> Result<Vec<Milestone>, Failure> {
    let boot = BootSpec {
        kernel: Kernel::detect(Path::new(kernel))?,
        initrd: Some(initrd.into()),
        command_line: line.to_owned(),
    };
    let spec = MachineSpec { vcpus, stop_at: Some(window.until + 1), ..MachineSpec::new(boot) };
    let wiring = Wiring {
        console: Box::new(Unconnected),
        control: Box::new(Unconnected),
        dimms: OpenDimms::open(&[], &Entropy::from_seed(0))?,
        remote: Remote::default(),
    };
    let name = engine.name();
    let (engine, notes) = Milestones::new(engine, window);
    let report = Machine::new(spec, wiring, Box::new(engine))?.run()?;
    let notes = std::mem::take(&mut *notes.lock().unwrap_or_else(PoisonError::into_inner));
    eprintln!("{name}: {:?}, {} milestones from {} on", report.outcome, notes.len(), window.from);
    Ok(notes)
}
