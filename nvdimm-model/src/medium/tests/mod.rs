//! The model against what others say: a brute-force machine, litmus programs, all interleavings of small programs.

mod interleave;
mod limits;
mod litmus;
mod machine;
mod reference;
