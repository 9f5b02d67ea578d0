//! The direction of the arrows between the rooms, as docs/architecture.md draws them: who may know whom.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Each room with all that it may use. A room further down never knows one further up; only `vmm` knows both an engine
/// and the medium.
const ARROWS: [(&str, &[&str]); 11] = [
    ("nvsim", &["vmm", "guest-image", "guest-agent", "engine", "symbols", "trace", "view"]),
    ("guest-image", &[]),
    ("guest-agent", &[]),
    ("vmm", &["engine", "engine-kvm", "engine-soft", "nvdimm-model", "symbols", "trace"]),
    ("trace", &["nvdimm-model"]),
    ("view", &["nvdimm-model", "trace"]),
    ("engine-kvm", &["engine"]),
    ("engine-soft", &["engine"]),
    ("engine", &[]),
    ("nvdimm-model", &[]),
    ("symbols", &[]),
];

/// The rooms as they are: each with the rooms that its library or program uses.
fn rooms() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo speaks JSON");
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    list(&metadata["packages"])
        .iter()
        .map(|package| {
            // A dependency with a path is a room; tests may use what they like.
            let uses = list(&package["dependencies"]);
            let uses = uses.iter().filter(|uses| uses["path"].is_string() && uses["kind"] != "dev");
            (name(package), uses.map(name).collect())
        })
        .collect()
}

#[test]
fn arrows_point_one_way() {
    let rooms = rooms();
    let drawn: BTreeMap<&str, BTreeSet<&str>> =
        ARROWS.iter().map(|(room, uses)| (*room, uses.iter().copied().collect())).collect();
    for (room, uses) in &rooms {
        let Some(allowed) = drawn.get(room.as_str()) else {
            panic!("{room} is a new room: draw it here and in docs/architecture.md");
        };
        for other in uses {
            assert!(allowed.contains(other.as_str()), "{room} may not know {other}: {allowed:?}");
        }
    }
    for room in drawn.keys() {
        assert!(rooms.contains_key(*room), "{room} is drawn, but is not there");
    }
}

#[test]
fn only_the_machine_knows_both_an_engine_and_the_medium() {
    let knows = |uses: &BTreeSet<String>| {
        let engine = uses.iter().any(|room| room.starts_with("engine-"));
        engine && uses.contains("nvdimm-model")
    };
    let both: Vec<_> = rooms().into_iter().filter(|(_, uses)| knows(uses)).map(|(room, _)| room).collect();
    assert_eq!(both, ["vmm"]);
}
