//! Builds the guest agent as a static program, so that the command can put it into every image.
//!
//! It is a build of its own in OUT_DIR: the agent runs in the guest, so neither this build's profile nor its flags
//! concern it.

use std::path::PathBuf;
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    let var =
        |name: &str| PathBuf::from(std::env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}")));
    let agent = var("CARGO_MANIFEST_DIR").join("../guest-agent");
    let folder = var("OUT_DIR").join("agent");
    println!("cargo::rerun-if-changed={}", agent.join("src").display());
    println!("cargo::rerun-if-changed={}", agent.join("Cargo.toml").display());

    let status = Command::new(var("CARGO"))
        .args(["build", "--quiet", "--release", "--locked", "--bin", "guest-agent", "--target", TARGET])
        .arg("--manifest-path")
        .arg(agent.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&folder)
        .args(["--config", "profile.release.opt-level='s'", "--config", "profile.release.panic='abort'"])
        .args(["--config", "profile.release.strip=true", "--config", "profile.release.lto=true"])
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\x1f-Crelocation-model=static")
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("the guest agent could not be built ({status}); its messages are above"),
        Err(error) => panic!("cargo could not be started for the guest agent: {error}"),
    }
    let binary = folder.join(TARGET).join("release/guest-agent");
    println!("cargo::rustc-env=NVSIM_AGENT={}", binary.display());
}
