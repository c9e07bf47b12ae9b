//! Permissions of other users: what they may, and what clears setuid. Needs root, to become them.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};

use rustix::io::Errno;

use crate::{exists, mode, read, stat};
use support::{Mount, Program, Stack, as_ids};

const ALICE: u32 = 54_321;
const BOB: u32 = 54_322;

/// A mount that other users may enter.
fn shared(stack: &Stack) -> Mount {
    match Program::under_test() {
        Program::Kernel => stack.mount(),
        _ => stack.mount_with(&["allow_other"]),
    }
}

#[test]
fn permission_bits_are_enforced() {
    support::needs_root!();
    let stack = Stack::new(1);
    stack.upper().mode("", 0o755);
    let lower = stack.lower(0);
    lower.file("private", "secret").mode("private", 0o600).owner("private", ALICE, ALICE);
    lower.file("group", "g").mode("group", 0o640).owner("group", ALICE, BOB);
    lower.file("closed/f", "x").mode("closed", 0o700).dir("open").mode("open", 0o777);
    let mount = shared(&stack);
    as_ids(BOB, BOB, 0o022, || {
        support::assert_errno!(fs::read(mount.join("private")), Errno::ACCESS);
        support::assert_errno!(File::options().write(true).open(mount.join("private")), Errno::ACCESS);
        support::assert_errno!(
            fs::set_permissions(mount.join("private"), PermissionsExt::from_mode(0o777)),
            Errno::PERM
        );
        assert_eq!(read(mount.join("group")), b"g");
        support::assert_errno!(File::options().write(true).open(mount.join("group")), Errno::ACCESS);
        support::assert_errno!(fs::read(mount.join("closed/f")), Errno::ACCESS);
        support::assert_errno!(fs::write(mount.join("new"), "x"), Errno::ACCESS);
        support::assert_errno!(fs::remove_file(mount.join("group")), Errno::ACCESS);
        fs::write(mount.join("open/mine"), "m").unwrap();
        fs::create_dir(mount.join("open/dir")).unwrap();
        std::os::unix::fs::symlink("x", mount.join("open/link")).unwrap();
        support::assert_errno!(chown(mount.join("open/mine"), Some(ALICE), None), Errno::PERM);
    });
    as_ids(ALICE, ALICE, 0o022, || {
        assert_eq!(read(mount.join("private")), b"secret");
        fs::write(mount.join("private"), "changed").unwrap();
    });
    for name in ["mine", "dir", "link"] {
        let found = stat(mount.join("open").join(name));
        assert_eq!((found.uid(), found.gid()), (BOB, BOB), "{name} belongs to who made it");
    }
    assert_eq!(stat(mount.join("private")).uid(), ALICE, "a copy-up keeps the owner");
    assert!(!crate::copied_up(&stack, "group") && !exists(mount.join("new")));
    mount.unmount();
}

#[test]
fn sticky_directories_protect_others_files() {
    support::needs_root!();
    let stack = Stack::new(1);
    let lower = stack.lower(0);
    lower.dir("tmp").file("tmp/alices", "a").owner("tmp/alices", ALICE, ALICE).mode("tmp", 0o1777);
    let mount = shared(&stack);
    as_ids(BOB, BOB, 0o022, || {
        support::assert_errno!(fs::remove_file(mount.join("tmp/alices")), Errno::PERM | Errno::ACCESS);
        support::assert_errno!(
            fs::rename(mount.join("tmp/alices"), mount.join("tmp/x")),
            Errno::PERM | Errno::ACCESS
        );
        fs::write(mount.join("tmp/bobs"), "b").unwrap();
        support::assert_errno!(
            fs::rename(mount.join("tmp/bobs"), mount.join("tmp/alices")),
            Errno::PERM | Errno::ACCESS
        );
    });
    as_ids(ALICE, ALICE, 0o022, || fs::remove_file(mount.join("tmp/alices")).unwrap());
    assert_eq!(crate::names(mount.join("tmp")), ["bobs"]);
    mount.unmount();
}

#[test]
fn writing_and_chown_clear_setuid_and_capabilities() {
    support::needs_root!();
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    type Change = fn(&std::path::Path);
    let changes: [(&str, Change); 4] = [
        ("write", |path| File::options().write(true).open(path).unwrap().write_all_at(b"X", 0).unwrap()),
        ("truncate", |path| support::raw::truncate(path, 1).unwrap()),
        ("O_TRUNC", |path| drop(File::create(path).unwrap())),
        ("fallocate", |path| {
            let file = File::options().write(true).open(path).unwrap();
            rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, 100).unwrap();
        }),
    ];
    for (name, change) in changes {
        let stack = Stack::new(1);
        stack.lower(0).file("f", "content").owner("f", ALICE, ALICE).mode("f", 0o6777);
        let mount = shared(&stack);
        // Not by the owner, who could set them again; not by root, who keeps them.
        as_ids(BOB, BOB, 0o022, || change(&mount.join("f")));
        assert_eq!(mode(mount.join("f")), 0o777, "{name} by another user");
        mount.unmount();
        let mount = shared(&stack);
        assert_eq!(mode(mount.join("f")), 0o777, "{name}: remounted");
        mount.unmount();
    }
    let stack = Stack::new(1);
    stack.lower(0).file("f", "x").mode("f", 0o6755).xattr("f", "security.capability", capability);
    let mount = shared(&stack);
    chown(mount.join("f"), Some(ALICE), Some(ALICE)).unwrap();
    assert_eq!(mode(mount.join("f")), 0o755, "chown by root clears both bits");
    let names = support::read_xattrs(&mount.join("f")).unwrap();
    assert!(!names.contains_key(&b"security.capability"[..]), "chown clears capabilities");
    mount.unmount();

    let stack = Stack::new(1);
    stack.lower(0).file("f", "x").mode("f", 0o777).xattr("f", "security.capability", capability);
    let mount = shared(&stack);
    let has = |mount: &Mount| {
        support::read_xattrs(&mount.join("f")).unwrap().contains_key(&b"security.capability"[..])
    };
    assert!(has(&mount));
    fs::set_permissions(mount.join("f"), PermissionsExt::from_mode(0o757)).unwrap();
    assert!(has(&mount), "copy-up keeps capabilities");
    as_ids(BOB, BOB, 0o022, || fs::write(mount.join("f"), "changed").unwrap());
    assert!(!has(&mount), "a write clears capabilities");
    mount.unmount();
}

#[test]
fn device_nodes_are_made_and_kept() {
    support::needs_root!();
    use rustix::fs::{CWD, FileType, makedev, mknodat};
    let stack = Stack::new(1);
    stack.lower(0).node("null", FileType::CharacterDevice, 1, 3).mode("null", 0o666);
    let mount = match Program::under_test() {
        Program::Kernel => stack.mount(),
        _ => stack.mount_with(&["allow_other", "dev"]),
    };
    mknodat(CWD, mount.join("zero"), FileType::CharacterDevice, 0o644.into(), makedev(1, 5)).unwrap();
    mknodat(CWD, mount.join("loop"), FileType::BlockDevice, 0o600.into(), makedev(7, 200)).unwrap();
    assert_eq!(stat(mount.join("zero")).rdev(), makedev(1, 5));
    assert_eq!(stat(mount.join("loop")).rdev(), makedev(7, 200));
    assert_eq!(stat(mount.join("null")).rdev(), makedev(1, 3));
    let mut bytes = [1; 4];
    File::open(mount.join("zero")).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [0; 4]);
    fs::set_permissions(mount.join("null"), PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!((stat(mount.join("null")).rdev(), mode(mount.join("null"))), (makedev(1, 3), 0o600));
    mount.unmount();
}

#[test]
fn a_group_of_the_caller_counts() {
    support::needs_root!();
    let stack = Stack::new(1);
    stack
        .lower(0)
        .dir("d")
        .mode("d", 0o770)
        .owner("d", 0, 777)
        .file("d/f", "x")
        .mode("d/f", 0o660)
        .owner("d/f", 0, 777);
    let mount = shared(&stack);
    as_ids(BOB, 777, 0o022, || {
        assert_eq!(read(mount.join("d/f")), b"x");
        fs::write(mount.join("d/f"), "y").unwrap();
        fs::write(mount.join("d/new"), "z").unwrap();
    });
    assert_eq!((stat(mount.join("d/new")).uid(), stat(mount.join("d/new")).gid()), (BOB, 777));
    assert_eq!((stat(mount.join("d/f")).uid(), stat(mount.join("d/f")).gid()), (0, 777));
    mount.unmount();
}
