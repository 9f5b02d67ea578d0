//! Where a guest's processors stood when it came to a bad end: instruction pointers by name, and how they got there.

use std::fmt;

use serde::Serialize;
use symbols::Chain;
use vmm::boot::Kernel;
use vmm::{Machine, Outcome, Report, Sight};

/// Where one processor stood.
#[derive(Debug, Serialize)]
pub struct Stand {
    /// Its number.
    vcpu: u32,
    /// Its instruction pointer.
    rip: u64,
    /// The instruction pointer and the calls that led there, the innermost first: `symbol+0x1a [module]`, behind a `?`
    /// where it is no more than likely; a bare number where there is no name.
    chain: Vec<String>,
}

impl Stand {
    /// Looks at all processors; at none when the run ended as it should, or was stopped by its user.
    pub fn all(machine: &Machine, report: &Report, kernel: &Kernel) -> Vec<Self> {
        let bad = match report.outcome {
            Outcome::PowerOff | Outcome::PowerCut | Outcome::Exit(_) | Outcome::Stopped | Outcome::Paused => {
                false
            }
            Outcome::Panic | Outcome::TripleFault | Outcome::Halted | Outcome::Timeout => true,
            Outcome::InstructionLimit | Outcome::Stuck { .. } => true,
        };
        if !bad {
            return Vec::new();
        }
        let mut sight = sight(kernel);
        let stands = report.statistics.processors.iter().map(|stand| {
            let rip = stand.state.registers.rip;
            let chain = match &mut sight {
                Some(sight) => {
                    let chain = sight.chain_of(machine.memory(), stand);
                    let mut names = named(sight, &chain);
                    // How the kernel tells of its panic is not how it came to it.
                    if report.outcome == Outcome::Panic {
                        let panic = names.iter().rposition(|name| name.starts_with("panic+"));
                        names.drain(..panic.unwrap_or(0));
                    }
                    names
                }
                None => vec![format!("{rip:#x}")],
            };
            Self { vcpu: u32::from(stand.vcpu), rip, chain }
        });
        stands.collect()
    }
}

/// What is known of a kernel's code: nothing, if it has no names in it.
pub fn sight(kernel: &Kernel) -> Option<Sight> {
    let Kernel::Elf(path) = kernel else { return None };
    let read = std::fs::read(path).map_err(|e| e.to_string());
    match read.and_then(|bytes| symbols::Kernel::read(&bytes).map_err(|e| e.to_string())) {
        Ok(kernel) => Some(Sight::new(kernel)),
        Err(why) => {
            tracing::info!("no symbols from {}: {why}", path.display());
            None
        }
    }
}

fn named(sight: &Sight, chain: &Chain) -> Vec<String> {
    let name = |ip: u64| sight.code().place(ip).map_or_else(|| format!("{ip:#x}"), |place| place.to_string());
    let mark = |guess: bool| if guess { "? " } else { "" };
    chain.frames.iter().map(|frame| format!("{}{}", mark(frame.guess), name(frame.ip))).collect()
}

impl fmt::Display for Stand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  processor {} at {}", self.vcpu, self.chain.first().map_or("?", String::as_str))?;
        self.chain.iter().skip(1).try_for_each(|caller| write!(f, "\n    from {caller}"))
    }
}
