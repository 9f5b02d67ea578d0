//! Which Debian archives the host knows (sources.list(5)); others' archives are left out, as images need none of them.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};

/// Sources in the two formats that apt reads.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sources {
    /// One-line format.
    pub list: String,
    /// Paragraphs.
    pub deb822: String,
}

/// The Debian archives configured below `etc`, normally /etc/apt.
pub(crate) fn of_host(etc: &Path) -> Result<Sources> {
    let mut files = vec![etc.join("sources.list")];
    let parts = fs::read_dir(etc.join("sources.list.d")).into_iter().flatten();
    files.extend(parts.filter_map(|entry| Some(entry.ok()?.path())));
    files.sort();
    let mut sources = Sources::default();
    for path in files {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        match path.extension().and_then(|e| e.to_str()) {
            Some("list") => {
                for line in text.lines().filter(|line| is_debian_line(line)) {
                    sources.list += line.trim();
                    sources.list.push('\n');
                }
            }
            Some("sources") => {
                for paragraph in paragraphs(&text).filter(|p| is_debian_paragraph(p)) {
                    sources.deb822 += &paragraph;
                    sources.deb822.push('\n');
                }
            }
            _ => {}
        }
    }
    if sources == Sources::default() {
        return Err(Error::NoArchive { places: etc.to_owned() });
    }
    Ok(sources)
}

/// Debian's archives are mirrored below a folder of a fixed name, and have a component `main`.
fn is_debian(
    mut uris: impl Iterator<Item = impl AsRef<str>>,
    mut components: impl Iterator<Item = impl AsRef<str>>,
) -> bool {
    let folder = |uri: &str| uri.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
    uris.any(|uri| matches!(folder(uri.as_ref()).as_str(), "debian" | "debian-security"))
        && components.any(|component| component.as_ref() == "main")
}

fn is_debian_line(line: &str) -> bool {
    let Some(rest) = line.trim().strip_prefix("deb ") else { return false };
    let rest = match rest.trim_start().strip_prefix('[') {
        Some(options) => options.split_once(']').map_or("", |(_, rest)| rest),
        None => rest,
    };
    let mut words = rest.split('#').next().unwrap_or_default().split_whitespace();
    let uri = words.next();
    words.next();
    is_debian(uri.into_iter(), words)
}

/// Paragraphs without comment lines.
fn paragraphs(text: &str) -> impl Iterator<Item = String> {
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let split: Vec<String> = lines
        .split(|line| line.trim().is_empty())
        .filter(|p| !p.is_empty())
        .map(|p| p.join("\n") + "\n")
        .collect();
    split.into_iter()
}

fn is_debian_paragraph(paragraph: &str) -> bool {
    let field = |name: &str| -> Vec<String> {
        let mut inside = false;
        let mut words = Vec::new();
        for line in paragraph.lines() {
            let value = match line.split_once(':') {
                Some((key, value)) if !line.starts_with([' ', '\t']) => {
                    inside = key.eq_ignore_ascii_case(name);
                    value
                }
                _ => line,
            };
            if inside {
                words.extend(value.split_whitespace().map(str::to_owned));
            }
        }
        words
    };
    field("Enabled").first().is_none_or(|value| value != "no")
        && field("Types").iter().any(|kind| kind == "deb")
        && is_debian(field("URIs").iter(), field("Components").iter())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_debian_lines_are_taken() {
        assert!(is_debian_line("deb http://mirror.example/debian bookworm main contrib"));
        assert!(is_debian_line(
            "deb [arch=amd64 signed-by=/k] https://mirror.example/debian/ bookworm main # why"
        ));
        assert!(!is_debian_line("deb https://vendor.example/linux/debian bookworm stable"));
        assert!(!is_debian_line("deb https://vendor.example/node nodistro main"));
        assert!(!is_debian_line("# deb http://mirror.example/debian bookworm main"));
        assert!(!is_debian_line("deb-src http://mirror.example/debian bookworm main"));
    }

    #[test]
    fn only_enabled_debian_paragraphs_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        let parts = folder.path().join("sources.list.d");
        fs::create_dir(&parts).unwrap();
        let debian = "Types: deb\nURIs: http://mirror.example/debian-security\nSuites: x\nComponents: main\n";
        let off = debian.replace("Types", "Enabled: no\nTypes");
        let vendor = "Types: deb\nURIs: http://vendor.example/node\nSuites: y\nComponents: main\n";
        fs::write(parts.join("a.sources"), format!("# note\n{debian}\n{off}\n{vendor}")).unwrap();
        fs::write(parts.join("b.list.disabled"), "deb http://mirror.example/debian x main\n").unwrap();
        let sources = of_host(folder.path()).unwrap();
        assert_eq!(sources, Sources { list: String::new(), deb822: format!("{debian}\n") });
    }

    #[test]
    fn a_host_without_debian_is_told_so() {
        let folder = tempfile::tempdir().unwrap();
        let error = of_host(folder.path()).unwrap_err().to_string();
        assert!(error.contains("archive = "), "{error}");
    }
}
