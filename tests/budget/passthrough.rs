//! The same where opens are requests.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;

use crate::requests::assert_at_most;
use crate::{Counted, Requests, needs_counters};
use support::{Layer, Options, Stack};

const N: u64 = 20;
const SIZE: usize = 3 << 20;

fn fill(layer: &Layer, dir: &str) {
    for n in 0..N {
        layer.file(format!("{dir}/{n}"), vec![b'x'; SIZE]);
    }
}

/// Nothing is open any more, and the daemon knows.
pub fn assert_all_released(counted: &Counted) {
    let none_open = || {
        counted.all();
        let text = fs::read_to_string(&counted.log).unwrap();
        !text.rsplit_once("requests: ").unwrap().1.contains("open files")
    };
    assert!(support::wait_until(support::PATIENCE, none_open), "real files are kept");
}

/// What `work` makes the kernel ask. It tells of a file that was closed when it likes: what was closed before is waited for.
fn cost(counted: &Counted, work: impl FnOnce()) -> Requests {
    assert_all_released(counted);
    counted.cost(work)
}

/// What an open and its release may cost, and nothing else.
const OPENS: [(&str, u64); 2] = [("open", N), ("release", N)];

#[test]
fn data_in_the_upper_take_an_open_and_a_release() {
    needs_counters!();
    support::needs_root!();
    let stack = Stack::new(1);
    fill(stack.upper(), "d");
    let counted = Counted::new(&stack, &["passthrough"]);
    let path = |n: u64| counted.mount.join(format!("d/{n}"));
    (0..N).for_each(|n| assert!(path(n).is_file()));
    let read = || (0..N).for_each(|n| assert_eq!(fs::read(path(n)).unwrap(), vec![b'x'; SIZE]));
    assert_at_most("reads, first time", &cost(&counted, read), &OPENS);
    // The attributes once, since the access time may be new.
    let again = [&OPENS[..], &[("getattr", N)]].concat();
    assert_at_most("reads, again", &cost(&counted, read), &again);
    let write = || {
        for n in 0..N {
            let mut file = File::options().write(true).open(path(n)).unwrap();
            (0..30).for_each(|_| file.write_all(&[b'x'; 4096]).unwrap());
        }
    };
    // The kernel asks for capabilities before the first write into a file.
    let writing = [&again[..], &[("getxattr", N)]].concat();
    assert_at_most("writes", &cost(&counted, write), &writing);
    let truncate =
        || (0..N).for_each(|n| drop(File::options().write(true).truncate(true).open(path(n)).unwrap()));
    assert_at_most("opens that truncate", &cost(&counted, truncate), &again);
    assert_all_released(&counted);
    counted.mount.unmount();
}

#[test]
fn nothing_of_a_lower_is_read_by_the_daemon_where_lowers_are_passed_through() {
    needs_counters!();
    support::needs_root!();
    let stack = Stack::new(1);
    fill(stack.lower(0), "d");
    let counted = Counted::new(&stack, &["passthrough=lower"]);
    let path = |n: u64| counted.mount.join(format!("d/{n}"));
    (0..N).for_each(|n| assert!(path(n).is_file()));
    let read = || (0..N).for_each(|n| drop(fs::read(path(n)).unwrap()));
    let allowed = [&OPENS[..], &[("getattr", N)]].concat();
    assert_at_most("files of a lower", &cost(&counted, read), &allowed);
    assert_at_most("again", &cost(&counted, read), &allowed);
    // Open while it is copied up: each path is walked again with a lookup a name, and what leads to another node now once more.
    let held: Vec<File> = (0..N).map(|n| File::open(path(n)).unwrap()).collect();
    let write = || {
        for n in 0..N {
            File::options().write(true).open(path(n)).unwrap().write_all_at(b"y", 0).unwrap();
        }
    };
    let twice = [("open", 2 * N), ("lookup", 3 * N), ("release", N), ("getattr", 2 * N), ("getxattr", N)];
    assert_at_most("copy-ups of what is open", &counted.cost(write), &twice);
    assert_at_most("read anew", &counted.cost(read), &[("open", N), ("release", 2 * N), ("getattr", 2 * N)]);
    drop(held);
    assert_all_released(&counted);
    counted.mount.unmount();
}

#[test]
fn what_a_lower_has_is_read_once() {
    needs_counters!();
    support::needs_root!();
    let stack = Stack::new(1);
    fill(stack.lower(0), "d");
    let counted = Counted::new(&stack, &["passthrough"]);
    let read = || (0..N).for_each(|n| drop(fs::read(counted.mount.join(format!("d/{n}"))).unwrap()));
    read();
    read(); // the first made the kernel ask for the access time
    assert_at_most("cached files of a lower", &cost(&counted, read), &OPENS);
    assert_all_released(&counted);
    counted.mount.unmount();
}

#[test]
fn nothing_is_read_by_the_daemon_in_a_mount_without_upper() {
    needs_counters!();
    support::needs_root!();
    let stack = Stack::new(1);
    fill(stack.lower(0), "d");
    let options = Options { upper: None, work: None, ..stack.options_with(&["passthrough"]) };
    let counted = Counted::mounted(&stack, options);
    let path = |n: u64| counted.mount.join(format!("d/{n}"));
    (0..N).for_each(|n| assert!(path(n).is_file()));
    let read = || (0..N).for_each(|n| drop(fs::read(path(n)).unwrap()));
    assert_at_most("files of a lower", &cost(&counted, read), &[&OPENS[..], &[("getattr", N)]].concat());
    assert_all_released(&counted);
    counted.mount.unmount();
}

#[test]
fn a_new_file_takes_a_create_and_a_release() {
    needs_counters!();
    support::needs_root!();
    let stack = Stack::new(1);
    let counted = Counted::new(&stack, &["passthrough"]);
    let dir = counted.mount.join("d");
    fs::create_dir(&dir).unwrap();
    let create = |n: u64| {
        let file = File::options().write(true).create_new(true).open(dir.join(n.to_string())).unwrap();
        file.write_all_at(b"a small file", 0).unwrap();
    };
    create(1000);
    let cost = cost(&counted, || (0..N).for_each(create));
    // A lookup finds the name free, the directory's attributes are new after each, and capabilities are asked for.
    let allowed = [("lookup", N), ("create", N), ("release", N), ("getattr", N), ("getxattr", N)];
    assert_at_most("new files", &cost, &allowed);
    assert_all_released(&counted);
    counted.mount.unmount();
}
