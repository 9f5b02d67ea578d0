//! The user's terminal as the guest's console.
//!
//! While a [`Terminal`] lives, keys go to the guest one by one and unchanged (Ctrl-C is the guest's); dropping it gives
//! the terminal back as it was.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Ctrl-]: stops the machine.
pub const ESCAPE: u8 = 0x1D;

/// The terminal in raw mode.
#[derive(Debug)]
pub struct Terminal {
    device: OwnedFd,
    before: Termios,
}

impl Terminal {
    /// Takes the terminal on standard input, if it is one and standard output is too.
    pub fn take() -> std::io::Result<Option<Self>> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() || !std::io::stdout().is_terminal() {
            return Ok(None);
        }
        let device = stdin.as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&device)?;
        let mut raw = before.clone();
        raw.make_raw();
        // Output still turns "\n" into "\r\n", so that nvsim's own messages stay readable.
        raw.output_modes = before.output_modes;
        raw.local_modes.remove(LocalModes::ISIG);
        tcsetattr(&device, OptionalActions::Drain, &raw)?;
        Ok(Some(Self { device, before }))
    }

    /// Rows and columns, as long as they make sense.
    pub fn size(&self) -> Option<(u16, u16)> {
        tcgetwinsize(&self.device)
            .ok()
            .map(|size| (size.ws_row, size.ws_col))
            .filter(|(rows, cols)| *rows > 0 && *cols > 0)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The machine has ended; a terminal that is gone needs nothing put back.
        let _ = tcsetattr(&self.device, OptionalActions::Drain, &self.before);
    }
}

/// Has `stop` called, on a thread of its own, when the process is asked to end: a terminal is given back and DIMM files are
/// closed in order. Whoever asks a second time gets what the signal does by itself.
pub fn on_signal(stop: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let mut asked = signals.forever();
        if asked.next().is_some() {
            stop();
        }
        if let Some(signal) = asked.next() {
            // Ends the process; and if not, the machine is stopping already.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    })?;
    Ok(())
}

/// What the user did.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// Bytes for the guest.
    Keys(Vec<u8>),
    /// The escape: stop the machine. Bytes before it are lost with it.
    Stop,
    /// Standard input has ended.
    Closed,
}

/// Reads standard input on a thread of its own until it ends or the escape comes; `sink` hears of each piece. The thread
/// ends with the process.
pub fn listen(escape: bool, mut sink: impl FnMut(Input) + Send + 'static) -> std::io::Result<()> {
    let mut stdin = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    std::thread::Builder::new().name("console-input".to_owned()).spawn(move || {
        let mut buffer = [0; 256];
        loop {
            match stdin.read(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return sink(Input::Closed),
                Ok(n) if escape && buffer[..n].contains(&ESCAPE) => return sink(Input::Stop),
                Ok(n) => sink(Input::Keys(buffer[..n].to_vec())),
            }
        }
    })?;
    Ok(())
}
