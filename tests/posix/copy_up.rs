//! Copy-up: what causes it, what it keeps, what it leaves alone.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FallocateFlags, OFlags, Timespec, Timestamps, XattrFlags};

use crate::{copied_up, exists, for_reading, for_writing, mode, read, stat};
use support::{Privilege, Snapshot, Stack, diff, raw, read_xattrs, set_mtime};

/// Everything that must bring `f` into the upper.
#[allow(clippy::type_complexity)]
fn triggers() -> Vec<(&'static str, fn(&Path))> {
    vec![
        ("write", |f| File::options().write(true).open(f).unwrap().write_all_at(b"W", 0).unwrap()),
        ("append", |f| {
            std::io::Write::write_all(&mut File::options().append(true).open(f).unwrap(), b"W").unwrap()
        }),
        ("truncate", |f| raw::truncate(f, 3).unwrap()),
        ("O_TRUNC", |f| drop(File::create(f).unwrap())),
        ("chmod", |f| fs::set_permissions(f, PermissionsExt::from_mode(0o600)).unwrap()),
        ("chown", |f| std::os::unix::fs::chown(f, Some(stat(f).uid()), Some(stat(f).gid())).unwrap()),
        ("utimens", |f| set_mtime(f, 1_234_567_890, 123_456_789)),
        ("setxattr", |f| rustix::fs::setxattr(f, "user.new", b"v", XattrFlags::empty()).unwrap()),
        ("removexattr", |f| rustix::fs::removexattr(f, "user.old").unwrap()),
        ("link", |f| fs::hard_link(f, f.with_extension("link")).unwrap()),
        ("rename", |f| fs::rename(f, f.with_extension("moved")).unwrap()),
        ("fallocate", |f| {
            let file = File::options().write(true).open(f).unwrap();
            rustix::fs::fallocate(file, FallocateFlags::empty(), 0, 9000).unwrap();
        }),
        ("shared mapping", |f| raw::Mapping::shared(&for_writing(f), 4, true).unwrap().write(0, b"M")),
    ]
}

#[test]
fn every_change_copies_up_and_only_what_is_changed() {
    for (name, trigger) in triggers() {
        let stack = Stack::new(2);
        stack
            .lower(1)
            .file("d/e/f", "content of f")
            .xattr("d/e/f", "user.old", "1")
            .file("d/e/other", "o")
            .file("g", "g");
        stack.lower(1).mtime("d/e/f", 1_000_000_000, 7);
        stack.lower(0).file("d/top", "t");
        let before = stack.lower_snapshots();
        let mount = stack.mount();
        trigger(&mount.join("d/e/f"));
        assert!(
            copied_up(&stack, "d/e/f") || copied_up(&stack, "d/e/f.moved") || copied_up(&stack, "d/e/f.link"),
            "{name}: not copied up"
        );
        assert!(
            !copied_up(&stack, "d/e/other") && !copied_up(&stack, "g") && !copied_up(&stack, "d/top"),
            "{name}"
        );
        let found = if exists(mount.join("d/e/f")) { mount.join("d/e/f") } else { mount.join("d/e/f.moved") };
        match name {
            "write" => assert_eq!(read(&found), b"Wontent of f"),
            "append" => assert_eq!(read(&found), b"content of fW"),
            "truncate" => assert_eq!(read(&found), b"con"),
            "O_TRUNC" => assert_eq!(read(&found), b""),
            "fallocate" => {
                assert_eq!((read(&found).len(), &read(&found)[..12]), (9000, &b"content of f"[..]))
            }
            "shared mapping" => assert_eq!(read(&found), b"Montent of f"),
            _ => assert_eq!(read(&found), b"content of f", "{name}"),
        }
        match name {
            "chmod" => assert_eq!(mode(&found), 0o600),
            "utimens" => {
                assert_eq!((stat(&found).mtime(), stat(&found).mtime_nsec()), (1_234_567_890, 123_456_789))
            }
            "setxattr" => assert_eq!(read_xattrs(&found).unwrap()[&b"user.new"[..]], b"v"),
            "removexattr" => assert!(read_xattrs(&found).unwrap().is_empty()),
            "link" => assert_eq!(
                (read(mount.join("d/e/f.link")), stat(&found).nlink()),
                (b"content of f".to_vec(), 2)
            ),
            _ => {}
        }
        if ["chmod", "chown", "setxattr", "removexattr", "link", "rename"].contains(&name) {
            assert_eq!(
                (stat(&found).mtime(), stat(&found).mtime_nsec()),
                (1_000_000_000, 7),
                "{name}: the time is kept"
            );
        }
        mount.unmount();
        stack.assert_lowers_unchanged(&before);
        stack.assert_workdir_clean();
    }
}

#[test]
fn reading_copies_nothing() {
    let stack = Stack::new(1);
    stack.lower(0).file("d/f", "content").symlink("d/l", "f").xattr("d/f", "user.a", "1");
    let mount = stack.mount();
    assert_eq!(read(mount.join("d/f")), b"content");
    assert_eq!(read(mount.join("d/l")), b"content");
    read_xattrs(&mount.join("d/f")).unwrap();
    let file = for_reading(mount.join("d/f"));
    file.sync_all().unwrap();
    raw::Mapping::private(&file, 7).unwrap().write(0, b"X");
    raw::lock(&file, raw::LockKind::OpenFile, libc::F_RDLCK, 0, 0).unwrap();
    rustix::fs::accessat(CWD, mount.join("d/f"), rustix::fs::Access::WRITE_OK, AtFlags::empty()).unwrap();
    Snapshot::take(mount.path());
    drop(file);
    mount.unmount();
    assert!(crate::names(stack.upper().root()).is_empty(), "something was copied up");
}

#[test]
fn everything_is_kept() {
    let stack = Stack::new(1);
    let lower = stack.lower(0);
    lower.file("a/b/f", "content").mode("a/b/f", 0o640).xattr("a/b/f", "user.a", "1").xattr(
        "a/b/f",
        "user.empty",
        "",
    );
    lower.symlink("a/b/l", "some/target").fifo("a/b/p").mode("a/b/p", 0o620);
    if Privilege::current() == Privilege::Root {
        lower
            .owner("a/b/f", 12, 34)
            .mode("a/b/f", 0o4755)
            .xattr("a/b/f", "trusted.t", "t")
            .owner("a/b/l", 56, 78);
        lower.node("a/b/c", rustix::fs::FileType::CharacterDevice, 1, 3).owner("a", 9, 9);
        // cap_net_raw=ep, as setcap writes it.
        let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        lower.xattr("a/b/f", "security.capability", capability);
    }
    lower.xattr("a/b", "user.dir", "d").mode("a/b", 0o750).mode("a", 0o711);
    for path in ["a/b/f", "a/b/l", "a/b/p", "a/b", "a"] {
        lower.mtime(path, 1_000_000_000, 987_654_321);
    }
    let mount = stack.mount();
    let before = Snapshot::take(mount.path());
    // Renaming to and fro copies up each without changing it.
    for name in ["f", "l", "p"] {
        fs::rename(mount.join(format!("a/b/{name}")), mount.join("x")).unwrap();
        fs::rename(mount.join("x"), mount.join(format!("a/b/{name}"))).unwrap();
        assert!(copied_up(&stack, &format!("a/b/{name}")), "{name}");
    }
    let mut after = Snapshot::take(mount.path());
    // The renames have changed the directories' times, as they should.
    for path in ["", "a/b"] {
        after.entries.get_mut(std::ffi::OsStr::new(path)).unwrap().mtime = support::Time::Any;
    }
    let fields = support::Fields { ino: true, ..support::Fields::tree() };
    assert_eq!(diff(&before, &after, &fields), "");
    mount.unmount();
}

#[test]
fn parents_keep_their_attributes_and_times() {
    let stack = Stack::new(1);
    let lower = stack.lower(0);
    lower.file("a/b/c/f", "1").xattr("a/b", "user.a", "v").mode("a", 0o700).mode("a/b", 0o2755);
    for path in ["a/b/c", "a/b", "a"] {
        lower.mtime(path, 1_000_000_000, 5);
    }
    let mount = stack.mount();
    let before = Snapshot::take(mount.path());
    fs::set_permissions(mount.join("a/b/c/f"), PermissionsExt::from_mode(0o600)).unwrap();
    let mut after = Snapshot::take(mount.path());
    after.entries.get_mut(std::ffi::OsStr::new("a/b/c/f")).unwrap().mode = 0o644;
    assert_eq!(diff(&before, &after, &support::Fields { ino: true, ..support::Fields::tree() }), "");
    mount.unmount();
}

#[test]
fn holes_stay_holes() {
    let stack = Stack::new(1);
    let size = 64 << 20;
    stack.lower(0).sparse("f", size, &[(0, b"start"), (20 << 20, b"middle"), (size - 3, b"end")]);
    let mount = stack.mount();
    let file = for_writing(mount.join("f"));
    file.write_all_at(b"X", 1).unwrap();
    drop(file);
    let bytes = read(mount.join("f"));
    assert_eq!(bytes.len() as u64, size);
    assert_eq!(&bytes[..5], b"sXart");
    assert_eq!(&bytes[20 << 20..(20 << 20) + 6], b"middle");
    assert_eq!(&bytes[bytes.len() - 3..], b"end");
    assert_eq!(bytes.iter().filter(|&&byte| byte != 0).count(), 5 + 6 + 3);
    let copy = stack.upper().root().join("f");
    assert!(stat(&copy).blocks() * 512 < 1 << 20, "{} bytes allocated", stat(&copy).blocks() * 512);
    mount.unmount();
}

#[test]
fn raced_copy_ups_make_one_copy() {
    let stack = Stack::new(1);
    let content = vec![b'.'; 300_000];
    stack.lower(0).file("d/f", &content);
    let before = stack.lower_snapshots();
    let mount = stack.mount();
    std::thread::scope(|scope| {
        for index in 0..8u64 {
            let path = mount.join("d/f");
            scope.spawn(move || {
                for round in 0..20 {
                    let file = for_writing(&path);
                    file.write_all_at(&[b'a' + index as u8], index * 30_000 + round).unwrap();
                }
            });
        }
    });
    let mut expected = content;
    for index in 0..8 {
        expected[index * 30_000..index * 30_000 + 20].fill(b'a' + index as u8);
    }
    assert_eq!(read(mount.join("d/f")), expected);
    mount.unmount();
    assert_eq!(read(stack.upper().root().join("d/f")), expected);
    stack.assert_lowers_unchanged(&before);
    stack.assert_workdir_clean();
}

#[test]
fn a_directory_of_many_files_is_copied_up_in_parallel() {
    let stack = Stack::new(1);
    for index in 0..200 {
        stack.lower(0).file(format!("d/{}/f{index}", index % 7), format!("content {index}"));
    }
    let mount = stack.mount();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let mount = &mount;
            scope.spawn(move || {
                for index in (0..200).filter(|index| index % 4 == thread) {
                    let path = mount.join(format!("d/{}/f{index}", index % 7));
                    let mut file = File::options().append(true).open(path).unwrap();
                    std::io::Write::write_all(&mut file, b"!").unwrap();
                }
            });
        }
    });
    for index in 0..200 {
        let path = mount.join(format!("d/{}/f{index}", index % 7));
        assert_eq!(read(path), format!("content {index}!").into_bytes());
    }
    mount.unmount();
    stack.assert_workdir_clean();
}

#[test]
fn times_can_be_set_to_the_nanosecond_and_to_now() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "1").dir("d").symlink("l", "f");
    let mount = stack.mount();
    for name in ["f", "d", "l"] {
        set_mtime(&mount.join(name), 1_111_111_111, 222_222_222);
        let found = stat(mount.join(name));
        assert_eq!((found.mtime(), found.mtime_nsec()), (1_111_111_111, 222_222_222), "{name}");
        assert_eq!((found.atime(), found.atime_nsec()), (1_111_111_111, 222_222_222), "{name}");
    }
    let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    let omit = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    let start = std::time::SystemTime::now() - std::time::Duration::from_secs(1);
    let times = Timestamps { last_access: omit, last_modification: now };
    rustix::fs::utimensat(CWD, mount.join("f"), &times, AtFlags::empty()).unwrap();
    assert!(stat(mount.join("f")).modified().unwrap() >= start);
    assert_eq!(stat(mount.join("f")).atime(), 1_111_111_111, "UTIME_OMIT leaves it");
    // Before the epoch, and after 2038.
    for seconds in [-2_000_000, 4_000_000_000] {
        set_mtime(&mount.join("f"), seconds, 1);
        assert_eq!(stat(mount.join("f")).mtime(), seconds);
    }
    mount.unmount();
}

#[test]
fn opening_with_o_path_copies_nothing_and_still_leads_to_the_file() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "1");
    let mount = stack.mount();
    let path = rustix::fs::openat(CWD, mount.join("f"), OFlags::PATH, 0.into()).unwrap();
    assert!(!copied_up(&stack, "f"));
    fs::write(mount.join("f"), "22").unwrap();
    assert_eq!(rustix::fs::fstat(&path).unwrap().st_size, 2);
    drop(path);
    mount.unmount();
}
