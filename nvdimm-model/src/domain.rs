//! Persistence domains: from where on a store survives a power cut, and how the NFIT says so (ACPI 5.2.25.9).

use serde::{Deserialize, Serialize};

/// From where on a store survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Domain {
    /// Only a flush-hint write makes fenced lines survive.
    Hint,
    /// A line survives once it was written back and a fence followed.
    Adr,
    /// A store survives once it is globally visible.
    Eadr,
}

impl Domain {
    /// The capability bits of the NFIT: b0 processor caches, b1 memory controller. The first implies the second.
    pub const fn capabilities(self) -> u32 {
        match self {
            Self::Hint => 0b00,
            Self::Adr => 0b10,
            Self::Eadr => 0b11,
        }
    }

    /// What Linux shows in a region's `persistence_domain`; `None` where it hides the attribute.
    pub const fn linux_name(self) -> Option<&'static str> {
        match self {
            Self::Hint => None,
            Self::Adr => Some("memory_controller"),
            Self::Eadr => Some("cpu_cache"),
        }
    }

    /// What a machine can promise for all of its DIMMs: the weakest of their domains.
    pub fn of_platform(domains: impl IntoIterator<Item = Self>) -> Option<Self> {
        domains.into_iter().min()
    }
}

impl std::str::FromStr for Domain {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "hint" => Ok(Self::Hint),
            "adr" => Ok(Self::Adr),
            "eadr" => Ok(Self::Eadr),
            _ => Err(format!("unknown domain {text:?}: choose eadr, adr or hint")),
        }
    }
}

impl std::fmt::Display for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Hint => "hint",
            Self::Adr => "adr",
            Self::Eadr => "eadr",
        })
    }
}

/// What a DIMM promises and what it keeps; they differ on a lying platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Persistence {
    /// What the NFIT tells the guest.
    pub shown: Domain,
    /// What a power cut obeys.
    pub kept: Domain,
}

impl Persistence {
    /// A platform that keeps what it shows.
    pub const fn honest(domain: Domain) -> Self {
        Self { shown: domain, kept: domain }
    }

    /// Whether the guest is promised more than is kept.
    pub fn lies(&self) -> bool {
        self.kept < self.shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weakest_dimm_speaks_for_the_platform() {
        assert_eq!(Domain::of_platform([Domain::Eadr, Domain::Hint, Domain::Adr]), Some(Domain::Hint));
        assert_eq!(Domain::of_platform([Domain::Eadr, Domain::Adr]), Some(Domain::Adr));
        assert_eq!(Domain::of_platform([]), None);
        assert!(Persistence { shown: Domain::Eadr, kept: Domain::Adr }.lies());
        assert!(!Persistence { shown: Domain::Adr, kept: Domain::Eadr }.lies());
    }
}
