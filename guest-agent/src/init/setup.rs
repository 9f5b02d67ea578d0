//! What init does first: mounts, modules, host name.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::sys;

/// One module path a line, in the order in which they load.
const MODULE_LIST: &str = "/etc/nvsim/modules";

const MOUNTS: [(&str, &str, &str); 9] = [
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devtmpfs", "/dev", "mode=0755"),
    ("devpts", "/dev/pts", "mode=0620,gid=5,ptmxmode=0666"),
    ("tmpfs", "/dev/shm", "mode=1777"),
    ("tmpfs", "/run", "mode=0755"),
    ("tmpfs", "/tmp", "mode=1777"),
    ("debugfs", "/sys/kernel/debug", ""),
    ("tracefs", "/sys/kernel/tracing", ""),
];

const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// The bus that firmware tells of, and the NV-DIMMs' device there (ACPI 6.5, ch. 9.19.1).
const ACPI_BUS: &str = "/sys/bus/acpi";
const NVDIMMS: &str = "ACPI0012:00";

/// Modules that bring devices with contents, not drivers for them: the NV-DIMMs appear with this one.
const BRINGS_DEVICES: &str = "nfit";

/// Its parameters. It asks the firmware anew for each function of a DIMM that it has heard of; these are the ones that there
/// are (nvdimm-model, `dsm::intel`): health, thresholds, labels, latch, injection.
const NFIT_PARAMETERS: &str = "override_dsm_mask=0x60476";

/// Mounts the kernel's file systems, names the machine, loads drivers. Gives what went wrong; a guest with less than all
/// of it is still worth having.
pub fn setup() -> Vec<String> {
    let mut troubles = Vec::new();
    for (kind, target, options) in MOUNTS {
        let target = Path::new(target);
        // Folders below /sys are the kernel's: where it made none, it has no such file system.
        if !target.exists() && (target.starts_with("/sys") || fs::create_dir_all(target).is_err()) {
            continue;
        }
        match sys::mount(kind, target, kind, options) {
            // The kernel mounts devtmpfs itself when it is configured so.
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
            Err(e) => troubles.push(format!("cannot mount {kind} at {}: {e}", target.display())),
            Ok(()) => {}
        }
    }
    for (target, link) in LINKS {
        let _ = std::os::unix::fs::symlink(target, link);
    }
    let name = fs::read_to_string("/etc/hostname").unwrap_or_else(|_| "nvsim".into());
    if let Err(e) = sys::set_hostname(name.trim()) {
        troubles.push(format!("cannot set the host name: {e}"));
    }
    show_errors();
    load_modules(&mut troubles, |name| name != BRINGS_DEVICES);
    troubles
}

/// Images boot with `loglevel=3`, since kernels complain of a PCI bus that this machine has no need of; from here on errors are
/// shown on the console, as `quiet` has it. Whoever asked for more keeps it.
fn show_errors() {
    const PRINTK: &str = "/proc/sys/kernel/printk";
    let level = fs::read_to_string(PRINTK).unwrap_or_default();
    if level.split_whitespace().next() == Some("3") {
        let _ = fs::write(PRINTK, "4");
    }
}

/// Whether the firmware tells of NV-DIMMs.
pub fn has_nvdimms() -> bool {
    Path::new(ACPI_BUS).join("devices").join(NVDIMMS).exists()
}

/// Loads the NV-DIMMs' driver but does not let it look for any: that takes longer than what it finds. Gives what went wrong;
/// then it is loaded later.
pub fn hold_devices() -> Vec<String> {
    let autoprobe = Path::new(ACPI_BUS).join("drivers_autoprobe");
    let mut troubles = Vec::new();
    match fs::write(&autoprobe, "0") {
        Ok(()) => {
            load_modules(&mut troubles, |name| name == BRINGS_DEVICES);
            troubles
                .extend(fs::write(&autoprobe, "1").err().map(|e| format!("{}: {e}", autoprobe.display())));
        }
        Err(e) => troubles.push(format!("cannot hold NV-DIMMs back by {}: {e}", autoprobe.display())),
    }
    troubles
}

/// Lets the NV-DIMMs appear, and waits until all of them are probed. Gives what went wrong.
pub fn bring_devices() -> Vec<String> {
    let mut troubles = Vec::new();
    if Path::new("/sys/module").join(BRINGS_DEVICES).exists() {
        let probe = Path::new(ACPI_BUS).join("drivers_probe");
        troubles.extend(fs::write(&probe, NVDIMMS).err().map(|e| format!("cannot probe NV-DIMMs: {e}")));
    } else {
        load_modules(&mut troubles, |name| name == BRINGS_DEVICES);
    }
    wait_for_nvdimms();
    troubles
}

/// Loads those modules of the list whose names are wanted, in its order.
fn load_modules(troubles: &mut Vec<String>, wanted: impl Fn(&str) -> bool) {
    for path in fs::read_to_string(MODULE_LIST).unwrap_or_default().lines() {
        let file = Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = file.split_once('.').map_or(file, |(name, _)| name);
        if !wanted(name) {
            continue;
        }
        let parameters = if name == BRINGS_DEVICES { NFIT_PARAMETERS } else { "" };
        match File::open(path).and_then(|file| sys::load_module(&file, parameters)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                troubles.push(format!("cannot load {path}: {e}"))
            }
            _ => {}
        }
    }
}

/// Probing goes on after the modules are loaded; reading a bus's `wait_probe` waits for its end.
fn wait_for_nvdimms() {
    for bus in fs::read_dir("/sys/class/nd").into_iter().flatten().flatten() {
        let _ = fs::read(bus.path().join("device/wait_probe"));
    }
}

/// Time since the kernel started, in microseconds.
pub fn uptime() -> u64 {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = text.split_whitespace().next().and_then(|word| word.parse::<f64>().ok());
    (seconds.unwrap_or(0.0) * 1e6) as u64
}

/// The kernel's release.
pub fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}
