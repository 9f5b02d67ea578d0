//! Kernel modules: which a recipe needs, in the order in which they load, and the indexes that modprobe reads
//! (modules.dep(5)). Debian's kernel packages hold no modules.dep, so dependencies come from the modules themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::compress;
use crate::cpio::Tree;
use crate::elf;
use crate::error::{Error, Result};
use crate::recipe::ModulesSpec;

/// No module is larger than this.
const MODULE_LIMIT: usize = 64 << 20;

/// Appended to a signed module (Linux Documentation/admin-guide/module-signing.rst).
const SIGNATURE_MAGIC: &[u8] = b"~Module signature appended~\n";

/// What is left out of modules to save the guest's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strip {
    /// The appended signature: the kernel would hash each module to verify it.
    Signature,
    /// BPF type information: the kernel would parse its own, of megabytes, at the first module that has some.
    Btf,
}

/// A module that an image gets.
#[derive(Debug, Clone)]
struct Module {
    /// Path below /lib/modules/RELEASE.
    path: String,
    data: Vec<u8>,
    /// Names; one that starts with `?` is wanted, not required.
    depends: Vec<String>,
    aliases: Vec<String>,
}

/// The modules that were found for a kernel, as packaged: a kernel has thousands, an image takes a few.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    packed: BTreeMap<String, (String, Vec<u8>)>,
    built_in: BTreeSet<String>,
}

impl Modules {
    /// Takes note of the modules.builtin file.
    pub(crate) fn built_in(&mut self, list: &[u8]) {
        let list = String::from_utf8_lossy(list);
        self.built_in.extend(list.lines().filter_map(name_of));
    }

    /// Takes note of the module file at `path`, absolute in the guest.
    pub(crate) fn stage(&mut self, path: &str, data: Vec<u8>) {
        if let Some(name) = name_of(path) {
            self.packed.insert(name, (path.to_owned(), data));
        }
    }

    /// Puts the modules that the recipe names, all they depend on, and modprobe's indexes into `tree`. Gives the paths
    /// of those to load at boot, in order. `origin` is for messages.
    pub(crate) fn install(
        &self,
        tree: &mut Tree,
        release: &str,
        spec: &ModulesSpec,
        origin: &Path,
    ) -> Result<Vec<String>> {
        let wanted: Vec<String> =
            spec.boot.iter().chain(&spec.on_demand).map(|name| underscored(name)).collect();
        let unpacked = self.lay_down(tree, release, &wanted, &spec.strip, origin)?;
        let boot: Vec<String> = spec.boot.iter().map(|name| underscored(name)).collect();
        Ok(paths(&unpacked, &boot, release))
    }

    /// Puts every module into `tree`, as it is. Gives the paths of those of `boot` that there are, in order.
    pub(crate) fn install_all(
        &self,
        tree: &mut Tree,
        release: &str,
        boot: &[&str],
        origin: &Path,
    ) -> Result<Vec<String>> {
        let all: Vec<String> = self.packed.keys().cloned().collect();
        let unpacked = self.lay_down(tree, release, &all, &[], origin)?;
        let boot: Vec<String> = boot.iter().map(|name| underscored(name)).collect();
        Ok(paths(&unpacked, &boot, release))
    }

    fn lay_down(
        &self,
        tree: &mut Tree,
        release: &str,
        wanted: &[String],
        strip: &[Strip],
        origin: &Path,
    ) -> Result<BTreeMap<String, Module>> {
        let unpacked = self.unpack(wanted, release, strip, origin)?;
        let folder = format!("/lib/modules/{release}");
        let (mut dep, mut alias) = (String::new(), String::new());
        for (name, module) in ordered(&unpacked, wanted) {
            tree.file(&format!("{folder}/{}", module.path), 0o644, module.data.clone());
            // modules.dep lists dependencies nearest first; modprobe loads them from the end.
            let needs = ordered(&unpacked, &[name.to_owned()]);
            let needs = needs.iter().rev().skip(1).map(|(_, need)| format!(" {}", need.path));
            dep += &format!("{}:{}\n", module.path, needs.collect::<String>());
            for pattern in &module.aliases {
                alias += &format!("alias {pattern} {name}\n");
            }
        }
        let built_in: String = self.built_in.iter().map(|name| format!("kernel/{name}.ko\n")).collect();
        for (index, text) in
            [("dep", dep), ("alias", alias), ("symbols", String::new()), ("builtin", built_in)]
        {
            tree.file(&format!("{folder}/modules.{index}"), 0o644, text);
        }
        Ok(unpacked)
    }

    /// The loadable modules among `wanted` and all they depend on.
    fn unpack(
        &self,
        wanted: &[String],
        release: &str,
        strip: &[Strip],
        origin: &Path,
    ) -> Result<BTreeMap<String, Module>> {
        let mut unpacked = BTreeMap::new();
        let mut pending = wanted.to_vec();
        while let Some(name) = pending.pop() {
            let (soft, name) = match name.strip_prefix('?') {
                Some(soft) => (true, soft.to_owned()),
                None => (false, name),
            };
            if self.built_in.contains(&name) || unpacked.contains_key(&name) {
                continue;
            }
            match self.packed.get(&name) {
                Some((path, data)) => {
                    let module = Module::unpack(path, data, strip).map_err(|why| Error::Module {
                        path: origin.join(path.trim_start_matches('/')),
                        why,
                    })?;
                    pending.extend(module.depends.iter().cloned());
                    unpacked.insert(name, module);
                }
                None if soft => {}
                None => return Err(Error::NoModule { module: name, kernel: release.into() }),
            }
        }
        Ok(unpacked)
    }
}

impl Module {
    fn unpack(path: &str, data: &[u8], strip: &[Strip]) -> std::result::Result<Self, String> {
        let mut data = compress::decompress(data, MODULE_LIMIT).map_err(|e| e.to_string())?;
        let info = elf::modinfo(&data).map_err(|e| e.to_string())?;
        if strip.contains(&Strip::Signature) {
            drop_signature(&mut data);
        }
        if strip.contains(&Strip::Btf) {
            elf::drop_btf(&mut data).map_err(|e| e.to_string())?;
        }
        let values = |key| info.iter().filter(move |(k, _)| k == key).map(|(_, value)| value.as_str());
        let mut depends: Vec<String> = values("depends")
            .flat_map(|list| list.split(','))
            .filter(|n| !n.is_empty())
            .map(underscored)
            .collect();
        for softdep in values("softdep") {
            let pre = softdep.split_whitespace().skip_while(|word| *word != "pre:").skip(1);
            depends.extend(
                pre.take_while(|word| !word.ends_with(':')).map(|name| format!("?{}", underscored(name))),
            );
        }
        // /lib/modules/RELEASE/PATH.ko.xz
        let path = path.trim_start_matches("/usr").splitn(5, '/').nth(4).unwrap_or(path);
        let path = path.rsplit_once(".ko").map_or(path, |(stem, _)| stem).to_owned() + ".ko";
        Ok(Self { path, aliases: values("alias").map(str::to_owned).collect(), depends, data })
    }
}

/// The modules that `wanted` needs, each after those it depends on. Names that are absent are built in.
fn ordered<'a>(modules: &'a BTreeMap<String, Module>, wanted: &[String]) -> Vec<(&'a str, &'a Module)> {
    fn visit<'a>(
        modules: &'a BTreeMap<String, Module>,
        name: &str,
        seen: &mut BTreeSet<&'a str>,
        order: &mut Vec<(&'a str, &'a Module)>,
    ) {
        let name = name.strip_prefix('?').unwrap_or(name);
        if let Some((name, module)) = modules.get_key_value(name).filter(|(name, _)| seen.insert(name)) {
            for dependency in &module.depends {
                visit(modules, dependency, seen, order);
            }
            order.push((name, module));
        }
    }
    let (mut seen, mut order) = (BTreeSet::new(), Vec::new());
    for name in wanted {
        visit(modules, name, &mut seen, &mut order);
    }
    order
}

/// Where the modules that `wanted` needs are in the guest, in order.
fn paths(modules: &BTreeMap<String, Module>, wanted: &[String], release: &str) -> Vec<String> {
    ordered(modules, wanted)
        .iter()
        .map(|(_, module)| format!("/lib/modules/{release}/{}", module.path))
        .collect()
}

/// Module names have underscores where file names may have dashes.
fn underscored(name: &str) -> String {
    name.replace('-', "_")
}

/// Whether a package's file is a module or the list of built-in ones.
pub(crate) fn is_module_file(path: &str) -> bool {
    path.starts_with("/lib/modules/") && (path.ends_with("/modules.builtin") || name_of(path).is_some())
        || path.starts_with("/usr/lib/modules/") && is_module_file(&path[4..])
}

/// `nd_pmem` of `kernel/drivers/nvdimm/nd-pmem.ko.xz`.
pub(crate) fn name_of(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (name, rest) = file.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst" | ".gz").then(|| name.replace('-', "_"))
}

/// Module files below a folder, as `--modules DIR` gives them, by path from the folder.
pub(crate) fn files_below(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            // `build` and `source` of an installed kernel link to its whole source.
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            } else if name_of(&entry.path().to_string_lossy()).is_some()
                || entry.file_name() == "modules.builtin"
            {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Cuts the signature off: data, PKCS#7 message, a 12-byte description ending in the message's length, the magic.
fn drop_signature(data: &mut Vec<u8>) {
    let Some(rest) = data.strip_suffix(SIGNATURE_MAGIC) else { return };
    let Some(length) = rest.last_chunk::<4>() else { return };
    let length = u32::from_be_bytes(*length) as usize;
    if let Some(end) = rest.len().checked_sub(length.saturating_add(12)) {
        data.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(list: &[(&str, &[&str])]) -> BTreeMap<String, Module> {
        list.iter()
            .map(|(name, depends)| {
                let depends = depends.iter().map(|d| (*d).to_owned()).collect();
                let module = Module {
                    path: format!("kernel/{name}.ko"),
                    data: Vec::new(),
                    depends,
                    aliases: Vec::new(),
                };
                ((*name).to_owned(), module)
            })
            .collect()
    }

    fn order(modules: &BTreeMap<String, Module>, wanted: &str) -> Vec<String> {
        ordered(modules, &[wanted.to_owned()]).into_iter().map(|(name, _)| name.to_owned()).collect()
    }

    #[test]
    fn dependencies_load_first_and_once() {
        let modules = modules(&[
            ("nd_pmem", &["libnvdimm", "nd_btt"]),
            ("nd_btt", &["libnvdimm"]),
            ("libnvdimm", &["crc32c", "?absent"]),
        ]);
        assert_eq!(order(&modules, "nd_pmem"), ["libnvdimm", "nd_btt", "nd_pmem"]);
    }

    #[test]
    fn a_missing_module_is_named_and_a_built_in_one_is_not_missed() {
        let mut modules = Modules::default();
        modules.built_in(b"kernel/fs/ext4/ext4.ko\n");
        let spec = |name: &str| ModulesSpec { boot: vec![name.to_owned()], ..ModulesSpec::default() };
        let mut tree = Tree::merged();
        assert!(modules.install(&mut tree, "6.12", &spec("ext4"), Path::new("p")).unwrap().is_empty());
        let error =
            modules.install(&mut tree, "6.12", &spec("nfit"), Path::new("p")).unwrap_err().to_string();
        assert!(error.contains("6.12") && error.contains("`nfit`"), "{error}");
        modules.stage("/lib/modules/6.12/kernel/nfit.ko.xz", b"junk".to_vec());
        let error =
            modules.install(&mut tree, "6.12", &spec("nfit"), Path::new("p")).unwrap_err().to_string();
        assert!(error.starts_with("p/lib/modules/6.12/kernel/nfit.ko.xz: not a kernel module"), "{error}");
    }

    #[test]
    fn a_cycle_ends() {
        assert_eq!(order(&modules(&[("a", &["b"]), ("b", &["a"])]), "a"), ["b", "a"]);
    }

    #[test]
    fn signatures_are_cut_and_damaged_ones_left() {
        let mut signed = b"module".to_vec();
        signed.extend([9; 5]);
        signed.extend([0; 8]);
        signed.extend(5u32.to_be_bytes());
        signed.extend(SIGNATURE_MAGIC);
        let mut data = signed.clone();
        drop_signature(&mut data);
        assert_eq!(data, b"module");
        let lying = signed.len() - SIGNATURE_MAGIC.len() - 4;
        signed[lying..lying + 4].fill(0xff);
        let mut data = signed.clone();
        drop_signature(&mut data);
        assert_eq!(data, signed);
    }

    #[test]
    fn module_names_come_from_file_names() {
        assert_eq!(
            name_of("/lib/modules/6/kernel/hwpoison-inject.ko.xz").as_deref(),
            Some("hwpoison_inject")
        );
        assert_eq!(name_of("a/b.ko"), Some("b".into()));
        assert_eq!(name_of("a/b.korn"), None);
        assert!(is_module_file("/usr/lib/modules/6/modules.builtin"));
    }
}
