//! Building a kernel from Debian's source package (Linux Documentation/admin-guide/README.rst).
//!
//! The source is unpacked and patched in a folder of the cache, configured from `make tinyconfig` and the series' fragment,
//! and built there with the host's compiler. What comes of it is kept under the hash of what went in; the folder is not.
//! A build holds a lock of its own, so that other images can be built meanwhile.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::apt::Apt;
use crate::deb::Deb;
use crate::error::{At, Error, Result};
use crate::kernel;
use crate::lock::Lock;
use crate::modules::Modules;
use crate::origin::Origin;
use crate::progress::{Progress, Total};
use crate::series::Series;
use crate::store::{Store, leftovers};

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

/// Begins the name of a folder that a kernel is built in; its key follows.
const BUILD: &str = ".build-";

/// A kernel that is there, or one that has to be built.
pub(crate) enum SourceKernel {
    Built(Box<Origin>),
    Missing(KernelBuild),
}

impl Store {
    /// The kernel of package `name`, patched and configured as `series` says. The caller holds the store's lock.
    pub(crate) fn kernel_from_source(
        &self,
        name: &str,
        series: Series,
        apt: &Apt,
        progress: &dyn Progress,
    ) -> Result<SourceKernel> {
        let package = apt.newest(name)?;
        let mut key = blake3::Hasher::new();
        key.update(&FORMAT.to_le_bytes()).update(package.sha256.as_bytes()).update(series.hash().as_bytes());
        let key = key.finalize().to_hex()[..32].to_owned();
        let place = self.kernels().join(&key);
        if !place.exists() {
            check_tools()?;
            let package = apt.fetch(&package, progress)?;
            return Ok(SourceKernel::Missing(KernelBuild { package, series, kernels: self.kernels(), key }));
        }
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
        let system_map = Some(read(SYSTEM_MAP)?);
        let origin = Origin { package, file: place, image, release, system_map, modules, notes };
        Ok(SourceKernel::Built(Box::new(origin)))
    }
}

/// Removes the folders of builds that were killed.
pub(crate) fn sweep(kernels: &Path) {
    for folder in leftovers(kernels, BUILD) {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let lock = kernels.join(format!("{}.lock", name.trim_start_matches(BUILD)));
        if let Ok(Some(_stale)) = Lock::attempt(&lock) {
            tracing::info!("removing {}, which an interrupted build left behind", folder.display());
            let _ = fs::remove_dir_all(&folder);
        }
    }
}

/// A kernel to be built.
#[derive(Debug)]
pub(crate) struct KernelBuild {
    /// The source package's file.
    package: PathBuf,
    series: Series,
    /// The store's folder of kernels.
    kernels: PathBuf,
    /// Hash of all that goes into it.
    key: String,
}

impl KernelBuild {
    /// Builds it, unless another process does: that one is waited for. The store's lock is not needed.
    pub(crate) fn run(&self, progress: &dyn Progress) -> Result<()> {
        let beside = |end: &str| self.kernels.join(format!("{}.{end}", self.key));
        let task = "Waiting for another nvsim that builds this kernel";
        let lock = Lock::wait(&beside("lock"), task, progress)?;
        let place = self.kernels.join(&self.key);
        if place.exists() {
            return Ok(());
        }
        let folder = self.kernels.join(format!("{BUILD}{}", self.key));
        if folder.exists() {
            fs::remove_dir_all(&folder).at("remove", &folder)?;
        }
        fs::create_dir(&folder).at("create", &folder)?;
        let log = beside("log");
        File::create(&log).at("create", &log)?;
        let built = Build { folder: &folder, lock: &lock, log, progress }
            .run(&self.package, &self.series)
            .and_then(|()| fs::rename(folder.join("result"), &place).at("rename", &place));
        let removed = fs::remove_dir_all(&folder).at("remove", &folder);
        built.and(removed)
    }
}

/// A build in a folder that is thrown away.
struct Build<'a> {
    folder: &'a Path,
    lock: &'a Lock,
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
        make.current_dir(top).args(arguments).stdout(Stdio::piped()).stderr(errors);
        // An empty file; and where nvsim is killed, its make still has the lock as long as it runs.
        make.stdin(self.lock.share().at("open", self.folder)?);
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::progress::Silent;

    /// What a kernel's Makefile does, by `bzImage`.
    fn makefile(bzimage: &str) -> String {
        format!(
            "tinyconfig olddefconfig:\n\ttouch .config\n\
             bzImage:\n\t{bzimage}\n\tmkdir -p arch/x86/boot\n\techo kernel >arch/x86/boot/bzImage\n\
             \ttouch System.map modules.builtin\n"
        )
    }

    /// A source package whose tree is that Makefile.
    fn package(folder: &Path, makefile: &str) -> PathBuf {
        let tar = |path: &str, data: &[u8]| {
            let mut tar = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, data).unwrap();
            tar.into_inner().unwrap()
        };
        let options = lzma_rust2::XzOptions::with_preset(0);
        let mut source = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        source.write_all(&tar("linux-source-0/Makefile", makefile.as_bytes())).unwrap();
        let data = tar("./usr/src/linux-source-0.tar.xz", &source.finish().unwrap());
        let path = folder.join("source.deb");
        let mut ar = ar::Builder::new(File::create(&path).unwrap());
        ar.append(&ar::Header::new(b"data.tar".into(), data.len() as u64), &*data).unwrap();
        path
    }

    fn series(folder: &Path) -> Series {
        fs::write(folder.join("series"), "").unwrap();
        fs::write(folder.join("config"), "").unwrap();
        Series::find("none", folder).unwrap()
    }

    fn kernel(folder: &Path, key: &str, bzimage: &str) -> KernelBuild {
        let folder = folder.join(format!("of {key}"));
        fs::create_dir_all(&folder).unwrap();
        KernelBuild {
            package: package(&folder, &makefile(bzimage)),
            series: series(&folder),
            kernels: folder.parent().unwrap().join("kernels"),
            key: key.into(),
        }
    }

    #[test]
    fn two_that_want_one_kernel_build_it_once() {
        let folder = tempfile::tempdir().unwrap();
        let count = folder.path().join("count");
        let build = kernel(folder.path(), "one", &format!("echo >>{}; sleep 0.3", count.display()));
        std::thread::scope(|scope| {
            let both = [(); 2].map(|()| scope.spawn(|| build.run(&Silent)));
            both.into_iter().for_each(|one| one.join().unwrap().unwrap());
        });
        assert_eq!(fs::read(&count).unwrap(), b"\n");
        assert_eq!(fs::read(folder.path().join("kernels/one").join(IMAGE)).unwrap(), b"kernel\n");
        assert_eq!(leftovers(&build.kernels, "."), Vec::<PathBuf>::new());
    }

    #[test]
    fn two_kernels_are_built_side_by_side_and_leave_the_store_free() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        // Each waits for the other, so one after the other would never end.
        let meet = |mine: &str, other: &str| {
            let (mine, other) = (place(mine), place(other));
            format!("touch {}; while ! test -e {}; do sleep 0.02; done", mine.display(), other.display())
        };
        let store = Store::new(folder.path());
        let a = kernel(folder.path(), "a", &meet("a", "b"));
        let b = kernel(folder.path(), "b", &meet("b", "go"));
        std::thread::scope(|scope| {
            let both = [&a, &b].map(|one| scope.spawn(|| one.run(&Silent)));
            let since = Instant::now();
            while !(place("a").exists() && place("b").exists()) {
                assert!(since.elapsed() < Duration::from_secs(20), "they do not run side by side");
                std::thread::sleep(Duration::from_millis(10));
            }
            drop(store.lock(&Silent).unwrap());
            sweep(&store.kernels());
            fs::write(place("go"), "").unwrap();
            both.into_iter().for_each(|one| one.join().unwrap().unwrap());
        });
    }

    #[test]
    fn what_a_killed_build_left_is_removed_and_a_failed_one_leaves_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let build = kernel(folder.path(), "bad", "echo the reason; false");
        for key in ["bad", "gone"] {
            fs::create_dir_all(build.kernels.join(format!("{BUILD}{key}/source"))).unwrap();
        }
        let error = build.run(&Silent).unwrap_err().to_string();
        assert!(error.contains("make") && error.contains("the reason"), "{error}");
        assert!(fs::read_to_string(build.kernels.join("bad.log")).unwrap().contains("the reason"));
        sweep(&build.kernels);
        assert_eq!(leftovers(&build.kernels, "."), Vec::<PathBuf>::new());
    }
}
