//! The `nvsim` command: boots Linux guests on emulated NV-DIMMs and lays the DIMMs out offline.

mod cli;
mod cut;
mod dimm;
mod doctor;
mod image;
mod lockstep;
mod look;
mod run;
mod snapshot;
mod survivors;
mod table;
mod trace_view;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};

/// The exit code of nvsim's own failures; a guest's outcome has others: see `run::verdict`.
const OWN_FAILURE: u8 = 125;

/// The exit code of a command whose output nobody reads any more, as a shell tells of SIGPIPE.
const NOBODY_READS: i32 = 128 + 13;

/// Whoever reads our output may have seen enough, as `head` has: printing panics then, and there is nothing left to do.
fn end_quietly_when_nobody_reads() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let said = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        if said.starts_with("failed printing to stdout") && said.contains("Broken pipe") {
            std::process::exit(NOBODY_READS);
        }
        usual(panic);
    }));
}

fn main() -> ExitCode {
    end_quietly_when_nobody_reads();
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("NVSIM_LOG")
                .unwrap_or_else(|_| cli.log_level().into()),
        )
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    let result = match cli.command {
        Command::Run(args) => run::run(*args, run::Errand::default()),
        Command::Snapshot(args) => snapshot::snapshot(args),
        Command::Image(args) => image::image(args).map(|()| ExitCode::SUCCESS),
        Command::Dimm(args) => dimm::dimm(args).map(|()| ExitCode::SUCCESS),
        Command::Cut(args) => cut::cut(&args).map(|()| ExitCode::SUCCESS),
        Command::Trace(args) => trace_view::trace(&args).map(|()| ExitCode::SUCCESS),
        Command::Explain(args) => look::explain(&args).map(|()| ExitCode::SUCCESS),
        Command::Report(args) => look::report(&args).map(|()| ExitCode::SUCCESS),
        Command::Lockstep(args) => lockstep::lockstep(&args),
        Command::Doctor(args) => doctor::doctor(&args),
    };
    result.unwrap_or_else(|error| {
        let cut = error.downcast_ref().is_some_and(|error| matches!(error, vmm::Error::NeverCame { .. }));
        let look = error.downcast_ref().is_some_and(|error| matches!(error, view::Error::NeverCame { .. }));
        if cut || look {
            anstream::eprintln!("{style}nvsim:{style:#} {}", chain(&error), style = cli::ERROR);
            return ExitCode::from(run::NEVER_CAME);
        }
        let style = cli::ERROR;
        anstream::eprintln!("{style}error:{style:#} {}", chain(&error));
        ExitCode::from(OWN_FAILURE)
    })
}

/// The error and its causes on one line, without saying twice what a cause repeats.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
