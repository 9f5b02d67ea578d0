//! `nvsim doctor`: what this host can do, and what to do about the rest.

use std::process::ExitCode;

use anyhow::Result;
use clap::builder::styling::{AnsiColor, Style};
use serde::Serialize;

use crate::cli::DoctorArgs;
use crate::table::human;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Good,
    /// Something is slower or missing, but the main job works.
    Limited,
    /// The main job does not work.
    Bad,
}

/// One fact about the host.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    finding: String,
    /// What to do, where there is something to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'static str>,
}

/// Space that an image build and a few DIMMs want.
const WANTED_DISK: u64 = 2 << 30;

/// Prints all checks; fails if the main job would.
pub fn doctor(args: &DoctorArgs) -> Result<ExitCode> {
    let checks = [cpu(), kvm(), apt(), disk(), memory()];
    if args.json {
        println!("{}", serde_json::to_string_pretty(&checks)?);
    } else {
        for check in &checks {
            let (mark, colour) = match check.verdict {
                Verdict::Good => ("ok", AnsiColor::Green),
                Verdict::Limited => ("note", AnsiColor::Yellow),
                Verdict::Bad => ("BAD", AnsiColor::Red),
            };
            let style = Style::new().fg_color(Some(colour.into())).bold();
            anstream::println!("{style}{mark:>4}{style:#}  {:7} {}", check.name, check.finding);
            if let Some(remedy) = check.remedy {
                println!("      {:7} -> {remedy}", "");
            }
        }
    }
    let bad = checks.iter().any(|check| check.verdict == Verdict::Bad);
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn cpu() -> Check {
    let v2 = [
        ("sse3", is_x86_feature_detected!("sse3")),
        ("ssse3", is_x86_feature_detected!("ssse3")),
        ("sse4.1", is_x86_feature_detected!("sse4.1")),
        ("sse4.2", is_x86_feature_detected!("sse4.2")),
        ("popcnt", is_x86_feature_detected!("popcnt")),
        ("cmpxchg16b", is_x86_feature_detected!("cmpxchg16b")),
    ];
    let missing: Vec<&str> = v2.iter().filter(|(_, there)| !there).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        let lacks = vmm::host_lacks_of_v3();
        let finding = match lacks.as_slice() {
            [] => "x86-64-v3: guests may have --cpu v2 or v3".to_owned(),
            _ => format!("x86-64-v2: guests may have --cpu v2; v3 needs {}", lacks.join(", ")),
        };
        return Check { name: "cpu", verdict: Verdict::Good, finding, remedy: None };
    }
    Check {
        name: "cpu",
        verdict: Verdict::Bad,
        finding: format!("not x86-64-v2: no {}", missing.join(", ")),
        remedy: Some(
            "run nvsim on a host whose CPU is from 2010 or later, or give the virtual machine such a CPU",
        ),
    }
}

fn kvm() -> Check {
    use vmm::KvmFitness::{Absent, Fit, Unfit};
    let (verdict, finding, remedy) = match vmm::kvm_fitness() {
        Fit => (Verdict::Good, "fit: it ran the self-test guest".to_owned(), None),
        Unfit { reason } => (
            Verdict::Limited,
            format!("present but unfit: {reason}"),
            Some("nothing to do: --engine auto takes the software engine"),
        ),
        Absent { reason } => (
            Verdict::Limited,
            format!("none: {reason}"),
            Some(
                "the software engine runs everywhere; for KVM join the group kvm or enable nested virtualisation",
            ),
        ),
    };
    Check { name: "kvm", verdict, finding, remedy }
}

fn apt() -> Check {
    let version = std::process::Command::new("apt-get").arg("--version").output();
    let line =
        version.ok().and_then(|out| String::from_utf8(out.stdout).ok()?.lines().next().map(str::to_owned));
    match line {
        Some(finding) => Check { name: "apt", verdict: Verdict::Good, finding, remedy: None },
        None => Check {
            name: "apt",
            verdict: Verdict::Limited,
            finding: "no apt-get: images cannot be built here".to_owned(),
            remedy: Some(
                "build on Debian or Ubuntu and copy ~/.cache/nvsim, or run --kernel FILE --initrd FILE",
            ),
        },
    }
}

fn disk() -> Check {
    let name = "disk";
    let remedy = Some("free some, or set XDG_CACHE_HOME to a folder on a larger disk");
    let Ok(store) = guest_image::Store::of_user() else {
        let finding = "neither XDG_CACHE_HOME nor HOME is set: no place for images".to_owned();
        return Check { name, verdict: Verdict::Bad, finding, remedy };
    };
    let existing = store.root().ancestors().find(|path| path.exists());
    match existing.and_then(|path| rustix::fs::statvfs(path).ok()) {
        Some(fs) => {
            let free = fs.f_bavail.saturating_mul(fs.f_frsize);
            let finding = format!("{} free at {}", human(free), store.root().display());
            let enough = free >= WANTED_DISK;
            let verdict = if enough { Verdict::Good } else { Verdict::Bad };
            Check { name, verdict, finding, remedy: remedy.filter(|_| !enough) }
        }
        None => {
            let finding = format!("{} cannot be reached", store.root().display());
            Check { name, verdict: Verdict::Bad, finding, remedy }
        }
    }
}

fn memory() -> Check {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .map_or(0, |kib| kib << 10);
    let enough = available >= 1 << 30;
    Check {
        name: "memory",
        verdict: if enough { Verdict::Good } else { Verdict::Limited },
        finding: format!("{} available", human(available)),
        remedy: (!enough).then_some("give the guest less with --memory 256M"),
    }
}
