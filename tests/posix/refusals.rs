//! What cannot be made through the mount: markers.

use std::fs;

use rustix::fs::{CWD, FileType, makedev, mknodat};
use rustix::io::Errno;

use crate::{names, read};
use support::{Program, Stack};

#[test]
fn a_whiteout_cannot_be_made_as_a_device() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "x");
    let mount = stack.mount();
    let made = mknodat(CWD, mount.join("w"), FileType::CharacterDevice, 0o600.into(), makedev(0, 0));
    if Program::under_test().is_unionmount() {
        support::assert_errno!(made, Errno::PERM | Errno::INVAL);
    } else {
        support::assert_errno!(made, Errno::PERM | Errno::INVAL | Errno::IO);
    }
    assert_eq!(names(mount.path()), ["f"]);
    mount.unmount();
}

#[test]
fn names_of_markers_cannot_be_made() {
    if !Program::under_test().is_unionmount() {
        support::skip!("the peers allow it");
    }
    let stack = Stack::new(1);
    stack.lower(0).file("f", "x").dir("d");
    let mount = stack.mount();
    for name in [".wh.f", ".wh..wh..opq", "d/.wh..wh..opq", ".wh.", ".wh..wh.x", "d/.wh.anything"] {
        let path = mount.join(name);
        let refused = "a name that a later mount would read as a marker was made";
        support::assert_errno!(fs::write(&path, ""), Errno::PERM | Errno::INVAL);
        support::assert_errno!(fs::create_dir(&path), Errno::PERM | Errno::INVAL);
        support::assert_errno!(std::os::unix::fs::symlink("x", &path), Errno::PERM | Errno::INVAL);
        support::assert_errno!(fs::hard_link(mount.join("f"), &path), Errno::PERM | Errno::INVAL);
        support::assert_errno!(fs::rename(mount.join("f"), &path), Errno::PERM | Errno::INVAL);
        support::assert_errno!(
            mknodat(CWD, &path, FileType::Fifo, 0o600.into(), 0),
            Errno::PERM | Errno::INVAL
        );
        assert!(!crate::exists(&path), "{refused}: {name}");
    }
    assert_eq!(names(mount.path()), ["d", "f"]);
    assert_eq!(read(mount.join("f")), b"x");
    // Names that only look alike are free.
    for name in [".wh", "x.wh.y", ".whf", ".WH.f"] {
        fs::write(mount.join(name), name).unwrap();
        assert_eq!(read(mount.join(name)), name.as_bytes());
    }
    mount.unmount();
}
