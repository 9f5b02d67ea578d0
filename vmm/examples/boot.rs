//! Boots a kernel with its console on stdout: `boot KERNEL INITRD COMMAND-LINE [ENGINE [NVDIMM...]]`. The least that a user of this
//! crate has to write.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use vmm::boot::{BootSpec, Kernel};
use vmm::devices::{SerialBackend, Unconnected};
use vmm::nvdimm::{DimmSpec, Entropy, OpenDimms};
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
        eprintln!("usage: boot KERNEL INITRD COMMAND-LINE [auto|soft|interp|kvm [FILE[,key=value...]...]]");
        return ExitCode::from(2);
    };
    let (engine, dimms) = rest.split_first().map_or(("auto", rest), |(name, dimms)| (name.as_str(), dimms));
    match boot(kernel, initrd, line, engine, dimms) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes = std::iter::successors(error.source(), |cause| cause.source());
            eprintln!("{}", causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}")));
            ExitCode::FAILURE
        }
    }
}

fn boot(
    kernel: &str,
    initrd: &str,
    line: &str,
    engine: &str,
    dimms: &[String],
) -> Result<(), Box<dyn std::error::Error>> {
    let dimms = dimms.iter().map(|text| text.parse()).collect::<Result<Vec<DimmSpec>, _>>()?;
    let boot = BootSpec {
        kernel: Kernel::detect(Path::new(kernel))?,
        initrd: Some(initrd.into()),
        command_line: line.to_owned(),
    };
    let spec = MachineSpec::new(boot);
    let model = spec.cpu;
    let wiring = Wiring {
        console: Box::new(Stdout),
        control: Box::new(Unconnected),
        dimms: OpenDimms::open(&dimms, &Entropy::from_seed(0))?,
        remote: Remote::default(),
    };
    let chosen = vmm::open_engine(engine.parse::<EngineChoice>()?, model)?;
    eprintln!("engine: {} ({})", chosen.engine.name(), chosen.reason);
    let started = Instant::now();
    let report = Machine::new(spec, wiring, chosen.engine)?.run()?;
    eprintln!("{:?} after {:.2?}: {:#?}", report.outcome, started.elapsed(), report.statistics);
    Ok(())
}
