//! Boots a kernel with its console on stdout: `boot KERNEL INITRD COMMAND-LINE [ENGINE]`. The least that a user of this
//! crate has to write.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use vmm::boot::{BootSpec, Kernel};
use vmm::devices::{SerialBackend, Unconnected};
use vmm::{EngineChoice, Machine, MachineSpec, Remote, Wiring};

/// The console's output.
struct Stdout;

impl SerialBackend for Stdout {
    fn input(&mut self) -> Option<u8> {
        None
    }

    fn output(&mut self, byte: u8) {
        let mut out = std::io::stdout();
        // A closed terminal is no reason to stop.
        let _ = out.write_all(&[byte]);
        let _ = if byte == b'\n' { out.flush() } else { Ok(()) };
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, kernel, initrd, line, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: boot KERNEL INITRD COMMAND-LINE [auto|soft|interp|kvm]");
        return ExitCode::from(2);
    };
    match boot(kernel, initrd, line, rest.first().map_or("auto", String::as_str)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes = std::iter::successors(error.source(), |cause| cause.source());
            eprintln!("{}", causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}")));
            ExitCode::FAILURE
        }
    }
}

fn boot(kernel: &str, initrd: &str, line: &str, engine: &str) -> Result<(), Box<dyn std::error::Error>> {
    let spec = MachineSpec {
        vcpus: 1,
        ram: 1 << 30,
        boot: BootSpec {
            kernel: Kernel::detect(Path::new(kernel))?,
            initrd: Some(initrd.into()),
            command_line: line.to_owned(),
        },
        seed: 0,
        wall_clock: MachineSpec::WALL_CLOCK,
        interactive: false,
        stop_at: None,
    };
    let wiring =
        Wiring { console: Box::new(Stdout), control: Box::new(Unconnected), remote: Remote::default() };
    let chosen = vmm::open_engine(engine.parse::<EngineChoice>()?)?;
    eprintln!("engine: {} ({})", chosen.engine.name(), chosen.reason);
    let started = Instant::now();
    let report = Machine::new(spec, wiring, chosen.engine)?.run()?;
    eprintln!("{:?} after {:.2?}: {:#?}", report.outcome, started.elapsed(), report.statistics);
    Ok(())
}
