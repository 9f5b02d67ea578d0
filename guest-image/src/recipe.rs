//! Recipes: what an image is made of (TOML).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{At, Error, Result};
use crate::modules::Strip;
use crate::series::Series;

/// What an image is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Recipe {
    /// The image's name; that of the recipe file unless given.
    #[serde(default)]
    pub name: String,
    /// One line for listings.
    #[serde(default)]
    pub description: String,
    /// Kernel command line.
    pub cmdline: String,
    /// A Debian archive to use instead of the host's: `URL SUITE COMPONENT...`.
    #[serde(default)]
    pub archive: Option<String>,
    /// The kernel.
    pub kernel: KernelSpec,
    /// Its modules.
    #[serde(default)]
    pub modules: ModulesSpec,
    /// Files taken from packages: package name to paths; a path that ends in `/` takes the whole folder.
    #[serde(default)]
    pub packages: BTreeMap<String, Vec<String>>,
    /// Further files.
    #[serde(default)]
    pub files: Vec<FileSpec>,
    /// The folder that relative paths of the recipe start from.
    #[serde(skip)]
    folder: PathBuf,
}

/// Where the kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, untagged)]
pub enum KernelSpec {
    /// A kernel package.
    Package {
        /// Its name; `*` stands for any characters but `-`, and the newest match is taken.
        package: String,
    },
    /// A kernel built from a source package.
    Source {
        /// The package that holds the source archive, such as `linux-source-6.12`.
        source: String,
        /// The folder with `config`, `series` and the patches, or the name of a built-in one.
        patches: String,
    },
}

/// Kernel modules of an image, by name; what they depend on comes along.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ModulesSpec {
    /// Loaded by init.
    pub boot: Vec<String>,
    /// Loaded by modprobe, when the kernel or a user asks for them.
    pub on_demand: Vec<String>,
    /// What is left out of module files; told in the manifest.
    pub strip: Vec<Strip>,
}

/// A file of the recipe's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// Absolute path in the guest.
    pub path: String,
    /// Permission bits.
    #[serde(default = "FileSpec::default_mode")]
    pub mode: u32,
    /// The contents,
    #[serde(default)]
    pub text: Option<String>,
    /// or a file of the host, relative to the recipe,
    #[serde(default)]
    pub source: Option<PathBuf>,
    /// or the target of a symbolic link.
    #[serde(default)]
    pub link: Option<String>,
}

impl FileSpec {
    fn default_mode() -> u32 {
        0o644
    }
}

const BUILT_IN: [(&str, &str); 4] = [
    ("dax", include_str!("../../images/dax.toml")),
    ("dax-6.1", include_str!("../../images/dax-6.1.toml")),
    ("dax-generic", include_str!("../../images/dax-generic.toml")),
    ("validation", include_str!("../../images/validation.toml")),
];

impl Recipe {
    /// The built-in recipe of that name, or the recipe in a file when `name` ends in `.toml`.
    pub fn find(name: &str) -> Result<Self> {
        if name.ends_with(".toml") {
            return Self::load(Path::new(name));
        }
        match BUILT_IN.iter().find(|(known, _)| *known == name) {
            Some((_, text)) => Self::parse(name, text, Path::new("")),
            None => Err(Error::UnknownRecipe {
                name: name.to_owned(),
                suggestion: nearest(name, Self::built_in()),
                known: Self::built_in().collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// Names of the built-in recipes.
    pub fn built_in() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }

    /// Reads a recipe file; the image is called as the file unless the recipe says otherwise.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).at("read recipe", path)?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        Self::parse(&stem, &text, path.parent().unwrap_or(Path::new("")))
    }

    fn parse(name: &str, text: &str, folder: &Path) -> Result<Self> {
        let bad = |why: String| Error::Recipe { name: name.to_owned(), why };
        let mut recipe: Self = toml::from_str(text).map_err(|e| bad(e.to_string()))?;
        folder.clone_into(&mut recipe.folder);
        if recipe.name.is_empty() {
            name.clone_into(&mut recipe.name);
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if recipe.name.starts_with('.') || !recipe.name.chars().all(plain) {
            return Err(bad(format!(
                "the name `{}` has characters other than letters, digits, - _ .",
                recipe.name
            )));
        }
        for file in &recipe.files {
            let given = [file.text.is_some(), file.source.is_some(), file.link.is_some()];
            if given.into_iter().filter(|&g| g).count() != 1 {
                return Err(bad(format!("file {} needs one of `text`, `source` and `link`", file.path)));
            }
        }
        let paths = recipe.packages.values().flatten().chain(recipe.files.iter().map(|f| &f.path));
        for path in paths {
            if !path.starts_with('/') {
                return Err(bad(format!("the path `{path}` is not absolute")));
            }
        }
        Ok(recipe)
    }

    /// What is done to the kernel's source.
    pub(crate) fn series(&self) -> Result<Series> {
        match &self.kernel {
            KernelSpec::Source { patches, .. } => Series::find(patches, &self.resolve(patches.as_ref())),
            KernelSpec::Package { .. } => Err(Error::Recipe {
                name: self.name.clone(),
                why: "a packaged kernel takes no patches".into(),
            }),
        }
    }

    /// A path of the recipe, made absolute or relative to the current folder.
    pub(crate) fn resolve(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }

    /// BLAKE3 of everything the recipe says, the contents of the files that it names included.
    pub(crate) fn hash(&self) -> Result<String> {
        let mut hash = blake3::Hasher::new();
        // A struct of strings, maps and lists always serialises.
        hash.update(&serde_json::to_vec(self).unwrap_or_default());
        if matches!(self.kernel, KernelSpec::Source { .. }) {
            hash.update(self.series()?.hash().as_bytes());
        }
        for source in self.files.iter().filter_map(|file| file.source.as_deref()) {
            let path = self.resolve(source);
            hash.update(blake3::hash(&std::fs::read(&path).at("read", &path)?).as_bytes());
        }
        Ok(hash.finalize().to_hex().to_string())
    }
}

/// The known name nearest to `name`, when few letters differ.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    known
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len() / 3)
        .min()
        .map(|(_, candidate)| candidate.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_recipes_parse() {
        for name in Recipe::built_in() {
            let recipe = Recipe::find(name).unwrap();
            assert_eq!(recipe.name, name);
            assert!(recipe.cmdline.contains("console=ttyS0"), "{name}");
        }
    }

    #[test]
    fn an_unknown_name_suggests_the_nearest() {
        let error = Recipe::find("dax-gneric").unwrap_err().to_string();
        assert!(error.contains("did you mean `dax-generic`?"), "{error}");
        let error = Recipe::find("zzz").unwrap_err().to_string();
        assert!(!error.contains("did you mean"), "{error}");
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let parse = |text: &str| Recipe::parse("r", text, Path::new("")).unwrap_err().to_string();
        assert!(parse("cmdline = 'x'\nkernle = 1\n[kernel]\npackage='k'").contains("kernle"));
        assert!(parse("cmdline = 'x'").contains("kernel"));
        assert!(
            parse("cmdline='x'\n[kernel]\npackage='k'\n[packages]\na=['bin/x']").contains("not absolute")
        );
        assert!(parse("cmdline='x'\nname='../x'\n[kernel]\npackage='k'").contains("characters"));
        assert!(parse("cmdline='x'\n[kernel]\npackage='k'\n[[files]]\npath='/x'").contains("one of"));
    }

    #[test]
    fn the_hash_covers_the_contents_of_files() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("f"), "1").unwrap();
        let text = "cmdline='x'\n[kernel]\npackage='k'\n[[files]]\npath='/f'\nsource='f'";
        let recipe = Recipe::parse("r", text, folder.path()).unwrap();
        let before = recipe.hash().unwrap();
        assert_eq!(before, recipe.hash().unwrap());
        std::fs::write(folder.path().join("f"), "2").unwrap();
        assert_ne!(before, recipe.hash().unwrap());
    }
}
