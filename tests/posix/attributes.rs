//! Extended attributes, ACLs, umask, setgid directories.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::{copied_up, mode, read, stat};
use support::{Privilege, Program, Stack, as_ids, read_xattrs, run};

fn xattr_names(path: impl AsRef<std::path::Path>) -> Vec<String> {
    read_xattrs(path.as_ref())
        .unwrap()
        .keys()
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}

fn get(path: impl AsRef<std::path::Path>, name: &str) -> rustix::io::Result<Vec<u8>> {
    let mut value = vec![0; 65536];
    let length = rustix::fs::lgetxattr(path.as_ref(), name, value.as_mut_slice())?;
    value.truncate(length);
    Ok(value)
}

fn set(path: impl AsRef<std::path::Path>, name: &str, value: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::lsetxattr(path.as_ref(), name, value, XattrFlags::empty())
}

#[test]
fn xattrs_of_lowers_are_shown_changed_and_removed() {
    let stack = Stack::new(1);
    stack
        .lower(0)
        .file("f", "x")
        .xattr("f", "user.a", "1")
        .xattr("f", "user.b", "2")
        .dir("d")
        .xattr("d", "user.d", "3");
    let before = stack.lower_snapshots();
    let mount = stack.mount();
    assert_eq!(xattr_names(mount.join("f")), ["user.a", "user.b"]);
    set(mount.join("f"), "user.a", b"changed").unwrap();
    set(mount.join("f"), "user.new", &vec![b'v'; 3000]).unwrap();
    rustix::fs::removexattr(mount.join("f"), "user.b").unwrap();
    set(mount.join("d"), "user.e", b"").unwrap();
    let mount = {
        mount.unmount();
        stack.mount()
    };
    assert_eq!(xattr_names(mount.join("f")), ["user.a", "user.new"]);
    assert_eq!(get(mount.join("f"), "user.a").unwrap(), b"changed");
    assert_eq!(get(mount.join("f"), "user.new").unwrap().len(), 3000);
    assert_eq!(xattr_names(mount.join("d")), ["user.d", "user.e"]);
    assert_eq!(read(mount.join("f")), b"x");
    assert_eq!(get(mount.join("f"), "user.b"), Err(Errno::NODATA));
    let mut small = [0u8; 2];
    assert_eq!(rustix::fs::getxattr(mount.join("f"), "user.a", &mut small[..]), Err(Errno::RANGE));
    support::assert_errno!(
        rustix::fs::setxattr(mount.join("f"), "user.a", b"x", XattrFlags::CREATE),
        Errno::EXIST
    );
    support::assert_errno!(
        rustix::fs::setxattr(mount.join("f"), "user.z", b"x", XattrFlags::REPLACE),
        Errno::NODATA
    );
    mount.unmount();
    stack.assert_lowers_unchanged(&before);
}

/// Private attributes are not shown, cannot be read, and what is set under their names marks nothing.
#[test]
fn private_xattrs_are_hidden_and_cannot_be_forged() {
    let stack = Stack::new(2);
    stack.lower(1).file("d/below", "1").file("f", "x");
    stack.lower(0).dir("d").file("d/above", "2");
    let namespaces: &[&str] = match (Privilege::current(), Program::under_test()) {
        (Privilege::Root, Program::Kernel) => &["trusted.overlay"],
        (Privilege::Root, _) => &["trusted.overlay", "user.fuseoverlayfs"],
        (_, Program::Kernel) => &["user.overlay"],
        _ => &["user.overlay", "user.fuseoverlayfs"],
    };
    for namespace in namespaces {
        // On the lower itself: marks without meaning for a file that must not be shown.
        stack.lower(1).xattr("f", &format!("{namespace}.uuid"), "u").xattr(
            "d",
            &format!("{namespace}.impure"),
            "y",
        );
    }
    let mount = stack.mount();
    assert!(xattr_names(mount.join("f")).is_empty(), "{:?}", xattr_names(mount.join("f")));
    assert!(xattr_names(mount.join("d")).is_empty());
    for namespace in namespaces {
        support::assert_errno!(
            get(mount.join("f"), &format!("{namespace}.uuid")),
            Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM
        );
        let name = format!("{namespace}.opaque");
        match set(mount.join("d"), &name, b"y") {
            // Refused, or escaped: then it is there to be read as what it is for a union inside the union.
            Err(errno) => {
                assert!([Errno::PERM, Errno::OPNOTSUPP, Errno::ACCESS].contains(&errno), "{errno:?}")
            }
            Ok(()) => {
                assert_eq!(get(mount.join("d"), &name).unwrap(), b"y");
                assert_eq!(xattr_names(mount.join("d")), [name.as_str()]);
                rustix::fs::removexattr(mount.join("d"), name.as_str()).unwrap();
            }
        }
        let mark = format!("{namespace}.redirect");
        if set(mount.join("d"), &mark, b"/").is_ok() {
            rustix::fs::removexattr(mount.join("d"), mark.as_str()).unwrap();
        }
    }
    assert_eq!(crate::names(mount.join("d")), ["above", "below"]);
    for namespace in namespaces {
        // Set and left there, it still means nothing after a remount.
        set(mount.join("d"), &format!("{namespace}.opaque"), b"y").unwrap_or_default();
    }
    mount.unmount();
    let mount = stack.mount();
    assert_eq!(crate::names(mount.join("d")), ["above", "below"], "a mark was forged through the mount");
    mount.unmount();
}

#[test]
fn acls_are_kept_by_copy_up_and_inherited() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "x").dir("d");
    let place = |name: &str| stack.lower(0).root().join(name).display().to_string();
    run("setfacl", &["-m", "u:0:r,g:0:rw,m::rw", &place("f")]);
    run("setfacl", &["-d", "-m", "u::rwx,u:0:rwx,g::r-x,o::---", &place("d")]);
    let acl = |path: std::path::PathBuf| run("getfacl", &["-cpn", path.to_str().unwrap()]);
    let expected = run("getfacl", &["-cpn", &place("f")]);
    let mount = stack.mount();
    assert_eq!(acl(mount.join("f")), expected);
    fs::write(mount.join("f"), "changed").unwrap();
    assert!(copied_up(&stack, "f"));
    assert_eq!(acl(mount.join("f")), expected, "after copy-up");
    // What is made in a directory with a default ACL has it; umask does not count then.
    File::create(mount.join("d/file")).unwrap();
    fs::create_dir(mount.join("d/sub")).unwrap();
    let plain = stack.scratch().path().join("plain");
    fs::create_dir(&plain).unwrap();
    run("setfacl", &["-d", "-m", "u::rwx,u:0:rwx,g::r-x,o::---", plain.to_str().unwrap()]);
    File::create(plain.join("file")).unwrap();
    fs::create_dir(plain.join("sub")).unwrap();
    for name in ["file", "sub"] {
        assert_eq!(acl(mount.join("d").join(name)), acl(plain.join(name)), "{name}");
        assert_eq!(mode(mount.join("d").join(name)), mode(plain.join(name)), "{name}");
    }
    // chmod changes the mask, and an ACL changes the mode.
    fs::set_permissions(mount.join("f"), PermissionsExt::from_mode(0o600)).unwrap();
    assert!(acl(mount.join("f")).contains("mask::---"), "{}", acl(mount.join("f")));
    run("setfacl", &["-m", "m::r", mount.join("f").to_str().unwrap()]);
    assert_eq!(mode(mount.join("f")), 0o640);
    run("setfacl", &["-b", mount.join("f").to_str().unwrap()]);
    assert_eq!(mode(mount.join("f")) & 0o707, 0o600);
    mount.unmount();
}

#[test]
fn umask_counts_for_all_that_is_made() {
    if Privilege::current() == Privilege::User {
        support::skip!("a thread's own umask: tested as root");
    }
    let stack = Stack::new(1);
    stack.lower(0).dir("d");
    let mount = stack.mount();
    as_ids(0, 0, 0o027, || {
        use rustix::fs::{CWD, FileType, OFlags, mkdirat, mknodat, openat};
        openat(CWD, mount.join("d/file"), OFlags::CREATE | OFlags::WRONLY, 0o666.into()).unwrap();
        mkdirat(CWD, mount.join("d/dir"), 0o777.into()).unwrap();
        mknodat(CWD, mount.join("d/fifo"), FileType::Fifo, 0o666.into(), 0).unwrap();
        mknodat(CWD, mount.join("d/node"), FileType::RegularFile, 0o777.into(), 0).unwrap();
        mknodat(CWD, mount.join("d/socket"), FileType::Socket, 0o777.into(), 0).unwrap();
        rustix::fs::symlinkat("t", CWD, mount.join("d/link")).unwrap();
    });
    let modes: Vec<_> = ["file", "dir", "fifo", "node", "socket", "link"]
        .iter()
        .map(|name| mode(mount.join("d").join(name)))
        .collect();
    assert_eq!(modes, [0o640, 0o750, 0o640, 0o750, 0o750, 0o777]);
    mount.unmount();
}

#[test]
fn creation_takes_the_mode_as_it_is() {
    let stack = Stack::new(1);
    let mount = stack.mount();
    use rustix::fs::{CWD, OFlags, openat};
    for wanted in [0o000, 0o400, 0o444, 0o700, 0o755] {
        let path = mount.join(format!("f{wanted:o}"));
        let file = openat(CWD, &path, OFlags::CREATE | OFlags::RDWR, wanted.into()).unwrap();
        // Even a mode that forbids writing leaves the file that was opened writable.
        rustix::io::write(&file, b"data").unwrap();
        assert_eq!((mode(&path), stat(&path).size()), (wanted & !0o022, 4));
    }
    mount.unmount();
}

#[test]
fn setgid_directories_hand_down() {
    support::needs_root!();
    let stack = Stack::new(1);
    stack.lower(0).dir("d").owner("d", 0, 4321).mode("d", 0o2775);
    let mount = stack.mount();
    fs::create_dir(mount.join("d/sub")).unwrap();
    File::create(mount.join("d/file")).unwrap();
    std::os::unix::fs::symlink("x", mount.join("d/link")).unwrap();
    for name in ["sub", "file", "link"] {
        assert_eq!(stat(mount.join("d").join(name)).gid(), 4321, "{name}");
    }
    assert_eq!(mode(mount.join("d/sub")), 0o2755);
    assert_eq!(mode(mount.join("d/file")), 0o644);
    mount.unmount();
}

#[test]
fn chmod_and_stat_agree_for_all_bits() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "x").dir("d");
    let mount = stack.mount();
    for bits in [0o7777, 0o4711, 0o2750, 0o1777, 0o000, 0o644] {
        fs::set_permissions(mount.join("f"), PermissionsExt::from_mode(bits)).unwrap();
        fs::set_permissions(mount.join("d"), PermissionsExt::from_mode(bits)).unwrap();
        assert_eq!((mode(mount.join("f")), mode(mount.join("d"))), (bits, bits));
    }
    mount.unmount();
}

#[test]
fn times_change_when_posix_says() {
    let stack = Stack::new(1);
    stack.lower(0).file("d/f", "x").dir("e");
    for path in ["d/f", "d", "e", ""] {
        stack.lower(0).mtime(path, 1_000_000_000, 1);
        if path.is_empty() {
            support::set_mtime(stack.upper().root(), 1_000_000_000, 1);
        }
    }
    let mount = stack.mount();
    let old = |path: &str| stat(mount.join(path)).mtime() == 1_000_000_000;
    fs::set_permissions(mount.join("d/f"), PermissionsExt::from_mode(0o600)).unwrap();
    assert!(old("d/f") && old("d") && old(""), "chmod changes no mtime");
    assert!(stat(mount.join("d/f")).ctime() > 1_000_000_000);
    fs::write(mount.join("d/f"), "y").unwrap();
    assert!(!old("d/f") && old("d"), "a write changes the file's, not the directory's");
    fs::rename(mount.join("d/f"), mount.join("e/f")).unwrap();
    assert!(!old("d") && !old("e") && old(""), "a rename changes both directories");
    fs::remove_file(mount.join("e/f")).unwrap();
    support::set_mtime(&mount.join("e"), 1_000_000_000, 1);
    File::create(mount.join("e/new")).unwrap();
    assert!(!old("e") && old(""));
    fs::create_dir(mount.join("new")).unwrap();
    assert!(!old(""));
    mount.unmount();
}

/// What the union changes by itself is told to the kernel: copies of the directories above, a mark of a directory, a
/// change time by ioctl.
#[test]
fn the_kernel_keeps_no_attributes_that_a_copy_up_changed() {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let stack = Stack::new(1);
    stack.lower(0).file("a/b/c/f", "x").dir("a/b/c/sub").file("a/g", "x").hardlink("a/b/h", "a/g");
    stack.lower(0).file("flags", "x");
    let mount = stack.mount();
    let paths = ["", "a", "a/b", "a/b/c", "a/b/c/f", "a/g", "a/b/h", "flags"];
    let shown = |path: &str, flags: AtFlags| {
        let s = statx(CWD, mount.join(path), flags, StatxFlags::BASIC_STATS).unwrap();
        (s.stx_ino, s.stx_nlink, s.stx_size, s.stx_blocks, s.stx_ctime.tv_sec, s.stx_ctime.tv_nsec)
    };
    let compare = |after: &str| {
        for path in paths {
            let kept = shown(path, AtFlags::empty());
            assert_eq!(kept, shown(path, AtFlags::STATX_FORCE_SYNC), "{after}: /{path}");
        }
    };
    compare("as mounted");
    fs::write(mount.join("a/b/c/f"), "longer").unwrap();
    compare("a file in three directories is copied up");
    fs::set_permissions(mount.join("a/g"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    compare("a file with two names is copied up");
    let file = fs::File::open(mount.join("flags")).unwrap();
    const NOATIME: libc::c_long = 0x80;
    match support::raw::set_inode_flags(&file, NOATIME) {
        Ok(()) => compare("chattr +A"),
        Err(error) => support::skipped(&format!("no flags here: {error}")),
    }
    drop(file);
    mount.unmount();
}
