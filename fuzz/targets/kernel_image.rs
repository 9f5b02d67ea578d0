//! A kernel file: unpacked as an image build does, and loaded as a machine does.
#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use vmm::boot::{self, BootSpec, Kernel};
use vmm::layout::{MIB, MemoryPlan};

fuzz_target!(|data: &[u8]| {
    let unpacked = guest_image::fuzz::kernel(data);
    for bytes in [Some(data), unpacked.as_deref()].into_iter().flatten() {
        load(bytes);
    }
});

fn load(bytes: &[u8]) {
    let plan = MemoryPlan::new(64 * MIB, &[]).unwrap();
    let memory = vmm::memory::map(&plan, &[]).unwrap();
    let mut file = nvsim_fuzz::File::new();
    file.write_all(bytes).unwrap();
    let Ok(kernel) = Kernel::detect(file.path()) else { return };
    let spec = BootSpec { kernel, initrd: None, command_line: "console=ttyS0".to_owned() };
    if let Ok(state) = boot::load(&spec, &plan, &memory, 0) {
        assert!(state.registers.rip < plan.low_ram_end());
    }
}
