//! Requests.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use crate::{Counted, Requests, needs_counters};
use support::Stack;

const FILES: usize = 1000;

/// Two lowers that share a directory of [`FILES`] files.
fn stack() -> Stack {
    let stack = Stack::new(2);
    for index in 0..FILES {
        stack.lower(index % 2).file(format!("d/file-{index}"), format!("content of {index}"));
    }
    stack.lower(1).dir("d/sub").symlink("d/link", "file-1");
    stack
}

fn list(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().filter(|entry| entry.as_ref().unwrap().metadata().unwrap().nlink() > 0).count()
}

#[track_caller]
fn assert_none(what: &str, cost: &Requests) {
    assert!(cost.is_empty(), "{what}: {cost:?}");
}

/// Fails where a kind is asked more often than allowed; kinds that aren't named may not be asked at all.
#[track_caller]
pub fn assert_at_most(what: &str, cost: &Requests, allowed: &[(&str, u64)]) {
    for (kind, n) in cost {
        let most = allowed.iter().find(|(known, _)| known == kind).map_or(0, |(_, most)| *most);
        assert!(*n <= most, "{what}: {kind} {n} times, {most} allowed; all: {cost:?}");
    }
}

#[test]
fn a_cold_directory_is_listed_by_the_hundred() {
    needs_counters!();
    let stack = stack();
    let counted = Counted::new(&stack, &[]);
    let dir = counted.mount.join("d");
    // Once a mount the kernel learns that directories need no opening.
    list(counted.mount.path());
    let cost = counted.cost(|| assert_eq!(list(&dir), FILES + 2));
    // Before Linux 6.16 a listing's request holds a page, and so a quarter of that.
    let most = if pages_of_listings() { FILES as u64 / 100 + 1 } else { FILES as u64 / 20 };
    assert_at_most("a listing with attributes", &cost, &[("lookup", 1), ("readdirplus", most)]);
    counted.mount.unmount();
}

/// Of a directory of very many files the names are told, and the attributes to who looks at them.
#[test]
fn attributes_of_a_very_large_directory_are_told_to_who_looks_at_them() {
    needs_counters!();
    const MANY: usize = 40_000;
    /// What is told whether anybody looks or not, and what one answer and one getdents hold at most.
    const ALWAYS: usize = 32 << 10;
    const AT_ONCE: usize = 3000;
    let stack = Stack::new(1);
    let dir = stack.lower(0).dir("d").place("d");
    (0..MANY).for_each(|n| drop(File::create(dir.join(format!("{n}"))).unwrap()));
    let lookups =
        |cost: &Requests| cost.iter().filter(|(kind, _)| *kind == "lookup").map(|(_, n)| *n).sum::<u64>();

    let counted = Counted::new(&stack, &[]);
    let dir = counted.mount.join("d");
    let looked_at = counted.cost(|| assert_eq!(list(&dir), MANY));
    assert!(lookups(&looked_at) <= 2 * AT_ONCE as u64, "{looked_at:?}");
    counted.mount.unmount();

    let counted = Counted::new(&stack, &[]);
    let names = || fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let mut all = Vec::new();
    let listed = counted.cost(|| all = names());
    assert!(all.len() == MANY && lookups(&listed) <= 1, "{listed:?}");
    let looked_at =
        counted.cost(|| all.iter().for_each(|path| assert!(path.symlink_metadata().unwrap().is_file())));
    let asked = lookups(&looked_at) as usize;
    assert!((MANY - ALWAYS - AT_ONCE..=MANY - ALWAYS + AT_ONCE).contains(&asked), "{looked_at:?}");
    // And the numbers and types are those that stat tells.
    for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
        use std::os::unix::fs::DirEntryExt;
        assert_eq!(entry.ino(), entry.metadata().unwrap().ino());
        assert!(entry.file_type().unwrap().is_file());
    }
    counted.mount.unmount();
}

/// Does the kernel ask for more than a page of a listing at once?
fn pages_of_listings() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(16))
}

#[test]
fn what_is_known_is_not_asked_again() {
    needs_counters!();
    let stack = stack();
    let counted = Counted::new(&stack, &[]);
    let dir = counted.mount.join("d");
    let missing = dir.join("missing");
    list(counted.mount.path());
    // Twice: a listing and a readlink that the daemon answered make the kernel ask for the access time once.
    for _ in 0..2 {
        list(&dir);
        fs::read_link(dir.join("link")).unwrap();
        fs::symlink_metadata(dir.join("link")).unwrap();
        assert!(!missing.exists());
    }
    let cost = counted.cost(|| {
        for _ in 0..3 {
            assert_eq!(list(&dir), FILES + 2);
            fs::metadata(dir.join("file-7")).unwrap();
            fs::symlink_metadata(dir.join("link")).unwrap();
            assert_eq!(fs::read_link(dir.join("link")).unwrap(), Path::new("file-1"));
            rustix::fs::access(dir.join("file-8"), rustix::fs::Access::READ_OK).unwrap();
            assert!(!missing.exists());
        }
    });
    assert_none("a known tree", &cost);
    counted.mount.unmount();
}

#[test]
fn a_missing_name_is_asked_once() {
    needs_counters!();
    let stack = stack();
    let counted = Counted::new(&stack, &[]);
    let dir = counted.mount.join("d");
    list(&dir);
    let ask = || (0..50).for_each(|n| assert!(!dir.join(format!("missing-{n}")).exists()));
    assert_at_most("missing names", &counted.cost(ask), &[("lookup", 50)]);
    assert_none("known missing names", &counted.cost(ask));
    counted.mount.unmount();
}

#[test]
fn open_read_and_close_of_a_cached_file_ask_nothing() {
    needs_counters!();
    let stack = stack();
    let counted = Counted::new(&stack, &[]);
    let file = counted.mount.join("d/file-3");
    // The first open of a mount and its first close tell the kernel that neither is to be asked for. And a read that the
    // daemon answered makes the kernel ask for the access time once.
    fs::read(&file).unwrap();
    fs::read(&file).unwrap();
    assert_none("a cached file", &counted.cost(|| drop(fs::read(&file).unwrap())));
    let cold =
        counted.cost(|| drop(File::open(counted.mount.join("d/file-4")).unwrap().read_at(&mut [0; 99], 0)));
    assert_at_most("a small file, first time", &cold, &[("lookup", 1), ("read", 1)]);
    counted.mount.unmount();
}

#[test]
fn a_cached_program_runs_without_asking() {
    needs_counters!();
    let stack = stack();
    fs::copy("/bin/true", stack.lower(0).place("d/program")).unwrap();
    fs::set_permissions(stack.lower(0).place("d/program"), PermissionsExt::from_mode(0o755)).unwrap();
    // Where a program could gain privileges, the kernel asks for its capabilities each time.
    for (option, capabilities) in [("suid", 1), ("nosuid", 0)] {
        let counted = Counted::new(&stack, &[option]);
        let program = counted.mount.join("d/program");
        let run = || assert!(Command::new(&program).status().unwrap().success());
        run();
        run(); // the first has read it, so the kernel asks for the access time once
        assert_at_most(option, &counted.cost(run), &[("getxattr", capabilities)]);
        counted.mount.unmount();
    }
}

fn create(dir: &Path, n: usize) {
    let file = File::create(dir.join(format!("new-{n}"))).unwrap();
    file.write_all_at(b"a small file", 0).unwrap();
}

const N: u64 = 20;

#[test]
fn small_files_are_created_with_one_request_a_step() {
    needs_counters!();
    let stack = stack();
    for (options, xattrs) in [(&[][..], N), (&["noxattrs"], 0)] {
        let counted = Counted::new(&stack, options);
        let dir = counted.mount.join(format!("d{xattrs}"));
        fs::create_dir(&dir).unwrap();
        create(&dir, 1000);
        let cost = counted.cost(|| (0..N as usize).for_each(|n| create(&dir, n)));
        // No open, no flush, no release, and no attributes of the new file.
        let allowed = [("lookup", N), ("mknod", N), ("write", N), ("getattr", N), ("getxattr", xattrs)];
        assert_at_most("new files", &cost, &allowed);
        counted.mount.unmount();
    }
}

#[test]
fn changes_of_names_ask_once() {
    needs_counters!();
    let stack = stack();
    let counted = Counted::new(&stack, &[]);
    let dir = counted.mount.join("d");
    list(&dir);
    fs::create_dir(dir.join("warm")).unwrap();
    // Its copy-up changed the directory above, whose attributes are asked for once more.
    fs::metadata(counted.mount.path()).unwrap();
    let name = |kind: &str, n: u64| dir.join(format!("{kind}-{n}"));
    let mkdir = counted.cost(|| (0..N).for_each(|n| fs::create_dir(name("dir", n)).unwrap()));
    assert_at_most("mkdir", &mkdir, &[("lookup", N), ("mkdir", N), ("getattr", N)]);
    let rename = counted.cost(|| (0..N).for_each(|n| fs::rename(name("dir", n), name("moved", n)).unwrap()));
    assert_at_most("rename", &rename, &[("lookup", N), ("rename", N), ("getattr", N)]);
    let rmdir = counted.cost(|| (0..N).for_each(|n| fs::remove_dir(name("moved", n)).unwrap()));
    assert_at_most("rmdir", &rmdir, &[("rmdir", N), ("getattr", N)]);
    // Lower files: neither their attributes nor their times are asked for or set.
    let unlink = counted.cost(|| (0..N).for_each(|n| fs::remove_file(name("file", n)).unwrap()));
    assert_at_most("unlink", &unlink, &[("unlink", N), ("getattr", N)]);
    counted.mount.unmount();
}

/// A tree of lower files whose attributes are changed: each file is copied up, and neither it nor its directory is asked for again.
#[test]
fn a_change_of_attributes_copies_up_and_asks_nothing_more() {
    needs_counters!();
    let stack = stack();
    if !has_fine_change_times(stack.scratch().path()) {
        support::skip!("this filesystem's change times are as coarse as the kernel's clock");
    }
    for (index, option) in ["metacopy=on", "metacopy=off"].into_iter().enumerate() {
        let counted = Counted::new(&stack, &[option]);
        let dir = counted.mount.join("d");
        list(&dir);
        let file = |n: u64| dir.join(format!("file-{}", index as u64 * (N + 1) + n));
        let chmod = |n: u64| fs::set_permissions(file(n), fs::Permissions::from_mode(0o600)).unwrap();
        // The directory comes up, and is asked for.
        chmod(N);
        fs::metadata(&dir).unwrap();
        let cost = counted.cost(|| (0..N).for_each(chmod));
        assert_at_most(option, &cost, &[("setattr", N)]);
        let cost =
            counted.cost(|| (0..N).for_each(|n| assert!(fs::metadata(file(n)).unwrap().mode() & 0o77 == 0)));
        assert_none(option, &cost);
        counted.mount.unmount();
    }
}

/// Tells whether changes of a file that come right after one another have different change times.
fn has_fine_change_times(dir: &Path) -> bool {
    let path = dir.join("changed");
    let file = File::create(&path).unwrap();
    let change = |_| {
        file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
        let stat = file.metadata().unwrap();
        (stat.ctime(), stat.ctime_nsec())
    };
    let times: std::collections::BTreeSet<_> = (0..20).map(change).collect();
    fs::remove_file(&path).unwrap();
    times.len() == 20
}

/// With `writeback` the kernel sets the times of a file that is unlinked: no reason to copy it up.
#[test]
fn unlinking_copies_nothing_up() {
    needs_counters!();
    let stack = stack();
    let before = stack.lower_snapshots();
    for (index, options) in [&[][..], &["writeback"]].into_iter().enumerate() {
        let counted = Counted::new(&stack, options);
        (0..5)
            .for_each(|n| fs::remove_file(counted.mount.join(format!("d/file-{}", index * 5 + n))).unwrap());
        counted.all();
        let report = fs::read_to_string(&counted.log).unwrap();
        let copied = report.rsplit_once("copy-ups: ").unwrap().1;
        // The directory, once; the second mount finds it in the upper.
        let directories = if index == 0 { "1 (0 bytes" } else { "0 (0 bytes" };
        assert!(copied.starts_with(directories), "{options:?}: {copied}");
        counted.mount.unmount();
    }
    stack.assert_lowers_unchanged(&before);
}

#[test]
fn what_is_written_is_read_back_from_the_cache() {
    needs_counters!();
    let stack = stack();
    let counted = Counted::new(&stack, &[]);
    let path = counted.mount.join("written");
    fs::write(&path, vec![b'w'; 4096]).unwrap();
    fs::read(&path).unwrap();
    let cost = counted.cost(|| assert_eq!(fs::read(&path).unwrap(), vec![b'w'; 4096]));
    assert_at_most("what was written", &cost, &[("getattr", 1)]);
    counted.mount.unmount();
}
