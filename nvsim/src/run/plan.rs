//! From what was asked for to what will be done: image, command line, devices, the request to the agent.

use anyhow::{Context, Result};
use guest_agent::{HOST_PARAMETER, Job, Request};
use guest_image::{Image, Store};
use vmm::boot::{BootSpec, Kernel};
use vmm::{EngineChoice, MachineSpec};

use crate::cli::{EngineName, RunArgs};

/// All that a run needs.
pub struct Plan {
    /// The machine.
    pub spec: MachineSpec,
    /// What runs it.
    pub engine: Box<dyn engine::Engine>,
    /// What the agent is asked to do.
    pub request: Request,
}

impl Plan {
    /// Decides; builds the image when it is missing.
    pub fn new(args: &RunArgs, job: Job, interactive: bool) -> Result<Self> {
        let image = image(args)?;
        let mut words = vec![image.cmdline.clone(), HOST_PARAMETER.to_owned()];
        words.extend(args.append.iter().cloned());
        let spec = MachineSpec {
            vcpus: args.cpus,
            ram: args.memory,
            boot: BootSpec {
                kernel: Kernel::Elf(image.vmlinux),
                initrd: image.initramfs,
                command_line: words.join(" "),
            },
            seed: args.seed,
            wall_clock: args.date,
            interactive,
            stop_at: None,
        };
        let chosen = vmm::open_engine(match args.engine {
            EngineName::Auto => EngineChoice::Auto,
            EngineName::Soft => EngineChoice::Soft,
            EngineName::Interp => EngineChoice::Interp,
            EngineName::Kvm => EngineChoice::Kvm,
        })?;
        tracing::info!("engine {}: {}", chosen.engine.name(), chosen.reason);
        let request = Request { pmem: Vec::new(), job };
        Ok(Self { spec, engine: chosen.engine, request })
    }
}

fn image(args: &RunArgs) -> Result<Image> {
    let store = Store::of_user()?;
    match &args.kernel {
        None => crate::image::build(&store, &args.image),
        Some(kernel) => anyhow::bail!("own kernel {}", kernel.display()),
    }
}

/// What the command line asks the guest to run; nothing: a shell.
pub fn job(args: &RunArgs) -> Result<Option<Job>> {
    if let Some(command) = &args.exec {
        return Ok(Some(Job::Command(command.clone().into_bytes())));
    }
    let Some(path) = &args.script else { return Ok(None) };
    let script = std::fs::read(path).with_context(|| format!("Cannot read the script {}", path.display()))?;
    Ok(Some(Job::Script(script)))
}
