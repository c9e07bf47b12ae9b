//! What depends on what was agreed on with the kernel at the start.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::{copied_up, mode, read, stat};
use support::raw::{Asynchronous, Block, has_handle, idmapped_mount};
use support::{LoopFilesystem, Program, Scratch, Stack, as_ids, wait_until};

const ALICE: u32 = 54_321;
const BOB: u32 = 54_322;

/// `chown(path, -1, -1)` is a chown as any other.
#[test]
fn chown_to_nobody_new_clears_setuid() {
    support::needs_root!();
    let stack = Stack::new(1);
    stack.lower(0).file("f", "x").mode("f", 0o6755).dir("d").mode("d", 0o2755);
    let mount = stack.mount();
    for name in ["f", "d"] {
        rustix::fs::chown(mount.join(name), None, None).unwrap();
    }
    assert_eq!((mode(mount.join("f")), mode(mount.join("d"))), (0o755, 0o2755));
    fs::write(mount.join("new"), "x").unwrap();
    fs::set_permissions(mount.join("new"), std::os::unix::fs::PermissionsExt::from_mode(0o6755)).unwrap();
    rustix::fs::chown(mount.join("new"), None, None).unwrap();
    assert_eq!(mode(mount.join("new")), 0o755);
    mount.unmount();
}

/// Those who may keep set-user-id do, whatever they change; from others it is taken.
#[test]
fn only_who_may_keeps_setuid() {
    support::needs_root!();
    type Change = fn(&File, &File);
    let changes: [(&str, Change); 4] = [
        ("write", |file, _| file.write_all_at(b"y", 0).unwrap()),
        ("truncate", |file, _| file.set_len(1).unwrap()),
        ("fallocate", |file, _| {
            rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, 100).unwrap();
        }),
        ("copy", |file, source| {
            rustix::fs::copy_file_range(source, Some(&mut 0), file, Some(&mut 0), 3).unwrap();
        }),
    ];
    let stack = Stack::new(1);
    stack.lower(0).file("source", "abc");
    for (name, _) in changes {
        for who in ["root", "alice"] {
            let name = format!("{name}-{who}");
            stack.lower(0).file(&name, "xxxx").owner(&name, ALICE, ALICE).mode(&name, 0o6777);
        }
    }
    let mount = stack.mount_with(&["allow_other"]);
    for (name, change) in changes {
        let open = |who| {
            let file = File::options().read(true).write(true).open(mount.join(format!("{name}-{who}")));
            (file.unwrap(), File::open(mount.join("source")).unwrap())
        };
        let (file, source) = open("root");
        change(&file, &source);
        assert_eq!(mode(mount.join(format!("{name}-root"))), 0o6777, "{name}: root keeps it");
        let (file, source) = open("alice");
        as_ids(ALICE, ALICE, 0, || change(&file, &source));
        assert_eq!(mode(mount.join(format!("{name}-alice"))), 0o777, "{name}: it is taken from others");
    }
    mount.unmount();
}

#[test]
fn an_acl_set_from_outside_of_the_group_clears_setgid() {
    support::needs_root!();
    let stack = Stack::new(1);
    let lower = stack.lower(0);
    lower.file("f", "x").owner("f", ALICE, BOB).mode("f", 0o2755);
    lower.dir("d").owner("d", ALICE, BOB).mode("d", 0o2755);
    lower.file("own", "x").owner("own", ALICE, ALICE).mode("own", 0o2755);
    let mount = stack.mount_with(&["allow_other"]);
    // Version 2; then tag, permissions and id of the owner, a named user, the group, the mask and the others.
    let entry = |tag: u16, permissions: u16, id: u32| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let none = u32::MAX;
    let acl = [
        2u32.to_le_bytes().to_vec(),
        entry(0x01, 7, none),
        entry(0x02, 6, BOB),
        entry(0x04, 7, none),
        entry(0x10, 7, none),
        entry(0x20, 5, none),
    ]
    .concat();
    as_ids(ALICE, ALICE, 0, || {
        for name in ["f", "d", "own"] {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(mount.join(name), "system.posix_acl_access", &acl, flags).unwrap();
        }
    });
    let modes = ["f", "d", "own"].map(|name| mode(mount.join(name)));
    assert_eq!(modes, [0o775, 0o775, 0o2775], "it stays with who is in the group");
    mount.unmount();
}

/// A handle would be stale as soon as the kernel forgets the file.
#[test]
fn there_are_no_handles() {
    support::needs_root!();
    if Program::under_test() == Program::Kernel {
        support::skip!("this is about FUSE");
    }
    let stack = Stack::new(1);
    stack.lower(0).file("f", "x");
    let mount = stack.mount();
    assert_eq!(has_handle(&mount.join("f")).unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
    mount.unmount();
}

#[test]
fn seeking_before_the_start_is_no_such_place() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "x");
    let mount = stack.mount();
    let file = File::open(mount.join("f")).unwrap();
    for whence in [SeekFrom::Data(u64::MAX), SeekFrom::Hole(u64::MAX)] {
        assert_eq!(rustix::fs::seek(&file, whence), Err(Errno::NXIO));
    }
    drop(file);
    mount.unmount();
}

/// The file below has no data yet where the kernel has not written them back.
#[test]
fn data_that_are_not_written_back_are_found() {
    if std::env::var("UNIONMOUNT_OPTIONS").is_ok_and(|options| options.contains("passthrough")) {
        support::skip!("with passthrough nothing is written back");
    }
    let stack = Stack::new(1);
    let mount = stack.mount_with(&["writeback"]);
    let file = File::create_new(mount.join("f")).unwrap();
    file.set_len(4 << 20).unwrap();
    file.write_all_at(&[7; 65536], 1 << 20).unwrap();
    assert!(rustix::fs::seek(&file, SeekFrom::Data(0)).unwrap() <= 1 << 20);
    let copied =
        Command::new("cp").args([mount.join("f"), stack.scratch().path().join("copy")]).status().unwrap();
    assert!(copied.success());
    assert!(read(stack.scratch().path().join("copy")) == read(mount.join("f")), "cp copies what is there");
    drop(file);
    mount.unmount();
}

/// A reader through the page cache, beside somebody who writes past it and waits for the end of each write.
#[test]
fn what_was_written_past_the_cache_is_read() {
    const ROUNDS: u32 = 4000;
    let stack = Stack::new(1);
    let mount = stack.mount();
    let path = mount.join("f");
    fs::write(&path, [0; 4096]).unwrap();
    let direct = match File::options().write(true).custom_flags(libc::O_DIRECT).open(&path) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => support::skip!("no O_DIRECT here"),
        opened => opened.unwrap(),
    };
    let Ok(asynchronous) = Asynchronous::new() else { support::skip!("no asynchronous writes here") };
    let ended = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = File::open(&path).unwrap();
        scope.spawn(move || {
            let mut block = [0; 4096];
            while !ended.load(Ordering::Relaxed) {
                reader.read_exact_at(&mut block, 0).unwrap();
            }
        });
        /// Lets the reader end, whatever happens.
        struct End<'a>(&'a AtomicBool);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _end = End(ended);
        let file = File::open(&path).unwrap();
        for round in 1..=ROUNDS {
            let byte = (round % 251) as u8;
            assert_eq!(asynchronous.write(&direct, &Block([byte; 4096]), 0).unwrap(), 4096);
            let mut block = [0; 4096];
            file.read_exact_at(&mut block, 0).unwrap();
            assert!(block.iter().all(|read| *read == byte), "round {round}: old bytes");
        }
    });
    drop(direct);
    mount.unmount();
}

/// An engine maps a mount for a container with a user namespace.
#[test]
fn the_mount_can_be_idmapped() {
    support::needs_root!();
    const SHIFT: u32 = 100_000;
    let stack = Stack::new(1);
    stack.lower(0).dir("dir").mode("dir", 0o777).file("dir/root", "x").file("dir/alice", "x");
    stack.lower(0).owner("dir/alice", 1000, 1000);
    let mount = stack.mount_with(&["allow_other"]);
    let mapped = stack.scratch().path().join("mapped");
    fs::create_dir(&mapped).unwrap();
    if let Err(error) = idmapped_mount(mount.path(), &mapped, 0, SHIFT) {
        support::skip!("no idmapped mounts of this kind of filesystem (Linux 6.12): {error}");
    }
    assert_eq!(stat(mapped.join("dir/root")).uid(), SHIFT);
    assert_eq!(stat(mapped.join("dir/alice")).uid(), SHIFT + 1000);
    as_ids(SHIFT + 1000, SHIFT + 1000, 0o022, || {
        let at = |name| mapped.join("dir").join(name);
        fs::write(at("file"), "x").unwrap();
        fs::create_dir(at("made")).unwrap();
        std::os::unix::fs::symlink("x", at("link")).unwrap();
        fs::write(at("alice"), "changed").unwrap();
        support::assert_errno!(fs::write(at("root"), "x"), Errno::ACCESS);
        rustix::fs::chmod(at("alice"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    });
    for name in ["file", "made", "link", "alice"] {
        let seen = |root: &std::path::Path| stat(root.join("dir").join(name)).uid();
        let uids = (seen(mount.path()), seen(&mapped), seen(stack.upper().root()));
        assert_eq!(uids, (1000, SHIFT + 1000, 1000), "{name}");
    }
    // Who isn't mapped can't own anything there.
    as_ids(ALICE / 2, ALICE / 2, 0, || {
        assert!(fs::write(mapped.join("dir/nobody"), "x").is_err());
    });
    // The plain mount beside it tells who makes what, as ever.
    as_ids(ALICE, BOB, 0, || fs::write(mount.join("dir/plain"), "x").unwrap());
    assert_eq!((stat(mount.join("dir/plain")).uid(), stat(mount.join("dir/plain")).gid()), (ALICE, BOB));
    rustix::mount::unmount(&mapped, rustix::mount::UnmountFlags::empty()).unwrap();
    mount.unmount();
}

/// A program that is killed while a file is copied up for it doesn't wait for the end, and leaves nothing behind.
#[test]
fn a_copy_up_ends_with_the_program_that_waits_for_it() {
    support::needs_root!();
    if Program::under_test() == Program::Kernel {
        support::skip!("this is about the daemon");
    }
    const SIZE: u64 = 768 << 20;
    let scratch = Scratch::new();
    let below = LoopFilesystem::tmpfs(&scratch, "below", SIZE + (64 << 20));
    let above = LoopFilesystem::tmpfs(&scratch, "above", SIZE + (64 << 20));
    let stack = Stack::new(1).with_lower_in(0, below.path()).with_upper_in(above.path());
    let piece = vec![1; 16 << 20];
    let large = File::create(stack.lower(0).root().join("large")).unwrap();
    (0..SIZE).step_by(piece.len()).for_each(|at| large.write_all_at(&piece, at).unwrap());
    let mount = stack.mount();
    let used = || {
        let stat = rustix::fs::statvfs(above.path()).unwrap();
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    };
    let write = ["conv=notrunc", "if=/dev/zero", "count=1", "status=none"];
    let target = format!("of={}", mount.join("large").display());
    let mut program = Command::new("dd").args(write).arg(target).spawn().unwrap();
    assert!(wait_until(support::PATIENCE, || used() > 32 << 20), "the copy begins");
    program.kill().unwrap();
    assert!(!program.wait().unwrap().success(), "it was killed before it ended");
    assert!(used() < SIZE, "it didn't wait for all of it");
    assert!(wait_until(support::PATIENCE, || used() < 1 << 20), "nothing is left of the copy");
    assert!(!copied_up(&stack, "large"));
    // Whoever comes next gets it.
    File::options().write(true).open(mount.join("large")).unwrap().write_all_at(b"x", 0).unwrap();
    assert!(copied_up(&stack, "large"));
    mount.unmount();
}
