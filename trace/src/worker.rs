//! A thread that is handed work in its order, by whoever has no time for it.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use crate::{Error, Result};

/// Does jobs `J` one after the other, gives back room `R` that it no longer needs, and ends with `T`. What goes wrong is told by
/// the next call, or one after it.
#[derive(Debug)]
pub struct Worker<J, R, T> {
    jobs: Option<SyncSender<J>>,
    used: Receiver<R>,
    thread: Option<JoinHandle<Result<T>>>,
    /// What has ended the work, if that was told: it is told each time.
    failure: Option<Error>,
}

impl<J: Send + 'static, R: Send + 'static, T: Send + 'static> Worker<J, R, T> {
    /// Starts `work`, for which at most so many jobs wait. It may send room back, whether anybody takes it or not.
    ///
    /// # Errors
    /// [`Error::Io`] where there is no thread to be had.
    pub fn new(
        name: &str,
        waiting: usize,
        work: impl FnOnce(Receiver<J>, Sender<R>) -> Result<T> + Send + 'static,
    ) -> Result<Self> {
        let (jobs, todo) = sync_channel(waiting);
        let (done, used) = channel();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || work(todo, done));
        let thread = thread.map_err(|source| Error::Io { offset: 0, source })?;
        Ok(Self { jobs: Some(jobs), used, thread: Some(thread), failure: None })
    }

    /// Hands a job over; waits while too many wait.
    ///
    /// # Errors
    /// What has ended the work.
    pub fn give(&mut self, job: J) -> Result<()> {
        match self.jobs.as_ref().map(|jobs| jobs.send(job)) {
            Some(Ok(())) => Ok(()),
            _ => Err(self.failed()),
        }
    }

    /// Room that is not needed any more, if there is some.
    pub fn used(&self) -> Option<R> {
        self.used.try_recv().ok()
    }

    /// Waits until all is done.
    ///
    /// # Errors
    /// What has ended the work.
    pub fn finish(mut self) -> Result<T> {
        self.jobs = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(done)) => done,
            Some(Err(_)) => Err(lost()),
            None => Err(self.failed()),
        }
    }

    /// Why nothing is done any more.
    pub(crate) fn failed(&mut self) -> Error {
        self.jobs = None;
        let error = match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => error,
            _ => self.failure.take().unwrap_or_else(lost),
        };
        self.failure = Some(again(&error));
        error
    }
}

impl<J, R, T> Drop for Worker<J, R, T> {
    /// What was given is done, even if nobody asks what becomes of it.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The same error once more.
fn again(error: &Error) -> Error {
    match error {
        Error::Io { offset, source } => {
            Error::Io { offset: *offset, source: std::io::Error::new(source.kind(), source.to_string()) }
        }
        other => Error::Io { offset: 0, source: std::io::Error::other(other.to_string()) },
    }
}

fn lost() -> Error {
    let source = std::io::Error::other("the thread that writes it is gone; see the error before");
    Error::Io { offset: 0, source }
}
