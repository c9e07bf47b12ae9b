//! Lookup: whiteouts, opaque directories, files over directories and the other way round.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use crate::{exists, names, read, stat};
use support::{Layer, OpaqueForm, Privilege, Program, Snapshot, Stack, WhiteoutForm};

/// The whiteout forms that the process can write and the program under test is bound to read.
fn whiteout_forms() -> Vec<WhiteoutForm> {
    use WhiteoutForm::*;
    match (Program::under_test(), Privilege::current()) {
        (Program::Unionmount(_), Privilege::Root) => vec![Device, Aufs, TrustedXattr],
        (Program::Unionmount(_), _) => vec![Device, Aufs, UserXattr],
        (Program::FuseOverlayfs(_), _) => vec![Device, Aufs],
        (Program::Kernel, _) => vec![Device, TrustedXattr],
    }
}

/// The same for opaque marks.
fn opaque_forms() -> Vec<OpaqueForm> {
    use OpaqueForm::*;
    match (Program::under_test(), Privilege::current()) {
        (Program::Unionmount(_), Privilege::Root) => vec![Trusted, Aufs],
        (Program::Unionmount(_), _) => vec![User, FuseOverlayfs, Aufs],
        (Program::FuseOverlayfs(_), Privilege::Root) => vec![Trusted, FuseOverlayfs, Aufs],
        (Program::FuseOverlayfs(_), _) => vec![User, FuseOverlayfs, Aufs],
        (Program::Kernel, _) => vec![Trusted],
    }
}

#[test]
fn the_topmost_entry_wins() {
    let stack = Stack::new(3);
    stack.lower(0).file("f", "top");
    stack.lower(1).file("f", "middle").file("only-middle", "m");
    stack.lower(2).file("f", "bottom").file("d/only-bottom", "b");
    stack.upper().file("u", "upper");
    let mount = stack.mount();
    assert_eq!(read(mount.join("f")), b"top");
    assert_eq!(read(mount.join("only-middle")), b"m");
    assert_eq!(read(mount.join("d/only-bottom")), b"b");
    assert_eq!(read(mount.join("u")), b"upper");
    assert_eq!(names(mount.path()), ["d", "f", "only-middle", "u"]);
    mount.unmount();
}

#[test]
fn whiteouts_of_every_form_hide_what_lies_below_and_nothing_else() {
    for form in whiteout_forms() {
        let stack = Stack::new(3);
        stack
            .lower(2)
            .file("gone", "x")
            .file("kept", "y")
            .file("d/gone", "x")
            .file("d/kept", "y")
            .file("tree/in/it", "z");
        stack.lower(1).whiteout("gone", form).whiteout("d/gone", form).whiteout("tree", form);
        stack.lower(0).file("d/new", "n");
        let mount = stack.mount();
        for hidden in ["gone", "d/gone", "tree", "tree/in", ".wh.gone", "d/.wh.gone"] {
            assert!(!exists(mount.join(hidden)), "{form:?}: {hidden} is there");
        }
        assert_eq!(names(mount.path()), ["d", "kept"], "{form:?}");
        assert_eq!(names(mount.join("d")), ["kept", "new"], "{form:?}");
        assert_eq!(read(mount.join("d/kept")), b"y");
        mount.unmount();
    }
}

#[test]
fn a_whiteout_acts_on_the_layers_below_only() {
    for form in whiteout_forms() {
        let stack = Stack::new(3);
        stack.lower(2).file("f", "bottom").file("d/bottom", "b");
        stack.lower(1).whiteout("f", form).whiteout("d", form);
        stack.lower(0).file("f", "top").file("d/top", "t");
        let mount = stack.mount();
        assert_eq!(read(mount.join("f")), b"top", "{form:?}");
        assert_eq!(names(mount.join("d")), ["top"], "{form:?}: a directory over a whiteout starts anew");
        assert!(!exists(mount.join("d/bottom")), "{form:?}");
        mount.unmount();
    }
}

#[test]
fn opaque_directories_of_every_form_end_the_descent() {
    for form in opaque_forms() {
        let stack = Stack::new(3);
        stack.lower(2).file("d/bottom", "b").file("d/sub/bottom", "b").file("d/both", "bottom");
        stack.lower(1).opaque("d", form).file("d/middle", "m").file("d/both", "middle").dir("d/sub");
        stack.lower(0).file("d/top", "t");
        let mount = stack.mount();
        assert_eq!(names(mount.join("d")), ["both", "middle", "sub", "top"], "{form:?}");
        assert!(!exists(mount.join("d/bottom")), "{form:?}");
        assert!(names(mount.join("d/sub")).is_empty(), "{form:?}: opacity holds for the whole subtree");
        assert_eq!(read(mount.join("d/both")), b"middle");
        assert!(!exists(mount.join("d/.wh..wh..opq")), "{form:?}");
        mount.unmount();
    }
}

#[test]
fn an_opaque_mark_with_another_value_than_y_hides_nothing() {
    let stack = Stack::new(2);
    let name = if Privilege::current() == Privilege::Root {
        "trusted.overlay.opaque"
    } else {
        "user.overlay.opaque"
    };
    stack.lower(0).dir("d").xattr("d", name, "n").file("d/top", "t");
    stack.lower(1).file("d/bottom", "b");
    let mount = stack.mount();
    assert_eq!(names(mount.join("d")), ["bottom", "top"]);
    mount.unmount();
}

#[test]
fn files_over_directories_and_directories_over_files() {
    let stack = Stack::new(4);
    stack.lower(3).file("a/deep", "1").file("b", "file below").file("c/old", "1");
    stack
        .lower(2)
        .file("a", "file over directory")
        .file("b/inside", "directory over file")
        .file("c", "in between");
    stack.lower(1).dir("c").file("c/new", "2");
    stack.lower(0).symlink("l", "a");
    let mount = stack.mount();
    assert_eq!(read(mount.join("a")), b"file over directory");
    assert!(!exists(mount.join("a")) || std::fs::read(mount.join("a/deep")).is_err());
    assert_eq!(read(mount.join("b/inside")), b"directory over file");
    assert_eq!(names(mount.join("c")), ["new"], "the file in between hides the lowest directory");
    assert_eq!(read(mount.join("l")), b"file over directory");
    mount.unmount();
}

#[test]
fn a_directory_has_the_attributes_of_its_topmost_layer() {
    let stack = Stack::new(2);
    stack.lower(1).dir("d").mode("d", 0o700).mtime("d", 1_000_000_001, 5);
    stack.lower(0).dir("d").mode("d", 0o711).mtime("d", 1_000_000_002, 6);
    let mount = stack.mount();
    assert_eq!(crate::mode(mount.join("d")), 0o711);
    use std::os::unix::fs::MetadataExt;
    assert_eq!((stat(mount.join("d")).mtime(), stat(mount.join("d")).mtime_nsec()), (1_000_000_002, 6));
    mount.unmount();
}

/// fuse-overlayfs 1.10 gets this wrong: a lower's directory holds a `.wh.X`, an upper replaces a sibling directory by
/// an opaque one, and names of the lower show through it.
#[test]
fn an_opaque_directory_beside_a_whiteout_lets_nothing_through() {
    let stack = Stack::new(3);
    stack.lower(2).file("d/x", "1").file("d/y", "2").file("e/x", "1");
    stack.lower(1).whiteout("d/x", WhiteoutForm::Aufs).file("e/.wh.z", "");
    let form = opaque_forms()[0];
    stack.lower(0).opaque("d", form).file("d/new", "n").opaque("e", form);
    if Program::under_test() == Program::Kernel {
        support::skip!("the kernel does not know AUFS's whiteouts");
    }
    let mount = stack.mount();
    assert_eq!(names(mount.join("d")), ["new"]);
    assert!(!exists(mount.join("d/y")) && !exists(mount.join("d/x")));
    assert!(names(mount.join("e")).is_empty());
    assert!(!exists(mount.join("e/x")));
    mount.unmount();
}

#[test]
fn the_private_files_of_aufs_are_not_shown() {
    if Program::under_test() == Program::Kernel {
        support::skip!("the kernel does not know AUFS's files");
    }
    let stack = Stack::new(1);
    stack
        .lower(0)
        .file(".wh..wh.plnk/secret", "x")
        .file(".wh..wh.aufs", "")
        .file("f", "1")
        .file("d/.wh..wh.orph/y", "");
    let mount = stack.mount();
    assert_eq!(names(mount.path()), ["d", "f"]);
    assert!(!exists(mount.join(".wh..wh.aufs")) && !exists(mount.join(".wh..wh.plnk/secret")));
    assert!(names(mount.join("d")).is_empty());
    mount.unmount();
}

#[test]
fn names_are_bytes() {
    let stack = Stack::new(2);
    let odd = OsStr::from_bytes(b"caf\xe9 \xff\n\\:,=");
    let long = "n".repeat(255);
    let wide = "é".repeat(127);
    stack.lower(1).file(odd, "odd").file(&long, "long").file(&wide, "wide");
    stack.lower(0).file(OsStr::from_bytes(b"dir\xfe/x"), "in");
    let mount = stack.mount();
    assert_eq!(read(mount.join(odd)), b"odd");
    assert_eq!(read(mount.join(&long)), b"long");
    assert_eq!(read(mount.join(&wide)), b"wide");
    assert_eq!(read(mount.join(OsStr::from_bytes(b"dir\xfe/x"))), b"in");
    std::fs::write(mount.join(odd), "changed").unwrap();
    std::fs::remove_file(mount.join(&long)).unwrap();
    std::fs::write(mount.join("m".repeat(255)), "made").unwrap();
    assert_eq!(read(mount.join(odd)), b"changed");
    assert!(!exists(mount.join(&long)));
    assert_eq!(read(mount.join("m".repeat(255))), b"made");
    support::assert_errno!(std::fs::write(mount.join("o".repeat(256)), "x"), rustix::io::Errno::NAMETOOLONG);
    support::assert_errno!(std::fs::metadata(mount.join("o".repeat(256))), rustix::io::Errno::NAMETOOLONG);
    mount.unmount();
    // A whiteout of a name of 255 bytes has no room for `.wh.`.
    let mount = stack.mount();
    assert!(!exists(mount.join(&long)));
    assert_eq!(read(mount.join(odd)), b"changed");
    mount.unmount();
}

#[test]
fn layers_may_be_symlinks_and_have_odd_paths() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "1");
    let link = stack.scratch().path().join("link");
    std::os::unix::fs::symlink(stack.lower(0).root(), &link).unwrap();
    let mut options = stack.options();
    options.lowers = vec![link.join("../").join("lower0"), link];
    options.lowers.truncate(1);
    let mount = support::Mount::new(&options, stack.mountpoint());
    assert_eq!(read(mount.join("f")), b"1");
    mount.unmount();
    if !Program::under_test().is_unionmount() {
        support::skip!("odd paths: the peers spell them otherwise");
    }
    let odd = Layer::at(stack.scratch().path().join("a:b,c\\d e"));
    odd.file("g", "2");
    options.lowers = vec![odd.root().to_owned(), stack.lower(0).root().to_owned()];
    let mount = support::Mount::new(&options, stack.mountpoint());
    assert_eq!(names(mount.path()), ["f", "g"]);
    mount.unmount();
}

#[test]
fn a_mount_without_upper_is_read_only_and_shows_the_same_tree() {
    let stack = Stack::new(2);
    stack.lower(1).file("a", "1").file("d/b", "2").symlink("l", "d/b").fifo("p");
    stack.lower(0).whiteout("a", WhiteoutForm::Device).file("d/c", "3");
    let writable = stack.mount();
    let expected = Snapshot::take(writable.path());
    writable.unmount();
    let mount = stack.mount_read_only();
    let found = Snapshot::take(mount.path());
    assert_eq!(support::diff(&expected, &found, &support::Fields { ..support::Fields::content() }), "");
    assert_eq!(names(mount.path()), ["d", "l", "p"]);
    use rustix::io::Errno;
    support::assert_errno!(std::fs::write(mount.join("new"), "x"), Errno::ROFS);
    support::assert_errno!(std::fs::remove_file(mount.join("l")), Errno::ROFS);
    support::assert_errno!(std::fs::create_dir(mount.join("n")), Errno::ROFS);
    support::assert_errno!(std::fs::rename(mount.join("d"), mount.join("e")), Errno::ROFS);
    support::assert_errno!(std::fs::File::options().write(true).open(mount.join("d/b")), Errno::ROFS);
    mount.unmount();
}

/// A layer may be written by somebody else, before the mount and under it.
#[test]
fn nothing_leads_out_of_a_layer() {
    if !Program::under_test().is_unionmount() {
        support::skip!("the peers promise nothing about layers that change");
    }
    let stack = Stack::new(2);
    let outside = stack.scratch().dir("outside");
    fs::write(outside.join("secret"), "secret").unwrap();
    // In the last layer, where a lookup of the directory opens nothing in it yet.
    stack.lower(1).file("later/secret", "own").file("deep/er/secret", "own");
    let mark = if Privilege::current() == Privilege::Root {
        "trusted.overlay.redirect"
    } else {
        "user.overlay.redirect"
    };
    for (name, redirect) in [("up", ".."), ("far", "../outside"), ("abs", "/../outside"), ("in", "a/../..")] {
        stack.lower(0).file(format!("{name}/own"), "own").xattr(name, mark, redirect);
    }
    // For each layer that lies below another to be asked.
    stack.lower(1).symlink("outside", &outside).file("d/x", "x");
    stack.lower(0).dir("to").xattr("to", mark, "/outside");
    let mount = stack.mount();
    for name in ["up", "far", "abs", "in", "to"] {
        assert!(fs::read(mount.join(name).join("secret")).is_err(), "{name} leads out");
    }
    // Known, and then replaced under the mount by links that lead out.
    assert!(exists(mount.join("later")) && exists(mount.join("deep/er")));
    let root = stack.lower(1).root();
    for (name, moved) in [("later", "was"), ("deep", "was deep")] {
        fs::rename(root.join(name), root.join(moved)).unwrap();
        std::os::unix::fs::symlink(&outside, root.join(name)).unwrap();
    }
    fs::create_dir(outside.join("er")).unwrap();
    fs::write(outside.join("er/secret"), "secret").unwrap();
    for path in ["later/secret", "deep/er/secret"] {
        let found = fs::read(mount.join(path)).unwrap_or_default();
        assert_ne!(found, b"secret", "{path} leads out");
    }
    mount.unmount();
}
