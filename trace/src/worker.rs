//! A thread that is handed work in its order, by whoever has no time for it.

use std::iter::Flatten;
use std::sync::mpsc::{IntoIter, Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use crate::{Error, Result};

/// The jobs, in their order.
pub type Jobs<J> = Flatten<IntoIter<Vec<J>>>;

/// How jobs come to a worker.
#[derive(Debug, Clone, Copy)]
pub struct Queue {
    /// So many wait at most.
    pub waiting: usize,
    /// So many are handed over at once. To wake a thread up takes whoever does so some ten microseconds.
    pub batch: usize,
}

/// Does jobs `J` one after the other, gives back room `R` that it no longer needs, and ends with `T`. What goes wrong is told by
/// the next call, or one after it.
#[derive(Debug)]
pub struct Worker<J, R, T> {
    jobs: Option<SyncSender<Vec<J>>>,
    /// What is to be handed over next, and how many that will be.
    next: Vec<J>,
    batch: usize,
    used: Receiver<R>,
    thread: Option<JoinHandle<Result<T>>>,
    /// What has ended the work, if that was told: it is told each time.
    failure: Option<Error>,
}

impl<J: Send + 'static, R: Send + 'static, T: Send + 'static> Worker<J, R, T> {
    /// Starts `work`. It may send room back, whether anybody takes it or not.
    ///
    /// # Errors
    /// [`Error::Io`] where there is no thread to be had.
    pub fn new(
        name: &str,
        Queue { waiting, batch }: Queue,
        work: impl FnOnce(Jobs<J>, Sender<R>) -> Result<T> + Send + 'static,
    ) -> Result<Self> {
        let (jobs, todo) = sync_channel::<Vec<J>>(waiting / batch);
        let (done, used) = channel();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || work(todo.into_iter().flatten(), done));
        let thread = thread.map_err(|source| Error::Io { offset: 0, source })?;
        Ok(Self { jobs: Some(jobs), next: Vec::new(), batch, used, thread: Some(thread), failure: None })
    }

    /// Hands a job over; waits while too many wait.
    ///
    /// # Errors
    /// What has ended the work.
    pub fn give(&mut self, job: J) -> Result<()> {
        self.next.push(job);
        if self.next.len() < self.batch || self.hand_over() { Ok(()) } else { Err(self.failed()) }
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
        self.hand_over();
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

impl<J, R, T> Worker<J, R, T> {
    /// Hands over what there is. `false` if nobody takes it.
    fn hand_over(&mut self) -> bool {
        let next = std::mem::take(&mut self.next);
        self.jobs.as_ref().is_some_and(|jobs| jobs.send(next).is_ok())
    }
}

impl<J, R, T> Drop for Worker<J, R, T> {
    /// What was given is done, even if nobody asks what becomes of it.
    fn drop(&mut self) {
        self.hand_over();
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    type Notes = Arc<Mutex<Vec<u32>>>;

    /// A worker that notes what it was given.
    fn clerk(batch: usize) -> (Worker<u32, (), usize>, Notes) {
        let notes = Arc::new(Mutex::new(Vec::new()));
        let own = Arc::clone(&notes);
        let worker = Worker::new("clerk", Queue { waiting: 8, batch }, move |jobs, _| {
            jobs.for_each(|job| own.lock().unwrap().push(job));
            Ok(own.lock().unwrap().len())
        });
        (worker.unwrap(), notes)
    }

    #[test]
    fn what_is_less_than_a_batch_is_done_in_the_end() {
        for batch in [1, 4] {
            let (mut worker, notes) = clerk(batch);
            (0..30).for_each(|n| worker.give(n).unwrap());
            assert_eq!(worker.finish().unwrap(), 30);
            assert_eq!(*notes.lock().unwrap(), (0..30).collect::<Vec<_>>());
            let (mut worker, notes) = clerk(batch);
            (0..3).for_each(|n| worker.give(n).unwrap());
            drop(worker);
            assert_eq!(*notes.lock().unwrap(), [0, 1, 2], "even if nobody asks");
        }
    }
}
