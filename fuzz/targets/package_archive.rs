//! A Debian package: every file of it is unpacked.
#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut file = nvsim_fuzz::File::new();
    file.write_all(data).unwrap();
    guest_image::fuzz::package(file.path());
});
