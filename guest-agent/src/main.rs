//! PID 1 of a guest image.

mod init;

fn main() {
    if std::process::id() != 1 {
        eprintln!("This is the init of an nvsim guest image. It runs as process 1 of a guest.");
        std::process::exit(2);
    }
    init::run()
}
