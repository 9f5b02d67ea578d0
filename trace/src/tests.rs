//! What is written is read; what is damaged is told, and good up to there.

use nvdimm_model::medium::{FenceKind, FlushKind, Rules, StoreKind};
use nvdimm_model::{Domain, Identity, Persistence};
use proptest::prelude::*;

use super::*;

/// An event that owns its data.
#[derive(Debug, Clone)]
struct Owned {
    at: (u8, u64, u64, u64, u32),
    kind: u8,
    address: u64,
    number: u64,
    data: Vec<u8>,
}

impl Owned {
    fn event(&self) -> Event<'_> {
        let Self { at: (vcpu, instruction, time, rip, chain), kind, address, number, data } = self;
        let (address, data, low) = (*address, &data[..], *number as u32);
        let store = |kind| Kind::Store { address, data, kind };
        let flush = |kind| Kind::Flush { address, kind };
        let name = "the mark's name, and some of it";
        let kind = match kind % 26 {
            0 | 20.. => store(StoreKind::Cached),
            1 => store(StoreKind::Locked),
            2 => store(StoreKind::NonTemporal),
            3 => store(StoreKind::Direct64),
            4 => store(StoreKind::String(*number as u8)),
            5 => store(StoreKind::Device),
            6 => flush(FlushKind::Clflush),
            7 => flush(FlushKind::Clflushopt),
            8 => flush(FlushKind::Clwb),
            9 => Kind::Fence(FenceKind::Sfence),
            10 => Kind::Fence(FenceKind::Serialising),
            11 => Kind::WriteBackAll,
            12 => Kind::DropAll,
            13 => Kind::Load { address, len: low },
            14 => Kind::Hint { dimm: low as u8 },
            15 => Kind::Call { handle: low, function: !low },
            16 => Kind::Mark(&name[..data.len().min(name.len())]),
            17 => Kind::Reset,
            18 => Kind::Meta { dimm: low as u8, area: Area::Labels, offset: *number, data },
            _ => Kind::Meta { dimm: low as u8, area: Area::State, offset: *number, data },
        };
        Event { vcpu: *vcpu, instruction: *instruction, time: *time, rip: *rip, chain: *chain, kind }
    }
}

fn header() -> Header {
    let dimm = |serial| DimmHeader {
        name: format!("{serial}.nvd"),
        identity: Identity::with_serial(serial),
        persistence: Persistence::honest(Domain::Adr),
        size: 16 << 20,
        data: 2 << 20,
    };
    let zone = |start, dimms: &[u8]| ZoneHeader {
        start,
        end: start + ((16 * dimms.len() as u64) << 20),
        dimms: dimms.to_vec(),
    };
    Header {
        nvsim: "0.1.0".to_owned(),
        engine: "soft".to_owned(),
        vcpus: 2,
        dimms: vec![dimm(1), dimm(2), dimm(3)],
        zones: vec![zone(1 << 32, &[1]), zone(5 << 30, &[2, 0])],
        ..Header::default()
    }
}

fn write(events: &[Owned], chains: &[Vec<u64>], blocks: &[(usize, u64, u8)]) -> (Vec<u8>, (u64, u64)) {
    let mut writer = Writer::new(Vec::new(), &header()).unwrap();
    for &(dimm, number, fill) in blocks {
        writer.block(dimm, number, &[fill; BLOCK]).unwrap();
    }
    for (n, chain) in chains.iter().enumerate() {
        assert!(writer.chain(chain).unwrap() as usize <= n + 1);
    }
    events.iter().for_each(|owned| writer.event(&owned.event()).unwrap());
    let coded = writer.coded();
    let end = End { instruction: 77, outcome: "PowerOff".to_owned(), ..End::default() };
    (writer.finish(&end).unwrap(), coded)
}

/// Everything that can be read: blocks and events, as text, and what stopped the reading.
fn read(bytes: &[u8]) -> (Vec<String>, Option<Error>) {
    let mut found = Vec::new();
    let mut reader = match Reader::new(bytes) {
        Ok(reader) => reader,
        Err(error) => return (found, Some(error)),
    };
    loop {
        match reader.next_block() {
            Ok(Some((dimm, number, block))) => found.push(format!("{dimm} {number} {}", block[0])),
            Ok(None) => break,
            Err(error) => return (found, Some(error)),
        }
    }
    loop {
        match reader.next_event() {
            Ok(Some(event)) => found.push(format!("{event:?}")),
            Ok(None) => break,
            Err(error) => return (found, Some(error)),
        }
    }
    assert_eq!(reader.end().map(|end| (end.instruction, &end.outcome[..])), Some((77, "PowerOff")));
    (found, None)
}

fn places() -> impl Strategy<Value = (u8, u64, u64, u64, u32)> {
    let rip = prop_oneof![0xffff_ffff_8000_0000u64..0xffff_ffff_c000_0000, 0x40_0000u64..0x7fff_ffff_ffff];
    (0u8..3, 0u64..1 << 33, 0u64..1 << 24, rip, 0u32..4)
        .prop_map(|(vcpu, instruction, idle, rip, chain)| (vcpu, instruction, instruction + idle, rip, chain))
}

fn owned() -> impl Strategy<Value = Owned> {
    let data = prop::collection::vec(any::<u8>(), 0..70);
    (places(), any::<u8>(), 1u64 << 32..1 << 34, any::<u64>(), data)
        .prop_map(|(at, kind, address, number, data)| Owned { at, kind, address, number, data })
}

/// Rounds of a loop, with now and then an access that it does not foretell.
fn rounds() -> impl Strategy<Value = Vec<Owned>> {
    let strides = (0u64..5000, prop_oneof![Just(64), Just(8u64.wrapping_neg()), any::<u64>()]);
    let broken = prop::collection::vec(any::<prop::sample::Index>(), 0..4);
    (prop::collection::vec(owned(), 1..20), 1usize..40, strides, broken).prop_map(
        |(round, count, (instructions, addresses), broken)| {
            let again = |owned: &Owned, n: u64| {
                let mut owned = owned.clone();
                owned.at.1 += n * instructions;
                owned.at.2 += n * instructions;
                owned.address = owned.address.wrapping_add(n.wrapping_mul(addresses));
                owned.data.iter_mut().for_each(|byte| *byte ^= n as u8);
                owned
            };
            let mut all: Vec<_> =
                (0..count as u64).flat_map(|n| round.iter().map(move |owned| again(owned, n))).collect();
            for (n, index) in broken.iter().enumerate() {
                let at = index.index(all.len());
                match n {
                    0 => all[at].address ^= 1,
                    1 => all[at].at.1 += 1,
                    2 => all[at].data.push(9),
                    _ => all[at].kind ^= 1,
                }
            }
            all
        },
    )
}

const CHAINS: usize = 3;

fn chains() -> Vec<Vec<u64>> {
    vec![vec![0xffff_ffff_8123_4567, 0xffff_ffff_8100_0010, 0x40_1000], vec![], vec![1]]
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        events in prop::collection::vec(owned(), 0..200),
        blocks in prop::collection::vec((0usize..3, 0u64..1000, 1u8..), 0..80),
    ) {
        let (bytes, (coded, data)) = write(&events, &chains(), &blocks);
        let (found, stopped) = read(&bytes);
        prop_assert!(stopped.is_none(), "{stopped:?}");
        let expected = blocks.iter().map(|(d, n, f)| format!("{d} {n} {f}"));
        let expected: Vec<_> = expected.chain(events.iter().map(|e| format!("{:?}", e.event()))).collect();
        prop_assert_eq!(found, expected);
        // Even where no event resembles the one before: two changes of place more than a real run has.
        prop_assert!(coded - data <= 60 + 36 * events.len() as u64);
    }

    #[test]
    fn loops_are_read_as_they_were(loops in prop::collection::vec(rounds(), 1..4)) {
        let events = loops.concat();
        let (bytes, _) = write(&events, &chains(), &[]);
        let (found, stopped) = read(&bytes);
        prop_assert!(stopped.is_none(), "{stopped:?}");
        prop_assert_eq!(found, events.iter().map(|e| format!("{:?}", e.event())).collect::<Vec<_>>());
    }

    #[test]
    fn any_cut_is_told_and_what_came_before_is_whole(
        events in prop::collection::vec(owned(), 1..50),
        at in any::<prop::sample::Index>(),
    ) {
        let (bytes, _) = write(&events, &chains(), &[(0, 0, 1), (2, 7, 9)]);
        let (whole, _) = read(&bytes);
        let cut = at.index(bytes.len());
        let (found, stopped) = read(&bytes[..cut]);
        prop_assert!(whole.starts_with(&found));
        match stopped {
            Some(Error::CutShort { offset, events }) => {
                prop_assert!(offset <= cut as u64);
                prop_assert_eq!(events as usize, found.len().saturating_sub(2));
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn any_changed_bit_is_told_and_what_came_before_is_whole(
        events in prop::collection::vec(owned(), 1..50),
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let (mut bytes, _) = write(&events, &chains(), &[(0, 0, 1), (2, 7, 9)]);
        let (whole, _) = read(&bytes);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let (found, stopped) = read(&bytes);
        prop_assert!(whole.starts_with(&found));
        prop_assert!(stopped.is_some());
        if let Some(Error::Damaged { offset, .. }) = stopped {
            prop_assert!(offset <= at as u64);
        }
    }

    #[test]
    fn nonsense_is_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..400), known in any::<bool>()) {
        if known {
            bytes.splice(..0, MAGIC.iter().copied().chain(FORMAT.to_le_bytes()));
        }
        prop_assert!(read(&bytes).1.is_some());
    }

    /// A chunk whose checksum is right, but whose events were made by an enemy.
    #[test]
    fn events_that_make_no_sense_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut decoder = code::Decoder::new(bytes);
        let mut chains = Vec::new();
        while let Ok(true) = decoder.settle(&mut chains) {
            if decoder.event().is_err() {
                break;
            }
        }
    }
}

#[test]
fn a_run_of_stores_is_small() {
    let store = |n: u64| Owned {
        at: (
            (n & 1) as u8,
            1_000_000 + 7 * n,
            1_500_000 + 7 * n,
            0xffff_ffff_8100_0000 + n % 5 * 4,
            (n % 3) as u32,
        ),
        kind: 0,
        address: (1 << 32) + n * 4099 % (64 << 20),
        number: 0,
        data: vec![n as u8; 8],
    };
    let events: Vec<_> = (0..100_000).map(store).collect();
    let (_, (coded, data)) = write(&events, &chains(), &[]);
    assert!(coded - data <= 24 * events.len() as u64, "{} bytes", (coded - data) as f64 / 1e5);
    let line = |n: u64| Owned { address: (1 << 32) + 8 * n, at: (0, n / 8, n / 8, 0x40_0000, 0), ..store(n) };
    let events: Vec<_> = (0..100_000).map(line).collect();
    let (_, (coded, data)) = write(&events, &chains(), &[]);
    assert!(coded - data <= 3 * events.len() as u64, "{} bytes", (coded - data) as f64 / 1e5);
}

/// Writes events, and as many as the last but `round` foretell at once, where they do.
fn write_rounds(events: &[Owned], round: usize, of: Loop) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), &header()).unwrap();
    chains().iter().for_each(|chain| assert!(writer.chain(chain).is_ok()));
    let mut at = 0;
    while at < events.len() {
        let count = if at % 7 == 3 { (events.len() - at).min(round * 5 + 1) } else { 0 };
        let bytes: Vec<u8> = events[at..at + count].iter().flat_map(|owned| owned.data.clone()).collect();
        if count > 0 && at >= round && writer.rounds(of, count as u64, |room| room.extend(&bytes)).unwrap() {
            at += count;
        } else {
            writer.event(&events[at].event()).unwrap();
            at += 1;
        }
    }
    writer.finish(&End { instruction: 77, outcome: "PowerOff".to_owned(), ..End::default() }).unwrap()
}

proptest! {
    #[test]
    fn rounds_at_once_are_their_events(
        round in prop::collection::vec(owned(), 1..=Loop::PERIOD),
        count in 2u64..60,
        strides in (0u64..5000, any::<u64>()),
    ) {
        let access = |(k, owned): (usize, &Owned), n: u64| {
            let mut owned = owned.clone();
            owned.kind %= 6;
            owned.at.1 += k as u64 + n * strides.0;
            owned.at.2 = owned.at.1 + 5;
            owned.address = owned.address.wrapping_add(n.wrapping_mul(strides.1));
            owned.data.iter_mut().for_each(|byte| *byte ^= n as u8);
            owned
        };
        let all = (0..count).flat_map(|n| round.iter().enumerate().map(move |owned| access(owned, n)));
        let events: Vec<_> = all.collect();
        let of = Loop { period: round.len(), address: strides.1, instructions: strides.0 };
        let (found, stopped) = read(&write_rounds(&events, round.len(), of));
        prop_assert!(stopped.is_none(), "{stopped:?}");
        prop_assert_eq!(found, events.iter().map(|e| format!("{:?}", e.event())).collect::<Vec<_>>());
    }
}

#[test]
fn of_an_unknown_loop_there_are_no_rounds() {
    let mut writer = Writer::new(Vec::new(), &header()).unwrap();
    let kind = Kind::Store { address: 1 << 32, data: &[1; 8], kind: StoreKind::Cached };
    let of = |period| Loop { period, address: 8, instructions: 3 };
    let told = |bytes: usize| move |room: &mut Vec<u8>| room.resize(room.len() + bytes, 0);
    assert!(!writer.rounds(of(1), 1, told(8)).unwrap());
    writer.event(&Event { vcpu: 0, instruction: 0, time: 0, rip: 0, chain: 0, kind }).unwrap();
    for (period, bytes) in [(0, 8), (2, 8), (Loop::PERIOD + 1, 8), (1, 7), (1, 16)] {
        assert!(!writer.rounds(of(period), 1, told(bytes)).unwrap(), "{period}, {bytes}");
    }
    assert!(writer.rounds(of(1), 2, told(16)).unwrap());
    assert!(!writer.rounds(of(1), Loop::COUNT + 1, told(8 * Loop::COUNT as usize + 8)).unwrap());
    assert!(writer.rounds(of(1), Loop::COUNT, told(8 * Loop::COUNT as usize)).unwrap());
    assert_eq!((writer.events(), writer.coded().1), (3 + Loop::COUNT, 24 + 8 * Loop::COUNT));
}

/// A copy by four stores and a flush a round, and a mark now and then.
#[test]
fn a_loop_is_its_bytes() {
    let access = |n: u64| {
        let (round, part) = (n / 5, n % 5);
        let kind = if n % 100_000 == 99_999 { 16 } else { [2, 2, 2, 2, 8][part as usize] };
        Owned {
            at: (0, 12 * round + part, 12 * round + part + 99, 0xffff_ffff_8100_0000 + 4 * part, 2),
            kind,
            address: (1 << 32) + 32 * round + 8 * part,
            number: 0,
            data: if part == 4 { Vec::new() } else { (n * n).to_le_bytes().to_vec() },
        }
    };
    let events: Vec<_> = (0..300_000).map(access).collect();
    let (bytes, (coded, data)) = write(&events, &chains(), &[]);
    assert!(coded - data < 4000, "{} bytes", coded - data);
    let (found, stopped) = read(&bytes);
    assert!(stopped.is_none());
    assert!(found.iter().zip(&events).all(|(found, event)| *found == format!("{:?}", event.event())));
    assert_eq!(found.len(), events.len());
}

#[test]
fn chains_have_numbers() {
    let mut writer = Writer::new(Vec::new(), &header()).unwrap();
    let numbers = [&[1, 2][..], &[3], &[]].map(|frames| writer.chain(frames).unwrap());
    assert_eq!(numbers, [1, 2, 3]);
    let event = Event { vcpu: 0, instruction: 0, time: 0, rip: 0, chain: 2, kind: Kind::Mark("m") };
    writer.event(&event).unwrap();
    assert!(matches!(
        writer.event(&Event { chain: CHAINS as u32 + 1, ..event }),
        Err(Error::TooLarge { .. })
    ));
    let bytes = writer.finish(&End::default()).unwrap();
    let mut reader = Reader::new(&bytes[..]).unwrap();
    assert_eq!(reader.next_event().unwrap(), Some(event));
    assert_eq!((reader.chain(1), reader.chain(2), reader.chain(3)), (&[1, 2][..], &[3][..], &[][..]));
    assert_eq!((reader.chain(0), reader.chain(9)), (&[][..], &[][..]));
}

#[test]
fn names_come_before_the_events_that_lead_there() {
    let mut writer = Writer::new(Vec::new(), &header()).unwrap();
    let kind = Kind::Fence(FenceKind::Sfence);
    writer.name(0x10, "first+0x1 [module]".to_owned());
    let event = |rip| Event { vcpu: 0, instruction: 1, time: 1, rip, chain: 0, kind };
    writer.event(&event(0x10)).unwrap();
    writer.flush().unwrap();
    writer.name(0x20, "second".to_owned());
    writer.event(&event(0x20)).unwrap();
    let bytes = writer.finish(&End::default()).unwrap();
    let mut reader = Reader::new(&bytes[..]).unwrap();
    reader.next_event().unwrap();
    assert_eq!((reader.name(0x10), reader.name(0x20)), (Some("first+0x1 [module]"), None));
    reader.next_event().unwrap();
    assert_eq!(reader.name(0x20), Some("second"));
    assert!(reader.next_event().unwrap().is_none() && reader.end().is_some());
}

#[test]
fn a_guess_is_told_from_a_frame() {
    for address in [0xffff_ffff_8100_0000, 0x40_1000] {
        assert_eq!(frame(address), (address, false));
        assert_eq!(frame(address ^ GUESS), (address, true));
    }
}

#[test]
fn a_trace_larger_than_a_chunk_is_a_stream() {
    let store = Owned { at: (0, 0, 0, 0, 0), kind: 2, address: 1 << 32, number: 0, data: vec![7; 60_000] };
    let events = vec![store; 100];
    let (bytes, _) = write(&events, &[], &[]);
    // Every chunk but the first few tells its own tale.
    let (found, stopped) = read(&bytes[..bytes.len() / 2]);
    assert!(matches!(stopped, Some(Error::CutShort { .. })));
    assert!((10..90).contains(&found.len()), "{}", found.len());
}

#[test]
fn other_formats_are_named() {
    let (mut bytes, _) = write(&[], &[], &[]);
    bytes[16] = 9;
    assert!(matches!(Reader::new(&bytes[..]), Err(Error::Version { found: 9 })));
    assert!(matches!(Reader::new(&b"something else, longer than a header"[..]), Err(Error::Foreign)));
}

#[test]
fn addresses_and_places_in_files_agree_with_the_medium() {
    let header = header();
    assert_eq!(header.place((1 << 32) + 5), Some((1, (2 << 20) + 5)));
    assert_eq!(header.place((5 << 30) + (2 << 20) + 7), Some((0, (2 << 20) + 7)));
    assert_eq!(header.place((5 << 30) + (4 << 20) + 7), Some((2, (4 << 20) + 7)));
    assert_eq!(header.place((1 << 32) - 1), None);
    assert_eq!(header.place((1 << 32) + (16 << 20)), None);
    for address in [1 << 32, (5 << 30) + 12345, (5 << 30) + (32 << 20) - 1, (5 << 30) + (11 << 20)] {
        let (dimm, offset) = header.place(address).unwrap();
        assert_eq!(header.address(dimm, offset - (2 << 20)), Some(address));
    }
    assert_eq!(header.address(1, 16 << 20), None);
    let mut medium = header.medium(Rules::default());
    let store = Kind::Store { address: 1 << 32, data: &[1], kind: StoreKind::Cached };
    medium.apply(0, store.operation().unwrap()).unwrap();
    assert_eq!(medium.undecided()[0].dimm, 1);
}

/// The file with one chunk's tag and payload replaced, and its checksum right.
fn replaced(bytes: &[u8], which: u8, by: (u8, &[u8])) -> Vec<u8> {
    let (mut out, mut rest) = (bytes[..MAGIC.len() + 4].to_vec(), &bytes[MAGIC.len() + 4..]);
    let (mut payload, mut sealed) = (Vec::new(), Vec::new());
    for number in 0.. {
        let Ok((tag, _)) = chunk::open(&mut rest, number, &mut payload) else { break };
        let (tag, payload) = if tag == which { by } else { (tag, &payload[..]) };
        chunk::seal(tag, number, payload, &mut sealed);
        out.extend(&sealed);
    }
    out
}

#[test]
fn who_reads_on_behind_damage_gets_an_end_or_an_error() {
    let blocks: Vec<_> = (0..70).map(|number| (0, number, 1)).collect();
    let (bytes, _) = write(&[], &[], &blocks);
    let wrong_hash = postcard::to_stdvec(&vec![[7u8; 32]; 3]).unwrap();
    for by in
        [(chunk::tag::END, &wrong_hash[..]), (chunk::tag::START, &wrong_hash), (chunk::tag::START, &[1])]
    {
        let bytes = replaced(&bytes, chunk::tag::START, by);
        let mut reader = Reader::new(&bytes[..]).unwrap();
        for _ in 0..70 {
            assert!(reader.next_block().unwrap().is_some());
        }
        assert!(matches!(reader.next_block(), Err(Error::Damaged { .. })));
        for _ in 0..3 {
            assert!(!matches!(reader.next_block(), Ok(Some(_))));
            assert!(!matches!(reader.next_event(), Ok(Some(_))));
        }
    }
}
