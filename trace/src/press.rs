//! Where chunks are compressed, summed up and written: on a thread of its own, beside whoever makes the events.

use std::io::Write;
use std::sync::mpsc::{SyncSender, sync_channel};

use crate::worker::{Queue, Worker};
use crate::{Error, Result, chunk};

/// Chunks that may wait.
const QUEUE: Queue = Queue { waiting: 8, batch: 1 };

/// What is to be done.
#[derive(Debug)]
enum Job {
    /// To be written as it is.
    Plain(Vec<u8>),
    /// To be sealed into the next chunk.
    Chunk(u8, Vec<u8>),
    /// All so far is to be handed on; then it is told at which offset the file ends.
    Flush(SyncSender<u64>),
}

/// Writes chunks in their order. What goes wrong is told by the next call, or the one after.
#[derive(Debug)]
pub struct Press<W>(Worker<Job, Vec<u8>, W>);

impl<W: Write + Send + 'static> Press<W> {
    /// # Errors
    /// [`Error::Io`] where there is no thread to be had.
    pub fn new(to: W) -> Result<Self> {
        let worker = Worker::new("trace", QUEUE, |todo, done| {
            let mut plate = Plate { to, offset: 0, chunks: 0, sealed: Vec::new() };
            for job in todo {
                let mut room = plate.press(job)?;
                room.clear();
                // Nobody may be there to use it again.
                let _ = done.send(room);
            }
            Ok(plate.to)
        });
        Ok(Self(worker?))
    }

    /// Bytes to be written as they are.
    pub fn plain(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.give(Job::Plain(bytes.to_vec()))
    }

    /// A payload to be sealed; gives room for another one.
    pub fn chunk(&mut self, tag: u8, payload: Vec<u8>) -> Result<Vec<u8>> {
        self.0.give(Job::Chunk(tag, payload))?;
        Ok(self.0.used().unwrap_or_default())
    }

    /// Waits until all is written, and tells how much that is.
    pub fn flush(&mut self) -> Result<u64> {
        let (told, heard) = sync_channel(1);
        self.0.give(Job::Flush(told))?;
        match heard.recv() {
            Ok(offset) => Ok(offset),
            Err(_) => Err(self.0.failed()),
        }
    }

    /// Ends, and gives back what was written to.
    pub fn finish(self) -> Result<W> {
        self.0.finish()
    }
}

/// The thread's own.
struct Plate<W> {
    to: W,
    offset: u64,
    chunks: u32,
    sealed: Vec<u8>,
}

impl<W: Write> Plate<W> {
    /// Gives room that is no longer needed.
    fn press(&mut self, job: Job) -> Result<Vec<u8>> {
        match job {
            Job::Plain(bytes) => {
                self.put(&bytes)?;
                Ok(bytes)
            }
            Job::Chunk(tag, payload) => {
                let mut sealed = std::mem::take(&mut self.sealed);
                chunk::seal(tag, self.chunks, &payload, &mut sealed);
                self.chunks += 1;
                self.put(&sealed)?;
                self.sealed = sealed;
                if tag == chunk::tag::EVENTS {
                    self.flush()?;
                }
                Ok(payload)
            }
            Job::Flush(told) => {
                self.flush()?;
                // Who has asked waits.
                let _ = told.send(self.offset);
                Ok(Vec::new())
            }
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.to.write_all(bytes).map_err(|source| Error::Io { offset: self.offset, source })?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.to.flush().map_err(|source| Error::Io { offset: self.offset, source })
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// A disk with room for so many bytes.
    struct Disk(usize);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = bytes.len().min(self.0);
            self.0 -= room;
            if room == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(room) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_told_once_and_nothing_after_it_is_said_to_be_written() {
        let mut press = Press::new(Disk(100)).unwrap();
        press.plain(&[1; 60]).unwrap();
        assert_eq!(press.flush().unwrap(), 60);
        let mut room = Ok(Vec::new());
        for _ in 0..100 * QUEUE.waiting {
            if room.is_err() {
                break;
            }
            room = press.chunk(b'E', vec![7; 50]);
        }
        let Err(Error::Io { offset: 60, source }) = room else { panic!("{room:?}") };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
        assert!(press.plain(&[2]).is_err() && press.flush().is_err());
        // Who asks last may be who tells the user.
        let Err(Error::Io { offset: 60, source }) = press.finish() else { panic!("another error") };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn the_last_call_tells_of_what_failed_before_it() {
        let mut press = Press::new(Disk(10)).unwrap();
        let _ = press.plain(&[1; 60]);
        assert!(matches!(press.finish(), Err(Error::Io { offset: 0, .. })));
    }

    #[test]
    fn what_is_written_to_comes_back_whole() {
        let mut press = Press::new(Vec::new()).unwrap();
        press.plain(b"begin").unwrap();
        for _ in 0..3 * QUEUE.waiting {
            assert_eq!(press.chunk(b'E', vec![7; 500]).unwrap(), [], "room, and nothing in it");
        }
        let offset = press.flush().unwrap();
        let all = press.finish().unwrap();
        assert_eq!(all.len() as u64, offset);
        let mut from = &all[5..];
        let mut payload = Vec::new();
        for number in 0..3 * QUEUE.waiting as u32 {
            chunk::open(&mut from, number, &mut payload).unwrap();
            assert_eq!(payload, [7; 500]);
        }
        assert!(from.is_empty());
    }
}
