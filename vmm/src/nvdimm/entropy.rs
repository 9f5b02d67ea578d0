//! Made-up identities: serial numbers and uuids for new DIMMs, as a function of a seed and the file's place, so that a run
//! with a seed can be repeated, and two files never become twins.

use std::path::Path;

use uuid::Uuid;

use super::{Error, Result};

/// Where made-up numbers come from.
#[derive(Debug, Clone)]
pub struct Entropy(blake3::Hasher);

impl Entropy {
    /// Always the same for the same seed.
    pub fn from_seed(seed: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("nvsim 2026 identities of NV-DIMMs");
        hasher.update(&seed.to_le_bytes());
        Self(hasher)
    }

    /// Another each time.
    pub fn from_host() -> Result<Self> {
        let device = Path::new("/dev/urandom");
        let mut seed = [0; 32];
        std::fs::File::open(device)
            .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut seed))
            .map_err(Error::io("read", device))?;
        Ok(Self(blake3::Hasher::new_keyed(&seed)))
    }

    /// What belongs to a file.
    pub fn of_file(&self, path: &Path) -> Self {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        self.of(absolute.as_os_str().as_encoded_bytes())
    }

    fn of(&self, what: &[u8]) -> Self {
        let mut hasher = self.0.clone();
        hasher.update(&(what.len() as u64).to_le_bytes()).update(what);
        Self(hasher)
    }

    fn bytes<const N: usize>(&self, what: &str) -> [u8; N] {
        let mut bytes = [0; N];
        self.of(what.as_bytes()).0.finalize_xof().fill(&mut bytes);
        bytes
    }

    /// A serial number; not zero.
    pub fn serial(&self) -> u32 {
        u32::from_le_bytes(self.bytes("serial")).max(1)
    }

    /// A random (version 4) uuid for a purpose.
    pub fn uuid(&self, purpose: &str, n: usize) -> Uuid {
        uuid::Builder::from_random_bytes(self.bytes(&format!("{purpose} {n}"))).into_uuid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_their_own() {
        let entropy = Entropy::from_seed(1);
        let (a, b) = (entropy.of_file(Path::new("/x/a")), entropy.of_file(Path::new("/x/b")));
        assert_eq!(a.serial(), Entropy::from_seed(1).of_file(Path::new("/x/a")).serial());
        assert_ne!(a.serial(), b.serial());
        assert_ne!(a.uuid("raw", 0), a.uuid("raw", 1));
        assert_ne!(a.uuid("raw", 0), a.uuid("info", 0));
        assert_eq!(a.uuid("raw", 0).get_version_num(), 4);
        Entropy::from_host().unwrap();
    }
}
