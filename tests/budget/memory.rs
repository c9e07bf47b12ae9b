//! What the daemon keeps in memory.

use std::fs;
use std::time::Duration;

use super::KERNEL_CACHES;
use support::{Mount, Program, Stack, wait_until};

/// Anonymous memory of the daemon, which no other process shares, in bytes.
fn own(mount: &Mount) -> usize {
    of_status(mount, "RssAnon:")
}

fn of_status(mount: &Mount, field: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", mount.daemon())).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

const FILES: usize = 40_000;
const A_DIRECTORY: usize = 500;

/// 167 bytes at the time of writing. The names are as long as they are in most trees.
#[test]
fn a_known_file_takes_few_bytes_and_a_forgotten_one_none() {
    if !Program::under_test().is_unionmount() {
        support::skip!("the limits are unionmount's");
    }
    let stack = Stack::new(1);
    for n in 0..FILES {
        stack.lower(0).file(format!("d{}/module-{n}.py", n / A_DIRECTORY), "");
    }
    let mount = stack.mount();
    let before = own(&mount);
    let mut found = 0;
    for dir in fs::read_dir(mount.path()).unwrap() {
        for file in fs::read_dir(dir.unwrap().path()).unwrap() {
            found += usize::from(file.unwrap().metadata().unwrap().is_file());
        }
    }
    assert_eq!(found, FILES);
    let known = own(&mount);
    let each = known.saturating_sub(before) / FILES;
    assert!(each <= 200, "{each} bytes for each known file");

    // Again and again: what is looked at meanwhile the kernel keeps, this time.
    let forget = || {
        let _nobody_counts = KERNEL_CACHES.write();
        fs::write("/proc/sys/vm/drop_caches", "2")
    };
    if let Err(e) = forget() {
        support::skip!("only root can make the kernel forget: {e}");
    }
    let is_little = || own(&mount).saturating_sub(before) < (known - before) / 3;
    let left = || {
        wait_until(Duration::from_secs(5), is_little) || {
            forget().unwrap();
            false
        }
    };
    assert!(wait_until(support::PATIENCE, left), "{} of {} bytes are left", own(&mount), known);
    mount.unmount();
}

/// Of the program's text only what serves stays: the command line, mounting and the loader are done.
#[test]
fn what_was_needed_to_start_goes() {
    if !Program::under_test().is_unionmount() {
        support::skip!("the limits are unionmount's");
    }
    let stack = Stack::new(1);
    stack.lower(0).file("file", "");
    let mount = stack.mount();
    let at_start = of_status(&mount, "RssFile:");
    let less = || of_status(&mount, "RssFile:") < at_start - at_start / 4;
    assert!(wait_until(support::PATIENCE, less), "{at_start} bytes of the program stay in memory");
    assert!(mount.join("file").exists());
    mount.unmount();
}
