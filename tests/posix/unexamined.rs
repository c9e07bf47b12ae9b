//! What can't be examined takes nothing else with it: it is listed, and answers its own error.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use rustix::io::Errno;

use crate::{exists, mode, names, read};
use support::{Mount, Options, Privilege, Program, Stack, list};

#[test]
fn a_dead_mount_inside_a_lower() {
    support::needs_root!();
    if !Program::under_test().is_unionmount() {
        support::skip!("it needs a mount that can be killed");
    }
    let inner = Stack::new(1);
    let stack = Stack::new(2);
    stack.lower(0).file("before", "x").dir("dead").dir("d/merged").file("z", "x");
    stack.lower(1).file("d/merged/low", "x").file("d/other", "x");
    let dead = ["dead", "d/merged"].map(|place| {
        let mount = Mount::new(&inner.options_with(&[]), &stack.lower(0).root().join(place));
        mount.kill_daemon();
        mount
    });
    let mount = stack.mount();
    assert_eq!(names(mount.path()), ["before", "d", "dead", "z"]);
    assert_eq!(names(mount.join("d")), ["merged", "other"]);
    for place in ["dead", "d/merged"] {
        support::assert_errno!(fs::metadata(mount.join(place)), Errno::NOTCONN);
        support::assert_errno!(fs::read_dir(mount.join(place)), Errno::NOTCONN);
    }
    assert_eq!(read(mount.join("z")), b"x");
    fs::write(mount.join("d/new"), "x").unwrap();
    fs::remove_file(mount.join("before")).unwrap();
    assert_eq!(names(mount.path()), ["d", "dead", "z"]);
    mount.unmount();
    dead.into_iter().for_each(Mount::kill_dead);
}

#[test]
fn a_redirect_that_cannot_be_followed() {
    support::needs_root!();
    let stack = Stack::new(2);
    stack.lower(0).dir("d/lost").file("d/f", "x").xattr("d/lost", "trusted.overlay.redirect", "a/../b");
    stack.lower(1).file("d/g", "x");
    let mount = stack.mount();
    assert_eq!(names(mount.join("d")), ["f", "g", "lost"]);
    if Program::under_test().is_unionmount() {
        support::assert_errno!(fs::metadata(mount.join("d/lost")), Errno::IO);
    }
    assert_eq!(read(mount.join("d/g")), b"x");
    mount.unmount();
}

/// An ordinary user's daemon is bound by the modes of the user's own directories.
#[test]
fn directories_that_their_owner_may_not_read() {
    let stack = Stack::new(1);
    stack.lower(0).file("x/f", "a").file("other", "x").mode("x", 0o311);
    let mount = stack.mount();
    fs::rename(mount.join("x"), mount.join("y")).unwrap();
    assert_eq!(names(mount.path()), ["other", "y"]);
    assert_eq!(mode(mount.join("y")), 0o311);
    fs::write(mount.join("y/new"), "b").unwrap();
    // Made without any rights, removed, and made again where something was deleted.
    let bare = |name: &str| {
        fs::create_dir(mount.join(name)).unwrap();
        fs::set_permissions(mount.join(name), PermissionsExt::from_mode(0o0)).unwrap();
    };
    bare("n");
    fs::remove_dir(mount.join("n")).unwrap();
    assert!(!exists(mount.join("n")));
    bare("n");
    fs::rename(mount.join("n"), mount.join("n2")).unwrap();
    assert_eq!(mode(mount.join("n2")), 0);
    mount.unmount();
    let mount = stack.mount();
    assert_eq!(names(mount.path()), ["n2", "other", "y"]);
    assert_eq!((read(mount.join("y/f")), read(mount.join("y/new"))), (b"a".to_vec(), b"b".to_vec()));
    assert_eq!((mode(mount.join("n2")), mode(mount.join("y"))), (0, 0o311));
    fs::remove_dir(mount.join("n2")).unwrap();
    fs::rename(mount.join("y"), mount.join("again")).unwrap();
    fs::set_permissions(mount.join("again"), PermissionsExt::from_mode(0o711)).unwrap();
    assert_eq!(mode(mount.join("again")), 0o711);
    if Privilege::current() != Privilege::User {
        // Only its own layer's mode keeps an ordinary user's daemon from listing it.
        assert_eq!(names(mount.join("again")), ["f", "new"]);
        fs::remove_dir_all(mount.join("again")).unwrap();
    }
    mount.unmount();
    fs::set_permissions(stack.lower(0).root().join("x"), PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn types_are_listed_where_the_layer_tells_them() {
    support::needs_root!();
    if !Program::under_test().is_unionmount() {
        support::skip!("the kernel's overlayfs asks");
    }
    let stack = Stack::new(2);
    stack.lower(0).dir("lost").xattr("lost", "trusted.overlay.redirect", "..");
    let mount = stack.mount();
    let lost = list(mount.path()).unwrap().into_iter().find(|entry| entry.name == "lost").unwrap();
    assert_eq!(lost.kind, Some(support::Kind::Directory));
    mount.unmount();
}

#[test]
fn what_keeps_a_mount_from_its_start_is_named() {
    support::needs_root!();
    if !Program::under_test().is_unionmount() {
        support::skip!("others have other words");
    }
    let stack = Stack::new(1);
    std::os::unix::fs::symlink("elsewhere", stack.work().join("index")).unwrap();
    let options: Options = stack.options();
    let Err(error) = Mount::try_with_program(&Program::under_test(), &options, stack.mountpoint()) else {
        panic!("it mounted");
    };
    let work = stack.work().display().to_string();
    for part in [&work[..], "index", "remove it"] {
        assert!(error.stderr.contains(part), "{part} is not in: {}", error.stderr);
    }
}

/// The copy of a file that is truncated appears truncated, so that no step after can fail and leave it empty.
#[test]
fn a_truncation_is_one_step() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "0123456789").file("g", "0123456789").mtime("f", 5, 0).mtime("g", 5, 0);
    let mount = stack.mount();
    fs::File::options().write(true).open(mount.join("f")).unwrap().set_len(4).unwrap();
    let mut g = fs::File::create(mount.join("g")).unwrap();
    g.write_all(b"new").unwrap();
    drop(g);
    assert_eq!((read(mount.join("f")), read(mount.join("g"))), (b"0123".to_vec(), b"new".to_vec()));
    use std::os::unix::fs::MetadataExt;
    assert!(crate::stat(mount.join("f")).mtime() > 5, "it was changed now");
    mount.unmount();
}
