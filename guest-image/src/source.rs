//! Building a kernel from Debian's source package (Linux Documentation/admin-guide/README.rst).
//!
//! The source is unpacked and patched in a folder of the cache, configured from `make tinyconfig` and the series' fragment,
//! and built there with the host's compiler. What comes of it is kept under the hash of what went in; the folder is not.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::apt::Apt;
use crate::deb::Deb;
use crate::error::{At, Error, Result};
use crate::kernel;
use crate::modules::Modules;
use crate::origin::Origin;
use crate::progress::{Progress, Total};
use crate::series::Series;
use crate::store::Store;

/// Changes when kernels are built differently.
const FORMAT: u32 = 1;

/// What the build runs, and the Debian package that has it.
const TOOLS: [(&str, &str); 8] = [
    ("gcc", "gcc"),
    ("make", "make"),
    ("ld", "binutils"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("gzip", "gzip"),
    ("perl", "perl"),
];

/// A header that objtool is compiled with, and the Debian package that has it.
const HEADER: (&str, &str) = ("gelf.h", "libelf-dev");

/// About as many lines as make prints.
const STEPS: u64 = 2000;

const IMAGE: &str = "kernel";
const SYSTEM_MAP: &str = "System.map";
const CONFIG: &str = "config";
const BUILT_IN: &str = "modules.builtin";

impl Store {
    /// The kernel of package `name`, patched and configured as `series` says; built unless it was built before.
    pub(crate) fn kernel_from_source(
        &self,
        name: &str,
        series: &Series,
        apt: &Apt,
        progress: &dyn Progress,
    ) -> Result<Origin> {
        let package = apt.newest(name)?;
        let mut key = blake3::Hasher::new();
        key.update(&FORMAT.to_le_bytes()).update(package.sha256.as_bytes()).update(series.hash().as_bytes());
        let kernels = self.root().join("kernels");
        let place = kernels.join(&key.finalize().to_hex()[..32]);
        let file = if place.exists() {
            place.clone()
        } else {
            check_tools()?;
            fs::create_dir_all(&kernels).at("create", &kernels)?;
            let file = apt.fetch(&package, progress)?;
            let folder = tempfile::Builder::new().prefix(".build-").tempdir_in(&kernels);
            let folder = folder.at("create a folder in", &kernels)?;
            let top = Build { folder: folder.path(), log: self.root().join("kernel-build.log"), progress };
            top.run(&file, series)?;
            fs::rename(folder.path().join("result"), &place).at("rename", &place)?;
            file
        };
        let read = |name: &str| {
            let path = place.join(name);
            fs::read(&path).at("read", &path)
        };
        let image = read(IMAGE)?;
        let release = kernel::release(&image).ok_or_else(|| Error::Kernel {
            path: place.join(IMAGE),
            why: "it names no Linux version".into(),
        })?;
        let mut modules = Modules::default();
        modules.built_in(&read(BUILT_IN)?);
        let notes = series.names().map(|patch| format!("kernel: patched with {patch}"));
        let notes =
            [format!("kernel: built on this host from {}", package.name)].into_iter().chain(notes).collect();
        Ok(Origin { package, file, image, release, system_map: Some(read(SYSTEM_MAP)?), modules, notes })
    }
}

/// A build in a folder that is thrown away.
struct Build<'a> {
    folder: &'a Path,
    log: PathBuf,
    progress: &'a dyn Progress,
}

impl Build<'_> {
    fn run(&self, package: &Path, series: &Series) -> Result<()> {
        let top = self.unpack(package)?;
        series.apply(&top)?;
        let fragment = series.config();
        self.make(&top, &["tinyconfig"])?;
        let config = top.join(".config");
        let tiny = fs::read_to_string(&config).at("read", &config)?;
        // Of a symbol that both name, the later line counts.
        fs::write(&config, tiny + fragment).at("write", &config)?;
        self.make(&top, &["olddefconfig"])?;
        series.check(&fs::read_to_string(&config).at("read", &config)?)?;
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        self.progress.started("Building the kernel", Total::Items(STEPS));
        let built = self.make(&top, &[&format!("-j{jobs}"), "bzImage"]);
        self.progress.finished();
        built?;
        let result = self.folder.join("result");
        fs::create_dir(&result).at("create", &result)?;
        for (from, to) in [
            ("arch/x86/boot/bzImage", IMAGE),
            ("System.map", SYSTEM_MAP),
            (".config", CONFIG),
            ("modules.builtin", BUILT_IN),
        ] {
            fs::copy(top.join(from), result.join(to)).at("copy", &top.join(from))?;
        }
        Ok(())
    }

    /// Unpacks the source archive within the package, and gives the folder that it holds.
    fn unpack(&self, package: &Path) -> Result<PathBuf> {
        let source = self.folder.join("source");
        fs::create_dir(&source).at("create", &source)?;
        self.progress.started("Unpacking the source", Total::Unknown);
        let found = Deb::new(package).open(
            |path| path.starts_with("/usr/src/linux-source-") && path.ends_with(".tar.xz"),
            |archive| {
                let mut archive = tar::Archive::new(lzma_rust2::XzReader::new(archive, true));
                archive.set_preserve_mtime(true);
                for entry in archive.entries()? {
                    entry?.unpack_in(&source)?;
                    self.progress.advanced(1);
                }
                Ok(())
            },
        );
        self.progress.finished();
        if !found? {
            let why = "it has no /usr/src/linux-source-*.tar.xz".into();
            return Err(Error::Package { path: package.to_owned(), why });
        }
        let mut folders = fs::read_dir(&source).at("read", &source)?;
        match folders.next() {
            Some(folder) => Ok(folder.at("read", &source)?.path()),
            None => {
                Err(Error::Package { path: package.to_owned(), why: "its source archive is empty".into() })
            }
        }
    }

    fn make(&self, top: &Path, arguments: &[&str]) -> Result<()> {
        let log = File::options().create(true).append(true).open(&self.log).at("open", &self.log)?;
        let errors = log.try_clone().at("open", &self.log)?;
        let mut make = Command::new("make");
        make.current_dir(top).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        // A build that runs under make or cargo is not a part of theirs.
        make.env_remove("MAKEFLAGS").env_remove("MFLAGS").env("LC_ALL", "C").env("ARCH", "x86_64");
        // The same kernel on every host with the same compiler.
        make.env("KBUILD_BUILD_TIMESTAMP", "1970-01-01").env("KBUILD_BUILD_USER", "nvsim");
        make.env("KBUILD_BUILD_HOST", "nvsim");
        let mut child = make.spawn().at("start", Path::new("make"))?;
        let mut log = log;
        for line in child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).lines()) {
            let line = line.at("read the output of", Path::new("make"))?;
            std::io::Write::write_all(&mut log, format!("{line}\n").as_bytes()).at("write", &self.log)?;
            self.progress.advanced(1);
        }
        let status = child.wait().at("wait for", Path::new("make"))?;
        if status.success() {
            return Ok(());
        }
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = said.lines().collect();
        let output = lines[lines.len().saturating_sub(20)..].join("\n");
        Err(Error::Command {
            command: format!("make {}", arguments.join(" ")),
            status: status.to_string(),
            output: format!("{output}\n(all of it is in {})", self.log.display()),
        })
    }
}

/// Finds out what is missing before anything is downloaded.
fn check_tools() -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |program: &str| std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    let mut missing: Vec<&str> =
        TOOLS.iter().filter(|(program, _)| !there(program)).map(|(_, package)| *package).collect();
    let (header, package) = HEADER;
    let compiles = Command::new("gcc")
        .args(["-E", "-include", header, "-x", "c", "/dev/null", "-o", "/dev/null"])
        .stderr(Stdio::null())
        .status();
    if !compiles.is_ok_and(|status| status.success()) {
        missing.push(package);
    }
    let Some(first) = missing.first() else { return Ok(()) };
    let program = TOOLS.iter().find(|(_, package)| package == first).map_or(header, |(program, _)| program);
    Err(Error::NoProgram {
        program,
        purpose: "building a kernel",
        remedy: format!("as root, `apt-get install {}`", missing.join(" ")),
    })
}
