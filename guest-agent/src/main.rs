//! PID 1 of a guest image, and small programs for guests, which are links to it: `nvsim-mark` and `nvsim-store`.

mod init;
mod mark;
mod store;

use std::path::Path;
use std::process::exit;

fn main() {
    let mut words: Vec<String> = std::env::args().collect();
    let program = words.first().and_then(|path| Path::new(path).file_name()?.to_str()).unwrap_or_default();
    let run: fn(&[String]) -> Result<(), String> = match program {
        "nvsim-mark" => mark::run,
        "nvsim-store" => store::run,
        _ if std::process::id() == 1 => init::run(),
        _ => {
            eprintln!("This is the init of an nvsim guest image. It runs as process 1 of a guest.");
            exit(2)
        }
    };
    let program = program.to_owned();
    if let Err(reason) = run(&words.split_off(1)) {
        eprintln!("{program}: {reason}");
        exit(1)
    }
}
