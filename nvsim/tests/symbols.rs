//! Instruction pointers of stock kernels have names, and call chains that go to the outermost function.

mod common;

use common::exec;
use guest_image::Store;
use symbols::Kernel;
use tempfile::tempdir;

/// A built image's kernel; `common::exec` builds it when it is missing.
fn kernel(image: &str) -> Kernel {
    let image = Store::of_user().unwrap().open(image).unwrap();
    Kernel::read(&std::fs::read(&image.vmlinux).unwrap()).unwrap()
}

#[test]
fn a_panic_is_told_with_its_call_chain() {
    let folder = tempdir().unwrap();
    for image in ["dax", "dax-6.1", "dax-generic"] {
        let ran = exec(folder.path(), "echo c > /proc/sysrq-trigger; sleep 10", &["--image", image]);
        assert_eq!(ran.code, 120, "{}", ran.stderr);
        let chain: Vec<&str> = ran.summary["processors"][0]["chain"]
            .as_array()
            .map(|chain| chain.iter().filter_map(|name| name.as_str()).collect())
            .unwrap_or_default();
        // The exception's frame, the system call's and the C code between them, without a guess.
        let wanted =
            ["panic+", "sysrq_handle_crash+", "write_sysrq_trigger+", "vfs_write+", "do_syscall_64+"];
        let mut found = chain.iter();
        for name in wanted {
            assert!(found.any(|own| own.starts_with(name)), "{image}: no {name} in its place in {chain:#?}");
        }
        assert!(chain.iter().all(|name| name.contains('+') && !name.starts_with('?')), "{image}: {chain:#?}");
        assert!(ran.stderr.contains("from vfs_write+"), "{}", ran.stderr);

        let kernel = kernel(image);
        assert!(kernel.has_orc() && kernel.knows_modules(), "{image}");
        assert!(kernel.symbols().len() > 80_000, "{image}: {}", kernel.symbols().len());
        // An exported function's address also stands in /proc/kallsyms, which the guest's panic report went by.
        let flush = kernel.symbols().address("arch_wb_cache_pmem").unwrap();
        assert_eq!(kernel.lookup(flush + 4), Some(("arch_wb_cache_pmem", 4)));
    }
}

#[test]
fn names_are_those_that_the_kernel_itself_tells() {
    let folder = tempdir().unwrap();
    for image in ["dax", "dax-6.1"] {
        let command = "echo 1 > /proc/sys/kernel/kptr_restrict; head -n 20000 /proc/kallsyms | tail -n 1000";
        let told = exec(folder.path(), command, &["--image", image]).ok();
        let kernel = kernel(image);
        let own: std::collections::HashSet<(u64, &str)> = kernel.symbols().iter().collect();
        let mut lines = 0;
        for line in told.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let address = u64::from_str_radix(words[0], 16).unwrap();
            assert!(own.contains(&(address, words[2])), "{image}: {line}");
            lines += 1;
        }
        assert_eq!(lines, 1000, "{image}");
    }
}
