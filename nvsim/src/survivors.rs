//! Which of the stores in doubt survive a power cut, as a user says it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use trace::medium::{Pick, Survivors};

/// What is kept of a line, in a survivors file: `{"kept": 2}`, `{"kept": 2, "torn": [0, 3]}` or `{"chunks": [0, 1, ...]}`.
#[derive(Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Kept {
    Stores {
        kept: u32,
        #[serde(default)]
        torn: Vec<u8>,
    },
    Chunks {
        chunks: [u32; 8],
    },
}

/// `none`, `all`, `random:SEED`, or a file that picks line by line.
pub fn parse(text: &str) -> Result<Survivors> {
    match text {
        "none" => return Ok(Survivors::None),
        "all" => return Ok(Survivors::All),
        _ => {}
    }
    if let Some(seed) = text.strip_prefix("random:") {
        let seed = seed.parse().with_context(|| format!("{seed:?} is no seed; write random:7"))?;
        return Ok(Survivors::Random(seed));
    }
    let file = std::fs::read_to_string(text).with_context(|| {
        format!("Cannot read the survivors {text}; write none, all, random:SEED, or the name of a file")
    })?;
    picks(&file).with_context(|| format!("The survivors in {text} make no sense"))
}

fn picks(text: &str) -> Result<Survivors> {
    let lines: BTreeMap<String, Kept> =
        serde_json::from_str(text).context("a survivors file is {\"0x100000040\": {\"kept\": 1}, ...}")?;
    let mut picks = BTreeMap::new();
    for (address, kept) in lines {
        let hex = address.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let Some(place) = hex.filter(|place| place.is_multiple_of(64)) else {
            bail!(
                "{address:?} is no address of a line; write a multiple of 64 in hexadecimal, as 0x100000040"
            );
        };
        let pick = match kept {
            Kept::Chunks { chunks } => Pick::ByChunks(chunks),
            Kept::Stores { kept, torn } => {
                if let Some(chunk) = torn.iter().find(|chunk| **chunk > 7) {
                    bail!("line {address} has no chunk {chunk}; there are 0 to 7");
                }
                Pick::InOrder { kept, torn: torn.iter().fold(0, |mask, chunk| mask | 1 << chunk) }
            }
        };
        picks.insert(place, pick);
    }
    Ok(Survivors::Picks(picks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_are_read() {
        let text = r#"{"0x40": {"kept": 2, "torn": [0, 3]}, "0x100000080": {"chunks": [0,1,0,0,0,0,0,2]}}"#;
        let Survivors::Picks(picks) = picks(text).unwrap() else { panic!("no picks") };
        assert_eq!(picks[&0x40], Pick::InOrder { kept: 2, torn: 0b1001 });
        assert_eq!(picks[&0x1_0000_0080], Pick::ByChunks([0, 1, 0, 0, 0, 0, 0, 2]));
        assert_eq!(parse("random:9").unwrap(), Survivors::Random(9));
    }

    #[test]
    fn nonsense_is_explained() {
        for (text, part) in [
            (r#"{"0x41": {"kept": 1}}"#, "multiple of 64"),
            (r#"{"64": {"kept": 1}}"#, "hexadecimal"),
            (r#"{"0x40": {"kept": 1, "torn": [8]}}"#, "no chunk 8"),
            (r#"{"0x40": {"keep": 1}}"#, "a survivors file is"),
        ] {
            let error = format!("{:#}", picks(text).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
        assert!(format!("{:#}", parse("nonesuch").unwrap_err()).contains("none, all, random:SEED"));
    }
}
