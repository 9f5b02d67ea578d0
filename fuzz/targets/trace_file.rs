//! A trace file, as it is and with checksums made right: all of it is read, and applied to the model.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nvdimm_model::medium::Rules;
use trace::Reader;

fuzz_target!(|data: &[u8]| {
    read(data);
    read(&trace::fuzz::reseal(data));
});

fn read(data: &[u8]) {
    let Ok(mut reader) = Reader::new(data) else { return };
    let mut medium = reader.header().medium(Rules::default());
    while let Ok(Some(_)) = reader.next_block() {}
    while let Ok(Some(event)) = reader.next_event() {
        if let Some(operation) = event.kind.operation() {
            let _ = medium.apply(event.vcpu, operation);
        }
    }
}
