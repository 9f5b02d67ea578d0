//! A client that speaks the protocol as gdb does, and a guest that counts.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::Outcome;
use crate::snapshot::tests::Desk;

/// Where the guest's program is, and the instructions in it that matter: see `snapshot::tests::PROGRAM`.
const START: u64 = 16 << 20;
const INC: u64 = START + 5;
const OUT: u64 = START + 29;
const COUNTED: u64 = 32 << 20;

struct Client(TcpStream);

impl Client {
    fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(stream)
    }

    fn send(&mut self, packet: &str) {
        let sum = packet.bytes().fold(0_u8, u8::wrapping_add);
        write!(self.0, "${packet}#{sum:02x}").unwrap();
    }

    fn hear(&mut self) -> String {
        let mut next = || {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            byte[0]
        };
        while next() != b'$' {}
        let mut packet = Vec::new();
        loop {
            match next() {
                b'#' => break,
                // The last byte again, so often.
                b'*' => {
                    let (last, count) = (packet[packet.len() - 1], usize::from(next() - 29));
                    packet.resize(packet.len() + count, last);
                }
                byte => packet.push(byte),
            }
        }
        next();
        next();
        self.0.write_all(b"+").unwrap();
        String::from_utf8(packet).unwrap()
    }

    fn ask(&mut self, packet: &str) -> String {
        self.send(packet);
        self.hear()
    }

    /// A general register, instruction pointer included, of the selected thread.
    fn register(&mut self, n: usize) -> u64 {
        let all = self.ask("g");
        let bytes: Vec<u8> =
            (0..8).map(|k| u8::from_str_radix(&all[16 * n + 2 * k..][..2], 16).unwrap()).collect();
        u64::from_le_bytes(bytes.try_into().unwrap())
    }
}

const RDI: usize = 5;
const RIP: usize = 16;

fn session(client: &mut Client) {
    assert!(client.ask("qSupported:multiprocess+;swbreak+;hwbreak+").contains("PacketSize"));
    client.ask("?");
    // Before the first instruction; the second processor waits for the first.
    client.ask("Hgp1.1");
    assert_eq!(client.register(RIP), START);
    client.ask("Hgp1.2");
    assert_eq!(client.register(RIP), 0xFFF0);
    client.ask("Hgp1.1");
    // One instruction, then to a breakpoint, twice.
    assert!(client.ask("vCont;s:p1.1").starts_with("T05"));
    assert_eq!((client.register(RIP), client.register(RDI)), (INC, COUNTED));
    assert_eq!(client.ask(&format!("Z0,{OUT:x},1")), "OK");
    for n in 1..=2 {
        let stop = client.ask("vCont;c");
        assert!(stop.starts_with("T05") && stop.contains("swbreak"), "{stop}");
        assert_eq!((client.register(RIP), client.register(RDI)), (OUT, COUNTED + n * 4096));
    }
    assert_eq!(client.ask(&format!("z0,{OUT:x},1")), "OK");
    // Memory: read, written, and watched until the guest counts there again, after all other pages.
    assert_eq!(client.ask(&format!("m{COUNTED:x},8")), "0100000000000000");
    assert_eq!(client.ask(&format!("M{COUNTED:x},2:ff00")), "OK");
    assert_eq!(client.ask(&format!("Z2,{COUNTED:x},8")), "OK");
    let stop = client.ask("vCont;c");
    assert!(stop.contains(&format!("watch:{COUNTED:08x}")), "{stop}");
    assert_eq!((client.register(RIP), client.register(RDI)), (INC + 3, COUNTED));
    assert_eq!(client.ask(&format!("m{COUNTED:x},2")), "0001", "0xff and one more");
    assert_eq!(client.ask(&format!("z2,{COUNTED:x},8")), "OK");
    assert!(client.ask("m4000000000,8").starts_with('E'), "nothing is mapped there");
    // A register is changed, and seen.
    let all = client.ask("g");
    let changed = format!("{}0000300200000000{}", &all[..16 * RDI], &all[16 * RDI + 16..]);
    assert_eq!(client.ask(&format!("G{changed}")), "OK");
    assert_eq!(client.register(RDI), 0x0230_0000);
    // It runs until it is interrupted.
    client.send("vCont;c");
    std::thread::sleep(Duration::from_millis(50));
    client.0.write_all(&[3]).unwrap();
    assert!(client.hear().starts_with("T02"));
    assert!((START..START + 64).contains(&client.register(RIP)));
    assert_eq!(client.ask("D;1"), "OK");
}

#[test]
fn a_guest_is_debugged_and_runs_on_when_gdb_has_gone() {
    let desk = Desk::new();
    let mut machine = desk.machine(&[], 30_000_000);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        let client = scope.spawn(move || session(&mut Client::new(address)));
        machine.debug(&listener).unwrap();
        assert_eq!(machine.run().unwrap().outcome, Outcome::InstructionLimit);
        client.join().unwrap();
    });
}
