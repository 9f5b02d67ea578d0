//! What is recorded without a guest: devices that write into DIMMs.

use std::io::Write;
use std::sync::{Arc, Mutex};

use engine::event::MemoryEvents;
use engine::{GuestMemory, Msi, Partition};
use nvdimm_model::medium::{Rules, StoreKind, Survivors};
use trace::{Event, Header, Kind, Reader};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::nvdimm::backing::Backing;
use crate::nvdimm::{Entropy, Hold, Nvdimms, OpenDimms};

const START: u64 = 4 << 30;
const SIZE: u64 = 16 << 20;

/// A partition in which nothing happens by itself.
#[derive(Debug)]
struct Still;

impl Partition for Still {
    fn send_msi(&self, _msi: Msi) -> engine::Result<()> {
        Ok(())
    }

    fn kick(&self) {}

    fn now(&self) -> u64 {
        5
    }

    fn instructions(&self) -> Option<u64> {
        Some(3)
    }

    fn memory_events(&self) -> Option<&dyn MemoryEvents> {
        Some(self)
    }

    fn stop_at(&self, _instructions: Option<u64>) -> bool {
        true
    }
}

impl MemoryEvents for Still {
    fn watch(&self, _ranges: &[std::ops::Range<u64>], _loads: bool) {}

    fn drain(&self, _log: &mut engine::log::Log) {}

    fn number(&self) -> u64 {
        0
    }

    fn stop_at(&self, _number: Option<u64>) {}
}

#[derive(Debug, Clone, Default)]
pub struct Shelf(pub Arc<Mutex<Vec<u8>>>);

impl Write for Shelf {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// DMA into a DIMM is recorded as far as it lies there, and survives whatever is chosen; what comes after the cut does not.
#[test]
fn what_a_device_writes_into_a_dimm_is_recorded_and_sure() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d");
    let spec = format!("{},size=16M", path.display()).parse().unwrap();
    let open = OpenDimms::open(&[spec], &Entropy::from_seed(0)).unwrap();
    let mut nvdimms: Nvdimms = open.place(std::slice::from_ref(&(START..START + SIZE))).unwrap();
    let memory = GuestMemory::from_arc_regions(nvdimms.memory().to_vec()).unwrap();
    let plan = nvdimms.plan();
    let header = Header { dimms: plan.trace_dimms(), zones: plan.trace_zones(), ..Header::default() };
    let shelf = Shelf::default();
    let cut =
        CutSpec { when: "store:2".parse().unwrap(), survivors: Survivors::None, rules: Rules::default() };
    let spec = RecordSpec {
        trace: Some((Box::new(shelf.clone()), Header::default())),
        cut: Some(cut),
        ..RecordSpec::default()
    };
    let mut recorder = Recorder::new(spec, header, memory.clone());
    recorder.attach(&Still, &mut nvdimms, (0, 0), None).unwrap();
    let last = START + SIZE - 4;
    for (at, bytes) in [(last, &[7; 4][..]), (START + (9 << 20), &[8; 512]), (START + (9 << 20), &[9; 100])] {
        memory.write_slice(bytes, GuestAddress(at)).unwrap();
        // The device's buffer goes on behind the DIMM.
        let end = at + bytes.len() as u64;
        recorder.device_wrote(&(at..if at == last { end + 60 } else { end }), &Still).unwrap();
    }
    assert!(recorder.leave(&mut nvdimms).unwrap().is_some());
    let report = recorder.finish("PowerCut", (3, 5)).unwrap();
    assert_eq!((report.events, report.never_came), (2, None));

    let bytes = shelf.0.lock().unwrap().clone();
    let mut trace = Reader::new(&bytes[..]).unwrap();
    let mut stores = Vec::new();
    while let Some(Event { kind, .. }) = trace.next_event().unwrap() {
        let Kind::Store { address, data, kind: StoreKind::Device } = kind else { panic!("{kind:?}") };
        stores.push((address, data.to_vec()));
    }
    assert_eq!(stores, [(last, vec![7; 4]), (START + (9 << 20), vec![8; 512])]);

    drop((memory, nvdimms));
    let backing = Backing::open(&path, Hold::Shared).unwrap();
    let mut left = [0; 512];
    backing.read_data(9 << 20, &mut left).unwrap();
    assert_eq!(left, [8; 512]);
    assert_eq!(backing.record().health.dirty_shutdowns, 1);
}
