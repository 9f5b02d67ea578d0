//! What was said on the console: the last lines, and whether the kernel panicked.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::devices::SerialBackend;
use crate::remote::{Remote, StopReason};

/// Lines kept.
const LINES: usize = 50;
/// Bytes kept of a line.
const LINE_LENGTH: usize = 1024;
/// Bytes kept, so that the console of a machine that goes on from a snapshot can be told all of them again.
const BYTES: usize = 1 << 20;
/// How a kernel begins its last words.
const PANIC: &[u8] = b"Kernel panic - not syncing";
/// How it ends them if it will not reboot.
const PANIC_END: &[u8] = b"---[ end Kernel panic";

/// What was said, as far as it is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    lines: VecDeque<String>,
    current: Vec<u8>,
    panicked: bool,
    all: Vec<u8>,
}

impl Said {
    /// Every byte since power-up, but for what is beyond a limit.
    #[must_use]
    pub fn all(&self) -> &[u8] {
        &self.all
    }
}

/// The memory of a console. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Transcript {
    said: Arc<Mutex<Said>>,
}

impl Transcript {
    /// The last lines, oldest first, an unfinished one included.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let said = self.lock();
        let unfinished = (!said.current.is_empty()).then(|| text(&said.current));
        said.lines.iter().cloned().chain(unfinished).collect()
    }

    /// Whether the kernel panicked since the last [`Transcript::reboot`].
    #[must_use]
    pub fn panicked(&self) -> bool {
        self.lock().panicked
    }

    /// Forgets a panic: another kernel starts.
    pub fn reboot(&self) {
        self.lock().panicked = false;
    }

    /// What was said so far.
    #[must_use]
    pub fn save(&self) -> Said {
        self.lock().clone()
    }

    /// Replaces it.
    pub fn restore(&self, said: Said) {
        *self.lock() = said;
    }

    /// Puts this memory before a backend. A panic that ends without reboot stops the machine.
    #[must_use]
    pub fn before(&self, backend: Box<dyn SerialBackend>, remote: Remote) -> Box<dyn SerialBackend> {
        Box::new(Recorded { transcript: self.clone(), backend, remote })
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a byte; gives whether it ended the last words of a kernel.
    fn hear(&self, byte: u8) -> bool {
        let mut said = self.lock();
        if said.all.len() < BYTES {
            said.all.push(byte);
        }
        match byte {
            b'\n' => {}
            b'\r' => return false,
            _ => {
                if said.current.len() < LINE_LENGTH {
                    said.current.push(byte);
                }
                return false;
            }
        }
        let line = std::mem::take(&mut said.current);
        let holds = |words: &[u8]| line.windows(words.len()).any(|part| part == words);
        said.panicked |= holds(PANIC);
        if said.lines.len() == LINES {
            said.lines.pop_front();
        }
        said.lines.push_back(text(&line));
        holds(PANIC_END)
    }
}

/// What a terminal would not take is shown as a replacement character.
fn text(bytes: &[u8]) -> String {
    let clean = |c: char| if c.is_control() && c != '\t' { char::REPLACEMENT_CHARACTER } else { c };
    String::from_utf8_lossy(bytes).chars().map(clean).collect()
}

struct Recorded {
    transcript: Transcript,
    backend: Box<dyn SerialBackend>,
    remote: Remote,
}

impl SerialBackend for Recorded {
    fn input(&mut self) -> Option<u8> {
        self.backend.input()
    }

    fn output(&mut self, byte: u8) {
        self.backend.output(byte);
        let is_over = self.transcript.hear(byte);
        if byte == b'\n' && self.transcript.panicked() {
            self.remote.note_panic();
        }
        if is_over {
            self.remote.stop(StopReason::Panic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::Unconnected;

    #[test]
    fn the_last_lines_are_kept() {
        let transcript = Transcript::default();
        let mut console = transcript.before(Box::new(Unconnected), Remote::default());
        let mut say = |text: &str| text.bytes().for_each(|byte| console.output(byte));
        for n in 0..60 {
            say(&format!("line {n}\r\n"));
        }
        say("no \x1b end");
        let lines = transcript.lines();
        assert_eq!((lines.len(), lines[0].as_str(), lines[50].as_str()), (51, "line 10", "no \u{FFFD} end"));
        say(&"x".repeat(1 << 20));
        assert_eq!(transcript.lines()[50].chars().count(), LINE_LENGTH);
    }

    #[test]
    fn a_panic_is_noticed_and_its_end_stops_the_machine() {
        let (transcript, remote) = (Transcript::default(), Remote::default());
        let mut console = transcript.before(Box::new(Unconnected), remote.clone());
        let mut say = |text: &str| text.bytes().for_each(|byte| console.output(byte));
        say("[    1.0] Kernel panic - not syncing: VFS\r\n");
        assert!(transcript.panicked() && !remote.is_rung());
        say("[    1.0] ---[ end Kernel panic - not syncing: VFS ]---\r\n");
        assert_eq!(remote.take(), Some(StopReason::Panic));
        transcript.reboot();
        assert!(!transcript.panicked());
    }
}
