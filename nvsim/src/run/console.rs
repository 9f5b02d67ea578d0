//! Where the guest's console goes.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use vmm::Keyboard;
use vmm::devices::SerialBackend;

/// A console: output to the terminal, a file, or nowhere; input from a keyboard if there is one.
pub struct Console {
    output: Box<dyn Write + Send>,
    keyboard: Option<Keyboard>,
    failed: bool,
}

impl Console {
    /// The console of a person, or of a pipe: standard output.
    pub fn stdout(keyboard: Keyboard) -> Self {
        Self { output: Box::new(std::io::stdout()), keyboard: Some(keyboard), failed: false }
    }

    /// Kept in a file.
    pub fn file(path: &Path) -> Result<Self> {
        let file =
            File::create(path).with_context(|| format!("Cannot write the console to {}", path.display()))?;
        Ok(Self { output: Box::new(BufWriter::new(file)), keyboard: None, failed: false })
    }

    /// What types on it, if anything does.
    pub fn keyboard(&self) -> Option<Keyboard> {
        self.keyboard.clone()
    }

    /// Kept nowhere.
    pub fn nowhere() -> Self {
        Self { output: Box::new(std::io::sink()), keyboard: None, failed: false }
    }
}

impl SerialBackend for Console {
    fn input(&mut self) -> Option<u8> {
        self.keyboard.as_ref()?.next()
    }

    fn output(&mut self, byte: u8) {
        if self.failed {
            return;
        }
        // A line at a time to a file; at once to a person.
        let written = self.output.write_all(&[byte]);
        let done = if byte == b'\n' || self.keyboard.is_some() {
            written.and_then(|()| self.output.flush())
        } else {
            written
        };
        if let Err(error) = done {
            self.failed = true;
            tracing::warn!("the guest's console can no longer be written: {error}");
        }
    }
}
