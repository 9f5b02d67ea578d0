//! `nvsim-mark NAME`: marks a point of the run, by the doorbell that docs/marks.md describes.
#![expect(unsafe_code, reason = "a port is written")]

/// The port of named marks: the length of the name is written, RSI has its address.
const PORT: u16 = 0x708;
/// The longest name.
const LONGEST: usize = 255;

/// Sets the mark that the arguments name.
pub fn run(words: &[String]) -> Result<(), String> {
    match words {
        [name] => set(name),
        _ => Err("usage: nvsim-mark NAME".to_owned()),
    }
}

/// Sets a mark. It is one instruction: between it and what comes before and after, nothing else happens here.
pub fn set(name: &str) -> Result<(), String> {
    if !(1..=LONGEST).contains(&name.len()) || name.chars().any(char::is_control) {
        return Err(format!("a mark has a name of 1 to {LONGEST} bytes without control characters"));
    }
    // SAFETY: asks for leave to use four ports; no memory is touched.
    if unsafe { libc::ioperm(PORT.into(), 4, 1) } != 0 {
        return Err(format!("the doorbell cannot be rung: {}; be root", std::io::Error::last_os_error()));
    }
    // SAFETY: the kernel has allowed the port. The machine reads the name, which lives longer, and changes nothing.
    unsafe {
        std::arch::asm!(
            "out dx, eax",
            in("dx") PORT,
            in("eax") name.len() as u32,
            in("rsi") name.as_ptr(),
            options(nostack, preserves_flags),
        );
    }
    Ok(())
}
