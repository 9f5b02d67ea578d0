//! `nvsim snapshot`: keeps a machine in a file, goes on from one, lists and removes.

pub mod cache;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use guest_image::Store;
use serde::Serialize;
use vmm::{Snapshot, SnapshotInfo};

use crate::cli::{RestoreArgs, RunArgs, SnapshotArgs, SnapshotCommand};
use crate::run::{Errand, Keep, RUNNING, WAITING};
use crate::table::{human, print, table};
use cache::Cache;

/// Runs a subcommand.
pub fn snapshot(args: SnapshotArgs) -> Result<ExitCode> {
    match args.command {
        SnapshotCommand::Save { file, at, run } => save(file, at, *run),
        SnapshotCommand::Restore(args) => restore(*args),
        SnapshotCommand::Ls { files, json } => list(&files, json).map(|()| ExitCode::SUCCESS),
        SnapshotCommand::Rm { files, boot } => remove(&files, boot).map(|()| ExitCode::SUCCESS),
    }
}

fn save(file: PathBuf, at: Option<u64>, run: RunArgs) -> Result<ExitCode> {
    if run.exec.is_none() && run.script.is_none() {
        bail!(
            "a snapshot is kept when a command has ended: give --exec or --script (--exec true for a fresh guest)"
        );
    }
    if !run.disk.is_empty() {
        bail!(
            "a machine with disks cannot be kept, because they could change behind its back: leave --disk out"
        );
    }
    must_not_exist(&file)?;
    crate::run::run(run, Errand { from: None, keep: Some(Keep { file, at }) })
}

/// What is kept replaces nothing.
fn must_not_exist(file: &Path) -> Result<()> {
    if file.symlink_metadata().is_ok() {
        bail!(
            "{} exists already; it is left as it is. Choose another name, or remove it first",
            file.display()
        )
    }
    Ok(())
}

fn restore(args: RestoreArgs) -> Result<ExitCode> {
    let snapshot = Snapshot::open(&args.file)?;
    let given = args.exec.is_some() || args.script.is_some();
    if let Some(file) = &args.save {
        must_not_exist(file)?;
        if !given {
            bail!("a snapshot is kept when a command has ended: give --exec or --script beside --save");
        }
    }
    match snapshot.info().note.as_str() {
        WAITING => {}
        RUNNING if given => {
            bail!(
                "{} was taken in the middle of a command, which goes on: leave --exec and --script out",
                args.file.display()
            )
        }
        RUNNING => {
            let mut run = args.run();
            // It has its command; what is given here is never sent.
            run.exec = Some(String::new());
            return crate::run::run(run, Errand { from: Some(snapshot), keep: None });
        }
        _ => bail!("{} is a boot snapshot of nvsim run, which uses it by itself", args.file.display()),
    }
    let keep = args.save.clone().map(|file| Keep { file, at: None });
    crate::run::run(args.run(), Errand { from: Some(snapshot), keep })
}

/// A line of the listing.
#[derive(Debug, Serialize)]
struct Row {
    file: PathBuf,
    /// Bytes that the disk holds.
    bytes: u64,
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(flatten)]
    info: Option<SnapshotInfo>,
}

impl Row {
    fn of(file: PathBuf, bytes: u64) -> Self {
        let (info, problem) = match Snapshot::open(&file) {
            Ok(snapshot) => (Some(snapshot.info()), None),
            Err(error) => (None, Some(error.to_string())),
        };
        Self { file, bytes, problem, info }
    }
}

/// Lists files; without any, the boot snapshots of `nvsim run`.
fn list(files: &[PathBuf], json: bool) -> Result<()> {
    let rows: Vec<Row> = if files.is_empty() {
        let entries = Cache::of(&Store::of_user()?).entries();
        entries.into_iter().map(|entry| Row::of(entry.path, entry.bytes)).collect()
    } else {
        files.iter().map(|file| Ok(Row::of(file.clone(), allocated(file)?))).collect::<Result<_>>()?
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    let mut lines = table(&["FILE", "SIZE", "CPUS", "MEMORY", "INSTRUCTIONS", "DIMMS", "KERNEL"]);
    for row in &rows {
        let (file, size) = (row.file.display().to_string(), human(row.bytes));
        match &row.info {
            Some(info) => lines.add_row([
                file,
                size,
                info.vcpus.to_string(),
                human(info.ram),
                info.instructions.map_or("-".to_owned(), |count| count.to_string()),
                info.dimms.len().to_string(),
                info.kernel.display().to_string(),
            ]),
            None => lines.add_row([file, size, String::new(), row.problem.clone().unwrap_or_default()]),
        };
    }
    print(&lines);
    Ok(())
}

/// Removes files that are snapshots; or all boot snapshots.
fn remove(files: &[PathBuf], boot: bool) -> Result<()> {
    if boot {
        Cache::of(&Store::of_user()?).clear();
    }
    for file in files {
        if !Snapshot::is_one(file) {
            bail!("{} is no snapshot of nvsim; it is left as it is", file.display());
        }
        std::fs::remove_file(file).with_context(|| format!("Cannot remove {}", file.display()))?;
    }
    Ok(())
}

fn allocated(file: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let meta = file.metadata().with_context(|| format!("Cannot read snapshot {}", file.display()))?;
    Ok(meta.blocks() * 512)
}
