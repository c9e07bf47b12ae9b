//! One file with several names stays one file, whatever is copied up.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use crate::{exists, for_reading, for_writing, read, stat};
use support::Stack;

fn assert_one_file(mount: &support::Mount, names: &[&str], content: &[u8]) {
    let first = stat(mount.join(names[0]));
    for name in names {
        let found = stat(mount.join(name));
        assert_eq!(
            (found.ino(), found.dev()),
            (first.ino(), first.dev()),
            "{name} is another file than {}",
            names[0]
        );
        assert_eq!(found.nlink(), names.len() as u64, "st_nlink of {name}");
        assert_eq!(read(mount.join(name)), content, "{name}");
        assert_eq!(found.mode(), first.mode(), "{name}");
    }
}

#[test]
fn aliases_of_a_lower_file_stay_one_file() {
    support::needs_opens_that_follow!();
    let stack = Stack::new(2);
    stack.lower(1).file("a", "one file").hardlink("d/b", "a").hardlink("d/c", "a");
    let before = stack.lower_snapshots();
    let mounted = stack.mount();
    assert_one_file(&mounted, &["a", "d/b", "d/c"], b"one file");
    let early = for_reading(mounted.join("d/c"));
    for_writing(mounted.join("a")).write_all_at(b"ONE", 0).unwrap();
    assert_one_file(&mounted, &["a", "d/b", "d/c"], b"ONE file");
    for_writing(mounted.join("d/b")).write_all_at(b"FILE", 4).unwrap();
    assert_one_file(&mounted, &["a", "d/b", "d/c"], b"ONE FILE");
    let mut bytes = [0; 8];
    early.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"ONE FILE");
    fs::set_permissions(mounted.join("d/c"), PermissionsExt::from_mode(0o600)).unwrap();
    assert_one_file(&mounted, &["a", "d/b", "d/c"], b"ONE FILE");
    drop(early);
    mounted.unmount();
    let mounted = stack.mount();
    assert_one_file(&mounted, &["a", "d/b", "d/c"], b"ONE FILE");
    mounted.unmount();
    stack.assert_lowers_unchanged(&before);
    stack.assert_workdir_clean();
}

#[test]
fn removing_and_adding_names_counts_right() {
    let stack = Stack::new(1);
    stack.lower(0).file("a", "x").hardlink("b", "a").hardlink("c", "a");
    let mounted = stack.mount();
    fs::remove_file(mounted.join("b")).unwrap();
    assert_one_file(&mounted, &["a", "c"], b"x");
    fs::hard_link(mounted.join("c"), mounted.join("d")).unwrap();
    assert_one_file(&mounted, &["a", "c", "d"], b"x");
    fs::rename(mounted.join("a"), mounted.join("e")).unwrap();
    assert_one_file(&mounted, &["c", "d", "e"], b"x");
    fs::write(mounted.join("e"), "yy").unwrap();
    assert_one_file(&mounted, &["c", "d", "e"], b"yy");
    mounted.unmount();
    let mounted = stack.mount();
    assert_one_file(&mounted, &["c", "d", "e"], b"yy");
    for (name, rest) in [("c", &["d", "e"][..]), ("d", &["e"][..])] {
        fs::remove_file(mounted.join(name)).unwrap();
        assert_one_file(&mounted, rest, b"yy");
    }
    let last = for_reading(mounted.join("e"));
    fs::remove_file(mounted.join("e")).unwrap();
    assert_eq!(last.metadata().unwrap().nlink(), 0);
    assert!(!exists(mounted.join("e")));
    drop(last);
    mounted.unmount();
    let mounted = stack.mount();
    assert!(crate::names(mounted.path()).is_empty());
    mounted.unmount();
    stack.assert_workdir_clean();
}

#[test]
fn a_lower_file_linked_in_the_mount_is_one_file_after_a_remount() {
    let stack = Stack::new(1);
    stack.lower(0).file("d/f", "x").symlink("l", "d/f").fifo("p");
    let mounted = stack.mount();
    fs::hard_link(mounted.join("d/f"), mounted.join("g")).unwrap();
    assert_one_file(&mounted, &["d/f", "g"], b"x");
    rustix::fs::linkat(
        rustix::fs::CWD,
        mounted.join("l"),
        rustix::fs::CWD,
        mounted.join("m"),
        rustix::fs::AtFlags::empty(),
    )
    .unwrap();
    assert_eq!(fs::read_link(mounted.join("m")).unwrap(), std::path::Path::new("d/f"));
    assert_eq!(
        (stat(mounted.join("l")).nlink(), stat(mounted.join("l")).ino()),
        (2, stat(mounted.join("m")).ino())
    );
    fs::hard_link(mounted.join("p"), mounted.join("q")).unwrap();
    assert_eq!(stat(mounted.join("p")).ino(), stat(mounted.join("q")).ino());
    mounted.unmount();
    let mounted = stack.mount();
    File::options().append(true).open(mounted.join("g")).unwrap().write_all(b"y").unwrap();
    assert_one_file(&mounted, &["d/f", "g"], b"xy");
    mounted.unmount();
}

#[test]
fn aliases_in_different_merged_directories() {
    let stack = Stack::new(3);
    stack.lower(2).file("p/a", "x").hardlink("q/b", "p/a").file("q/other", "o");
    stack.lower(1).file("p/more", "1");
    stack.lower(0).file("q/more", "2");
    let mounted = stack.mount();
    fs::rename(mounted.join("p/a"), mounted.join("q/c")).unwrap();
    assert_one_file(&mounted, &["q/b", "q/c"], b"x");
    fs::write(mounted.join("q/b"), "changed").unwrap();
    assert_one_file(&mounted, &["q/b", "q/c"], b"changed");
    assert!(!exists(mounted.join("p/a")));
    mounted.unmount();
    let mounted = stack.mount();
    assert_one_file(&mounted, &["q/b", "q/c"], b"changed");
    mounted.unmount();
}

#[test]
fn raced_copy_ups_of_two_names_make_one_file() {
    for _ in 0..10 {
        let stack = Stack::new(1);
        stack
            .lower(0)
            .file("a", vec![b'.'; 100_000])
            .hardlink("b", "a")
            .hardlink("c", "a")
            .hardlink("d", "a");
        let mounted = stack.mount();
        std::thread::scope(|scope| {
            for (index, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
                let path = mounted.join(name);
                scope.spawn(move || {
                    for_writing(path).write_all_at(&[b'0' + index as u8], index as u64 * 9999).unwrap()
                });
            }
        });
        let mut expected = vec![b'.'; 100_000];
        for index in 0..4 {
            expected[index * 9999] = b'0' + index as u8;
        }
        assert_one_file(&mounted, &["a", "b", "c", "d"], &expected);
        mounted.unmount();
        stack.assert_workdir_clean();
    }
}
