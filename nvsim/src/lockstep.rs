//! `nvsim lockstep`: one run under the interpreter and under the translator, compared all along.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, PoisonError};

use anyhow::{Context, Result};
use clap::Args;
use engine::state::gpr;
use engine::{CpuState, Engine};
use guest_agent::{HostSession, Job};
use guest_image::{Bars, Progress, Total};
use serde::Serialize;
use serde_json::Value;
use vmm::boot::Kernel;
use vmm::devices::{SerialBackend, Unconnected};
use vmm::lockstep::{Difference, Hook, Milestone, Stopping, Window, first_difference, milestones};
use vmm::nvdimm::{DimmSpec, Entropy, OpenDimms};
use vmm::{Machine, Outcome, Remote, Wiring};

use crate::cli::{CpuName, EngineName, RunArgs};
use crate::run::{Plan, Start, sight};

/// Runs a guest under the interpreter and under the translator, which must agree on all that its CPUs hold after each
/// instruction and on its memory at the end; names the first instruction after which they do not.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 when the two agree, 1 when they do not, 125 when nvsim failed.

Examples:
  nvsim lockstep                                              a boot of the default image
  nvsim lockstep --image dax-6.1 --cpus 4 --nvdimm size=64M   with a new DIMM, formatted and mounted
  nvsim lockstep --exec 'md5sum /bin/*' --json                with a command of yours")]
pub struct LockstepArgs {
    /// Guest image.
    #[arg(long, value_name = "NAME", default_value = "dax")]
    image: String,
    /// A new NV-DIMM in both runs: size=SIZE[,key=value...], as for `nvsim run --nvdimm`. [up to 8]
    #[arg(long, value_name = "SPEC")]
    nvdimm: Vec<String>,
    /// What the guest's CPUs can do.
    #[arg(long, value_enum, default_value_t = CpuName::V2)]
    cpu: CpuName,
    /// Virtual CPUs.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    cpus: u8,
    /// Guest memory.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = vmm::nvdimm::size)]
    memory: u64,
    /// Decides all randomness of the runs.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Run this shell command in the guest as root.
    #[arg(long, value_name = "CMD", default_value = "true")]
    exec: String,
    /// Compare only so many instructions. [default: until the guest powers off]
    #[arg(long, value_name = "INSTRUCTIONS", value_parser = clap::value_parser!(u64).range(1..))]
    until: Option<u64>,
    /// Stress the translator: at random moments, which this seed decides, it empties its caches, takes slow paths, and
    /// translates single instructions.
    #[arg(long, value_name = "SEED")]
    stress: Option<u64>,
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// For tests: a bit of RBX changes in the translated run after so many instructions.
    #[arg(long, hide = true, value_name = "INSTRUCTIONS")]
    plant: Option<u64>,
}

/// One run.
struct Ran {
    notes: Vec<Milestone>,
    end: End,
    kernel: Kernel,
}

/// What a run leaves.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct End {
    outcome: Outcome,
    instructions: u64,
    memory: String,
}

/// The guest's agent, whose words go nowhere.
#[derive(Debug)]
struct Agent(HostSession);

impl SerialBackend for Agent {
    fn input(&mut self) -> Option<u8> {
        self.0.to_guest()
    }

    fn output(&mut self, byte: u8) {
        let mut event = self.0.on_guest_byte(byte);
        while event.is_some() {
            event = self.0.next_event();
        }
    }
}

/// Compares.
pub fn lockstep(args: &LockstepArgs) -> Result<ExitCode> {
    crate::image::current_or_build(&guest_image::Store::of_user()?, &args.image)?;
    let master = tempfile::tempdir().context("Cannot make a folder for the DIMMs")?;
    drop(OpenDimms::open(&dimms(args, master.path())?, &Entropy::from_seed(args.seed))?);
    let master = master.path();
    let bars = Arc::new(Bars::default());
    bars.started("the whole run", Total::Unknown);
    let nowhere = Window { from: u64::MAX, every: 1, until: u64::MAX };
    let whole = run(args, master, EngineName::Soft, nowhere, args.until, |_| ())?;
    let length = whole.end.instructions;
    let mut ends = None;
    let found = first_difference(length, |window| {
        let Window { from, every, until } = window;
        bars.started(
            &format!("instructions {from} to {until}"),
            Total::Items(2 * ((until - from) / every + 1)),
        );
        // The first pair of runs goes to the end.
        let stop = if ends.is_none() { args.until } else { Some(until + 1) };
        let one = |engine| {
            let bars = Arc::clone(&bars);
            run(args, master, engine, window, stop, move |_| bars.advanced(1))
        };
        let both = std::thread::scope(|scope| {
            let other = scope.spawn(|| one(EngineName::Interp));
            let translated = one(EngineName::Soft);
            [other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), translated]
        });
        let [interpreted, translated] = both;
        let (interpreted, translated) = (interpreted?, translated?);
        ends.get_or_insert([interpreted.end, translated.end]);
        Ok::<_, anyhow::Error>([interpreted.notes, translated.notes])
    })?;
    bars.finished();
    let verdict = Verdict::new(ends.context("nothing ran")?, found.as_ref(), &whole.kernel)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&verdict)?);
    } else {
        print!("{verdict}");
    }
    Ok(ExitCode::from(u8::from(!verdict.agree)))
}

/// What came out.
#[derive(Debug, Serialize)]
struct Verdict {
    agree: bool,
    /// How the interpreted run and the translated one ended.
    ends: [End; 2],
    difference: Option<Apart>,
}

/// Where the two parted.
#[derive(Debug, Serialize)]
struct Apart {
    /// They agree after so many instructions and not after the next one.
    after: u64,
    /// Where each vCPU stood then, by name where it has one.
    at: Vec<String>,
    /// What differs an instruction later: its name, interpreted, translated.
    fields: Vec<(String, Value, Value)>,
}

impl Verdict {
    fn new(ends: [End; 2], found: Option<&Difference>, kernel: &Kernel) -> Result<Self> {
        let difference = found.map(|found| Apart::new(found, kernel)).transpose()?;
        Ok(Self { agree: difference.is_none() && ends[0] == ends[1], ends, difference })
    }
}

impl Apart {
    fn new(found: &Difference, kernel: &Kernel) -> Result<Self> {
        let sight = sight(kernel);
        let name = |state: &CpuState| {
            let rip = state.registers.rip;
            let place = sight.as_ref().and_then(|sight| sight.code().place(rip));
            place.map_or_else(|| format!("{rip:#x}"), |place| format!("{rip:#x} {place}"))
        };
        let [interpreted, translated] = &found.after;
        let mut fields = Vec::new();
        differing(
            "vcpu",
            &serde_json::to_value(interpreted)?,
            &serde_json::to_value(translated)?,
            &mut fields,
        );
        Ok(Self {
            after: found.before.as_ref().map_or(0, |note| note.at),
            at: found.before.iter().flat_map(|note| note.state.iter().map(name)).collect(),
            fields,
        })
    }
}

/// Gathers what differs in two values.
fn differing(path: &str, one: &Value, other: &Value, into: &mut Vec<(String, Value, Value)>) {
    match (one, other) {
        _ if one == other => {}
        (Value::Object(one), Value::Object(other)) => {
            for (key, value) in one {
                differing(&format!("{path}.{key}"), value, other.get(key).unwrap_or(&Value::Null), into);
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            let pairs = one.iter().zip(other).enumerate();
            pairs.for_each(|(n, (one, other))| differing(&format!("{path}[{n}]"), one, other, into));
        }
        _ => into.push((path.to_owned(), one.clone(), other.clone())),
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [interpreted, translated] = &self.ends;
        if self.agree {
            let End { outcome, instructions, memory } = interpreted;
            writeln!(
                f,
                "Interpreter and translator agree: {instructions} instructions, {outcome:?}, memory {memory}"
            )?;
        }
        let Some(Apart { after, at, fields }) = &self.difference else {
            if !self.agree {
                writeln!(f, "The CPUs agree at every milestone, but not what the runs leave:")?;
                writeln!(f, "  interpreted {interpreted:?}\n  translated  {translated:?}")?;
            }
            return Ok(());
        };
        writeln!(f, "They part after {after} instructions, with the next one:")?;
        at.iter().enumerate().try_for_each(|(vcpu, place)| writeln!(f, "  processor {vcpu} at {place}"))?;
        for (name, interpreted, translated) in fields {
            writeln!(f, "  {name}: {} interpreted, {} translated", hex(interpreted), hex(translated))?;
        }
        Ok(())
    }
}

fn hex(value: &Value) -> String {
    value.as_u64().map_or_else(|| value.to_string(), |number| format!("{number:#x}"))
}

/// The DIMMs, in a folder.
fn dimms(args: &LockstepArgs, folder: &Path) -> Result<Vec<DimmSpec>> {
    let dimm = |(n, spec): (usize, &String)| {
        let spec = format!("{},{spec}", folder.join(format!("{n}.nvd")).display());
        spec.parse().map_err(|error| anyhow::anyhow!("{error}"))
    };
    args.nvdimm.iter().enumerate().map(dimm).collect()
}

/// One run on copies of the DIMMs in the folder `master`, which ends after `stop` instructions.
fn run(
    args: &LockstepArgs,
    master: &Path,
    name: EngineName,
    window: Window,
    stop: Option<u64>,
    passed: impl FnMut(u64) + Send + 'static,
) -> Result<Ran> {
    // The DIMMs of all runs have the same identities.
    let folder = tempfile::tempdir().context("Cannot make a folder for the DIMMs")?;
    let nvdimm = dimms(args, folder.path())?;
    for dimm in &nvdimm {
        let from = master.join(dimm.path.file_name().context("it has a name")?);
        std::fs::copy(&from, &dimm.path).with_context(|| format!("Cannot copy {}", from.display()))?;
    }
    let run = RunArgs {
        image: args.image.clone(),
        nvdimm,
        cpu: args.cpu,
        cpus: args.cpus,
        memory: args.memory,
        seed: args.seed,
        engine: name,
        ..RunArgs::default()
    };
    let plan = Plan::new(&run, Job::Command(args.exec.clone().into_bytes()), false, false)?;
    let mut engine = plan.engine;
    if name == EngineName::Soft {
        engine = args.stress.map_or(engine, vmm::stressed);
        engine = match args.plant {
            Some(at) => planted(engine, at),
            None => engine,
        };
    }
    let (engine, notes) = milestones(engine, window, passed);
    let Start::Boot(spec, _) = plan.start else { unreachable!("no snapshot was given") };
    let wiring = Wiring {
        console: Box::new(Unconnected),
        control: Box::new(Agent(HostSession::new(&plan.request))),
        dimms: plan.dimms,
        remote: Remote::default(),
    };
    let mut machine = Machine::new(*spec, wiring, Box::new(engine))?;
    machine.stop_at(stop);
    let report = machine.run()?;
    let instructions = report.statistics.instructions.context("the engine counts no instructions")?;
    let notes = std::mem::take(&mut *notes.lock().unwrap_or_else(PoisonError::into_inner));
    let end = End { outcome: report.outcome, instructions, memory: machine.memory_hash() };
    Ok(Ran { notes, end, kernel: machine.kernel().clone() })
}

/// An engine that makes a mistake after so many instructions.
fn planted(engine: Box<dyn Engine>, at: u64) -> Box<dyn Engine> {
    let hook: Hook = Box::new(|_, processor, vcpus| {
        let mut state = processor.save(vcpus[0])?;
        state.registers.gpr[gpr::RBX] ^= 1 << 40;
        processor.restore(vcpus[0], &state)?;
        Ok(None)
    });
    Box::new(Stopping::new(engine, at, hook))
}
