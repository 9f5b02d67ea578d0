//! The order of Debian version numbers (Debian Policy 5.6.12).

use std::cmp::Ordering;

/// Compares two versions of the form `[epoch:]upstream[-revision]`.
pub(crate) fn compare(a: &str, b: &str) -> Ordering {
    let (epoch_a, upstream_a, revision_a) = split(a);
    let (epoch_b, upstream_b, revision_b) = split(b);
    epoch_a
        .cmp(&epoch_b)
        .then_with(|| part(upstream_a, upstream_b))
        .then_with(|| part(revision_a, revision_b))
}

fn split(version: &str) -> (u64, &str, &str) {
    let (epoch, rest) = version.split_once(':').unwrap_or(("0", version));
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, "0"));
    (epoch.parse().unwrap_or(0), upstream, revision)
}

/// Alternates between runs of non-digits, in which `~` sorts before the end and letters before the rest, and numbers.
fn part(mut a: &str, mut b: &str) -> Ordering {
    while !a.is_empty() || !b.is_empty() {
        let (word_a, rest_a) = a.split_at(a.find(|c: char| c.is_ascii_digit()).unwrap_or(a.len()));
        let (word_b, rest_b) = b.split_at(b.find(|c: char| c.is_ascii_digit()).unwrap_or(b.len()));
        let words = (0..=word_a.len().max(word_b.len()))
            .map(|i| weight(word_a.as_bytes().get(i)).cmp(&weight(word_b.as_bytes().get(i))))
            .find(|order| order.is_ne());
        if let Some(order) = words {
            return order;
        }
        let (digits_a, digits_b) = (number(rest_a), number(rest_b));
        let (value_a, value_b) = (digits_a.trim_start_matches('0'), digits_b.trim_start_matches('0'));
        let order = value_a.len().cmp(&value_b.len()).then_with(|| value_a.cmp(value_b));
        if order.is_ne() {
            return order;
        }
        (a, b) = (&rest_a[digits_a.len()..], &rest_b[digits_b.len()..]);
    }
    Ordering::Equal
}

fn number(text: &str) -> &str {
    &text[..text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len())]
}

fn weight(byte: Option<&u8>) -> i32 {
    match byte {
        Some(b'~') => -1,
        None => 0,
        Some(&letter) if letter.is_ascii_alphabetic() => i32::from(letter),
        Some(&other) => i32::from(other) + 256,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_as_policy_says() {
        let ascending = [
            "1.0~rc1-1",
            "1.0-1~deb12u1",
            "1.0-1",
            "1.0-1+b1",
            "1.0.1-1",
            "6.1.99-1",
            "6.1.180-1",
            "6.12.9-1~deb12u1",
            "6.12.117-1~deb12u1",
            "6.12.117-1",
            "1:0.1-1",
        ];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(compare(a, b), i.cmp(&j), "{a} {b}");
            }
        }
    }
}
