//! Debian binary packages (deb(5)): an ar archive that holds a tar archive of files.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::compress;
use crate::cpio::Node;
use crate::error::{At, Error, Result};

/// No file of a package that we take is larger.
const FILE_LIMIT: u64 = 1 << 30;

/// A package file of the cache.
#[derive(Debug, Clone)]
pub(crate) struct Deb {
    path: PathBuf,
}

impl Deb {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Calls `each` with every file and link of the package that `wanted` names, by absolute path.
    pub(crate) fn unpack(
        &self,
        mut wanted: impl FnMut(&str) -> bool,
        mut each: impl FnMut(&str, Node) -> Result<()>,
    ) -> Result<()> {
        self.walk(|path, entry| {
            if !wanted(path) {
                return Ok(());
            }
            let kind = entry.header().entry_type();
            let node = if kind.is_file() {
                let mut data = Vec::new();
                entry.take(FILE_LIMIT + 1).read_to_end(&mut data).map_err(|e| self.bad(e))?;
                if data.len() as u64 > FILE_LIMIT {
                    return Err(self.bad(format!("{path} is larger than {FILE_LIMIT} bytes")));
                }
                Node::File { data, mode: entry.header().mode().map_err(|e| self.bad(e))? }
            } else if kind.is_symlink() {
                let target = entry.link_name().map_err(|e| self.bad(e))?;
                Node::Link(target.unwrap_or_default().to_string_lossy().into_owned())
            } else if kind.is_hard_link() {
                let target = entry.link_name().map_err(|e| self.bad(e))?;
                Node::Link(absolute(&target.unwrap_or_default()))
            } else {
                return Ok(());
            };
            each(path, node)
        })
    }

    /// Gives the contents of the first file that `wanted` names to `read`, for those too large for memory. Tells whether
    /// there is one.
    pub(crate) fn open(
        &self,
        wanted: impl Fn(&str) -> bool,
        mut read: impl FnMut(&mut dyn Read) -> io::Result<()>,
    ) -> Result<bool> {
        let mut found = false;
        self.walk(|path, entry| {
            if found || !wanted(path) || !entry.header().entry_type().is_file() {
                return Ok(());
            }
            found = true;
            read(entry).map_err(|e| self.bad(format!("{path}: {e}")))
        })?;
        Ok(found)
    }

    fn walk(
        &self,
        mut each: impl FnMut(&str, &mut tar::Entry<'_, &mut dyn Read>) -> Result<()>,
    ) -> Result<()> {
        let file = File::open(&self.path).at("open", &self.path)?;
        let mut members = ar::Archive::new(BufReader::new(file));
        while let Some(member) = members.next_entry() {
            let mut member = member.map_err(|e| self.bad(e))?;
            if !member.header().identifier().starts_with(b"data.tar") {
                continue;
            }
            let mut packed = Vec::new();
            member.read_to_end(&mut packed).map_err(|e| self.bad(e))?;
            let mut reader = compress::reader(&packed).map_err(|e| self.bad(e))?;
            let mut files = tar::Archive::new(&mut *reader as &mut dyn Read);
            for entry in files.entries().map_err(|e| self.bad(e))? {
                let mut entry = entry.map_err(|e| self.bad(e))?;
                let path = absolute(&entry.path().map_err(|e| self.bad(e))?);
                each(&path, &mut entry)?;
            }
            return Ok(());
        }
        Err(self.bad("it has no data.tar"))
    }

    fn bad(&self, why: impl std::fmt::Display) -> Error {
        Error::Package { path: self.path.clone(), why: why.to_string() }
    }
}

/// `./usr/bin/x` as `/usr/bin/x`.
fn absolute(path: &Path) -> String {
    let path = path.to_string_lossy();
    format!("/{}", path.trim_start_matches("./").trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(files: &[(&str, &[u8])]) -> tempfile::NamedTempFile {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, data) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o755);
            tar.append_data(&mut header, path, *data).unwrap();
        }
        let tar = tar.into_inner().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut ar = ar::Builder::new(file.reopen().unwrap());
        ar.append(&ar::Header::new(b"debian-binary".into(), 4), &b"2.0\n"[..]).unwrap();
        ar.append(&ar::Header::new(b"data.tar".into(), tar.len() as u64), &*tar).unwrap();
        drop(ar);
        file
    }

    #[test]
    fn wanted_files_come_out_by_absolute_path() {
        let file = package(&[("./bin/a", b"A"), ("./bin/b", b"B")]);
        let mut got = Vec::new();
        Deb::new(file.path())
            .unpack(
                |path| path == "/bin/b",
                |path, node| {
                    got.push((path.to_owned(), node));
                    Ok(())
                },
            )
            .unwrap();
        assert_eq!(got, [("/bin/b".to_owned(), Node::File { data: b"B".to_vec(), mode: 0o755 })]);
    }

    #[test]
    fn a_truncated_package_is_an_error_that_names_it() {
        let file = package(&[("./bin/a", &[7; 4000])]);
        file.as_file().set_len(1500).unwrap();
        let error = Deb::new(file.path()).unpack(|_| true, |_, _| Ok(())).unwrap_err();
        assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
    }

    #[test]
    fn not_a_package_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"!<arch>\n").unwrap();
        assert!(matches!(Deb::new(file.path()).unpack(|_| true, |_, _| Ok(())), Err(Error::Package { .. })));
    }
}
