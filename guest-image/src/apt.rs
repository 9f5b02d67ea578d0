//! Debian packages through the host's apt-get, under a private state folder (apt.conf(5), sources.list(5)).
//!
//! The host's apt is told by APT_CONFIG to keep lists, cache and sources in our folder, and to read none of the host's
//! configuration but what says how to reach an archive. So it needs no root, works with empty lists, runs none of the
//! host's hooks, and changes nothing outside of the folder.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use crate::error::{At, Error, Result};
use crate::progress::{Progress, Total};
use crate::sources;

/// One version of a package, as the archive's index has it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Package {
    /// Name.
    pub name: String,
    /// Version, with epoch.
    pub version: String,
    /// Hexadecimal SHA-256 of the package file.
    pub sha256: String,
    /// Size of the package file in bytes.
    pub size: u64,
    /// First alternatives of Depends and Pre-Depends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends: Vec<String>,
}

/// apt-get with a state of our own.
#[derive(Debug)]
pub(crate) struct Apt {
    root: PathBuf,
    packages: PathBuf,
}

impl Apt {
    /// Lays out the private state below `root`; package files go to `packages`, by hash. `archive` is a one-line
    /// source to use instead of the host's.
    pub(crate) fn open(root: &Path, packages: &Path, archive: Option<&str>) -> Result<Self> {
        let apt = Self { root: root.to_owned(), packages: packages.to_owned() };
        for folder in ["state/lists/partial", "cache/archives/partial", "sources", "empty", "log"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).at("create", &path)?;
        }
        fs::create_dir_all(packages).at("create", packages)?;
        let sources = match archive {
            Some(line) => {
                sources::Sources { list: format!("deb [arch=amd64] {line}\n"), deb822: String::new() }
            }
            None => sources::of_host(Path::new("/etc/apt"))?,
        };
        apt.write_if_changed("sources/debian.list", &sources.list)?;
        apt.write_if_changed("sources/debian.sources", &sources.deb822)?;
        apt.write_if_changed("status", "")?;
        let conf = apt.configuration()?;
        apt.write_if_changed("apt.conf", &conf)?;
        Ok(apt)
    }

    fn configuration(&self) -> Result<String> {
        let host = run(Command::new("apt-config").arg("dump").stdin(Stdio::null()))?;
        let mut conf = String::new();
        // Proxies and the like: how this host reaches the archives.
        for line in String::from_utf8_lossy(&host.stdout).lines() {
            if line.starts_with("Acquire::") && !line.starts_with("Acquire::IndexTargets") {
                conf += line;
                conf.push('\n');
            }
        }
        let root = self.root.display();
        for (key, value) in [
            ("APT::Architecture", "amd64".to_owned()),
            ("APT::Sandbox::User", String::new()),
            ("APT::Install-Recommends", "false".to_owned()),
            ("Acquire::Languages", "none".to_owned()),
            ("Dir::Etc::main", "/dev/null".to_owned()),
            ("Dir::Etc::parts", format!("{root}/empty")),
            ("Dir::Etc::preferences", "/dev/null".to_owned()),
            ("Dir::Etc::preferencesparts", format!("{root}/empty")),
            ("Dir::Etc::sourcelist", "/dev/null".to_owned()),
            ("Dir::Etc::sourceparts", format!("{root}/sources")),
            ("Dir::State", format!("{root}/state")),
            ("Dir::State::status", format!("{root}/status")),
            ("Dir::Cache", format!("{root}/cache")),
            ("Dir::Cache::pkgcache", "pkgcache.bin".to_owned()),
            ("Dir::Cache::srcpkgcache", "srcpkgcache.bin".to_owned()),
            ("Dir::Log", format!("{root}/log")),
        ] {
            conf += &format!("{key} \"{value}\";\n");
        }
        Ok(conf)
    }

    fn write_if_changed(&self, name: &str, text: &str) -> Result<()> {
        let path = self.root.join(name);
        if fs::read(&path).is_ok_and(|old| old == text.as_bytes()) {
            return Ok(());
        }
        fs::write(&path, text).at("write", &path)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.root.join("apt.conf")).env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    /// Fetches the archives' indexes when ours are older than `age`. Stale lists serve when there is no network.
    pub(crate) fn update(&self, age: Duration, progress: &dyn Progress) -> Result<()> {
        let stamp = self.root.join("updated");
        let sources = ["sources/debian.list", "sources/debian.sources"].map(|name| self.root.join(name));
        let modified = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
        let fresh = modified(&stamp).is_some_and(|at| {
            SystemTime::now().duration_since(at).is_ok_and(|gone| gone < age)
                && sources.iter().all(|source| modified(source).is_some_and(|changed| changed <= at))
        });
        if fresh {
            return Ok(());
        }
        progress.started("Package lists", Total::Unknown);
        let updated =
            run(self.command("apt-get").args(["-q", "update", "-o", "APT::Update::Error-Mode=any"]));
        progress.finished();
        match updated {
            Ok(_) => fs::write(&stamp, "").at("write", &stamp),
            Err(error) if stamp.exists() => {
                tracing::warn!(%error, "the package lists could not be refreshed; using those of the last time");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Tells whether anything in the archives' indexes changed.
    pub(crate) fn fingerprint(&self) -> Result<String> {
        let lists = self.root.join("state/lists");
        let mut names: Vec<_> = fs::read_dir(&lists)
            .at("read", &lists)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.to_string_lossy().ends_with("Release"))
            .collect();
        names.sort();
        let mut hash = blake3::Hasher::new();
        for path in names {
            hash.update(&fs::read(&path).at("read", &path)?);
        }
        Ok(hash.finalize().to_hex().to_string())
    }

    /// The newest package whose name matches `pattern`, in which a `*` stands for any run of characters but `-`.
    pub(crate) fn newest(&self, pattern: &str) -> Result<Package> {
        let missing = || Error::NoPackage { pattern: pattern.to_owned() };
        let Some((prefix, _)) = pattern.split_once('*') else {
            return self.candidates(&[pattern])?.remove(pattern).ok_or_else(missing);
        };
        let names = run(self.command("apt-cache").args(["pkgnames", prefix]))?;
        let names = String::from_utf8_lossy(&names.stdout).into_owned();
        let names: Vec<&str> = names.lines().filter(|name| matches(pattern, name)).collect();
        let mut found: Vec<Package> = self.candidates(&names)?.into_values().collect();
        found.sort_by(|a, b| {
            crate::version::compare(&a.version, &b.version).then_with(|| a.name.cmp(&b.name))
        });
        found.pop().ok_or_else(missing)
    }

    /// The versions that apt would install of `names`; unknown names are left out.
    pub(crate) fn candidates(&self, names: &[&str]) -> Result<BTreeMap<String, Package>> {
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        // apt-cache fails when any name is unknown, but shows the others.
        let mut command = self.command("apt-cache");
        command.args(["show", "--no-all-versions"]).args(names);
        let shown = command.output().map_err(spawn_error)?;
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        Ok(text.split("\n\n").filter_map(stanza).map(|p| (p.name.clone(), p)).collect())
    }

    /// The package file, downloaded unless the cache has it, with the SHA-256 of the index.
    pub(crate) fn fetch(&self, package: &Package, progress: &dyn Progress) -> Result<PathBuf> {
        let path = self.packages.join(format!("{}.deb", package.sha256));
        if path.exists() {
            if file_sha256(&path)? == package.sha256 {
                return Ok(path);
            }
            fs::remove_file(&path).at("remove", &path)?;
        }
        let folder = tempfile::Builder::new().prefix(".fetch-").tempdir_in(&self.packages);
        let folder = folder.at("create a folder in", &self.packages)?;
        let mut command = self.command("apt-get");
        command.args(["-qq", "download", &format!("{}={}", package.name, package.version)]);
        command.current_dir(folder.path());
        progress.started(&package.name, Total::Bytes(package.size));
        let done = run_watched(&mut command, folder.path(), progress);
        progress.finished();
        done?;
        let got = fs::read_dir(folder.path())
            .at("read", folder.path())?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|e| e == "deb"))
            .ok_or_else(|| Error::NoPackage { pattern: package.name.clone() })?;
        let sha256 = file_sha256(&got)?;
        if sha256 != package.sha256 {
            let why = format!("its SHA-256 is {sha256}, the archive's index says {}", package.sha256);
            return Err(Error::Package { path: got, why });
        }
        fs::rename(&got, &path).at("rename", &got)?;
        Ok(path)
    }
}

/// Parses a paragraph of a Packages index (Debian Policy 5.1).
fn stanza(text: &str) -> Option<Package> {
    let field =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let depends = ["Pre-Depends", "Depends"]
        .iter()
        .filter_map(|name| field(name))
        .flat_map(|list| list.split(','))
        .filter_map(|clause| clause.split(['|', '(', ':', ' ']).find(|word| !word.is_empty()))
        .map(str::to_owned)
        .collect();
    Some(Package {
        name: field("Package")?.to_owned(),
        version: field("Version")?.to_owned(),
        sha256: field("SHA256")?.to_owned(),
        size: field("Size")?.parse().ok()?,
        depends,
    })
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name.strip_prefix(head).is_some_and(|rest| {
            let reach = rest.find('-').unwrap_or(rest.len());
            (0..=reach).any(|n| rest.is_char_boundary(n) && matches(tail, &rest[n..]))
        }),
    }
}

fn file_sha256(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).at("open", path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).at("read", path)?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// apt-config and apt-cache are of the same package as apt-get.
fn spawn_error(error: std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::NotFound {
        return Error::NoProgram {
            program: "apt-get",
            purpose: "downloading the packages of a guest image",
            remedy: "build on a Debian host, or give your own --kernel and --initrd".into(),
        };
    }
    Error::Io { action: "start", path: "apt-get".into(), source: error }
}

fn check(command: &Command, output: Output) -> Result<Output> {
    if output.status.success() {
        return Ok(output);
    }
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = said.lines().collect();
    Err(Error::Command {
        command: words.join(" ".as_ref()).to_string_lossy().into_owned(),
        status: output.status.to_string(),
        output: lines[lines.len().saturating_sub(20)..].join("\n"),
    })
}

fn run(command: &mut Command) -> Result<Output> {
    let output = command.output().map_err(spawn_error)?;
    check(command, output)
}

/// Runs a download into `folder`, telling how far its files have grown.
fn run_watched(command: &mut Command, folder: &Path, progress: &dyn Progress) -> Result<()> {
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(spawn_error)?;
    let mut seen = 0;
    loop {
        let done = child.try_wait().at("wait for", Path::new("apt-get"))?.is_some();
        let files = fs::read_dir(folder).into_iter().flatten().flatten();
        let size: u64 = files.filter_map(|file| Some(file.metadata().ok()?.len())).sum();
        if size > seen {
            progress.advanced(size - seen);
            seen = size;
        }
        if done {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = child.wait_with_output().at("wait for", Path::new("apt-get"))?;
    check(command, output).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stops_at_a_dash() {
        assert!(matches("linux-image-6.12.*-cloud-amd64", "linux-image-6.12.117+deb12-cloud-amd64"));
        assert!(!matches("linux-image-6.1.0-*-amd64", "linux-image-6.1.0-56-cloud-amd64"));
        assert!(matches("linux-image-6.1.0-*-amd64", "linux-image-6.1.0-56-amd64"));
        assert!(!matches("linux-image-6.1.0-*-amd64", "linux-image-6.1.0-56-amd64-dbg"));
        assert!(!matches("e2fsprogs", "e2fsprogs-l10n"));
    }

    #[test]
    fn a_paragraph_becomes_a_package() {
        let text = "Package: e2fsprogs\nVersion: 1.47.0-2+b2\nDepends: logsave, a | b (>= 1), python3:any\n\
                    Pre-Depends: libc6 (>= 2.34)\nSize: 571920\nSHA256: fe\nDescription: x\n more\n";
        let package = stanza(text).unwrap();
        assert_eq!(package.depends, ["libc6", "logsave", "a", "python3"]);
        assert_eq!((package.size, package.version.as_str()), (571_920, "1.47.0-2+b2"));
        assert_eq!(stanza("Package: virtual\n"), None);
    }
}
