//! Progress of long work: bars on a terminal, silence otherwise.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// How much work a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Total {
    /// So many bytes.
    Bytes(u64),
    /// So many items.
    Items(u64),
    /// Nobody knows beforehand.
    Unknown,
}

/// Hears of one task after the other.
pub trait Progress: Sync {
    /// A task begins; the one before it is finished.
    fn started(&self, task: &str, total: Total);
    /// `amount` more of the current task is done.
    fn advanced(&self, amount: u64);
    /// The current task is done.
    fn finished(&self);
}

/// Says nothing.
#[derive(Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn started(&self, _task: &str, _total: Total) {}
    fn advanced(&self, _amount: u64) {}
    fn finished(&self) {}
}

/// Draws a bar on standard error; silent when that is no terminal.
#[derive(Debug, Default)]
pub struct Bars {
    current: Mutex<Option<ProgressBar>>,
}

impl Bars {
    fn replace(&self, bar: Option<ProgressBar>) {
        let mut current = self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(old) = std::mem::replace(&mut *current, bar) {
            old.finish_and_clear();
        }
    }
}

impl Progress for Bars {
    fn started(&self, task: &str, total: Total) {
        if !std::io::stderr().is_terminal() {
            return;
        }
        let (length, template) = match total {
            Total::Bytes(n) => (Some(n), "{msg:32} [{bar:30}] {bytes}/{total_bytes} {eta}"),
            Total::Items(n) => (Some(n), "{msg:32} [{bar:30}] {pos}/{len} {eta}"),
            Total::Unknown => (None, "{msg:32} {spinner} {elapsed}"),
        };
        let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(task.to_owned());
        if length.is_none() {
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        self.replace(Some(bar));
    }

    fn advanced(&self, amount: u64) {
        let current = self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(bar) = &*current {
            bar.inc(amount);
        }
    }

    fn finished(&self) {
        self.replace(None);
    }
}
