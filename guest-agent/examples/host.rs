//! The host's side on a Unix socket, to try an image under any emulator:
//! `host SOCKET ext4,xfs 'COMMAND'`, with the guest's second serial port at the socket and `nvsim.host=1` on its kernel
//! command line.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use guest_agent::{Event, Fs, HostSession, Job, Pmem, Request};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [socket, pmem, command] = &*args else { return Err("usage: host SOCKET FS,FS... COMMAND".into()) };
    let pmem = pmem.split(',').filter_map(Fs::from_name).map(|fs| Pmem { fs, mount: true }).collect();
    let job = match &**command {
        "" => Job::Shell { term: "vt100".into(), rows: 30, columns: 100 },
        line => Job::Command(line.into()),
    };
    let mut session = HostSession::new(&Request { pmem, job, stay: false });
    let mut line = UnixStream::connect(socket)?;
    let mut byte = [0];
    while line.read(&mut byte)? == 1 {
        let mut event = session.on_guest_byte(byte[0]);
        while let Some(told) = event {
            match told {
                Event::Stdout(data) => std::io::stdout().write_all(&data)?,
                Event::Stderr(data) => std::io::stderr().write_all(&data)?,
                Event::Exited(exited) => std::process::exit(exited.code().into()),
                other => eprintln!("{other:?}"),
            }
            event = session.next_event();
        }
        let bytes: Vec<u8> = std::iter::from_fn(|| session.to_guest()).collect();
        line.write_all(&bytes)?;
    }
    Err("the guest closed the line".into())
}
