//! Removing: whiteouts, opaque directories, and nothing shining through.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use rustix::io::Errno;

use crate::{exists, names, read, stat};
use support::{Privilege, Program, Stack, WhiteoutForm, read_xattrs};

fn is_whiteout(stack: &Stack, path: &str) -> bool {
    let place = stack.upper().root().join(path);
    exists(&place) && stat(&place).file_type().is_char_device() && stat(&place).rdev() == 0
}

fn is_opaque(stack: &Stack, path: &str) -> bool {
    let place = stack.upper().root().join(path);
    let namespace = if Privilege::current() == Privilege::Root { "trusted" } else { "user" };
    let xattrs = read_xattrs(&place).unwrap();
    xattrs.get(format!("{namespace}.overlay.opaque").as_bytes()).is_some_and(|value| value == b"y")
}

#[test]
fn removing_a_lower_leaves_a_whiteout_and_removing_an_upper_none() {
    let stack = Stack::new(2);
    stack.lower(1).file("low", "1").file("both", "1").dir("lowdir").symlink("link", "low").fifo("fifo");
    stack.upper().file("both", "2").file("up", "3");
    let before = stack.lower_snapshots();
    let mount = stack.mount();
    for name in ["low", "both", "link", "fifo", "up"] {
        fs::remove_file(mount.join(name)).unwrap();
        assert!(!exists(mount.join(name)));
        support::assert_errno!(fs::remove_file(mount.join(name)), Errno::NOENT);
    }
    fs::remove_dir(mount.join("lowdir")).unwrap();
    assert!(names(mount.path()).is_empty());
    for name in ["low", "both", "link", "fifo", "lowdir"] {
        assert!(is_whiteout(&stack, name), "no whiteout for {name}");
    }
    assert!(!exists(stack.upper().root().join("up")), "a whiteout that hides nothing");
    mount.unmount();
    stack.assert_lowers_unchanged(&before);
    stack.assert_workdir_clean();
    let mount = stack.mount();
    assert!(names(mount.path()).is_empty());
    mount.unmount();
}

#[test]
fn what_is_made_over_a_whiteout_starts_anew() {
    let stack = Stack::new(1);
    stack.lower(0).file("d/old", "1").file("d/sub/old", "2").file("f", "old");
    let mut mount = stack.mount();
    fs::remove_dir_all(mount.join("d")).unwrap();
    fs::create_dir(mount.join("d")).unwrap();
    assert!(names(mount.join("d")).is_empty());
    fs::create_dir(mount.join("d/sub")).unwrap();
    fs::remove_file(mount.join("f")).unwrap();
    fs::create_dir(mount.join("f")).unwrap();
    for _ in 0..2 {
        assert_eq!(names(mount.join("d")), ["sub"]);
        assert!(names(mount.join("d/sub")).is_empty());
        assert!(names(mount.join("f")).is_empty());
        mount.unmount();
        assert!(is_opaque(&stack, "d"), "a directory over a whiteout must be opaque");
        mount = stack.mount();
    }
    fs::remove_dir(mount.join("f")).unwrap();
    fs::write(mount.join("f"), "new").unwrap();
    assert_eq!(read(mount.join("f")), b"new");
    mount.unmount();
    stack.assert_workdir_clean();
}

#[test]
fn merged_directories_are_removed_when_all_in_them_is_hidden() {
    let stack = Stack::new(3);
    stack.lower(2).file("d/a", "1").file("d/b", "2").file("keep/x", "3");
    stack.lower(1).whiteout("d/a", WhiteoutForm::Device);
    stack.lower(0).file("d/c", "4");
    stack.upper().file("d/u", "5");
    let mount = stack.mount();
    for name in ["b", "c", "u"] {
        support::assert_errno!(fs::remove_dir(mount.join("d")), Errno::NOTEMPTY);
        fs::remove_file(mount.join("d").join(name)).unwrap();
    }
    fs::remove_dir(mount.join("d")).unwrap();
    assert!(!exists(mount.join("d")));
    assert_eq!(names(mount.path()), ["keep"]);
    assert!(is_whiteout(&stack, "d"));
    mount.unmount();
    stack.assert_workdir_clean();
    let mount = stack.mount();
    assert_eq!(names(mount.path()), ["keep"]);
    fs::create_dir(mount.join("d")).unwrap();
    assert!(names(mount.join("d")).is_empty());
    mount.unmount();
}

#[test]
fn an_upper_directory_full_of_whiteouts_is_removed() {
    let stack = Stack::new(1);
    for index in 0..100 {
        stack.lower(0).file(format!("d/f{index}"), "");
    }
    let mount = stack.mount();
    for index in 0..100 {
        fs::remove_file(mount.join(format!("d/f{index}"))).unwrap();
    }
    fs::remove_dir(mount.join("d")).unwrap();
    assert!(names(mount.path()).is_empty());
    mount.unmount();
    assert!(is_whiteout(&stack, "d"));
    stack.assert_workdir_clean();
}

#[test]
fn no_whiteout_is_written_into_an_opaque_directory() {
    let stack = Stack::new(1);
    stack.lower(0).file("d/x", "1");
    let mount = stack.mount();
    fs::remove_dir_all(mount.join("d")).unwrap();
    fs::create_dir(mount.join("d")).unwrap();
    fs::write(mount.join("d/x"), "2").unwrap();
    fs::remove_file(mount.join("d/x")).unwrap();
    assert!(!exists(mount.join("d/x")));
    mount.unmount();
    assert!(names(stack.upper().root().join("d")).is_empty(), "the kernel calls such a layer corrupt");
}

#[test]
fn wrong_kinds_are_refused() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "1").file("d/x", "2");
    let mount = stack.mount();
    support::assert_errno!(fs::remove_dir(mount.join("f")), Errno::NOTDIR);
    support::assert_errno!(fs::remove_file(mount.join("d")), Errno::ISDIR);
    support::assert_errno!(fs::remove_dir(mount.join("d")), Errno::NOTEMPTY);
    support::assert_errno!(fs::remove_dir(mount.join("missing")), Errno::NOENT);
    support::assert_errno!(fs::create_dir(mount.join("f")), Errno::EXIST);
    support::assert_errno!(fs::create_dir(mount.join("f/x")), Errno::NOTDIR);
    assert_eq!((read(mount.join("f")), read(mount.join("d/x"))), (b"1".to_vec(), b"2".to_vec()));
    mount.unmount();
    assert!(names(stack.upper().root()).is_empty() || Program::under_test() == Program::Kernel);
}

#[test]
fn a_deep_tree_is_removed_and_made_again() {
    let stack = Stack::new(2);
    for index in 0..200 {
        stack.lower(index % 2).file(format!("t/{}/{}/f{index}", index % 5, index % 3), format!("{index}"));
    }
    let mount = stack.mount();
    for round in 0..3 {
        fs::remove_dir_all(mount.join("t")).unwrap();
        assert!(!exists(mount.join("t")));
        for index in 0..50 {
            let directory = mount.join(format!("t/{}/{}", index % 5, index % 3));
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join(format!("f{index}")), format!("round {round}")).unwrap();
        }
        assert_eq!(read(mount.join("t/0/0/f0")), format!("round {round}").into_bytes());
        assert_eq!(names(mount.join("t")).len(), 5);
    }
    mount.unmount();
    stack.assert_workdir_clean();
}
