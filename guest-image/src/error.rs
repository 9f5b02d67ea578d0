//! What can go wrong between a recipe and a bootable image.

use std::io;
use std::path::{Path, PathBuf};

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Failures name the file and the value, and, where there is one, the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the host could not be used.
    #[error("cannot {action} {}{}", path.display(), remedy(source))]
    Io {
        /// What was attempted, as an infinitive.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// Neither XDG_CACHE_HOME nor HOME says where the cache is.
    #[error("no cache folder: neither XDG_CACHE_HOME nor HOME is set; set one of them")]
    NoCache,
    /// A program of the host is missing.
    #[error("{program} is not installed on this host, and {purpose} needs it: {remedy}")]
    NoProgram {
        /// The program's name.
        program: &'static str,
        /// What it is needed for.
        purpose: &'static str,
        /// How to get it.
        remedy: String,
    },
    /// The host knows no Debian archive.
    #[error(
        "no Debian archive is configured on this host (looked in {}); \
         add `archive = \"URL SUITE COMPONENT\"` to the recipe",
        places.display()
    )]
    NoArchive {
        /// Where sources were looked for.
        places: PathBuf,
    },
    /// A command of the host failed.
    #[error("`{command}` failed ({status}):\n{output}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// No package has that name.
    #[error(
        "no package matches `{pattern}` in the Debian archives of this host; correct the recipe, or refresh the lists"
    )]
    NoPackage {
        /// The name or pattern of the recipe.
        pattern: String,
    },
    /// A package is not what the archive's index says, or not a package.
    #[error("{}: not a sound Debian package: {why}; remove the file, and it is fetched again", path.display())]
    Package {
        /// The package file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A recipe names a file that its package lacks.
    #[error("package {package} has no {path}; correct the recipe")]
    NotInPackage {
        /// The package.
        package: String,
        /// The path asked for.
        path: String,
    },
    /// A shared library that no dependency provides.
    #[error(
        "{needed_by} needs {soname}, which none of its packages' dependencies provides; add its package to the recipe"
    )]
    NoLibrary {
        /// DT_NEEDED.
        soname: String,
        /// The program or library that needs it.
        needed_by: String,
    },
    /// A module the kernel package lacks.
    #[error("kernel {kernel} has no module `{module}`, neither loadable nor built in; correct the recipe")]
    NoModule {
        /// Module name.
        module: String,
        /// Kernel release.
        kernel: String,
    },
    /// A recipe that cannot be used.
    #[error("recipe {name}: {why}")]
    Recipe {
        /// The recipe's name or file.
        name: String,
        /// What is wrong, with its place.
        why: String,
    },
    /// An unknown recipe name.
    #[error("no recipe is called `{name}`{}; built-in recipes are {known}, or give the path of a .toml file",
            suggestion.as_ref().map(|s| format!(" (did you mean `{s}`?)")).unwrap_or_default())]
    UnknownRecipe {
        /// The name given.
        name: String,
        /// The nearest known name.
        suggestion: Option<String>,
        /// All built-in names.
        known: String,
    },
    /// An image that was never built.
    #[error("no image `{name}` was built{}; `nvsim image list` shows which there are, `nvsim image build` makes one",
            suggestion.as_ref().map(|s| format!(" (did you mean `{s}`?)")).unwrap_or_default())]
    UnknownImage {
        /// The name given.
        name: String,
        /// The nearest image.
        suggestion: Option<String>,
    },
    /// Not a kernel, or a damaged one.
    #[error("{}: {why}; give a bzImage or an ELF vmlinux for x86-64", path.display())]
    Kernel {
        /// The kernel file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Not an initial RAM disk, or a damaged one.
    #[error("{}: {why}; give a newc cpio archive, as it is or compressed with gzip, xz, zstd or lz4", path.display())]
    Initrd {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Not a kernel module, or a damaged one.
    #[error("{}: not a kernel module: {why}", path.display())]
    Module {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// An image in the cache that is damaged.
    #[error("{}: not a sound image: {why}; remove it with `nvsim image rm {name}` and build it again", path.display())]
    Image {
        /// The image's name.
        name: String,
        /// Its folder.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A patch series that does not apply.
    #[error("{}: {why}", path.display())]
    Patch {
        /// The patch file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A kernel configuration that did not come out as asked.
    #[error("{}: after `make olddefconfig`, {why}", path.display())]
    Config {
        /// The fragment.
        path: PathBuf,
        /// The symbols that differ.
        why: String,
    },
}

/// Gives an [`io::Error`] the path that it lacks.
pub(crate) trait At<T> {
    /// Names what was attempted on which path.
    fn at(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Io { action, path: path.to_owned(), source })
    }
}

/// What to do about a failure of the host, where that is known.
fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space, or set XDG_CACHE_HOME to a folder on a larger disk"
        }
        _ => "",
    }
}
