//! What the command line may say, and the texts that teach it.
#![cfg_attr(
    doc,
    expect(rustdoc::broken_intra_doc_links, reason = "in help texts brackets are what is optional")
)]

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Style, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// How errors begin.
pub const ERROR: Style = AnsiColor::Red.on_default().bold();

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// The power-cut laboratory for persistent memory.
///
/// Boots a stock Linux kernel on a small emulated machine whose NV-DIMMs are real ACPI NFIT devices.
#[derive(Debug, Parser)]
#[command(version, styles = STYLES, max_term_width = 110, after_help = "\
Examples:
  nvsim run --image dax                                   a shell, with DAX ext4 at /mnt/pmem0
  nvsim run --image dax --nvdimm d0.nvd,size=1G           the same, on a DIMM that is kept
  nvsim run --image dax --exec 'ndctl list -v'            one command; its output and its status
  nvsim dimm create d0.nvd,size=1G                        a DIMM laid out offline
  nvsim doctor                                            what this host can do")]
pub struct Cli {
    /// Say more (-v: what is done, -vv: how).
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    pub fn log_level(&self) -> &'static str {
        match self.verbose {
            0 => "warn",
            1 => "info",
            _ => "debug",
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a guest.
    Run(Box<RunArgs>),
    /// Build, list, show and remove guest images.
    Image(ImageArgs),
    /// Create, show and label NV-DIMM files offline.
    Dimm(DimmArgs),
    /// Keep a running machine in a file, and go on from it as often as wanted.
    Snapshot(SnapshotArgs),
    /// Cut the power in a recorded run: make the DIMM files that it would have left.
    Cut(CutArgs),
    /// Look at a trace.
    Trace(TraceArgs),
    /// Say what a power cut would leave in doubt, and why.
    Explain(crate::look::ExplainArgs),
    /// Draw a recorded run as a page.
    Report(crate::look::ReportArgs),
    /// Compare the interpreter with the translator, instruction by instruction.
    Lockstep(crate::lockstep::LockstepArgs),
    /// Say what this host can do.
    Doctor(DoctorArgs),
}

/// Boots a guest and runs it until it powers off.
#[derive(Debug, Args)]
#[command(after_help = "\
--nvdimm takes FILE[,key=value...]; a missing FILE is created when a size is given:
  size=1G          multiple of 2 MiB                 mode=fsdax|devdax|sector|raw   (default fsdax)
  fs=ext4|xfs|ext2|none   made at the first boot     domain=eadr|adr|hint           (default adr)
  set=NAME         DIMMs of one interleave set       hints=on|off                   flush-hint pages
  label-size=128K  0 for none                        serial=0x12345678

--cut takes a moment; the N-th of a kind is counted from the start, or after a mark (after:MARK,store:3):
  store:N  flush:N  fence:N  hint:N  label:N   the N-th store, flush of a line, fence, flush hint, write of labels
  event:N  random:SEED[/N]                     the N-th of all these, or one of the first N (10000)
  insn:N   time:1.5s                           so many instructions, or so much guest time
  mark:NAME                                    what `nvsim-mark NAME` sets in the guest (docs/marks.md)

Exit status: 0 after a power-off, or the command's with --exec and --script (128 + signal if it was killed);
  118 the power was cut, 119 the cut never came, 120 guest panic, 121 triple fault, 122 the engine could not go on, 123 stopped, 124 --timeout, 125 nvsim failed.

Examples:
  nvsim run --image dax --nvdimm a.nvd,size=1G,domain=eadr --nvdimm b.nvd,size=1G,fs=xfs
  nvsim run --image dax --exec 'mount | grep dax' --json
  nvsim run --nvdimm d.nvd,size=64M --exec 'cp /etc/passwd /mnt/pmem0; nvsim-mark done; sync' --cut mark:done
  nvsim run --nvdimm d.nvd --record run.nvt --window begin..end --script workload.sh
  nvsim run --kernel bzImage --initrd my.cpio --append 'console=ttyS0 root=/dev/vda' --disk root.img

  nvsim run --image dax --gdb :1234 --cold     then: gdb -ex 'target remote :1234' vmlinux

At a shell, Ctrl-] stops the machine at once, as pulling the plug would.")]
pub struct RunArgs {
    /// Guest image: a built-in recipe (dax, dax-6.1, dax-generic, validation), or a recipe file. Built when missing.
    #[arg(long, value_name = "NAME", default_value = "dax", conflicts_with = "kernel")]
    pub image: String,
    /// Own kernel: a bzImage or an ELF vmlinux.
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk of an own kernel. Without it the image's is used, with --modules laid over it.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// Modules of an own kernel: a folder that has lib/modules/RELEASE.
    #[arg(long, value_name = "DIR", requires = "kernel")]
    pub modules: Option<PathBuf>,
    /// More kernel command line, after the image's. [may be given more than once]
    #[arg(long, value_name = "WORDS")]
    pub append: Vec<String>,
    /// An NV-DIMM: FILE[,key=value...]. [up to 8]
    #[arg(long, value_name = "SPEC")]
    pub nvdimm: Vec<vmm::nvdimm::DimmSpec>,
    /// A disk (virtio-blk): FILE[,ro]. [up to 7]
    #[arg(long, value_name = "FILE")]
    pub disk: Vec<vmm::DiskSpec>,
    /// Which engine runs the guest.
    #[arg(long, value_enum, default_value_t = EngineName::Auto)]
    pub engine: EngineName,
    /// What the guest's CPUs can do.
    #[arg(long, value_enum, default_value_t = CpuName::V2)]
    pub cpu: CpuName,
    /// Virtual CPUs.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub cpus: u8,
    /// Guest memory.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = vmm::nvdimm::size)]
    pub memory: u64,
    /// Decides all randomness of the run.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// The date that the guest's clock starts at, in seconds since 1970. [default: 2026-01-01]
    #[arg(long, value_name = "SECONDS", default_value_t = 1_767_225_600, hide_default_value = true)]
    pub date: u64,
    /// Run this shell command in the guest as root and exit with its status.
    #[arg(long, value_name = "CMD", conflicts_with = "script")]
    pub exec: Option<String>,
    /// Run this file in the guest as root and exit with its status.
    #[arg(long, value_name = "FILE")]
    pub script: Option<PathBuf>,
    /// Where --exec and --script keep what the guest writes to its console. [default: nowhere]
    #[arg(long, value_name = "FILE")]
    pub console: Option<PathBuf>,
    /// Let gdb debug the guest, its CPUs as threads: wait at this address for `target remote`. Software engines only.
    #[arg(long, value_name = "[HOST]:PORT", value_parser = gdb_address)]
    pub gdb: Option<String>,
    /// Boot from the beginning, not from the snapshot of an equal boot, and keep none.
    #[arg(long)]
    pub cold: bool,
    /// Stop the guest after so long (host time: 90, 90s, 5m).
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub timeout: Option<std::time::Duration>,
    /// What to do with the DIMMs in the guest.
    #[arg(long, value_enum, default_value_t = Mount::Auto)]
    pub mount: Mount,
    /// Record all that is done to the NV-DIMMs into this trace, for `nvsim trace` and `nvsim cut`.
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Record, or look for the cut, only in this part of the run: BEGIN..END, two marks, or insn:N..insn:N, or
    /// time:1s..time:2s. What the DIMMs hold at its begin counts as durable.
    #[arg(long, value_name = "FROM..TO")]
    pub window: Option<vmm::recording::Window>,
    /// Record loads, too.
    #[arg(long, requires = "record")]
    pub loads: bool,
    /// Cut the power at this moment.
    #[arg(long, value_name = "WHEN")]
    pub cut: Option<trace::When>,
    /// What becomes of the stores in doubt: none, all, random:SEED, or a file that picks line by line.
    #[arg(long, value_name = "WHICH", default_value = "none", requires = "cut")]
    pub survivors: String,
    /// Cut by other rules than those of Intel's manual: tear, locked, cmpxchg, serialising, line-order, =on or =off
    /// (docs/persistence-model.md).
    #[arg(long, value_name = "RULE=on|off,...", requires = "cut")]
    pub rules: Option<trace::medium::Rules>,
    /// Print a summary of the run as JSON on standard error (or to --summary).
    #[arg(long)]
    pub json: bool,
    /// Add a hash of the guest's memory at the end to the summary.
    #[arg(long, requires = "json")]
    pub hash: bool,
    /// Write the summary of --json to this file instead.
    #[arg(long, value_name = "FILE", requires = "json")]
    pub summary: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CpuName {
    /// x86-64-v2, to SSE4.2: on any host.
    V2,
    /// x86-64-v3, AVX2, FMA and BMI too: where `nvsim doctor` says so.
    V3,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineName {
    /// KVM where it is fit, else soft; says why with -v.
    Auto,
    /// nvsim's own engine: anywhere, deterministic. It translates guest code to host code.
    Soft,
    /// nvsim's own engine, instruction by instruction.
    Interp,
    /// /dev/kvm.
    Kvm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mount {
    /// Make a file system on an empty fsdax DIMM and mount each at /mnt/pmemN with -o dax.
    Auto,
    /// Leave the devices alone.
    None,
}

/// Machines in files.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nvsim snapshot save s.snap --nvdimm d.nvd,size=1G --exec 'cp -r /usr /mnt/pmem0'
  nvsim snapshot restore s.snap --exec 'rm -r /mnt/pmem0/usr; sync'      from there, on copies of its DIMMs
  nvsim snapshot restore s.snap                                          a shell at the same point
  nvsim snapshot ls s.snap
  nvsim snapshot ls                                                      the boot snapshots of nvsim run
  nvsim snapshot rm --boot                                               all of these

`nvsim run` keeps a snapshot of each boot and starts equal ones from it: same image, kernel, command line, memory,
CPUs, seed, date, engine, DIMM identities and nvsim. --cold boots from the beginning.")]
pub struct SnapshotArgs {
    #[command(subcommand)]
    pub command: SnapshotCommand,
}

#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Run a command as `nvsim run` does, and keep the machine as it is when the command has ended.
    Save {
        /// The file to make. Never replaces one.
        file: PathBuf,
        /// Keep it when so many instructions have retired instead, in the middle of the command.
        #[arg(long, value_name = "INSTRUCTION")]
        at: Option<u64>,
        #[command(flatten)]
        run: Box<RunArgs>,
    },
    /// Go on from a snapshot: a shell, or a command. Its DIMMs are copies, which are gone at the end.
    Restore(Box<RestoreArgs>),
    /// List snapshot files; without any, the boot snapshots of `nvsim run`.
    Ls {
        /// The files.
        files: Vec<PathBuf>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove snapshot files.
    Rm {
        /// The files.
        #[arg(required_unless_present = "boot")]
        files: Vec<PathBuf>,
        /// Remove the boot snapshots of `nvsim run`.
        #[arg(long)]
        boot: bool,
    },
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The snapshot.
    pub file: PathBuf,
    /// Run this shell command in the guest as root and exit with its status.
    #[arg(long, value_name = "CMD", conflicts_with = "script")]
    pub exec: Option<String>,
    /// Run this file in the guest as root and exit with its status.
    #[arg(long, value_name = "FILE")]
    pub script: Option<PathBuf>,
    /// Which engine runs the guest from here on.
    #[arg(long, value_enum, default_value_t = EngineName::Auto)]
    pub engine: EngineName,
    /// Keep the machine again, as it is when the command has ended, in this file. Never replaces one.
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Where --exec and --script keep what the guest has written to its console, from power-up on. [default: nowhere]
    #[arg(long, value_name = "FILE")]
    pub console: Option<PathBuf>,
    /// Stop the guest after so long (host time: 90, 90s, 5m).
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub timeout: Option<std::time::Duration>,
    /// Print a summary of the run as JSON on standard error (or to --summary).
    #[arg(long)]
    pub json: bool,
    /// Add a hash of the guest's memory at the end to the summary.
    #[arg(long, requires = "json")]
    pub hash: bool,
    /// Write the summary of --json to this file instead.
    #[arg(long, value_name = "FILE", requires = "json")]
    pub summary: Option<PathBuf>,
}

impl RestoreArgs {
    /// What `nvsim run` would be told.
    pub fn run(self) -> RunArgs {
        let Self { exec, script, engine, console, timeout, json, hash, summary, .. } = self;
        RunArgs { exec, script, engine, console, timeout, json, hash, summary, ..RunArgs::default() }
    }
}

impl Default for RunArgs {
    fn default() -> Self {
        match Cli::parse_from(["nvsim", "run"]).command {
            Command::Run(run) => *run,
            _ => unreachable!("that is what was parsed"),
        }
    }
}

/// Guest images.
#[derive(Debug, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    pub command: ImageCommand,
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Build an image, or find that nothing has changed.
    #[command(after_help = "Examples:\n  nvsim image build dax\n  nvsim image build ./my-recipe.toml")]
    Build {
        /// A built-in recipe or a recipe file.
        recipe: String,
    },
    /// List the images that are built and the recipes that could be.
    Ls {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// List (the same as ls).
    #[command(hide = true)]
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show what an image is made of.
    Show {
        /// Name of a built image.
        name: String,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove an image. Downloaded packages stay in the cache.
    Rm {
        /// Names of built images.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// NV-DIMM files, offline.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nvsim dimm create d0.nvd,size=1G
  nvsim dimm create a.nvd,size=1G,mode=sector,domain=hint
  nvsim dimm create a.nvd,size=1G,set=s b.nvd,size=1G,set=s      an interleave set of two
  nvsim dimm info a.nvd b.nvd
  nvsim dimm label a.nvd b.nvd                                   show the labels
  nvsim dimm label d0.nvd --erase --namespace mode=fsdax,size=512M,name=db --namespace mode=sector")]
pub struct DimmArgs {
    #[command(subcommand)]
    pub command: DimmCommand,
}

#[derive(Debug, Subcommand)]
pub enum DimmCommand {
    /// Create DIMM files, with one namespace over each set. Never replaces a file.
    Create {
        /// FILE,size=SIZE[,key=value...], as for `nvsim run --nvdimm`.
        #[arg(required = true, value_name = "SPEC")]
        specs: Vec<vmm::nvdimm::DimmSpec>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show identity, health and namespaces.
    Info {
        /// The files; those of one interleave set together.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show the label areas, or lay labels and namespaces down anew.
    Label {
        /// The files; those of one interleave set together.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Lay this namespace down: mode=fsdax|devdax|sector|raw[,size=SIZE][,name=NAME][,key=value...].
        #[arg(long, value_name = "SPEC", requires = "erase")]
        namespace: Vec<String>,
        /// Version of the labels to lay down: 1.2, 1.1 or none.
        #[arg(long, value_name = "VERSION", requires = "namespace", default_value = "1.2")]
        labels: String,
        /// Lose what the DIMMs hold.
        #[arg(long, requires = "namespace")]
        erase: bool,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// List the DIMM files among these files and in these folders.
    Ls {
        /// Files and folders.
        #[arg(default_value = ".")]
        paths: Vec<PathBuf>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Makes the DIMM files that a power cut at a moment of a recorded run would have left. Nothing is run.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nvsim cut run.nvt --at mark:done -o cut.nvd                     only what is sure survives
  nvsim cut run.nvt --at after:begin,fence:7 --survivors all -o cut.nvd
  nvsim cut run.nvt --at random:5 --survivors random:5 -o a.nvd -o b.nvd     a trace with two DIMMs
  nvsim run --nvdimm cut.nvd --exec 'ls /mnt/pmem0'               boots what is left

A survivors file picks how many of a line's stores in doubt survive, the others lose theirs:
  {\"0x100000040\": {\"kept\": 2, \"torn\": [0, 3]}, \"0x100000080\": {\"chunks\": [0, 1, 0, 0, 0, 0, 0, 0]}}

Exit status: 119 if the moment is not in the trace, 125 for other failures.")]
pub struct CutArgs {
    /// The trace.
    pub trace: PathBuf,
    /// The moment, as for `nvsim run --cut`.
    #[arg(long, value_name = "WHEN")]
    pub at: trace::When,
    /// What becomes of the stores in doubt: none, all, random:SEED, or a file that picks line by line.
    #[arg(long, value_name = "WHICH", default_value = "none")]
    pub survivors: String,
    /// Cut by other rules than those of Intel's manual: tear, locked, cmpxchg, serialising, line-order, =on or =off
    /// (docs/persistence-model.md).
    #[arg(long, value_name = "RULE=on|off,...")]
    pub rules: Option<trace::medium::Rules>,
    /// The DIMM file to make. [once for each DIMM of the trace]
    #[arg(short, long, value_name = "FILE", required = true)]
    pub output: Vec<PathBuf>,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

/// Traces.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nvsim trace stats run.nvt
  nvsim trace show run.nvt --from mark:begin --to mark:end
  nvsim trace grep run.nvt --kind store,clwb --address 0x100200000..0x100201000
  nvsim trace grep run.nvt --json --kind hint | jq .instruction")]
pub struct TraceArgs {
    #[command(subcommand)]
    pub command: TraceCommand,
}

#[derive(Debug, Subcommand)]
pub enum TraceCommand {
    /// Show the events, one a line.
    Show(ShowArgs),
    /// Show the events that match.
    Grep {
        #[command(flatten)]
        show: ShowArgs,
        /// Kinds, as `show` prints them: store, ntstore, clwb, sfence, hint, mark, ...
        #[arg(long, value_name = "KIND", value_delimiter = ',')]
        kind: Vec<String>,
        /// Guest-physical addresses: 0x100000000..0x100001000, or one.
        #[arg(long, value_name = "RANGE", value_parser = crate::trace_view::addresses)]
        address: Option<std::ops::Range<u64>>,
        /// Virtual CPU.
        #[arg(long, value_name = "N")]
        vcpu: Option<u8>,
        /// Text anywhere in the line.
        #[arg(long, value_name = "TEXT")]
        text: Option<String>,
    },
    /// Count the events by kind, and say who recorded what.
    Stats {
        /// The trace.
        trace: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The trace.
    pub trace: PathBuf,
    /// Begin after this moment.
    #[arg(long, value_name = "WHEN")]
    pub from: Option<trace::When>,
    /// End with this moment.
    #[arg(long, value_name = "WHEN")]
    pub to: Option<trace::When>,
    /// An object a line, as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Says what this host can do, and what to do about the rest.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

/// Where gdb connects: `:1234`, `localhost:1234`.
fn gdb_address(text: &str) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').ok_or("write for example :1234")?;
    port.parse::<u16>().map_err(|_| format!("'{port}' is no port; write for example :1234"))?;
    Ok(if host.is_empty() { format!("127.0.0.1:{port}") } else { text.to_owned() })
}

/// A time: `90`, `90s`, `1.5s`, `5m`, `2h`.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    let bad = || format!("'{text}' is no time; write for example 90s or 5m");
    let number = text.trim_end_matches(['s', 'm', 'h']);
    let unit = match &text[number.len()..] {
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(bad()),
    };
    let seconds: f64 = number.parse().map_err(|_| bad())?;
    std::time::Duration::try_from_secs_f64(seconds * unit).map_err(|_| bad())
}

#[cfg(test)]
mod tests;
