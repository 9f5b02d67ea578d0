//! What of a run is recorded, and where its power goes.

use std::fs::OpenOptions;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use trace::Header;
use vmm::boot::Kernel;
use vmm::recording::{CutSpec, RecordSpec};

use super::plan::Origin;
use crate::cli::RunArgs;

/// What the command line asks for; nothing if neither a trace nor a cut.
pub fn spec(args: &RunArgs, origin: Origin, kernel: &Kernel) -> Result<Option<RecordSpec>> {
    if args.record.is_none() && args.cut.is_none() {
        return Ok(None);
    }
    if args.nvdimm.is_empty() {
        bail!(
            "There is nothing to record or to cut without an NV-DIMM; give for example --nvdimm d0.nvd,size=64M"
        );
    }
    let cut = match &args.cut {
        None => None,
        Some(when) => {
            let survivors = crate::survivors::parse(&args.survivors)?;
            Some(CutSpec { when: when.clone(), survivors, rules: args.rules.unwrap_or_default() })
        }
    };
    let trace = match &args.record {
        None => None,
        Some(path) => Some((create(path)?, header(origin))),
    };
    // Only a trace tells of code.
    let sight = if args.record.is_some() { super::stand::sight(kernel) } else { None };
    Ok(Some(RecordSpec { trace, window: args.window.clone(), loads: args.loads, cut, sight }))
}

fn create(path: &Path) -> Result<Box<dyn Write + Send>> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(file) => Ok(Box::new(BufWriter::with_capacity(1 << 20, file))),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            bail!(
                "{} exists already; it is left as it is. Choose another name, or remove it first",
                path.display()
            )
        }
        Err(e) => Err(e).with_context(|| format!("Cannot write the trace {}", path.display())),
    }
}

fn header(origin: Origin) -> Header {
    Header {
        nvsim: env!("CARGO_PKG_VERSION").to_owned(),
        image: origin.name,
        image_hash: origin.id,
        kernel: origin.kernel,
        ..Header::default()
    }
}
