//! From what was asked for to what will be done: image, command line, devices, the request to the agent.

use anyhow::{Context, Result};
use guest_agent::{HOST_PARAMETER, Job, Pmem, Request};
use guest_image::{Image, OwnKernel, Store};
use vmm::boot::{BootSpec, Kernel};
use vmm::nvdimm::{Entropy, Fs, OpenDimms};
use vmm::{CpuModel, EngineChoice, MachineSpec, Snapshot};

use crate::cli::{CpuName, EngineName, Mount, RunArgs};

/// What a run begins with.
pub enum Start {
    /// The files of an image.
    Boot(Box<MachineSpec>, Box<Image>),
    /// A snapshot.
    From(Box<Snapshot>),
}

/// All that a run needs.
pub struct Plan {
    /// What it begins with.
    pub start: Start,
    /// Its NV-DIMMs, open and held.
    pub dimms: OpenDimms,
    /// What runs it.
    pub engine: Box<dyn engine::Engine>,
    /// What the agent is asked to do.
    pub request: Request,
    /// What it boots.
    pub origin: Origin,
}

/// What a guest is booted from.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// Name of the image, or path of the own kernel.
    pub name: String,
    /// The image's id.
    pub id: String,
    /// The kernel's release.
    pub kernel: String,
}

impl Plan {
    /// Decides; builds the image when it is missing. With `stay` the agent waits for another request after the job.
    pub fn new(args: &RunArgs, job: Job, interactive: bool, stay: bool) -> Result<Self> {
        let image = image(args)?;
        let name = args.kernel.as_ref().map_or(args.image.clone(), |kernel| kernel.display().to_string());
        let id = image.manifest.as_ref().map(|manifest| manifest.id.clone()).unwrap_or_default();
        let origin = Origin { name, id, kernel: image.release.clone() };
        let mut words = vec![image.cmdline.clone(), HOST_PARAMETER.to_owned()];
        words.extend(args.append.iter().cloned());
        let spec = MachineSpec {
            vcpus: args.cpus,
            cpu: model(args.cpu),
            ram: args.memory,
            boot: BootSpec {
                kernel: Kernel::Elf(image.vmlinux.clone()),
                initrd: image.initramfs.clone(),
                command_line: words.join(" "),
            },
            seed: args.seed,
            wall_clock: args.date,
            interactive,
            stop_at: None,
        };
        let engine = engine(args.engine, model(args.cpu))?;
        // Last of all, because missing files are made here.
        let dimms = OpenDimms::open(&args.nvdimm, &Entropy::from_seed(args.seed))?;
        let mount = args.mount == Mount::Auto;
        let pmem = dimms
            .file_systems()
            .into_iter()
            .map(|fs| Pmem { fs: if mount { agents(fs) } else { agents(Fs::None) }, mount });
        let request = Request { pmem: pmem.collect(), job, stay };
        Ok(Self { start: Start::Boot(Box::new(spec), Box::new(image)), dimms, engine, request, origin })
    }

    /// Of a run that goes on from a snapshot, which has all that it needs but an engine and something to do; `stay` as above.
    pub fn from(snapshot: Snapshot, engine_name: EngineName, job: Job, stay: bool) -> Result<Self> {
        let engine = engine(engine_name, snapshot.info().cpu)?;
        Ok(Self {
            start: Start::From(Box::new(snapshot)),
            dimms: OpenDimms::open(&[], &Entropy::from_seed(0))?,
            engine,
            request: Request { pmem: Vec::new(), job, stay },
            origin: Origin::default(),
        })
    }
}

fn model(name: CpuName) -> CpuModel {
    match name {
        CpuName::V2 => CpuModel::V2,
        CpuName::V3 => CpuModel::V3,
    }
}

fn engine(name: EngineName, model: CpuModel) -> Result<Box<dyn engine::Engine>> {
    let choice = match name {
        EngineName::Auto => EngineChoice::Auto,
        EngineName::Soft => EngineChoice::Soft,
        EngineName::Interp => EngineChoice::Interp,
        EngineName::Kvm => EngineChoice::Kvm,
    };
    let chosen = vmm::open_engine(choice, model)?;
    tracing::info!("engine {}: {}", chosen.engine.name(), chosen.reason);
    Ok(chosen.engine)
}

/// The file system in the agent's words.
fn agents(fs: Fs) -> guest_agent::Fs {
    match fs {
        Fs::Ext4 => guest_agent::Fs::Ext4,
        Fs::Xfs => guest_agent::Fs::Xfs,
        Fs::Ext2 => guest_agent::Fs::Ext2,
        Fs::None => guest_agent::Fs::None,
    }
}

fn image(args: &RunArgs) -> Result<Image> {
    let store = Store::of_user()?;
    let Some(kernel) = &args.kernel else { return crate::image::current_or_build(&store, &args.image) };
    let base = match args.initrd {
        Some(_) => None,
        None => Some(crate::image::current_or_build(&store, &args.image)?),
    };
    let (kernel, initrd, modules) = (kernel.clone(), args.initrd.clone(), args.modules.clone());
    Ok(store.own(&OwnKernel { kernel, initrd, modules, base })?)
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
