//! A file that is there under its name when it is complete, and replaces nothing.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, OFlags, linkat};

/// A file in the making. It has no name until it is [published](Self::publish), so that nothing of it is left however its maker
/// ends; where the file system cannot have such files it has a hidden one, which only kill -9 leaves behind.
#[derive(Debug)]
pub struct Draft {
    /// For reading and writing.
    pub file: File,
    name: PathBuf,
    hidden: Option<PathBuf>,
}

impl Draft {
    /// A file that is to be named `name`; `flags` are open(2)'s.
    ///
    /// # Errors
    /// There is a file of that name, or the host cannot make one.
    pub fn of(name: &Path, flags: OFlags) -> io::Result<Self> {
        Self::unnamed(name, flags).or_else(|error| {
            match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
                // What the file system, or the kernel, says that has none.
                Some(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::NOENT) => {
                    Self::hidden(name, flags)
                }
                _ => Err(error),
            }
        })
    }

    fn unnamed(name: &Path, flags: OFlags) -> io::Result<Self> {
        let folder = Self::folder(name)?;
        let file = options(flags | OFlags::TMPFILE).open(folder)?;
        Ok(Self { file, name: name.to_owned(), hidden: None })
    }

    fn hidden(name: &Path, flags: OFlags) -> io::Result<Self> {
        Self::folder(name)?;
        let mut hidden = OsString::from(".");
        hidden.push(name.file_name().unwrap_or_default());
        hidden.push(format!(".{}.new", std::process::id()));
        let hidden = name.with_file_name(hidden);
        let file = options(flags).create_new(true).open(&hidden)?;
        Ok(Self { file, name: name.to_owned(), hidden: Some(hidden) })
    }

    /// Where the name will be. Refuses names that are taken, before any work is done.
    fn folder(name: &Path) -> io::Result<&Path> {
        if name.file_name().is_none() {
            return Err(ErrorKind::InvalidInput.into());
        }
        if name.symlink_metadata().is_ok() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let folder = name.parent().filter(|folder| !folder.as_os_str().is_empty());
        Ok(folder.unwrap_or(Path::new(".")))
    }

    /// A path by which this process can open the file once more.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// The name that it will have.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// There is a file of that name by now, which stays as it is; or the host cannot.
    pub fn publish(&self) -> io::Result<()> {
        match &self.hidden {
            Some(hidden) => std::fs::hard_link(hidden, &self.name),
            None => Ok(linkat(CWD, self.path(), CWD, &self.name, AtFlags::SYMLINK_FOLLOW)?),
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(hidden) = &self.hidden {
            let _ = std::fs::remove_file(hidden);
        }
    }
}

fn options(flags: OFlags) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o644).custom_flags(flags.bits() as i32);
    options
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn names(folder: &Path) -> Vec<OsString> {
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn a_file_is_there_when_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("made");
        for make in [Draft::unnamed, Draft::hidden] {
            let draft = make(&name, OFlags::empty()).unwrap();
            draft.file.write_all_at(b"whole", 0).unwrap();
            assert!(!name.exists());
            assert_eq!(std::fs::read(draft.path()).unwrap(), b"whole");
            draft.publish().unwrap();
            drop(draft);
            assert_eq!(std::fs::read(&name).unwrap(), b"whole");
            assert_eq!(names(folder.path()), ["made"]);
            std::fs::remove_file(&name).unwrap();
        }
    }

    #[test]
    fn nothing_is_left_of_one_that_is_given_up_and_an_unnamed_one_cannot_leave_anything() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("never");
        let unnamed = Draft::unnamed(&name, OFlags::empty()).unwrap();
        assert_eq!(names(folder.path()), [""; 0]);
        drop((unnamed, Draft::hidden(&name, OFlags::empty()).unwrap()));
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn a_file_that_is_there_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("kept");
        for make in [Draft::unnamed, Draft::hidden] {
            let late = make(&name, OFlags::empty()).unwrap();
            std::fs::write(&name, "mine").unwrap();
            assert_eq!(late.publish().unwrap_err().kind(), ErrorKind::AlreadyExists);
            assert_eq!(make(&name, OFlags::empty()).unwrap_err().kind(), ErrorKind::AlreadyExists);
            assert_eq!(std::fs::read(&name).unwrap(), b"mine");
            std::fs::remove_file(&name).unwrap();
        }
        assert_eq!(Draft::of(Path::new("/"), OFlags::empty()).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
