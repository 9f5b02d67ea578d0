//! What host and agent say to each other.
//!
//! The agent says [`FromGuest::Booted`] when all is done that depends neither on the request nor on what the NV-DIMMs
//! hold: a point of rest, from which the host may start other runs. When the DIMMs are probed it says
//! [`FromGuest::Probed`], another such point for runs whose DIMMs it has found alike, and then [`Hello`]. The host then sends its [`Request`], in parts, because a script may be longer than a frame. The agent mounts what is to be
//! mounted, says [`Ready`](FromGuest::Ready), runs what it was asked to, passes on its output, unmounts, says [`Exited`],
//! and powers the machine off.

use crate::frame::{self, Frame, MAX_PAYLOAD};

/// Changes with the protocol. Both sides refuse another.
pub const VERSION: u32 = 3;

/// Present on the kernel command line when a host listens on the control channel. Without it, the agent gives a shell.
pub const HOST_PARAMETER: &str = "nvsim.host=1";

/// The device of the control channel in the guest.
pub const CHANNEL: &str = "/dev/ttyS1";

/// Longest request that the agent takes.
pub const MAX_REQUEST: usize = 64 << 20;

/// What the agent is to do with a persistent memory device when it is empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fs {
    /// Format it with ext4.
    #[default]
    Ext4,
    /// Format it with XFS.
    Xfs,
    /// Format it with ext2.
    Ext2,
    /// Leave it as it is.
    None,
}

impl Fs {
    /// The type's name for mount and mkfs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Ext2 => "ext2",
            Self::None => "none",
        }
    }

    /// The file system of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Ext4, Self::Xfs, Self::Ext2, Self::None].into_iter().find(|fs| fs.name() == name)
    }
}

/// What to do with /dev/pmemN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pmem {
    /// File system to lay down when it is empty.
    pub fs: Fs,
    /// Whether to mount it at /mnt/pmemN.
    pub mount: bool,
}

impl Default for Pmem {
    fn default() -> Self {
        Self { fs: Fs::default(), mount: true }
    }
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// An interactive shell on the console.
    Shell {
        /// TERM.
        term: String,
        /// Rows of the window; 0 when unknown.
        rows: u16,
        /// Columns of the window; 0 when unknown.
        columns: u16,
    },
    /// A program with arguments.
    Program(Vec<Vec<u8>>),
    /// A line for `/bin/sh -c`.
    Command(Vec<u8>),
    /// The bytes of a script; its first line may name its interpreter, which is otherwise /bin/sh.
    Script(Vec<u8>),
}

/// What the host wants of this boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// By the number of the device. Devices beyond the end are left alone.
    pub pmem: Vec<Pmem>,
    /// What to run.
    pub job: Job,
    /// When the job has ended: wait for another request instead of powering off. Its devices are as they are.
    pub stay: bool,
}

/// The agent's first word after a boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// [`VERSION`] of the agent.
    pub version: u32,
    /// Kernel release.
    pub kernel: String,
    /// Time since the kernel started, in microseconds.
    pub uptime: u64,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exited {
    /// With this status.
    Status(u8),
    /// By this signal.
    Signal(u8),
}

impl Exited {
    /// As a shell reports it.
    pub fn code(self) -> u8 {
        match self {
            Self::Status(status) => status,
            Self::Signal(signal) => 128 + (signal & 0x7f),
        }
    }
}

/// From the agent to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromGuest {
    /// After a boot, and after each reboot.
    Hello(Hello),
    /// Devices are mounted; the job starts. Time since the kernel started, in microseconds.
    Ready(u64),
    /// Standard output of the job.
    Stdout(Vec<u8>),
    /// Standard error of the job.
    Stderr(Vec<u8>),
    /// For the user: what was formatted or mounted, and what went wrong.
    Log(String),
    /// The job ended. File systems are unmounted and the machine is about to power off, unless it was asked to stay.
    Exited(Exited),
    /// The kernel and the drivers are up; nothing has looked at the NV-DIMMs yet.
    Booted,
    /// The NV-DIMMs are probed; nothing is mounted yet. Not said where there are none.
    Probed,
}

/// From the host to the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromHost {
    /// The next part of the request.
    Part(Vec<u8>),
    /// The request is whole.
    Run,
    /// The terminal's window has a new size.
    Resize {
        /// Rows.
        rows: u16,
        /// Columns.
        columns: u16,
    },
}

impl FromGuest {
    /// Appends the message as frames, several where output is longer than a frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello(hello) => {
                let mut payload = hello.version.to_le_bytes().to_vec();
                payload.extend(hello.uptime.to_le_bytes());
                payload.extend(hello.kernel.bytes().take(256));
                frame::encode(1, &payload, out);
            }
            Self::Ready(uptime) => frame::encode(2, &uptime.to_le_bytes(), out),
            Self::Stdout(data) => split(3, data, out),
            Self::Stderr(data) => split(4, data, out),
            Self::Log(text) => split(5, text.as_bytes(), out),
            Self::Exited(Exited::Status(status)) => frame::encode(6, &[0, *status], out),
            Self::Exited(Exited::Signal(signal)) => frame::encode(6, &[1, *signal], out),
            Self::Booted => frame::encode(7, &[], out),
            Self::Probed => frame::encode(8, &[], out),
        }
    }

    /// The message of a frame; `None` when it is none that we know.
    pub fn decode(frame: Frame) -> Option<Self> {
        let mut data = Reader(&frame.payload);
        Some(match frame.kind {
            1 => {
                let (version, uptime) = (data.u32()?, data.u64()?);
                Self::Hello(Hello { version, uptime, kernel: String::from_utf8_lossy(data.0).into_owned() })
            }
            2 => Self::Ready(data.u64()?),
            3 => Self::Stdout(frame.payload),
            4 => Self::Stderr(frame.payload),
            5 => Self::Log(String::from_utf8_lossy(&frame.payload).into_owned()),
            6 => match *frame.payload {
                [0, status] => Self::Exited(Exited::Status(status)),
                [1, signal] => Self::Exited(Exited::Signal(signal)),
                _ => return None,
            },
            7 => Self::Booted,
            8 => Self::Probed,
            _ => return None,
        })
    }
}

impl FromHost {
    /// Appends the message as a frame; a part is no longer than a frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Part(data) => frame::encode(0x81, data, out),
            Self::Run => frame::encode(0x82, &[], out),
            Self::Resize { rows, columns } => {
                let ([a, b], [c, d]) = (rows.to_le_bytes(), columns.to_le_bytes());
                frame::encode(0x83, &[a, b, c, d], out);
            }
        }
    }

    /// The message of a frame; `None` when it is none that we know.
    pub fn decode(frame: Frame) -> Option<Self> {
        Some(match frame.kind {
            0x81 => Self::Part(frame.payload),
            0x82 => Self::Run,
            0x83 => {
                let mut data = Reader(&frame.payload);
                Self::Resize { rows: data.u16()?, columns: data.u16()? }
            }
            _ => return None,
        })
    }
}

impl Request {
    /// Appends the frames that carry the request.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for part in self.to_bytes().chunks(MAX_PAYLOAD) {
            FromHost::Part(part.to_vec()).encode(out);
        }
        FromHost::Run.encode(out);
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        out.push(u8::from(self.stay));
        out.push(self.pmem.len() as u8);
        for pmem in &self.pmem {
            out.extend([pmem.fs as u8, u8::from(pmem.mount)]);
        }
        match &self.job {
            Job::Shell { term, rows, columns } => {
                out.push(0);
                out.extend(rows.to_le_bytes());
                out.extend(columns.to_le_bytes());
                out.extend(term.bytes());
            }
            Job::Program(words) => {
                out.push(1);
                for word in words {
                    out.extend((word.len() as u32).to_le_bytes());
                    out.extend(word);
                }
            }
            Job::Command(line) => {
                out.push(2);
                out.extend(line);
            }
            Job::Script(script) => {
                out.push(3);
                out.extend(script);
            }
        }
        out
    }

    /// The request whose parts are `bytes` together; `None` when they are none, or of another version.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut data = Reader(bytes);
        if data.u32()? != VERSION {
            return None;
        }
        let stay = data.u8()? != 0;
        let count = data.u8()?;
        let mut pmem = Vec::new();
        for _ in 0..count {
            let fs = *[Fs::Ext4, Fs::Xfs, Fs::Ext2, Fs::None].get(usize::from(data.u8()?))?;
            pmem.push(Pmem { fs, mount: data.u8()? != 0 });
        }
        let job = match data.u8()? {
            0 => {
                let (rows, columns) = (data.u16()?, data.u16()?);
                Job::Shell { rows, columns, term: String::from_utf8_lossy(data.0).into_owned() }
            }
            1 => {
                let mut words = Vec::new();
                while !data.0.is_empty() {
                    let length = data.u32()? as usize;
                    words.push(data.bytes(length)?.to_vec());
                }
                Job::Program(words)
            }
            2 => Job::Command(data.0.to_vec()),
            3 => Job::Script(data.0.to_vec()),
            _ => return None,
        };
        Some(Self { pmem, job, stay })
    }
}

fn split(kind: u8, data: &[u8], out: &mut Vec<u8>) {
    for part in data.chunks(MAX_PAYLOAD) {
        frame::encode(kind, part, out);
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::frame::Decoder;
    use proptest::prelude::*;

    fn bytes(longest: usize) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 0..longest)
    }

    pub(crate) fn request() -> impl Strategy<Value = Request> {
        let fs = prop::sample::select(vec![Fs::Ext4, Fs::Xfs, Fs::Ext2, Fs::None]);
        let pmem =
            prop::collection::vec((fs, any::<bool>()).prop_map(|(fs, mount)| Pmem { fs, mount }), 0..9);
        let job =
            prop_oneof![
                ("[a-z0-9-]{0,20}", any::<u16>(), any::<u16>())
                    .prop_map(|(term, rows, columns)| Job::Shell { term, rows, columns }),
                prop::collection::vec(bytes(20), 0..6).prop_map(Job::Program),
                bytes(100).prop_map(Job::Command),
                bytes(3 * MAX_PAYLOAD).prop_map(Job::Script),
            ];
        (pmem, job, any::<bool>()).prop_map(|(pmem, job, stay)| Request { pmem, job, stay })
    }

    pub(crate) fn from_guest() -> impl Strategy<Value = FromGuest> {
        prop_oneof![
            (any::<u32>(), any::<u64>(), "[ -~]{0,40}")
                .prop_map(|(version, uptime, kernel)| FromGuest::Hello(Hello { version, kernel, uptime })),
            any::<u64>().prop_map(FromGuest::Ready),
            prop::collection::vec(any::<u8>(), 1..50).prop_map(FromGuest::Stdout),
            prop::collection::vec(any::<u8>(), 1..50).prop_map(FromGuest::Stderr),
            "[ -~]{1,40}".prop_map(FromGuest::Log),
            any::<u8>().prop_map(|status| FromGuest::Exited(Exited::Status(status))),
            any::<u8>().prop_map(|signal| FromGuest::Exited(Exited::Signal(signal))),
            Just(FromGuest::Booted),
            Just(FromGuest::Probed),
        ]
    }

    pub(crate) fn frames(bytes: &[u8]) -> Vec<Frame> {
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for &byte in bytes {
            decoder.push(byte);
            while let Some(frame) = decoder.next() {
                frames.push(frame);
            }
        }
        frames
    }

    proptest! {
        #[test]
        fn requests_come_back(request in request()) {
            let mut line = Vec::new();
            request.encode(&mut line);
            let mut parts = Vec::new();
            let mut whole = None;
            for frame in frames(&line) {
                match FromHost::decode(frame).unwrap() {
                    FromHost::Part(part) => parts.extend(part),
                    FromHost::Run => whole = Request::from_bytes(&parts),
                    FromHost::Resize { .. } => unreachable!("not sent"),
                }
            }
            prop_assert_eq!(whole, Some(request));
        }

        #[test]
        fn answers_come_back(messages in prop::collection::vec(from_guest(), 0..10)) {
            let mut line = Vec::new();
            messages.iter().for_each(|message| message.encode(&mut line));
            let got: Vec<_> = frames(&line).into_iter().map(|f| FromGuest::decode(f).unwrap()).collect();
            prop_assert_eq!(got, messages);
        }

        #[test]
        fn nonsense_is_refused_without_panic(kind: u8, payload in bytes(60)) {
            let frame = Frame { kind, payload: payload.clone() };
            let _ = (FromGuest::decode(frame.clone()), FromHost::decode(frame), Request::from_bytes(&payload));
        }
    }

    #[test]
    fn long_output_is_split_into_frames() {
        let mut line = Vec::new();
        FromGuest::Stdout(vec![7; MAX_PAYLOAD + 1]).encode(&mut line);
        let lengths: Vec<_> = frames(&line).iter().map(|f| f.payload.len()).collect();
        assert_eq!(lengths, [MAX_PAYLOAD, 1]);
    }
}
