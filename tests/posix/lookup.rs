//! Lookup and listing: whiteouts, opaque directories, files over directories and the other way round.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use crate::common::{
    Fields, Layer, OpaqueForm, Privilege, Program, Scratch, Snapshot, Stack, WhiteoutForm, diff, list,
};

/// The whiteout forms that the process can write and the program under test is bound to read.
fn whiteout_forms() -> Vec<WhiteoutForm> {
    use WhiteoutForm::*;
    match (Program::under_test(), Privilege::current()) {
        (Program::Unionmount(_), Privilege::Root) => vec![Device, Aufs, TrustedXattr, UserXattr],
        (Program::Unionmount(_), _) => vec![Device, Aufs, UserXattr],
        (Program::FuseOverlayfs(_), _) => vec![Device, Aufs],
        (Program::Kernel, _) => vec![Device, TrustedXattr],
    }
}

/// The same for opaque marks.
fn opaque_forms() -> Vec<OpaqueForm> {
    use OpaqueForm::*;
    match (Program::under_test(), Privilege::current()) {
        (Program::Unionmount(_), Privilege::Root) => vec![Trusted, User, FuseOverlayfs, Aufs],
        (Program::Unionmount(_), _) => vec![User, FuseOverlayfs, Aufs],
        (Program::FuseOverlayfs(_), Privilege::Root) => vec![Trusted, FuseOverlayfs, Aufs],
        (Program::FuseOverlayfs(_), _) => vec![User, FuseOverlayfs, Aufs],
        (Program::Kernel, _) => vec![Trusted],
    }
}

fn names(mount: &crate::common::Mount, path: &str) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(mount.join(path))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn the_topmost_entry_wins() {
    let stack = Stack::new(3);
    stack.lower(0).file("f", "top");
    stack.lower(1).file("f", "middle").file("only-middle", "m");
    stack.lower(2).file("f", "bottom").file("d/only-bottom", "b");
    stack.upper().file("u", "upper");
    let mount = stack.mount();
    assert_eq!(fs::read(mount.join("f")).unwrap(), b"top");
    assert_eq!(fs::read(mount.join("only-middle")).unwrap(), b"m");
    assert_eq!(fs::read(mount.join("d/only-bottom")).unwrap(), b"b");
    assert_eq!(fs::read(mount.join("u")).unwrap(), b"upper");
    assert_eq!(names(&mount, ""), ["d", "f", "only-middle", "u"]);
    mount.unmount();
}
