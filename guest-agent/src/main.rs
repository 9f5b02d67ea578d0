//! PID 1 of a guest image.
fn main() {}
