//! What instructions do, a family a file.
//!
//! Each family offers `lookup(&iced_x86::Instruction) -> Option<Exec>`; the decoder asks them in turn. A function is
//! chosen once, at decode time, by operand kinds and widths, so that executing asks nothing again.
