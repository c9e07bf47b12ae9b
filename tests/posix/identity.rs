//! st_ino, st_dev, st_nlink: unique, stable, right.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::{exists, names, read, stat};
use support::{LoopFilesystem, Mount, Scratch, Snapshot, Stack};

fn inode_numbers(mount: &Mount) -> BTreeMap<std::ffi::OsString, u64> {
    Snapshot::take_checked(mount.path()).entries.into_iter().map(|(path, entry)| (path, entry.ino)).collect()
}

fn assert_unique(numbers: &BTreeMap<std::ffi::OsString, u64>) {
    let mut owners = BTreeMap::new();
    for (path, ino) in numbers {
        if let Some(other) = owners.insert(ino, path) {
            panic!("{} and {} have the inode number {ino}", path.display(), other.display());
        }
    }
}

fn tree(stack: &Stack) {
    for (index, lower) in stack.lowers().iter().enumerate() {
        for file in 0..40 {
            lower.file(format!("only{index}/{file}"), "x").file(format!("shared/{index}-{file}"), "y");
        }
        lower
            .symlink(format!("link{index}"), "x")
            .fifo(format!("fifo{index}"))
            .file("same", format!("{index}"));
    }
}

#[test]
fn numbers_are_unique_and_stable() {
    let stack = Stack::new(3);
    tree(&stack);
    let mount = stack.mount();
    let before = inode_numbers(&mount);
    assert_unique(&before);
    let dev = stat(mount.path()).dev();
    for path in before.keys().filter(|path| !path.is_empty()) {
        assert_eq!(stat(mount.join(path)).dev(), dev, "one st_dev: {}", path.display());
    }
    // Copy up a third of all, by several ways.
    for index in 0..40 {
        match index % 3 {
            0 => fs::write(mount.join(format!("only0/{index}")), "changed").unwrap(),
            1 => support::set_mtime(&mount.join(format!("only1/{index}")), 1, 1),
            _ => fs::rename(
                mount.join(format!("shared/2-{index}")),
                mount.join(format!("shared/moved{index}")),
            )
            .unwrap(),
        }
    }
    fs::write(mount.join("same"), "changed").unwrap();
    support::set_mtime(&mount.join("only2"), 1, 1);
    let check = |mount: &Mount, what: &str| {
        let after = inode_numbers(mount);
        assert_unique(&after);
        for (path, ino) in &before {
            let text = path.to_string_lossy();
            let index: usize = text.rsplit('-').next().and_then(|text| text.parse().ok()).unwrap_or(0);
            let now = if text.starts_with("shared/2-") && index % 3 == 2 {
                format!("shared/moved{index}").into()
            } else {
                path.clone()
            };
            assert_eq!(after.get(&now), Some(ino), "{what}: {text}");
        }
    };
    check(&mount, "after copy-up and rename");
    mount.unmount();
    let mount = stack.mount();
    check(&mount, "after a remount");
    mount.unmount();
}

#[test]
fn numbers_of_new_files_survive_a_remount() {
    let stack = Stack::new(1);
    stack.lower(0).dir("d");
    let mount = stack.mount();
    fs::write(mount.join("d/new"), "x").unwrap();
    fs::create_dir(mount.join("d/sub")).unwrap();
    fs::write(mount.join("d/sub/deep"), "x").unwrap();
    let before = inode_numbers(&mount);
    mount.unmount();
    let mount = stack.mount();
    assert_eq!(inode_numbers(&mount), before);
    mount.unmount();
}

#[test]
fn layers_on_several_filesystems() {
    support::needs_root!();
    let scratch = &Scratch::new();
    let ext4 = LoopFilesystem::new(scratch, "ext4", "ext4", 32 << 20);
    let other = LoopFilesystem::new(scratch, "other", "ext4", 32 << 20);
    let tmpfs = LoopFilesystem::tmpfs(scratch, "tmpfs", 16 << 20);
    let stack = Stack::new(4)
        .with_lower_in(0, ext4.path())
        .with_lower_in(1, other.path())
        .with_lower_in(2, tmpfs.path());
    // Two filesystems made alike give the same numbers to different files.
    tree(&stack);
    let before = stack.lower_snapshots();
    let mount = stack.mount();
    let numbers = inode_numbers(&mount);
    assert_unique(&numbers);
    let dev = stat(mount.path()).dev();
    for path in numbers.keys().filter(|path| !path.is_empty()) {
        assert_eq!(stat(mount.join(path)).dev(), dev, "one st_dev: {}", path.display());
    }
    assert_eq!(names(mount.join("shared")).len(), 160);
    for index in 0..4 {
        fs::write(mount.join(format!("only{index}/7")), "changed").unwrap();
        fs::rename(mount.join(format!("only{index}")), mount.join(format!("renamed{index}"))).unwrap();
        fs::remove_file(mount.join(format!("shared/{index}-3"))).unwrap();
    }
    let check = |mount: &Mount, what: &str| {
        let after = inode_numbers(mount);
        assert_unique(&after);
        for (path, ino) in &numbers {
            let text = path.to_string_lossy();
            if text.starts_with("shared/") && text.ends_with("-3") {
                assert!(!exists(mount.join(path)));
                continue;
            }
            let now = text.replace("only", "renamed");
            assert_eq!(after.get(std::ffi::OsStr::new(&now)), Some(ino), "{what}: {text}");
        }
        for index in 0..4 {
            assert_eq!(read(mount.join(format!("renamed{index}/7"))), b"changed");
            assert_eq!(read(mount.join(format!("renamed{index}/8"))), b"x");
        }
    };
    check(&mount, "after copy-up and rename");
    mount.unmount();
    stack.assert_lowers_unchanged(&before);
    let mount = stack.mount();
    check(&mount, "after a remount");
    mount.unmount();
    stack.assert_workdir_clean();
}

#[test]
fn an_upper_on_each_kind_of_filesystem() {
    support::needs_root!();
    for kind in ["ext4", "xfs", "btrfs", "tmpfs"] {
        let scratch = Scratch::new();
        let size = if kind == "ext4" { 64 << 20 } else { 512 << 20 };
        let fs = match kind {
            "tmpfs" => LoopFilesystem::tmpfs(&scratch, "fs", size),
            _ => LoopFilesystem::new(&scratch, "fs", kind, size),
        };
        let stack = Stack::new(1).with_upper_in(fs.path());
        stack.lower(0).file("d/f", vec![b'x'; 100_000]).file("gone", "g").xattr("d/f", "user.a", "1");
        stack.lower(0).sparse("s", 8 << 20, &[(4 << 20, b"data")]).file("e/x", "1").hardlink("h", "d/f");
        let before = stack.lower_snapshots();
        let mount = stack.mount();
        let ino = stat(mount.join("d/f")).ino();
        std::os::unix::fs::FileExt::write_all_at(&crate::for_writing(mount.join("d/f")), b"CHANGED", 10)
            .unwrap();
        fs::remove_file(mount.join("gone")).unwrap();
        fs::rename(mount.join("e"), mount.join("renamed")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&crate::for_writing(mount.join("s")), b"more", 0).unwrap();
        let check = |mount: &Mount| {
            assert_eq!(&read(mount.join("d/f"))[8..19], b"xxCHANGEDxx", "{kind}");
            assert_eq!(names(mount.path()), ["d", "h", "renamed", "s"], "{kind}");
            assert_eq!(names(mount.join("renamed")), ["x"], "{kind}");
            assert_eq!(&read(mount.join("s"))[(4 << 20)..(4 << 20) + 4], b"data", "{kind}");
            assert_eq!((stat(mount.join("d/f")).ino(), stat(mount.join("h")).ino()), (ino, ino), "{kind}");
            assert_eq!(read(mount.join("h")), read(mount.join("d/f")));
        };
        check(&mount);
        mount.unmount();
        let mount = stack.mount();
        check(&mount);
        mount.unmount();
        stack.assert_lowers_unchanged(&before);
        stack.assert_workdir_clean();
    }
}

#[test]
fn a_disk_may_come_back_under_another_device_number() {
    support::needs_root!();
    for kind in ["ext4", "xfs", "btrfs"] {
        let scratch = Scratch::new();
        let disk =
            LoopFilesystem::new(&scratch, "disk", kind, if kind == "ext4" { 64 << 20 } else { 320 << 20 });
        let stack = Stack::new(1).with_upper_in(disk.path()).with_lower_in(0, disk.path());
        stack.lower(0).file("a", "1").hardlink("b", "a").file("only", "1");
        let mount = stack.mount();
        fs::write(mount.join("a"), "changed").unwrap();
        fs::write(mount.join("only"), "changed").unwrap();
        let numbers = inode_numbers(&mount);
        mount.unmount();
        let device = stat(disk.path()).dev();
        drop(disk);
        // What was its device is another's now.
        let other = LoopFilesystem::new(&scratch, "other", "ext4", 16 << 20);
        let disk = LoopFilesystem::again(&scratch, "disk");
        if kind != "btrfs" && stat(disk.path()).dev() == device {
            println!("SKIP: {kind}: another program has taken the device");
            continue;
        }
        let mount = stack.mount();
        assert_eq!(inode_numbers(&mount), numbers, "{kind}");
        assert_eq!(read(mount.join("b")), b"changed", "{kind}");
        mount.unmount();
        drop((disk, other));
    }
}

#[test]
fn directories_count_as_programs_expect() {
    let stack = Stack::new(2);
    stack.lower(1).dir("d/a").dir("d/b").file("d/f", "");
    stack.lower(0).dir("d/c");
    let mount = stack.mount();
    // 1 says "not counted" (find and fts know it), else two and one a subdirectory.
    let nlink = stat(mount.join("d")).nlink();
    assert!(nlink == 1 || nlink == 5, "st_nlink of a directory with three subdirectories: {nlink}");
    let found = support::run("find", &[mount.join("d").to_str().unwrap(), "-mindepth", "1"]);
    assert_eq!(found.lines().count(), 4);
    mount.unmount();
}
