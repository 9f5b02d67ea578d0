//! From a recipe to an image.

use std::collections::BTreeMap;
use std::fs;

use serde::{Deserialize, Serialize};

use crate::apt::{Apt, Package};
use crate::cpio::Tree;
use crate::deb::Deb;
use crate::error::{At, Error, Result};
use crate::image::{Artefact, FORMAT, INITRAMFS, Image, KERNEL, MANIFEST, Manifest, SYSTEM_MAP, VMLINUX};
use crate::modules::Strip;
use crate::origin::Origin;
use crate::progress::{Progress, Total};
use crate::recipe::{KernelSpec, Recipe};
use crate::source::{KernelBuild, SourceKernel};
use crate::store::{Store, write_atomically};
use crate::{libraries, skeleton};

/// Where init finds the modules to load, one path a line.
pub(crate) const MODULE_LIST: &str = "/etc/nvsim/modules";

/// The packages that a recipe came to, with the package lists of one moment.
#[derive(Debug, Serialize, Deserialize)]
struct Resolution {
    packages: Vec<Package>,
}

/// How far a build has come.
enum Step {
    Done(Box<Image>),
    /// This kernel has to be there first.
    Kernel(KernelBuild),
}

impl Store {
    /// The image of a recipe as it was built last with this agent, whatever the package archive has by now; `None` where
    /// there is none or the recipe has changed. Takes no lock and no network.
    pub fn current(&self, recipe: &Recipe, agent: &[u8]) -> Option<Image> {
        let image = self.open(&recipe.name).ok()?;
        let manifest = image.manifest.as_ref()?;
        let hash = recipe.hash().ok()?;
        (manifest.recipe == hash && manifest.id == identity(&hash, agent, &manifest.packages))
            .then_some(image)
    }

    /// Builds the image of a recipe, or finds that nothing has changed. `agent` is the program that runs as init.
    pub fn build(&self, recipe: &Recipe, agent: &[u8], progress: &dyn Progress) -> Result<Image> {
        loop {
            let lock = self.lock(progress)?;
            self.sweep();
            match self.build_locked(recipe, agent, progress)? {
                Step::Done(image) => return Ok(*image),
                // It takes minutes, in which others may use the store.
                Step::Kernel(kernel) => {
                    drop(lock);
                    kernel.run(progress)?;
                }
            }
        }
    }

    fn build_locked(&self, recipe: &Recipe, agent: &[u8], progress: &dyn Progress) -> Result<Step> {
        let packages = self.root().join("packages");
        let apt = Apt::open(&self.root().join("apt"), &packages, recipe.archive.as_deref())?;
        apt.update(self.max_age, progress)?;
        let recipe_hash = recipe.hash()?;
        let key = blake3::hash(format!("{FORMAT} {recipe_hash} {}", apt.fingerprint()?).as_bytes()).to_hex();
        let resolved = self.root().join("resolved").join(format!("{key}.json"));
        if let Some(Resolution { packages }) =
            fs::read(&resolved).ok().and_then(|text| serde_json::from_slice(&text).ok())
        {
            let id = identity(&recipe_hash, agent, &packages);
            if let Ok(image) = Image::open(&recipe.name, &self.images().join(&id)) {
                self.name(&recipe.name, &id)?;
                return Ok(Step::Done(Box::new(image)));
            }
        }

        let kernel = match &recipe.kernel {
            KernelSpec::Package { package } => Origin::package(package, &apt, progress)?,
            KernelSpec::Source { source, .. } => {
                match self.kernel_from_source(source, recipe.series()?, &apt, progress)? {
                    SourceKernel::Built(kernel) => *kernel,
                    SourceKernel::Missing(kernel) => return Ok(Step::Kernel(kernel)),
                }
            }
        };
        let contents = Contents::gather(kernel, recipe, agent, &apt, progress)?;
        let id = identity(&recipe_hash, agent, &contents.packages);
        self.write(recipe, [recipe_hash, hash_of(agent)], &id, &contents, progress)?;
        self.name(&recipe.name, &id)?;
        let folder = self.root().join("resolved");
        fs::create_dir_all(&folder).at("create", &folder)?;
        let resolution = Resolution { packages: contents.packages };
        write_atomically(&resolved, &serde_json::to_vec(&resolution).unwrap_or_default())?;
        Image::open(&recipe.name, &self.images().join(&id)).map(|image| Step::Done(Box::new(image)))
    }

    /// Writes the image's folder, and renames it into its place when it is whole.
    fn write(
        &self,
        recipe: &Recipe,
        [recipe_hash, agent_hash]: [String; 2],
        id: &str,
        contents: &Contents,
        progress: &dyn Progress,
    ) -> Result<()> {
        let images = self.images();
        fs::create_dir_all(&images).at("create", &images)?;
        let place = images.join(id);
        let new =
            tempfile::Builder::new().prefix(".new-").tempdir_in(&images).at("create a folder in", &images)?;
        let mut artefacts = BTreeMap::new();
        let mut put = |file: &str, data: &[u8]| {
            artefacts.insert(file.to_owned(), Artefact::of(data));
            let path = new.path().join(file);
            fs::write(&path, data).at("write", &path)
        };
        progress.started("Kernel and initramfs", Total::Unknown);
        put(KERNEL, &contents.kernel.image)?;
        put(INITRAMFS, &contents.tree.to_cpio())?;
        if let Some(map) = &contents.kernel.system_map {
            put(SYSTEM_MAP, map)?;
        }
        let (vmlinux, release) = self.vmlinux(&contents.kernel.image, &contents.kernel.file)?;
        artefacts.insert(VMLINUX.into(), Artefact::of(&fs::read(&vmlinux).at("read", &vmlinux)?));
        let path = new.path().join(VMLINUX);
        fs::hard_link(&vmlinux, &path).or_else(|_| fs::copy(&vmlinux, &path).map(drop)).at("write", &path)?;
        let manifest = Manifest {
            format: FORMAT,
            name: recipe.name.clone(),
            description: recipe.description.clone(),
            id: id.to_owned(),
            recipe: recipe_hash,
            agent: agent_hash,
            kernel: release,
            cmdline: recipe.cmdline.clone(),
            packages: contents.packages.clone(),
            artefacts,
            notes: contents.notes.clone(),
        };
        let path = new.path().join(MANIFEST);
        fs::write(&path, serde_json::to_vec_pretty(&manifest).unwrap_or_default()).at("write", &path)?;
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(new.path(), fs::Permissions::from_mode(0o755)).at("write", new.path())?;
        if place.exists() {
            // It could not be opened, or it would have been used.
            fs::remove_dir_all(&place).at("remove", &place)?;
        }
        fs::rename(new.path(), &place).at("rename", &place)?;
        let _ = new.keep();
        progress.finished();
        Ok(())
    }
}

fn hash_of(data: &[u8]) -> String {
    blake3::hash(data).to_hex().to_string()
}

/// A hash of all that goes into an image.
fn identity(recipe_hash: &str, agent: &[u8], packages: &[Package]) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(&FORMAT.to_le_bytes());
    hash.update(recipe_hash.as_bytes());
    hash.update(hash_of(agent).as_bytes());
    for package in packages {
        hash.update(package.sha256.as_bytes());
    }
    hash.finalize().to_hex()[..32].to_owned()
}

/// An image in memory.
struct Contents {
    kernel: Origin,
    tree: Tree,
    packages: Vec<Package>,
    notes: Vec<String>,
}

impl Contents {
    fn gather(
        kernel: Origin,
        recipe: &Recipe,
        agent: &[u8],
        apt: &Apt,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let mut tree = skeleton::tree(agent, "nvsim");
        let mut packages = BTreeMap::new();
        let names: Vec<&str> = recipe.packages.keys().map(String::as_str).collect();
        let mut candidates = apt.candidates(&names)?;
        for (name, paths) in &recipe.packages {
            let package =
                candidates.remove(name).ok_or_else(|| Error::NoPackage { pattern: name.clone() })?;
            unpack(&mut tree, &package, paths, apt, progress)?;
            packages.insert(name.clone(), package);
        }
        libraries::close(&mut tree, &mut packages, apt, progress)?;
        skeleton::link_applets(&mut tree)?;
        packages.insert(kernel.package.name.clone(), kernel.package.clone());
        let packages = packages.into_values().collect();
        let notes = kernel.notes.clone();
        let mut contents = Self { kernel, tree, packages, notes };
        contents.take_modules(recipe)?;
        contents.take_files(recipe)?;
        Ok(contents)
    }

    fn take_modules(&mut self, recipe: &Recipe) -> Result<()> {
        let (spec, kernel) = (&recipe.modules, &self.kernel);
        let order = kernel.modules.install(&mut self.tree, &kernel.release, spec, &kernel.file)?;
        self.tree.file(MODULE_LIST, 0o644, order.join("\n") + "\n");
        if spec.boot.is_empty() && spec.on_demand.is_empty() {
            return Ok(());
        }
        for strip in &spec.strip {
            self.notes.push(match strip {
                Strip::Signature => "modules: appended signatures removed".into(),
                Strip::Btf => "modules: BPF type information (.BTF) not loaded".into(),
            });
        }
        self.notes.push("modules: decompressed".into());
        Ok(())
    }

    fn take_files(&mut self, recipe: &Recipe) -> Result<()> {
        for file in &recipe.files {
            if let Some(text) = &file.text {
                self.tree.file(&file.path, file.mode, text.as_str());
            } else if let Some(source) = &file.source {
                let path = recipe.resolve(source);
                self.tree.file(&file.path, file.mode, fs::read(&path).at("read", &path)?);
            } else if let Some(target) = &file.link {
                self.tree.link(&file.path, target);
            }
        }
        Ok(())
    }
}

/// Puts the named files and folders of a package into `tree`.
fn unpack(
    tree: &mut Tree,
    package: &Package,
    paths: &[String],
    apt: &Apt,
    progress: &dyn Progress,
) -> Result<()> {
    let file = apt.fetch(package, progress)?;
    let mut missing: Vec<&String> = paths.iter().collect();
    let same = |wanted: &str, path: &str| {
        let (wanted, path) = (unmerged(wanted), unmerged(path));
        if wanted.ends_with('/') { path.starts_with(wanted) } else { path == wanted }
    };
    Deb::new(&file).unpack(
        |path| paths.iter().any(|wanted| same(wanted, path)),
        |path, node| {
            missing.retain(|wanted| !same(wanted, path));
            tree.insert(path, node);
            Ok(())
        },
    )?;
    match missing.first() {
        None => Ok(()),
        Some(path) => Err(Error::NotInPackage { package: package.name.clone(), path: (*path).clone() }),
    }
}

/// Paths before and after the merge of / and /usr are one.
fn unmerged(path: &str) -> &str {
    ["/bin/", "/sbin/", "/lib/", "/lib64/"]
        .iter()
        .find_map(|folder| path.strip_prefix("/usr").filter(|rest| rest.starts_with(folder)))
        .unwrap_or(path)
}
