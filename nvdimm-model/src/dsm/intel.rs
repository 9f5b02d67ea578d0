//! The functions of a DIMM (Intel NVDIMM DSM interface, family 4309ac30-...): health, labels, shutdown latch, injection.
//!
//! Functions up to 10 belong to revision 1, later ones to revision 2; each revision has its function 0, and revision 2
//! includes the first.

use uuid::{Uuid, uuid};

use super::{INVALID, MAX_TRANSFER, SUCCESS, UNSUPPORTED, mask, status};
use crate::{Dimm, le};

/// The family's GUID, as `_DSM` gets it.
pub const FAMILY: Uuid = uuid!("4309ac30-0d11-11e4-9191-0800200c9a66");

/// Bytes of the label area in one transfer: with the 8 bytes of a write's header it fits any mailbox, and it is a
/// multiple of a label.
pub const MAX_LABEL_TRANSFER: u32 = 3840;
const _: () = assert!(MAX_LABEL_TRANSFER as usize + 12 <= MAX_TRANSFER);

/// What a function is, in one row: number, first revision, whether an input length is possible, and its work.
struct Function {
    number: u64,
    revision: u64,
    takes: fn(usize) -> bool,
    run: fn(&mut Dimm, &[u8]) -> Vec<u8>,
}

const FUNCTIONS: [Function; 8] = [
    Function { number: 1, revision: 1, takes: |n| n == 0, run: smart },
    Function { number: 2, revision: 1, takes: |n| n == 0, run: thresholds },
    Function { number: 4, revision: 1, takes: |n| n == 0, run: label_size },
    Function { number: 5, revision: 1, takes: |n| n == 8, run: label_read },
    Function { number: 6, revision: 1, takes: |n| n >= 8, run: label_write },
    Function { number: 10, revision: 1, takes: |n| n == 1, run: latch },
    Function { number: 17, revision: 2, takes: |n| n == 7, run: set_thresholds },
    Function { number: 18, revision: 2, takes: |n| n == 15, run: inject },
];

/// The functions of a revision. Without a label area there is nothing to transfer.
fn known(revision: u64, has_labels: bool) -> impl Iterator<Item = &'static Function> {
    let exists = (1..=2).contains(&revision);
    let known = FUNCTIONS.iter().filter(move |f| exists && f.revision <= revision);
    known.filter(move |f| has_labels || !(4..=6).contains(&f.number))
}

/// The answer of function 0, which depends on nothing else: firmware can give it without asking the DIMM.
pub fn functions(revision: u64, has_labels: bool) -> Vec<u8> {
    if (1..=2).contains(&revision) { mask(known(revision, has_labels).map(|f| f.number)) } else { vec![0] }
}

impl Dimm {
    /// Answers a call of the Intel family.
    pub fn dsm(&mut self, revision: u64, function: u64, input: &[u8]) -> Vec<u8> {
        let has_labels = self.geometry.label_size > 0;
        if function == 0 {
            return functions(revision, has_labels);
        }
        match known(revision, has_labels).find(|f| f.number == function) {
            None => status(UNSUPPORTED),
            Some(f) if !(f.takes)(input.len()) => status(INVALID),
            Some(f) => (f.run)(self, input),
        }
    }
}

fn smart(dimm: &mut Dimm, _: &[u8]) -> Vec<u8> {
    // Valid: health, spares, life used, both temperatures, shutdown count, alarms, shutdown state.
    const VALID: u32 = 0b110_0011_1111 & !(1 << 6);
    let health = &dimm.health;
    let mut out = vec![0; 132];
    le::put_u32(&mut out, 0, SUCCESS);
    le::put_u32(&mut out, 4, VALID);
    out[12] = health.status();
    out[13] = health.reported_spares();
    out[14] = health.life_used;
    out[15] = health.alarms();
    le::put_u16(&mut out, 16, health.reported_media());
    le::put_u16(&mut out, 18, health.controller);
    le::put_u32(&mut out, 20, health.dirty_shutdowns);
    out[35] = u8::from(health.last_dirty);
    out
}

fn thresholds(dimm: &mut Dimm, _: &[u8]) -> Vec<u8> {
    let limits = &dimm.health.thresholds;
    let mut out = vec![0; 12];
    le::put_u16(&mut out, 4, limits.enabled);
    out[6] = limits.spares;
    le::put_u16(&mut out, 7, limits.media);
    le::put_u16(&mut out, 9, limits.controller);
    out
}

fn label_size(dimm: &mut Dimm, _: &[u8]) -> Vec<u8> {
    [SUCCESS, dimm.geometry.label_size, MAX_LABEL_TRANSFER].iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn label_read(dimm: &mut Dimm, input: &[u8]) -> Vec<u8> {
    let (offset, len) = (le::u32_at(input, 0) as usize, le::u32_at(input, 4));
    let range = offset..offset.saturating_add(len as usize);
    match dimm.label_area().get(range).filter(|_| len <= MAX_LABEL_TRANSFER) {
        Some(bytes) => [&SUCCESS.to_le_bytes()[..], bytes].concat(),
        None => status(INVALID),
    }
}

fn label_write(dimm: &mut Dimm, input: &[u8]) -> Vec<u8> {
    let (offset, len) = (le::u32_at(input, 0) as usize, le::u32_at(input, 4));
    let data = &input[8..];
    let fits = len <= MAX_LABEL_TRANSFER && data.len() == len as usize;
    status(if fits && dimm.write_labels(offset, data) { SUCCESS } else { INVALID })
}

fn latch(dimm: &mut Dimm, input: &[u8]) -> Vec<u8> {
    match input[0] {
        0 | 1 => {
            dimm.health.latched = input[0] == 1;
            dimm.touch();
            status(SUCCESS)
        }
        _ => status(INVALID),
    }
}

fn set_thresholds(dimm: &mut Dimm, input: &[u8]) -> Vec<u8> {
    let limits = &mut dimm.health.thresholds;
    limits.enabled = le::u16_at(input, 0);
    limits.spares = input[2];
    limits.media = le::u16_at(input, 3);
    limits.controller = le::u16_at(input, 5);
    dimm.touch();
    status(SUCCESS)
}

fn inject(dimm: &mut Dimm, input: &[u8]) -> Vec<u8> {
    let flags = le::u64_at(input, 0);
    if flags & !0b1111 != 0 || input[12] > 100 {
        return status(INVALID);
    }
    let injected = &mut dimm.health.injected;
    if flags & 1 != 0 {
        injected.media = (input[8] != 0).then(|| le::u16_at(input, 9));
    }
    if flags & 2 != 0 {
        injected.spares = (input[11] != 0).then_some(input[12]);
    }
    if flags & 4 != 0 {
        injected.fatal = input[13] != 0;
    }
    if flags & 8 != 0 {
        injected.unsafe_shutdown = input[14] != 0;
    }
    dimm.touch();
    status(SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Domain, Geometry, Identity, Persistence};
    use proptest::prelude::*;

    fn dimm() -> Dimm {
        let geometry = Geometry::new(16 << 20, 8192).unwrap();
        Dimm::new(Identity::with_serial(1), geometry, Persistence::honest(Domain::Adr))
    }

    #[test]
    fn both_revisions_answer_function_0() {
        assert_eq!(dimm().dsm(1, 0, &[]), 0b100_0111_0111u64.to_le_bytes());
        assert_eq!(dimm().dsm(2, 0, &[]), (0b100_0111_0111u64 | 3 << 17).to_le_bytes());
        assert_eq!(dimm().dsm(3, 0, &[]), [0]);
        let bare = Geometry::new(16 << 20, 0).unwrap();
        let mut bare = Dimm::new(Identity::with_serial(1), bare, Persistence::honest(Domain::Adr));
        assert_eq!(bare.dsm(1, 0, &[]), 0b100_0000_0111u64.to_le_bytes());
        assert_eq!(bare.dsm(1, 4, &[]), status(UNSUPPORTED));
    }

    #[test]
    fn golden_smart() {
        let mut dimm = dimm();
        dimm.health.dirty_shutdowns = 0x0102;
        dimm.health.last_dirty = true;
        let out = dimm.dsm(1, 1, &[]);
        assert_eq!(out.len(), 132);
        assert_eq!(out[..12], [0, 0, 0, 0, 0x3f, 0x06, 0, 0, 0, 0, 0, 0]);
        assert_eq!(out[12..24], [0, 100, 0, 0, 0x90, 1, 0xe0, 1, 2, 1, 0, 0]);
        assert_eq!(out[35], 1);
        assert_eq!(out[36..], [0; 96]);
    }

    #[test]
    fn labels_are_written_and_read() {
        let mut dimm = dimm();
        assert_eq!(dimm.dsm(1, 4, &[]), [0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0x0f, 0, 0]);
        let write = [&256u32.to_le_bytes()[..], &3u32.to_le_bytes(), b"abc"].concat();
        assert_eq!(dimm.dsm(1, 6, &write), status(SUCCESS));
        assert_eq!(dimm.take_changes().labels, Some(256..259));
        assert!(dimm.take_changes().is_empty());
        let read = [255u32.to_le_bytes(), 5u32.to_le_bytes()].concat();
        assert_eq!(dimm.dsm(2, 5, &read), *b"\0\0\0\0\0abc\0");
    }

    #[test]
    fn wrong_lengths_and_places_are_refused_and_change_nothing() {
        let mut dimm = dimm();
        let before = dimm.clone();
        let words = |a: u32, b: u32| [a.to_le_bytes(), b.to_le_bytes()].concat();
        for (function, input) in [
            (1, vec![0]),
            (4, vec![0; 4]),
            (5, vec![0; 7]),
            (5, words(8190, 4)),
            (5, words(u32::MAX, u32::MAX)),
            (5, words(0, MAX_LABEL_TRANSFER + 1)),
            (6, vec![0; 3]),
            (6, words(0, 1)),
            (6, [words(8192, 1), vec![0]].concat()),
            (6, [words(0, 2), vec![0]].concat()),
            (10, vec![]),
            (10, vec![2]),
        ] {
            assert_eq!(dimm.dsm(1, function, &input), status(INVALID), "function {function} {input:?}");
        }
        assert_eq!(dimm.dsm(1, 17, &[0; 7]), status(UNSUPPORTED));
        assert_eq!(dimm.dsm(1, u64::MAX, &[]), status(UNSUPPORTED));
        assert_eq!(dimm, before);
    }

    #[test]
    fn injected_temperature_is_reported_until_taken_back() {
        let mut dimm = dimm();
        let mut input = vec![0; 15];
        input[0] = 1;
        input[8] = 1;
        input[9..11].copy_from_slice(&0x1234u16.to_le_bytes());
        assert_eq!(dimm.dsm(2, 18, &input), status(SUCCESS));
        assert_eq!(dimm.dsm(1, 1, &[])[16..18], [0x34, 0x12]);
        input[8] = 0;
        dimm.dsm(2, 18, &input);
        assert_eq!(dimm.dsm(1, 1, &[])[16..18], [0x90, 1]);
    }

    proptest! {
        #[test]
        fn any_call_has_an_answer(revision in 0u64..4, function in 0u64..40, input in prop::collection::vec(any::<u8>(), 0..64)) {
            let out = dimm().dsm(revision, function, &input);
            prop_assert!(!out.is_empty() && out.len() <= MAX_TRANSFER);
        }
    }
}
