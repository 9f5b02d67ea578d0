//! A real gdb at a guest's kernel: it breaks, steps, watches memory, reads registers and memory of any processor, and lets go.

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::exec;
use guest_image::Store;
use symbols::Kernel;
use tempfile::tempdir;

/// A guest that waits for gdb, and where.
fn guest(folder: &Path, command: &str) -> (Child, String) {
    let mut guest = Command::new(env!("CARGO_BIN_EXE_nvsim"))
        .current_dir(folder)
        .args(["run", "--engine", "soft", "--cpus", "2", "--gdb", "127.0.0.1:0", "--timeout", "10m"])
        .args(["--exec", command])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(guest.stderr.take().unwrap()).lines();
    let place = told.find_map(|line| Some(line.unwrap().split_once("target remote ")?.1.to_owned())).unwrap();
    (guest, place)
}

/// What gdb says to these commands; nothing where there is no gdb.
fn gdb(place: &str, commands: &[String]) -> Option<String> {
    let first = ["set pagination off", "set architecture i386:x86-64", &format!("target remote {place}")]
        .map(str::to_owned);
    let commands = first.iter().chain(commands).flat_map(|command| ["-ex", command]);
    let ran = Command::new("gdb").args(["-batch", "-nx"]).args(commands).output().ok()?;
    Some([ran.stdout, ran.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat())
}

fn is_there() -> bool {
    let there = Command::new("gdb").arg("--version").output().is_ok();
    if !there {
        println!("skipped: no gdb (apt-get install gdb)");
    }
    there
}

#[test]
fn gdb_breaks_steps_watches_and_lets_go() {
    if !is_there() {
        return;
    }
    let folder = tempdir().unwrap();
    exec(folder.path(), "true", &[]).ok();
    let image = Store::of_user().unwrap().open("dax").unwrap();
    let kernel = Kernel::read(&std::fs::read(&image.vmlinux).unwrap()).unwrap();
    let [sync, jiffies] = ["__x64_sys_sync", "jiffies"].map(|name| kernel.symbols().address(name).unwrap());
    let (guest, place) = guest(folder.path(), "sync; sleep 1; echo done");
    let commands = [
        format!("hbreak *{sync:#x}"),
        "continue".to_owned(),
        "printf \"broke at %lx\\n\", $rip".to_owned(),
        "stepi".to_owned(),
        "printf \"stepped to %lx\\n\", $rip".to_owned(),
        "delete".to_owned(),
        format!("watch *(unsigned long *){jiffies:#x}"),
        "continue".to_owned(),
        format!("printf \"jiffies %lu\\n\", *(unsigned long *){jiffies:#x}"),
        "thread 2".to_owned(),
        "printf \"the other at %lx\\n\", $rip".to_owned(),
        "delete".to_owned(),
        "detach".to_owned(),
    ];
    let said = gdb(&place, &commands).unwrap();
    let number = |of: &str, radix| {
        let rest = said.lines().find_map(|line| line.strip_prefix(of));
        let rest = rest.unwrap_or_else(|| panic!("no {of:?} in\n{said}"));
        u64::from_str_radix(rest, radix).unwrap()
    };
    assert_eq!(number("broke at ", 16), sync);
    assert!((sync + 1..sync + 16).contains(&number("stepped to ", 16)), "{said}");
    // A watchpoint tells what was there and what is: one tick.
    let [old, new] = ["Old value = ", "New value = "].map(|of| number(of, 10));
    assert_eq!((old + 1, number("jiffies ", 10)), (new, new), "{said}");
    assert!(number("the other at ", 16) >= symbols::KERNEL_HALF, "{said}");
    let ran = guest.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "done\n", "{said}");
    assert!(ran.status.success());
}

#[test]
fn gdb_is_told_when_the_guest_is_off() {
    if !is_there() {
        return;
    }
    let folder = tempdir().unwrap();
    let (guest, place) = guest(folder.path(), "echo done");
    let said = gdb(&place, &["continue".to_owned()]).unwrap();
    assert!(said.contains("exited normally]"), "{said}");
    let ran = guest.wait_with_output().unwrap();
    assert_eq!((String::from_utf8_lossy(&ran.stdout), ran.status.code()), ("done\n".into(), Some(0)));
}
