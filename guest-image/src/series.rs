//! What is done to a kernel's source before it is built: a configuration fragment and a series of patches.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{At, Error, Result};
use crate::patch;

/// A configuration fragment and the patches of a series, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Series {
    /// Where it is from, for messages.
    folder: PathBuf,
    config: String,
    patches: Vec<(String, String)>,
}

/// The series of guest-kernel-patches/.
const BUILT_IN: [(&str, &[(&str, &str)]); 1] = [(
    "6.12",
    &[
        ("config", include_str!("../../guest-kernel-patches/6.12/config")),
        ("series", include_str!("../../guest-kernel-patches/6.12/series")),
        (
            "0001-pmem-trace-stores-flushes-fences.patch",
            include_str!("../../guest-kernel-patches/6.12/0001-pmem-trace-stores-flushes-fences.patch"),
        ),
    ],
)];

impl Series {
    /// The built-in series of that name, or the one in the folder `place`.
    pub(crate) fn find(name: &str, place: &Path) -> Result<Self> {
        match BUILT_IN.iter().find(|(known, _)| *known == name) {
            Some((_, files)) => {
                let folder = Path::new("guest-kernel-patches").join(name);
                Self::read(&folder, |file| {
                    let found = files.iter().find(|(known, _)| *known == file);
                    let missing =
                        || Error::Patch { path: folder.join(file), why: "it is not built in".into() };
                    Ok(found.ok_or_else(missing)?.1.to_owned())
                })
            }
            None => Self::read(place, |file| {
                let path = place.join(file);
                fs::read_to_string(&path).at("read", &path)
            }),
        }
    }

    fn read(folder: &Path, file: impl Fn(&str) -> Result<String>) -> Result<Self> {
        let names = file("series")?;
        let names = names.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let patches = names.map(|name| Ok((name.to_owned(), file(name)?))).collect::<Result<_>>()?;
        Ok(Self { folder: folder.to_owned(), config: file("config")?, patches })
    }

    /// BLAKE3 of all of it.
    pub(crate) fn hash(&self) -> blake3::Hash {
        let mut hash = blake3::Hasher::new();
        for (name, text) in
            self.patches.iter().map(|(n, t)| (n.as_str(), t)).chain([("config", &self.config)])
        {
            hash.update(blake3::hash(name.as_bytes()).as_bytes());
            hash.update(blake3::hash(text.as_bytes()).as_bytes());
        }
        hash.finalize()
    }

    /// The configuration fragment.
    pub(crate) fn config(&self) -> &str {
        &self.config
    }

    /// Names of the patches.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.patches.iter().map(|(name, _)| name.as_str())
    }

    /// Applies every patch to the source below `top`.
    pub(crate) fn apply(&self, top: &Path) -> Result<()> {
        for (name, text) in &self.patches {
            let bad = |why: String| Error::Patch { path: self.folder.join(name), why };
            for file in patch::parse(text).map_err(bad)? {
                let path = top.join(&file.path);
                let original = match fs::read_to_string(&path) {
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
                    text => Some(text.at("read", &path)?),
                };
                let patched = file.apply(original.as_deref()).map_err(bad)?;
                if let Some(folder) = path.parent() {
                    fs::create_dir_all(folder).at("create", folder)?;
                }
                fs::write(&path, patched).at("write", &path)?;
            }
        }
        Ok(())
    }

    /// Compares every symbol of the fragment with the configuration that came of it.
    pub(crate) fn check(&self, config: &str) -> Result<()> {
        let mut differing = Vec::new();
        for line in self.config.lines() {
            let Some(symbol) = symbol_of(line) else { continue };
            let got = config.lines().find(|line| symbol_of(line) == Some(symbol));
            // A symbol that is off and whose menu is off too is not mentioned at all.
            if got != Some(line) && !(got.is_none() && line.ends_with(" is not set")) {
                differing.push(format!(
                    "`{line}` became `{}`",
                    got.unwrap_or("nothing: its dependencies are off")
                ));
            }
        }
        match &*differing {
            [] => Ok(()),
            _ => Err(Error::Config { path: self.folder.join("config"), why: differing.join("; ") }),
        }
    }
}

/// The symbol that a line of a configuration sets.
fn symbol_of(line: &str) -> Option<&str> {
    let off = line.strip_prefix("# ").and_then(|rest| rest.strip_suffix(" is not set"));
    let on = line.split_once('=').map(|(symbol, _)| symbol);
    off.or(on).filter(|symbol| symbol.starts_with("CONFIG_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(config: &str) -> Series {
        Series { folder: "p".into(), config: config.into(), patches: Vec::new() }
    }

    #[test]
    fn what_is_built_in_is_what_the_folder_has() {
        for (name, _) in BUILT_IN {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-kernel-patches").join(name);
            let mut files: Vec<_> = fs::read_dir(&folder)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name.ends_with(".patch"))
                .collect();
            files.sort();
            let built_in = Series::find(name, Path::new("")).unwrap();
            let found = Series::find(folder.to_str().unwrap(), &folder).unwrap();
            assert_eq!(built_in.hash(), found.hash());
            assert_eq!(
                built_in.names().collect::<Vec<_>>(),
                files,
                "the series names every patch, in order of names"
            );
            for (name, text) in &built_in.patches {
                patch::parse(text).unwrap_or_else(|e| panic!("{name}: {e}"));
            }
        }
    }

    #[test]
    fn symbols_that_came_out_otherwise_are_named() {
        let series = series("# why\nCONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\n# CONFIG_D is not set\n");
        series.check("CONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\n").unwrap();
        let error = series.check("CONFIG_A=m\n# CONFIG_C is not set\nCONFIG_D=y\n").unwrap_err().to_string();
        assert!(error.contains("`CONFIG_A=y` became `CONFIG_A=m`"), "{error}");
        assert!(error.contains("`CONFIG_B=y` became `nothing"), "{error}");
        assert!(error.contains("`# CONFIG_D is not set` became `CONFIG_D=y`"), "{error}");
        assert!(!error.contains("CONFIG_C"), "{error}");
    }

    #[test]
    fn a_patch_that_does_not_apply_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("f"), "x\n").unwrap();
        let mut series = series("");
        series.patches.push(("1.patch".into(), "--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\n+b\n".into()));
        let error = series.apply(folder.path()).unwrap_err().to_string();
        assert!(error.starts_with("p/1.patch: hunk 1 of f"), "{error}");
        fs::write(folder.path().join("f"), "a\n").unwrap();
        series.apply(folder.path()).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("f")).unwrap(), "b\n");
    }
}
