//! What the targets share.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, memfd_create};

/// A file without a name in any folder, for code that wants a path.
pub struct File {
    file: std::fs::File,
    path: PathBuf,
}

impl File {
    /// An empty one.
    pub fn new() -> Self {
        let file = std::fs::File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a memory file"));
        let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        Self { file, path }
    }

    /// Where it can be opened.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Default for File {
    fn default() -> Self {
        Self::new()
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}
