//! Traces of millions of stores: what they cost in memory, and in time.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nvdimm_model::{Domain, Identity, Persistence};
use trace::medium::{FenceKind, FlushKind, Rules, StoreKind, Survivors};
use trace::{DimmHeader, End, Event, Header, Kind, Reader, Replay, Writer, ZoneHeader};

const START: u64 = 4 << 30;
const SIZE: u64 = 256 << 20;

fn header() -> Header {
    Header {
        dimms: vec![DimmHeader {
            name: "d".to_owned(),
            identity: Identity::with_serial(1),
            persistence: Persistence::honest(Domain::Adr),
            size: SIZE,
            data: 2 << 20,
        }],
        zones: vec![ZoneHeader { start: START, end: START + SIZE, dimms: vec![0] }],
        ..Header::default()
    }
}

/// A trace of so many stores of 64 bytes, a line each and round and round; all but each tenth are flushed, and fenced by
/// tens.
fn recorded(stores: u64, lines: u64) -> Reader<BufReader<File>> {
    let file = tempfile::tempfile().unwrap();
    let mut writer = Writer::new(BufWriter::new(file.try_clone().unwrap()), &header()).unwrap();
    let mut instruction = 0;
    let mut on = |kind: Kind<'_>| {
        instruction += 3;
        let event = Event { vcpu: 0, instruction, time: instruction, rip: 7, chain: 0, kind };
        writer.event(&event).unwrap();
    };
    for n in 0..stores {
        let address = START + 64 * (n * 7 % lines);
        let data = [n as u8; 64];
        on(Kind::Store { address, data: &data, kind: StoreKind::Cached });
        if n % 10 == 9 {
            on(Kind::Fence(FenceKind::Sfence));
        } else {
            on(Kind::Flush { address, kind: FlushKind::Clwb });
        }
    }
    let end = End { instruction, time: instruction, ..End::default() };
    drop(writer.finish(&end).unwrap());
    // A clone shares its place in the file.
    std::io::Seek::rewind(&mut &file).unwrap();
    Reader::new(BufReader::new(file)).unwrap()
}

fn replay(stores: u64, lines: u64) -> Replay<BufReader<File>> {
    let trace = recorded(stores, lines);
    let mut replay = Replay::new(trace, Rules::default(), vec![tempfile::tempfile().unwrap()]).unwrap();
    let reached = replay.play(None, |_, _, _| {}).unwrap().unwrap();
    assert_eq!(reached.events, 2 * stores);
    replay
}

/// The most memory that this process has had, in bytes; it has more than one test only under `cargo test`.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// 128 MB of stores are written, read and played in much less than that.
#[test]
fn a_trace_is_streamed_whatever_its_length() {
    let replay = replay(2_000_000, 1 << 16);
    assert!(replay.contents().medium().lines_in_doubt() > 0);
    assert!(peak() < 80 << 20, "{} MiB", peak() >> 20);
}

/// Prints what the first and each further choice at one cut cost: to work the image out and name it, and with that, to write
/// its lines into the DIMM's file, one by one. `cargo test --release -p trace --test large -- --ignored --nocapture` shows it.
#[test]
#[ignore = "a measurement"]
fn a_choice() {
    let replay = replay(1_000_000, 125_000);
    let started = Instant::now();
    let cut = replay.contents().cut().unwrap();
    let (header, image) = (header(), tempfile::tempfile().unwrap());
    let write = |lines: &std::collections::BTreeMap<u64, [u8; 64]>| {
        for (&address, line) in lines {
            let (_, at) = header.place(address).unwrap();
            image.write_all_at(line, at).unwrap();
        }
    };
    write(&cut.sure().lines);
    let first = started.elapsed();
    let choices: [Vec<Duration>; 2] = (0..20)
        .map(|seed| {
            let started = Instant::now();
            let outcome = cut.outcome(&Survivors::Random(seed)).unwrap();
            let made = started.elapsed();
            write(&outcome.lines);
            (made, started.elapsed())
        })
        .collect::<(Vec<_>, Vec<_>)>()
        .into();
    let [made, written] = choices.map(|mut times| {
        times.sort_unstable();
        format!("{:?} (at most {:?})", times[times.len() / 2], times[times.len() - 1])
    });
    println!(
        "1000000 stores, {} lines in doubt: what is sure {first:?}; then a choice's image {made}, written to a file {written}",
        replay.contents().medium().lines_in_doubt(),
    );
}
