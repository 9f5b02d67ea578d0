//! `nvsim image`: builds, lists, shows and removes guest images.

use anyhow::Result;
use guest_image::{Bars, Image, Manifest, Recipe, Store};

use crate::cli::{ImageArgs, ImageCommand};
use crate::table::{human, print, table};

/// The guest agent, linked statically by build.rs: it becomes every image's init.
static AGENT: &[u8] = include_bytes!(env!("NVSIM_AGENT"));

/// Runs a subcommand.
pub fn image(args: ImageArgs) -> Result<()> {
    let store = Store::of_user()?;
    match args.command {
        ImageCommand::Build { recipe } => {
            let image = build(&store, &recipe)?;
            println!("{}", image.kernel.parent().unwrap_or(&image.kernel).display());
            Ok(())
        }
        ImageCommand::Ls { json } | ImageCommand::List { json } => list(&store, json),
        ImageCommand::Show { name, json } => show(&store.show(&name)?, json),
        ImageCommand::Rm { names } => names.iter().try_for_each(|name| Ok(store.remove(name)?)),
    }
}

/// The image of that recipe, built if anything has changed.
pub fn build(store: &Store, recipe: &str) -> Result<Image> {
    Ok(store.build(&Recipe::find(recipe)?, AGENT, &Bars::default())?)
}

/// The image of that recipe as it was built last; built when it is missing or its recipe or our agent has changed.
pub fn current_or_build(store: &Store, recipe: &str) -> Result<Image> {
    match store.current(&Recipe::find(recipe)?, AGENT) {
        Some(image) => Ok(image),
        None => build(store, recipe),
    }
}

fn list(store: &Store, json: bool) -> Result<()> {
    let built = store.list();
    if json {
        let manifests: Vec<&Manifest> =
            built.iter().filter_map(|(_, manifest)| manifest.as_ref().ok()).collect();
        println!("{}", serde_json::to_string_pretty(&manifests)?);
        return Ok(());
    }
    let mut rows = table(&["NAME", "KERNEL", "SIZE", "ID", ""]);
    for (name, manifest) in &built {
        match manifest {
            Ok(m) => {
                let bytes = m.artefacts.values().map(|artefact| artefact.bytes).sum();
                rows.add_row([name, &m.kernel, &human(bytes), short(&m.id), &m.description]);
            }
            Err(error) => {
                rows.add_row([name, "-", "-", "-", &error.to_string()]);
            }
        }
    }
    for recipe in Recipe::built_in().filter(|recipe| !built.iter().any(|(name, _)| name == recipe)) {
        rows.add_row([recipe, "-", "-", "-", &format!("not built: nvsim image build {recipe}")]);
    }
    print(&rows);
    Ok(())
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

fn show(manifest: &Manifest, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(manifest)?);
        return Ok(());
    }
    let mut head = table(&[&manifest.name, &manifest.description]);
    head.add_row(["id", &manifest.id]);
    head.add_row(["kernel", &manifest.kernel]);
    head.add_row(["command line", &manifest.cmdline]);
    for note in &manifest.notes {
        head.add_row(["note", note]);
    }
    print(&head);
    println!();
    let mut files = table(&["FILE", "SIZE", "BLAKE3"]);
    for (name, artefact) in &manifest.artefacts {
        files.add_row([name, &human(artefact.bytes), &artefact.blake3]);
    }
    print(&files);
    println!();
    let mut packages = table(&["PACKAGE", "VERSION", "SHA256"]);
    for package in &manifest.packages {
        packages.add_row([&package.name, &package.version, &package.sha256]);
    }
    print(&packages);
    Ok(())
}
