//! Calls through the NV-DIMM mailbox, one after the other, on a bus with an interleave set of two.
#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use nvdimm_model::dsm::{Bus, Region};
use nvdimm_model::interleave::InterleaveSet;
use nvdimm_model::{Dimm, Domain, Geometry, Handle, Identity, Persistence};
use vmm::nvdimm::mailbox::{Call, INPUT, OUTPUT, PAGE, reply};

#[derive(Debug, arbitrary::Arbitrary)]
struct Ring<'a> {
    dimm: u8,
    revision: u8,
    function: u8,
    /// Claimed; without it the true one.
    length: Option<u32>,
    input: &'a [u8],
}

fuzz_target!(|calls: Vec<Ring<'_>>| {
    let geometry = Geometry::new(64 << 20, 8192).unwrap();
    let identities = [1, 2].map(Identity::with_serial);
    let set = InterleaveSet::new(&identities.map(|identity| (identity, geometry))).unwrap();
    let dimms = [0, 1].map(|n: u8| {
        let dimm = Dimm::new(identities[usize::from(n)], geometry, Persistence::honest(Domain::Adr));
        (Handle::nth(n.into()), dimm)
    });
    let mut bus = Bus::new(dimms.to_vec(), vec![Region { base: 1 << 30, set, members: vec![0, 1] }]);
    for ring in calls {
        let mut page = [0; PAGE];
        let handle = match ring.dimm {
            n @ 0..=2 => Handle::nth(n.into()).0,
            3..=127 => Handle::ROOT.0,
            n => u32::from(n) << 24,
        };
        let length = ring.length.unwrap_or(ring.input.len() as u32);
        let words = [handle, ring.revision.into(), ring.function.into(), length];
        for (to, word) in page.chunks_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        page[INPUT..].iter_mut().zip(ring.input).for_each(|(to, from)| *to = *from);
        let answer = Call::read(&page).answer(&mut bus);
        assert!(!answer.is_empty() && answer.len() <= PAGE - OUTPUT);
        assert!(reply(&answer).len() <= PAGE);
        for (_, dimm) in bus.dimms_mut() {
            assert_eq!(dimm.label_area().len(), 8192);
            dimm.take_changes();
        }
    }
});
