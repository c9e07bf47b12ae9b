//! Listing directories: positions, changes during a listing, types and inode numbers.

use std::collections::BTreeSet;
use std::fs::{self, File};

use rustix::fs::Dir;

use crate::{names, stat};
use support::{Kind, Snapshot, Stack, WhiteoutForm, list};

fn entry_names(directory: &mut Dir) -> Vec<String> {
    let mut names = Vec::new();
    while let Some(entry) = directory.read() {
        names.push(entry.unwrap().file_name().to_string_lossy().into_owned());
    }
    names
}

#[test]
fn types_and_inode_numbers_agree_with_stat() {
    let stack = Stack::new(3);
    stack.lower(2).file("f", "1").symlink("l", "f").fifo("p").socket("s").file("d/x", "1").file("m/a", "1");
    stack.lower(1).file("m/b", "2").whiteout("gone", WhiteoutForm::Device);
    stack.lower(0).file("m/c", "3");
    stack.upper().file("m/d", "4");
    let mount = stack.mount();
    let check = || {
        Snapshot::take_checked(mount.path());
        let listed = list(mount.path()).unwrap();
        let kind = |name: &str| listed.iter().find(|entry| entry.name == name).unwrap().kind;
        let dot = |name: &str| listed.iter().find(|entry| entry.name == name).unwrap().ino;
        for (name, expected) in [
            ("f", Kind::File),
            ("l", Kind::Symlink),
            ("p", Kind::Fifo),
            ("s", Kind::Socket),
            ("m", Kind::Directory),
        ] {
            assert_eq!(kind(name), Some(expected), "d_type of {name}");
        }
        use std::os::unix::fs::MetadataExt;
        assert_eq!(dot("."), stat(mount.path()).ino(), "the inode number of `.`");
    };
    check();
    // After copy-ups of each they still do.
    fs::write(mount.join("f"), "changed").unwrap();
    fs::write(mount.join("d/x"), "changed").unwrap();
    fs::write(mount.join("m/a"), "changed").unwrap();
    fs::rename(mount.join("l"), mount.join("k")).unwrap();
    fs::rename(mount.join("k"), mount.join("l")).unwrap();
    check();
    mount.unmount();
}

#[test]
fn a_position_can_be_taken_up_again() {
    let stack = Stack::new(2);
    for index in 0..300 {
        stack.lower(index % 2).file(format!("d/file{index}"), "");
    }
    let mount = stack.mount();
    let mut directory = Dir::new(File::open(mount.join("d")).unwrap()).unwrap();
    let mut all = Vec::new();
    while let Some(entry) = directory.read() {
        let entry = entry.unwrap();
        all.push((entry.file_name().to_string_lossy().into_owned(), entry.offset()));
    }
    assert_eq!(all.len(), 302);
    let distinct: BTreeSet<_> = all.iter().map(|(_, offset)| *offset).collect();
    assert_eq!(distinct.len(), 302, "every position is another one");
    for position in [0, 1, 2, 57, 150, 299, 300] {
        directory.seek(all[position].1).unwrap();
        let rest = entry_names(&mut directory);
        let expected: Vec<_> = all[position + 1..].iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(rest, expected, "from position {position}");
    }
    // The positions of another opening are the same as long as nothing changes.
    let mut again = Dir::new(File::open(mount.join("d")).unwrap()).unwrap();
    again.seek(all[99].1).unwrap();
    assert_eq!(entry_names(&mut again).len(), 302 - 100);
    drop((directory, again));
    mount.unmount();
}

#[test]
fn removing_what_was_listed_skips_and_repeats_nothing() {
    let stack = Stack::new(2);
    for index in 0..1500 {
        stack.lower(index % 2).file(format!("d/file{index:04}"), "");
    }
    stack.upper().file("d/upper", "");
    let mount = stack.mount();
    let mut directory = Dir::new(File::open(mount.join("d")).unwrap()).unwrap();
    let mut seen = BTreeSet::new();
    while let Some(entry) = directory.read() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        if name == "." || name == ".." {
            continue;
        }
        fs::remove_file(mount.join("d").join(&name)).unwrap();
        assert!(seen.insert(name.clone()), "{name} was listed twice");
    }
    assert_eq!(seen.len(), 1501);
    drop(directory);
    assert!(names(mount.join("d")).is_empty());
    fs::remove_dir(mount.join("d")).unwrap();
    mount.unmount();
}

#[test]
fn what_stays_is_listed_once_while_others_come_and_go() {
    let stack = Stack::new(1);
    for index in 0..2000 {
        stack.lower(0).file(format!("d/stays{index}"), "").file(format!("d/goes{index}"), "");
    }
    let mount = stack.mount();
    let mut directory = Dir::new(File::open(mount.join("d")).unwrap()).unwrap();
    let mut seen = Vec::new();
    let mut step = 0;
    while let Some(entry) = directory.read() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        if name.starts_with("stays") {
            seen.push(name);
        }
        if step < 2000 {
            fs::remove_file(mount.join(format!("d/goes{step}"))).unwrap();
            fs::write(mount.join(format!("d/comes{step}")), "").unwrap();
            step += 1;
        }
    }
    drop(directory);
    let distinct: BTreeSet<_> = seen.iter().collect();
    assert_eq!(seen.len(), distinct.len(), "listed twice");
    assert_eq!(distinct.len(), 2000, "not listed");
    mount.unmount();
}

#[test]
fn rewinding_shows_what_is_new() {
    let stack = Stack::new(1);
    stack.lower(0).file("d/old", "");
    let mount = stack.mount();
    let mut directory = Dir::new(File::open(mount.join("d")).unwrap()).unwrap();
    assert_eq!(entry_names(&mut directory).len(), 3);
    fs::write(mount.join("d/new"), "").unwrap();
    fs::remove_file(mount.join("d/old")).unwrap();
    directory.rewind();
    let mut names = entry_names(&mut directory);
    names.sort();
    assert_eq!(names, [".", "..", "new"]);
    drop(directory);
    mount.unmount();
}

#[test]
fn an_open_directory_that_was_removed_is_empty() {
    let stack = Stack::new(1);
    stack.lower(0).file("d/x", "");
    let mount = stack.mount();
    let directory = File::open(mount.join("d")).unwrap();
    fs::remove_file(mount.join("d/x")).unwrap();
    fs::remove_dir(mount.join("d")).unwrap();
    let names = entry_names(&mut Dir::read_from(&directory).unwrap_or_else(|error| panic!("{error}")));
    assert!(names.iter().all(|name| name == "." || name == ".."), "{names:?}");
    support::assert_errno!(
        rustix::fs::openat(
            &directory,
            "new",
            rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY,
            0o644.into()
        ),
        rustix::io::Errno::NOENT
    );
    drop(directory);
    mount.unmount();
}

/// A hundred thousand names, in two layers; a million with `UNIONMOUNT_LONG`.
#[test]
fn huge_directories_are_listed_whole() {
    let count = if std::env::var_os("UNIONMOUNT_LONG").is_some() { 1_000_000 } else { 100_000 };
    let stack = Stack::new(2);
    for lower in stack.lowers() {
        lower.dir("d");
    }
    // Hard links of one file: an inode each would be slow to make.
    for index in 0..count {
        let lower = stack.lower(index % 2).root().join("d");
        if index % 10_000 < 2 {
            File::create(lower.join(format!("file{index}"))).unwrap();
        } else {
            fs::hard_link(
                lower.join(format!("file{}", index - index % 10_000 + index % 2)),
                lower.join(format!("file{index}")),
            )
            .unwrap();
        }
    }
    stack.lower(0).whiteout("d/file1", WhiteoutForm::Device);
    let mount = stack.mount();
    let mut seen = BTreeSet::new();
    let mut directory = Dir::new(File::open(mount.join("d")).unwrap()).unwrap();
    while let Some(entry) = directory.read() {
        let entry = entry.unwrap();
        assert!(seen.insert(entry.file_name().to_owned()), "{:?} is listed twice", entry.file_name());
    }
    assert_eq!(seen.len(), count - 1 + 2, "all but the whited-out one, with `.` and `..`");
    drop(directory);
    fs::write(mount.join("d/new"), "n").unwrap();
    fs::remove_file(mount.join("d/file7")).unwrap();
    let listed = list(&mount.join("d")).unwrap();
    assert_eq!(listed.len(), count - 1 + 2);
    assert!(
        listed.iter().any(|entry| entry.name == "new") && listed.iter().all(|entry| entry.name != "file7")
    );
    mount.unmount();
}
