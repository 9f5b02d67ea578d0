//! Locks between processes: files that are locked while they are open (flock(2)).

use std::fs::{self, File};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::error::{At, Error, Result};
use crate::progress::{Progress, Total};

/// A lock of this process. It is released when it and all that were [shared](Self::share) from it are closed.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Lock {
    /// The lock at `path`, waited for under the name `task`.
    pub(crate) fn wait(path: &Path, task: &str, progress: &dyn Progress) -> Result<Self> {
        if let Some(lock) = Self::attempt(path)? {
            return Ok(lock);
        }
        let file = open(path)?;
        progress.started(task, Total::Unknown);
        let locked = flock(&file, FlockOperation::LockExclusive).map_err(std::io::Error::from);
        progress.finished();
        locked.at("lock", path)?;
        Ok(Self(file))
    }

    /// The lock at `path`, unless somebody has it.
    pub(crate) fn attempt(path: &Path) -> Result<Option<Self>> {
        let file = open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(Error::Io { action: "lock", path: path.to_owned(), source: error.into() }),
        }
    }

    /// The lock for a child: it lasts until the child is gone too, should this process be killed before it.
    pub(crate) fn share(&self) -> std::io::Result<File> {
        self.0.try_clone()
    }
}

fn open(path: &Path) -> Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).at("create", folder)?;
    }
    File::options().read(true).write(true).create(true).truncate(false).open(path).at("create", path)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::progress::Silent;

    #[test]
    fn one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/lock");
        let lock = Lock::wait(&path, "", &Silent).unwrap();
        assert!(Lock::attempt(&path).unwrap().is_none());
        drop(lock);
        assert!(Lock::attempt(&path).unwrap().is_some());
    }

    #[test]
    fn a_child_that_outlives_us_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let lock = Lock::wait(&path, "", &Silent).unwrap();
        let mut child = Command::new("sh")
            .args(["-c", "echo; exec sleep 60"])
            .stdin(lock.share().unwrap())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        drop(lock);
        assert!(Lock::attempt(&path).unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(Lock::attempt(&path).unwrap().is_some());
    }
}
