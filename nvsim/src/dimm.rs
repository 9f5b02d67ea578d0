//! `nvsim dimm`: DIMM files, offline.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde::Serialize;
use vmm::nvdimm::offline::{self, DimmInfo, Listed, RegionInfo};
use vmm::nvdimm::{self, DimmSpec, Entropy, LabelsInfo};

use crate::cli::{DimmArgs, DimmCommand};
use crate::table::{human, print, table};

/// Runs a subcommand.
pub fn dimm(args: DimmArgs) -> Result<()> {
    match args.command {
        DimmCommand::Create { specs, json } => {
            create(&specs)?;
            let files: Vec<PathBuf> = specs.into_iter().map(|spec| spec.path).collect();
            show(&offline::info(&files)?, json, regions)
        }
        DimmCommand::Info { files, json } => show(&offline::info(&files)?, json, regions),
        DimmCommand::Label { files, namespace, labels, erase: true, json } => {
            let namespaces = nvdimm::namespace_specs(&namespace, &Entropy::from_host()?)?;
            let version = nvdimm::label_version(&labels).map_err(anyhow::Error::msg)?;
            let region = offline::relabel(&files, version, &namespaces)?;
            show(&vec![region], json, regions)
        }
        DimmCommand::Label { files, json, .. } => show(&nvdimm::labels(&files)?, json, label_areas),
        DimmCommand::Ls { paths, json } => show(&found(&paths)?, json, listing),
    }
}

fn show<T: Serialize>(found: &Vec<T>, json: bool, tables: fn(&[T])) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(found)?);
    } else {
        tables(found);
    }
    Ok(())
}

/// Makes the files set by set.
fn create(specs: &[DimmSpec]) -> Result<()> {
    let entropy = Entropy::from_host()?;
    for spec in specs {
        if spec.size.is_none() {
            let file = spec.path.display();
            bail!("How large is {file} to be? Say for example {file},size=1G");
        }
    }
    let mut done: Vec<&str> = Vec::new();
    for spec in specs {
        match spec.set.as_deref() {
            None => drop(offline::create(std::slice::from_ref(spec), &[], &entropy)?),
            Some(set) if !done.contains(&set) => {
                let members: Vec<DimmSpec> =
                    specs.iter().filter(|s| s.set.as_deref() == Some(set)).cloned().collect();
                offline::create(&members, &[], &entropy)?;
                done.push(set);
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The DIMMs among files and in folders.
fn found(paths: &[PathBuf]) -> Result<Vec<Listed>> {
    let mut all = Vec::new();
    for path in paths {
        all.extend(offline::ls(path)?);
    }
    Ok(all)
}

fn listing(listed: &[Listed]) {
    dimms(listed.iter().filter_map(|entry| match entry {
        Listed::Dimm(dimm) => Some(&**dimm),
        Listed::Problem { .. } => None,
    }));
    for entry in listed {
        if let Listed::Problem { problem, .. } = entry {
            say_problem(problem);
        }
    }
}

fn say_problem(problem: &str) {
    let style = crate::cli::ERROR;
    anstream::println!("{style}problem:{style:#} {problem}");
}

fn dimms<'a>(dimms: impl IntoIterator<Item = &'a DimmInfo>) {
    let mut rows = table(&["FILE", "SIZE", "ON DISK", "ID", "DOMAIN", "SET", "STATE"]);
    for dimm in dimms {
        let set = dimm
            .set
            .as_ref()
            .map_or_else(|| "-".to_owned(), |set| format!("{} {}/{}", set.name, set.position + 1, set.ways));
        let mut state = Vec::new();
        if dimm.left_on {
            state.push("left on".to_owned());
        }
        if dimm.dirty_shutdowns > 0 {
            state.push(format!("{} dirty shutdowns", dimm.dirty_shutdowns));
        }
        if !dimm.poison.is_empty() {
            state.push(format!("{} poisoned ranges", dimm.poison.len()));
        }
        let state = if state.is_empty() { "good".to_owned() } else { state.join(", ") };
        let domain = if dimm.domain == dimm.kept {
            dimm.domain.to_string()
        } else {
            format!("{} (keeps as {})", dimm.domain, dimm.kept)
        };
        rows.add_row([
            dimm.file.display().to_string(),
            human(dimm.size),
            human(dimm.allocated),
            dimm.id.clone(),
            domain,
            set,
            state,
        ]);
    }
    print(&rows);
}

fn regions(regions: &[RegionInfo]) {
    for (n, region) in regions.iter().enumerate() {
        if n > 0 {
            println!();
        }
        dimms(&region.dimms);
        if let Some(cookie) = region.cookie {
            println!("set cookie {cookie:#018x}");
        }
        if !region.namespaces.is_empty() {
            println!();
            let mut rows = table(&["NAMESPACE", "SIZE", "MAP", "SECTOR", "ALIGN", "UUID", "NAME"]);
            for ns in &region.namespaces {
                let bytes = |value: Option<u32>| value.map_or_else(|| "-".to_owned(), |v| human(v.into()));
                rows.add_row([
                    ns.mode.to_string(),
                    human(ns.size),
                    ns.map.map_or_else(|| "-".to_owned(), |map| map.to_string()),
                    bytes(ns.sector_size),
                    bytes(ns.align),
                    ns.uuid.to_string(),
                    ns.name.clone(),
                ]);
            }
            print(&rows);
        }
        if let Some(problem) = &region.problem {
            say_problem(problem);
        }
    }
}

fn label_areas(areas: &[LabelsInfo]) {
    for area in areas {
        println!("{}", area.file.display());
        if let Some(problem) = &area.problem {
            println!("  {problem}");
            continue;
        }
        println!(
            "  labels {}, {} slots, index block {} is current (sequence {})",
            area.version, area.slots, area.current, area.sequence
        );
        let mut rows = table(&["  SLOT", "DPA", "SIZE", "POSITION", "SET COOKIE", "UUID", "NAME"]);
        for label in &area.labels {
            rows.add_row([
                format!("  {}", label.slot),
                format!("{:#x}", label.dpa),
                human(label.raw_size),
                format!("{}/{}", label.position + 1, label.nlabel),
                format!("{:#018x}", label.cookie),
                label.uuid.to_string(),
                label.name.clone(),
            ]);
        }
        print(&rows);
    }
}
