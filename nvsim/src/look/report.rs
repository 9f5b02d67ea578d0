//! `nvsim report`.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

use super::ReportArgs;

/// Draws the page.
pub fn report(args: &ReportArgs) -> Result<()> {
    let page = view::report(&view::Source::new(&args.trace))?;
    if args.output == Path::new("-") {
        return std::io::stdout().write_all(page.as_bytes()).context("Cannot write the page");
    }
    // Beside the page and then under its name, so that nobody sees half of one.
    let folder =
        args.output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let doing = || format!("Cannot write the page {}", args.output.display());
    let mut draft = tempfile::NamedTempFile::new_in(folder).with_context(doing)?;
    draft.write_all(page.as_bytes()).with_context(doing)?;
    readable(draft.as_file()).with_context(doing)?;
    draft.persist(&args.output).with_context(doing)?;
    Ok(())
}

/// A temporary file is its user's only; a page is like any other file.
fn readable(file: &std::fs::File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}
