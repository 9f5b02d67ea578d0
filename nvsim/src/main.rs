//! The `nvsim` command.
fn main() {}
