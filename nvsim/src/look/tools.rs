//! The file systems' own tools: those of the guest image, run by the image's own loader, else the host's.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use guest_image::Store;

/// Where the tools are.
#[derive(Debug)]
pub struct Tools {
    /// The guest's files, unpacked; none when there is no image.
    guest: Option<PathBuf>,
}

/// What is unpacked: programs, the loader, and libraries.
const LOADER: &str = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const PROGRAMS: &str = "usr/sbin";

impl Tools {
    /// Unpacks the tools of an image, or of the default one, into a folder that is the caller's to remove.
    pub fn new(image: &str, folder: &Path) -> Self {
        let guest = folder.join("guest");
        let unpacked = ["dax"].into_iter().chain([image]).rev().find_map(|name| {
            let image = Store::of_user().ok()?.open(name).ok()?;
            let wanted = |path: &str| {
                let is_library =
                    Path::new(path).parent() == Some(Path::new(LIBRARIES)) && path.contains(".so");
                is_library || [ext_tool(), xfs_tool()].contains(&path)
            };
            image.unpack(&guest, wanted).ok().filter(|&files| files > 0)
        });
        Self { guest: unpacked.map(|_| guest) }
    }

    /// Runs a tool of the guest, else the host's, with this standard input; gives what it says.
    pub fn run(&self, program: &str, args: &[&std::ffi::OsStr], input: &str) -> Result<String> {
        let own = self.guest.as_ref().map(|guest| (guest.join(LOADER), guest.join(PROGRAMS).join(program)));
        let mut command = match (own.filter(|(loader, own)| loader.is_file() && own.is_file()), &self.guest) {
            (Some((loader, own)), Some(guest)) => {
                let mut command = Command::new(loader);
                command.arg("--library-path").arg(guest.join(LIBRARIES)).arg(own);
                command
            }
            _ => {
                let mut command = Command::new(program);
                let path = std::env::var_os("PATH").unwrap_or_default();
                let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
                command.env("PATH", std::env::join_paths(folders)?);
                command
            }
        };
        command
            .args(args)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().with_context(|| {
            format!("{program} is neither in the guest image nor on this host; build the image `dax`")
        })?;
        let mut to = child.stdin.take();
        let output = std::thread::scope(|scope| {
            scope.spawn(move || to.as_mut().map(|to| to.write_all(input.as_bytes())));
            child.wait_with_output()
        })?;
        // Both tools end well whatever they found; what they cannot read at all they say nothing of.
        if output.stdout.is_empty() && !output.status.success() {
            bail!("{program} failed ({})", output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

const fn ext_tool() -> &'static str {
    "usr/sbin/debugfs"
}

const fn xfs_tool() -> &'static str {
    "usr/sbin/xfs_db"
}
