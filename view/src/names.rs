//! Code by name, and numbers as people read them.

use std::io::Read;

use trace::Reader;

/// What an address is called; the bare number where it has no name.
#[must_use]
pub fn place<R: Read>(reader: &Reader<R>, address: u64) -> String {
    reader.name(address).map_or_else(|| format!("{address:#x}"), str::to_owned)
}

/// The calls that led to an instruction, the innermost first; what is no more than likely has a `?` before it.
#[must_use]
pub fn callers<R: Read>(reader: &Reader<R>, chain: u32) -> Vec<String> {
    let called = |&frame: &u64| {
        let (address, guess) = trace::frame(frame);
        format!("{}{}", if guess { "? " } else { "" }, place(reader, address))
    };
    reader.chain(chain).iter().map(called).collect()
}

/// The name without the offset.
pub fn function(place: &str) -> &str {
    place.rsplit_once('+').map_or(place, |(name, _)| name)
}

/// 1234567 as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes with a unit.
pub fn bytes(count: u64) -> String {
    match count {
        0..=9999 => format!("{count} B"),
        10_000..=9_999_999 => format!("{:.1} KiB", count as f64 / 1024.0),
        10_000_000..=9_999_999_999 => format!("{:.1} MiB", count as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", count as f64 / f64::from(1 << 30)),
    }
}

/// Nanoseconds as seconds.
pub fn seconds(nanoseconds: u64) -> String {
    format!("{:.6} s", nanoseconds as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_are_readable() {
        assert_eq!([0, 999, 1000, 1_234_567].map(super::grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([64, 65_536, 64 << 20].map(super::bytes), ["64 B", "64.0 KiB", "64.0 MiB"]);
    }
}
