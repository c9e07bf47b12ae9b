//! rename and renameat2, in all forms. No EXDEV, ever.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::{exists, names, read, stat};
use support::{Mount, OpaqueForm, Privilege, Program, Stack, WhiteoutForm};

fn rename(mount: &Mount, from: &str, to: &str, flags: RenameFlags) -> rustix::io::Result<()> {
    renameat_with(CWD, mount.join(from), CWD, mount.join(to), flags)
}

/// Unmounts, mounts again and returns the mount: what was renamed must be found again.
fn again(mounted: Mount, stack: &Stack) -> Mount {
    mounted.unmount();
    stack.assert_workdir_clean();
    stack.mount()
}

#[test]
fn files_of_every_placement() {
    let stack = Stack::new(2);
    stack.lower(1).file("low", "low").file("low2", "low2").file("d/deep", "deep");
    stack.lower(0).file("low", "low over low").whiteout("white", WhiteoutForm::Device);
    stack.upper().file("up", "up");
    let before = stack.lower_snapshots();
    let mut mounted = stack.mount();
    for (from, to, content) in [
        ("low", "to-nothing", "low over low"),
        ("to-nothing", "low", "low over low"),
        ("low2", "up", "low2"),
        ("up", "white", "low2"),
        ("d/deep", "low", "deep"),
        ("low", "d/again", "deep"),
        ("white", "d/deep", "low2"),
    ] {
        let ino = stat(mounted.join(from)).ino();
        fs::rename(mounted.join(from), mounted.join(to)).unwrap();
        assert!(!exists(mounted.join(from)), "{from} is still there");
        assert_eq!(read(mounted.join(to)), content.as_bytes(), "{from} → {to}");
        assert_eq!(stat(mounted.join(to)).ino(), ino, "{from} → {to}: another inode");
        mounted = again(mounted, &stack);
        assert!(!exists(mounted.join(from)), "{from} is back after a remount");
        assert_eq!(read(mounted.join(to)), content.as_bytes(), "{from} → {to}, remounted");
    }
    assert_eq!(names(mounted.path()), ["d"]);
    assert_eq!(names(mounted.join("d")), ["again", "deep"]);
    mounted.unmount();
    stack.assert_lowers_unchanged(&before);
}

#[test]
fn merged_and_lower_directories_are_renamed_whole() {
    let stack = Stack::new(3);
    stack.lower(2).file("m/a", "1").file("m/sub/deep", "2").file("l/x", "3");
    stack.lower(1).file("m/b", "4").file("m/sub/other", "5");
    stack.lower(0).whiteout("m/a", WhiteoutForm::Device);
    stack.upper().file("m/u", "6");
    let before = stack.lower_snapshots();
    let mut mounted = stack.mount();
    let (merged, lower) = (stat(mounted.join("m")).ino(), stat(mounted.join("l")).ino());
    fs::rename(mounted.join("m"), mounted.join("n")).unwrap();
    fs::rename(mounted.join("l"), mounted.join("k")).unwrap();
    for round in 0..2 {
        assert_eq!(names(mounted.path()), ["k", "n"], "round {round}");
        assert_eq!(names(mounted.join("n")), ["b", "sub", "u"]);
        assert_eq!(names(mounted.join("n/sub")), ["deep", "other"]);
        assert_eq!(read(mounted.join("n/sub/deep")), b"2");
        assert_eq!(read(mounted.join("k/x")), b"3");
        assert_eq!(
            (stat(mounted.join("n")).ino(), stat(mounted.join("k")).ino()),
            (merged, lower),
            "round {round}"
        );
        mounted = again(mounted, &stack);
    }
    // Into another directory, then changes below, then again.
    fs::create_dir(mounted.join("box")).unwrap();
    fs::rename(mounted.join("n"), mounted.join("box/n")).unwrap();
    fs::write(mounted.join("box/n/sub/deep"), "changed").unwrap();
    fs::remove_file(mounted.join("box/n/b")).unwrap();
    fs::rename(mounted.join("box/n/sub"), mounted.join("sub")).unwrap();
    for _ in 0..2 {
        assert_eq!(names(mounted.path()), ["box", "k", "sub"]);
        assert_eq!(names(mounted.join("box/n")), ["u"]);
        assert_eq!(names(mounted.join("sub")), ["deep", "other"]);
        assert_eq!(read(mounted.join("sub/deep")), b"changed");
        assert_eq!(read(mounted.join("sub/other")), b"5");
        mounted = again(mounted, &stack);
    }
    // A new directory of an old name shows nothing of what was there.
    fs::create_dir(mounted.join("m")).unwrap();
    fs::create_dir(mounted.join("l")).unwrap();
    for _ in 0..2 {
        assert!(names(mounted.join("m")).is_empty() && names(mounted.join("l")).is_empty());
        mounted = again(mounted, &stack);
    }
    mounted.unmount();
    stack.assert_lowers_unchanged(&before);
}

#[test]
fn over_empty_merged_directories_with_hidden_content() {
    let stack = Stack::new(2);
    stack.lower(1).file("target/hidden", "1").file("target/deleted", "2").file("source/a", "3").dir("plain");
    stack.lower(0).whiteout("target/hidden", WhiteoutForm::Device);
    let mut mounted = stack.mount();
    support::assert_errno!(
        rename(&mounted, "source", "target", RenameFlags::empty()),
        Errno::NOTEMPTY | Errno::EXIST
    );
    fs::remove_file(mounted.join("target/deleted")).unwrap();
    assert!(names(mounted.join("target")).is_empty());
    fs::rename(mounted.join("source"), mounted.join("target")).unwrap();
    for _ in 0..2 {
        assert_eq!(names(mounted.path()), ["plain", "target"]);
        assert_eq!(names(mounted.join("target")), ["a"], "hidden content came back");
        assert_eq!(read(mounted.join("target/a")), b"3");
        mounted = again(mounted, &stack);
    }
    fs::create_dir(mounted.join("new")).unwrap();
    fs::write(mounted.join("new/n"), "n").unwrap();
    fs::rename(mounted.join("new"), mounted.join("plain")).unwrap();
    for _ in 0..2 {
        assert_eq!(names(mounted.join("plain")), ["n"]);
        mounted = again(mounted, &stack);
    }
    mounted.unmount();
}

#[test]
fn a_directory_renamed_onto_the_name_of_another_does_not_merge_with_it() {
    let stack = Stack::new(1);
    stack.lower(0).file("a/1", "1").file("b/2", "2");
    let mut mounted = stack.mount();
    fs::rename(mounted.join("a"), mounted.join("old-a")).unwrap();
    fs::rename(mounted.join("b"), mounted.join("a")).unwrap();
    for _ in 0..2 {
        assert_eq!(names(mounted.join("a")), ["2"]);
        assert_eq!(names(mounted.join("old-a")), ["1"]);
        assert!(!exists(mounted.join("b")));
        mounted = again(mounted, &stack);
    }
    mounted.unmount();
}

#[test]
fn no_replace_replaces_nothing() {
    let stack = Stack::new(2);
    stack.lower(1).file("a", "a").file("b", "b").dir("d").file("gone", "g");
    stack.lower(0).whiteout("gone", WhiteoutForm::Device);
    let mounted = stack.mount();
    for to in ["b", "d", "a"] {
        support::assert_errno!(rename(&mounted, "a", to, RenameFlags::NOREPLACE), Errno::EXIST);
    }
    assert_eq!((read(mounted.join("a")), read(mounted.join("b"))), (b"a".to_vec(), b"b".to_vec()));
    rename(&mounted, "a", "gone", RenameFlags::NOREPLACE).unwrap();
    assert_eq!(read(mounted.join("gone")), b"a");
    mounted.unmount();
}

#[test]
fn exchange_swaps_any_two() {
    let stack = Stack::new(2);
    stack.lower(1).file("f", "f").file("d/x", "x").file("e/y", "y").symlink("l", "target");
    stack.lower(0).file("d/z", "z");
    stack.upper().file("u/v", "v");
    let mut mounted = stack.mount();
    let before = (stat(mounted.join("f")).ino(), stat(mounted.join("d")).ino());
    rename(&mounted, "f", "d", RenameFlags::EXCHANGE).unwrap();
    rename(&mounted, "e", "u", RenameFlags::EXCHANGE).unwrap();
    for _ in 0..2 {
        assert_eq!(read(mounted.join("d")), b"f");
        assert_eq!(names(mounted.join("f")), ["x", "z"]);
        assert_eq!((stat(mounted.join("d")).ino(), stat(mounted.join("f")).ino()), before);
        assert_eq!(names(mounted.join("e")), ["v"]);
        assert_eq!(names(mounted.join("u")), ["y"]);
        mounted = again(mounted, &stack);
    }
    rename(&mounted, "l", "u/y", RenameFlags::EXCHANGE).unwrap();
    for _ in 0..2 {
        assert_eq!(read(mounted.join("l")), b"y");
        assert_eq!(fs::read_link(mounted.join("u/y")).unwrap(), std::path::Path::new("target"));
        mounted = again(mounted, &stack);
    }
    support::assert_errno!(rename(&mounted, "l", "nothing", RenameFlags::EXCHANGE), Errno::NOENT);
    support::assert_errno!(rename(&mounted, "f", "f/x", RenameFlags::EXCHANGE), Errno::INVAL);
    mounted.unmount();
}

#[test]
fn what_may_not_be_renamed() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "f").file("d/sub/x", "x").dir("empty");
    let mounted = stack.mount();
    let plain = RenameFlags::empty();
    support::assert_errno!(rename(&mounted, "missing", "x", plain), Errno::NOENT);
    support::assert_errno!(rename(&mounted, "f", "missing/x", plain), Errno::NOENT);
    support::assert_errno!(rename(&mounted, "d", "d/sub/inside", plain), Errno::INVAL);
    support::assert_errno!(rename(&mounted, "d", "f", plain), Errno::NOTDIR);
    support::assert_errno!(rename(&mounted, "f", "empty", plain), Errno::ISDIR);
    support::assert_errno!(rename(&mounted, "empty", "d", plain), Errno::NOTEMPTY | Errno::EXIST);
    support::assert_errno!(rename(&mounted, "d/sub", "d", plain), Errno::NOTEMPTY | Errno::EXIST);
    support::assert_errno!(rename(&mounted, "f", "f/x", plain), Errno::NOTDIR);
    assert_eq!(names(mounted.path()), ["d", "empty", "f"]);
    assert_eq!(read(mounted.join("d/sub/x")), b"x");
    mounted.unmount();
    assert!(
        names(stack.upper().root()).is_empty() || Program::under_test() == Program::Kernel,
        "something was copied up"
    );
}

/// RENAME_WHITEOUT is for the lower half of a union; through the top it would make a marker.
#[test]
fn rename_whiteout_is_refused() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "f");
    let mounted = stack.mount();
    support::assert_errno!(rename(&mounted, "f", "g", RenameFlags::WHITEOUT), Errno::INVAL | Errno::PERM);
    assert_eq!(names(mounted.path()), ["f"]);
    mounted.unmount();
}

#[test]
fn an_opaque_directory_stays_opaque_where_it_goes() {
    let form = if Privilege::current() == Privilege::Root { OpaqueForm::Trusted } else { OpaqueForm::User };
    let stack = Stack::new(2);
    stack.lower(1).file("d/old", "1").file("e/old", "1");
    stack.lower(0).opaque("d", form).file("d/new", "2");
    let mut mounted = stack.mount();
    fs::remove_file(mounted.join("e/old")).unwrap();
    fs::rename(mounted.join("d"), mounted.join("e")).unwrap();
    for _ in 0..2 {
        assert_eq!(names(mounted.join("e")), ["new"]);
        assert_eq!(names(mounted.path()), ["e"]);
        mounted = again(mounted, &stack);
    }
    mounted.unmount();
}

#[test]
fn a_long_chain_of_renames_of_nested_directories() {
    let stack = Stack::new(2);
    stack.lower(1).file("a/b/c/d/file", "deep").file("a/b/c/side", "s");
    stack.lower(0).file("a/b/top", "t");
    let mut mounted = stack.mount();
    for (from, to) in [
        ("a/b/c/d", "a/D"),
        ("a/b/c", "C"),
        ("a/D", "C/D"),
        ("a/b", "C/D/B"),
        ("C", "a/C"),
        ("a", "A"),
        ("A/C/D", "D"),
    ] {
        fs::rename(mounted.join(from), mounted.join(to))
            .unwrap_or_else(|error| panic!("{from} → {to}: {error}"));
        mounted = again(mounted, &stack);
    }
    assert_eq!(read(mounted.join("D/file")), b"deep");
    assert_eq!(read(mounted.join("D/B/top")), b"t");
    assert_eq!(names(mounted.join("D/B")), ["top"]);
    assert_eq!(read(mounted.join("A/C/side")), b"s");
    assert_eq!(names(mounted.path()), ["A", "D"]);
    mounted.unmount();
}
