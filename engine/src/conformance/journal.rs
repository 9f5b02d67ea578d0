//! A record of a run of the suite that outlives it, so that a case that hangs is named, and the others run all the same.
//!
//! A line is written before a case and one after it. A case that takes too long ends the process; and a case may lock up the
//! machine that all of this runs on. Whoever starts the suite again with what was written so far has every case run once:
//! what has ended keeps its outcome, and what has begun and not ended has failed.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use super::bench::{Failure, Outcome};

/// No case takes so long, single-stepped on a processor in software as it may be.
const DEADLINE: Duration = Duration::from_secs(120);
/// What a process says that gave a case up: start it again.
const GIVEN_UP: i32 = 75;
/// A serial line needs so long to be rid of a line; one that stays in the kernel does not outlive it.
const LEAVES: Duration = Duration::from_millis(5);

/// A journal, open at its end.
#[derive(Debug, Default)]
pub(super) struct Journal {
    suite: String,
    files: Vec<File>,
    leaves: Duration,
    /// What became of cases before; none of one that has not ended.
    known: HashMap<String, Option<Outcome>>,
}

impl Journal {
    /// Of a suite. Reads the first file, writes all of them; with none it is a case's end that nobody takes down.
    pub(super) fn open(suite: &str, paths: &[PathBuf]) -> std::io::Result<Self> {
        let mut journal = Self { suite: suite.to_owned(), ..Self::default() };
        for (n, path) in paths.iter().enumerate() {
            let mut file = OpenOptions::new().read(n == 0).append(true).create(n == 0).open(path)?;
            if n == 0 {
                let mut text = String::new();
                file.read_to_string(&mut text)?;
                text.lines().for_each(|line| journal.know(line));
            }
            if file.metadata()?.file_type().is_char_device() {
                journal.leaves = LEAVES;
            }
            journal.files.push(file);
        }
        Ok(journal)
    }

    /// The outcome of a case: what is known of it, or what running it gives.
    pub(super) fn outcome(&mut self, case: &str, run: impl FnOnce() -> Outcome) -> Outcome {
        match self.known.remove(case) {
            Some(Some(outcome)) => return outcome,
            Some(None) => return Err(Failure("it did not end".into())),
            None if self.files.is_empty() => return run(),
            None => {}
        }
        self.write(case, "begins");
        let (ended, waits) = channel::<()>();
        let watch = thread::spawn(move || {
            if waits.recv_timeout(DEADLINE) == Err(RecvTimeoutError::Timeout) {
                eprintln!("no end within {} s; start again for the other cases", DEADLINE.as_secs());
                std::process::exit(GIVEN_UP);
            }
        });
        let outcome = run();
        drop(ended);
        // It only waits.
        let _ = watch.join();
        match &outcome {
            Ok(()) => self.write(case, "passed"),
            Err(Failure(reason)) => self.write(case, &format!("failed: {}", reason.replace('\n', " "))),
        }
        outcome
    }

    /// What cannot be written down is no reason to stop.
    fn write(&mut self, case: &str, what: &str) {
        for file in &mut self.files {
            let _ = writeln!(file, "{} {case} {what}", self.suite);
        }
        thread::sleep(self.leaves);
    }

    fn know(&mut self, line: &str) {
        let mut words = line.trim_end().splitn(3, ' ');
        let (Some(suite), Some(case), Some(what)) = (words.next(), words.next(), words.next()) else {
            return;
        };
        let outcome = match what {
            "begins" => None,
            "passed" => Some(Ok(())),
            _ => Some(Err(Failure(what.strip_prefix("failed: ").unwrap_or(what).to_owned()))),
        };
        if suite == self.suite {
            self.known.insert(case.to_owned(), outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_goes_on_runs_only_what_has_not_begun() {
        let path = std::env::temp_dir().join(format!("nvsim-journal-{}", std::process::id()));
        let paths = [path.clone()];
        let failed = || Err(Failure("a\nb".into()));
        let mut first = Journal::open("one", &paths).unwrap();
        assert_eq!(first.outcome("a::passes", || Ok(())), Ok(()));
        assert_eq!(first.outcome("a::fails", failed), failed());
        first.write("a::hangs", "begins");
        assert_eq!(Journal::open("two", &paths).unwrap().outcome("a::passes", failed), failed());
        let mut second = Journal::open("one", &paths).unwrap();
        let never = || panic!("it is known");
        assert_eq!(second.outcome("a::passes", never), Ok(()));
        assert_eq!(second.outcome("a::fails", never), Err(Failure("a b".into())));
        assert_eq!(second.outcome("a::hangs", never), Err(Failure("it did not end".into())));
        assert_eq!(second.outcome("a::other", || Ok(())), Ok(()));
        std::fs::remove_file(path).unwrap();
    }
}
