//! The host's end of the control channel: what the agent tells goes where the user wants it.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_agent::{Event, HostSession, Job, Request, VERSION};
use vmm::devices::SerialBackend;
use vmm::{Keyboard, Remote};

/// What the agent has told so far.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// Kernel release, and microseconds of kernel time until the agent's first word.
    pub hello: Option<(String, u64)>,
    /// The NV-DIMMs are probed.
    pub probed: bool,
    /// Microseconds of kernel time until the job started.
    pub ready: Option<u64>,
    /// Exit status of the job, as a shell reports it.
    pub status: Option<u8>,
    /// The agent in the guest speaks another version of the protocol.
    pub foreign_agent: Option<u32>,
    /// Standard output or standard error could not be written.
    pub broken_output: bool,
}

/// The channel. Clones of `told` see what is told.
#[derive(Debug)]
pub struct Control {
    session: HostSession,
    told: Arc<Mutex<Told>>,
    /// Whether the agent's messages for the user appear on standard error.
    notes: bool,
    /// Handed on to the guest from the agent's Ready on.
    keyboard: Option<Keyboard>,
    /// Of the machine that is to rest when it has booted.
    remote: Option<Remote>,
    /// The agent is asked to stay after the job, and the machine rests then.
    staying: bool,
    dismissed: Dismissal,
}

/// Lets an agent that stayed go: it powers the machine off. Clones dismiss the same one.
#[derive(Debug, Clone, Default)]
pub struct Dismissal(Arc<AtomicBool>);

impl Dismissal {
    /// At the machine's next look at its input.
    pub fn dismiss(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A view on what was told.
#[derive(Debug, Clone, Default)]
pub struct Report(Arc<Mutex<Told>>);

impl Report {
    /// What was told so far.
    pub fn told(&self) -> Told {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Control {
    /// A channel that will ask for `request`. With `notes` the agent's messages for the user appear on standard error.
    pub fn new(request: &Request, report: &Report, notes: bool) -> Self {
        let session = HostSession::new(request);
        Self {
            session,
            told: Arc::clone(&report.0),
            notes,
            keyboard: None,
            remote: None,
            staying: request.stay,
            dismissed: Dismissal::default(),
        }
    }

    /// The agent has stayed after an earlier job and waits.
    pub fn asking_again(self, request: &Request) -> Self {
        Self { session: HostSession::with_waiting_agent(request), ..self }
    }

    /// How to let an agent go that stayed.
    pub fn dismissal(&self) -> Dismissal {
        self.dismissed.clone()
    }

    /// Keeps back what is typed until the agent of each boot is ready for it.
    pub fn holding(self, keyboard: Option<Keyboard>) -> Self {
        if let Some(keyboard) = &keyboard {
            keyboard.hold();
        }
        Self { keyboard, ..self }
    }

    /// The machine behind `remote` shall rest whenever its kernel and drivers are up, and when its NV-DIMMs are probed.
    pub fn resting(self, remote: Remote) -> Self {
        Self { remote: Some(remote), ..self }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Hello(hello) => {
                if let Some(keyboard) = &self.keyboard {
                    keyboard.hold();
                }
                let mut told = self.told();
                if hello.version != VERSION {
                    told.foreign_agent = Some(hello.version);
                }
                told.hello.get_or_insert((hello.kernel, hello.uptime));
            }
            Event::Ready(uptime) => {
                self.told().ready = Some(uptime);
                if let Some(keyboard) = &self.keyboard {
                    keyboard.release();
                }
            }
            Event::Stdout(bytes) => self.pass_on(&mut std::io::stdout().lock(), &bytes),
            Event::Stderr(bytes) => self.pass_on(&mut std::io::stderr().lock(), &bytes),
            Event::Log(text) if self.notes => eprintln!("{}", text.trim_end()),
            Event::Log(text) => tracing::info!("guest: {}", text.trim_end()),
            Event::Exited(exited) => {
                self.told().status.get_or_insert(exited.code());
                if self.staying {
                    self.staying = false;
                    self.remote.iter().for_each(Remote::pause);
                }
            }
            Event::Booted => self.remote.iter().for_each(Remote::pause),
            Event::Probed => {
                self.told().probed = true;
                self.remote.iter().for_each(Remote::pause);
            }
        }
    }

    fn pass_on(&self, to: &mut dyn Write, bytes: &[u8]) {
        if to.write_all(bytes).and_then(|()| to.flush()).is_err() {
            self.told().broken_output = true;
        }
    }
}

impl SerialBackend for Control {
    fn input(&mut self) -> Option<u8> {
        if self.dismissed.0.swap(false, Ordering::Acquire) {
            let job = Job::Program(vec![b"true".to_vec()]);
            self.session.ask(&Request { pmem: Vec::new(), job, stay: false });
        }
        self.session.to_guest()
    }

    fn output(&mut self, byte: u8) {
        let mut event = self.session.on_guest_byte(byte);
        while let Some(heard) = event {
            self.hear(heard);
            event = self.session.next_event();
        }
    }
}
