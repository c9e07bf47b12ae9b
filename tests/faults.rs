//! Faults: a killed daemon, a full disk, layers that fail or go away. What was, or what is new; never a mix, never a
//! hang, nothing left behind.

// A test that panics has failed; that is what unwrap is for here.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use support::model::generate::{Vocabulary, case};
use support::model::kills::{is_death, kill_during};
use support::model::op::Outcome;
use support::{LoopFilesystem, Options, Program, Scratch, Snapshot, Stack};

#[test]
fn a_killed_daemon_leaves_the_old_state_or_the_new_one() {
    if Program::under_test() == Program::Kernel {
        support::skip!("the kernel's overlayfs has no daemon");
    }
    let privileged = support::Privilege::current() == support::Privilege::Root;
    let vocabulary = Vocabulary { open_files: false, operations: 200, ..Vocabulary::full(privileged) };
    let strategy = case(&vocabulary);
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let cases: u32 = std::env::var("UNIONMOUNT_CASES").ok().map_or(40, |text| text.parse().unwrap());
    let mut hits = 0;
    for case in 0..cases {
        let (spec, operations) = strategy.new_tree(&mut runner).unwrap().current();
        let delay = Duration::from_micros(u64::from(case) * 977 % 40_000);
        let stack = Stack::new(spec.lowers.len());
        hits += usize::from(kill_during(&stack, &spec, &operations, |_| false, delay));
    }
    eprintln!("{hits} of {cases} daemons died in the middle of an operation");
    assert!(hits > 0, "no daemon died in the middle of an operation: the test tests nothing");
}

/// Copy-ups of large files, which take long enough to be hit in the middle.
#[test]
fn a_copy_up_that_is_killed_leaves_the_lower_file_whole() {
    if Program::under_test() == Program::Kernel {
        support::skip!("the kernel's overlayfs has no daemon");
    }
    let content: Vec<u8> = (0..24_000_000u32).map(|index| (index % 253) as u8).collect();
    let stack = Stack::new(1);
    let names = ["a", "b", "c", "d"];
    for name in names {
        stack.lower(0).file(format!("dir/{name}"), &content).xattr(format!("dir/{name}"), "user.a", "kept");
        stack.lower(0).mode(format!("dir/{name}"), 0o640).mtime(format!("dir/{name}"), 1_000_000_000, 5);
    }
    for round in 0..12u64 {
        let mount = stack.mount();
        let pid = Pid::from_raw(mount.daemon() as i32).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(round * 7));
                kill_process(pid, Signal::KILL).unwrap();
            });
            for name in names {
                // Fails from some instant on: which, is the point.
                let path = mount.join("dir").join(name);
                if let Err(error) = fs::set_permissions(&path, PermissionsExt::from_mode(0o600)) {
                    assert!(is_death(&Outcome::Failed(support::errno_of(&error))), "{error}");
                }
            }
        });
        mount.kill_dead();
        let mount = stack.mount();
        for name in names {
            let path = mount.join("dir").join(name);
            assert!(fs::read(&path).unwrap() == content, "round {round}: {name} is not whole");
            let found = fs::metadata(&path).unwrap();
            assert!([0o640, 0o600].contains(&(found.mode() & 0o777)));
            assert_eq!((found.mtime(), found.mtime_nsec()), (1_000_000_000, 5), "round {round}: {name}");
            assert_eq!(support::read_xattrs(&path).unwrap()[&b"user.a"[..]], b"kept");
            // To be copied up again in the next round.
            fs::remove_file(&path).unwrap();
        }
        mount.unmount();
        stack.assert_workdir_clean();
        // Back to the lowers: a plain upper again.
        fs::remove_dir_all(stack.upper().root()).unwrap();
        fs::create_dir(stack.upper().root()).unwrap();
        fs::remove_dir_all(stack.work()).unwrap();
        fs::create_dir(stack.work()).unwrap();
    }
}

#[test]
fn what_was_fsynced_survives_the_daemon() {
    if Program::under_test() == Program::Kernel {
        support::skip!("the kernel's overlayfs has no daemon");
    }
    let stack = Stack::new(1);
    stack.lower(0).file("d/low", vec![b'o'; 100_000]);
    let mount = stack.mount();
    let low = File::options().write(true).open(mount.join("d/low")).unwrap();
    low.write_all_at(b"synced", 50_000).unwrap();
    low.sync_all().unwrap();
    let mut new = File::create(mount.join("d/new")).unwrap();
    new.write_all(&vec![b'n'; 300_000]).unwrap();
    new.sync_data().unwrap();
    fs::rename(mount.join("d/new"), mount.join("d/renamed")).unwrap();
    File::open(mount.join("d")).unwrap().sync_all().unwrap();
    mount.kill_daemon();
    support::assert_errno!(low.write_all_at(b"lost", 0), Errno::NOTCONN | Errno::CONNABORTED | Errno::IO);
    drop((low, new));
    mount.kill_dead();
    let mount = stack.mount();
    let mut expected = vec![b'o'; 100_000];
    expected[50_000..50_006].copy_from_slice(b"synced");
    assert!(fs::read(mount.join("d/low")).unwrap() == expected);
    assert!(fs::read(mount.join("d/renamed")).unwrap() == vec![b'n'; 300_000]);
    assert!(!mount.join("d/new").exists());
    mount.unmount();
    stack.assert_workdir_clean();
}

fn assert_quick<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    assert!(start.elapsed() < Duration::from_secs(20), "{what} took {:?}", start.elapsed());
    result
}

/// What failed half-way took its copy away at once, not only when the mount ends: it may be what fills the disk.
fn assert_nothing_staged(stack: &Stack) {
    let left: Vec<_> = fs::read_dir(stack.work().join("work")).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_full_disk() {
    support::needs_root!();
    let scratch = Scratch::new();
    let disk = LoopFilesystem::new(&scratch, "disk", "ext4", 16 << 20);
    let stack = Stack::new(1).with_upper_in(disk.path());
    stack.lower(0).file("big", vec![b'b'; 40 << 20]).file("small", "small").file("d/other", "o");
    let before = stack.lower_snapshots();
    let mount = stack.mount();
    // A copy-up that can't fit: ENOSPC, by whichever call comes to it. With data held back it may be fsync.
    let attempt = || {
        let file = File::options().write(true).open(mount.join("big"))?;
        file.write_all_at(b"X", 0)?;
        file.sync_all()
    };
    support::assert_errno!(attempt(), Errno::NOSPC);
    support::assert_errno!(
        fs::set_permissions(mount.join("big"), PermissionsExt::from_mode(0o600)),
        Errno::NOSPC
    );
    assert!(
        fs::read(mount.join("big")).unwrap()[1..] == vec![b'b'; (40 << 20) - 1],
        "the lower file is still whole"
    );
    assert!(fs::symlink_metadata(stack.upper().root().join("big")).is_err(), "a partial copy");
    assert_nothing_staged(&stack);
    // The mount goes on.
    fs::write(mount.join("small"), "changed").unwrap();
    assert_eq!(fs::read(mount.join("small")).unwrap(), b"changed");
    // Filled by writing.
    let mut filler = File::create(mount.join("filler")).unwrap();
    let error = loop {
        match filler.write_all(&[b'f'; 65536]).and_then(|()| filler.sync_data()) {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(support::errno_of(&error), Errno::NOSPC);
    drop(filler);
    assert_eq!(fs::read(mount.join("small")).unwrap(), b"changed");
    assert_eq!(fs::read(mount.join("d/other")).unwrap(), b"o");
    // Deleting makes room again, whatever a whiteout costs.
    fs::remove_file(mount.join("filler")).unwrap();
    fs::remove_file(mount.join("d/other")).unwrap();
    fs::write(mount.join("again"), vec![b'a'; 1 << 20]).unwrap();
    mount.unmount();
    stack.assert_workdir_clean();
    stack.assert_lowers_unchanged(&before);
    let mount = stack.mount();
    assert_eq!(fs::read(mount.join("again")).unwrap().len(), 1 << 20);
    assert!(
        fs::read(mount.join("big")).unwrap() == vec![b'b'; 40 << 20],
        "what failed to be written was written"
    );
    assert!(!mount.join("d/other").exists());
    mount.unmount();
}

/// As on a plain filesystem, though the daemon keeps what was deleted until the kernel forgets it.
#[test]
fn what_was_deleted_is_free_at_once() {
    support::needs_root!();
    let scratch = Scratch::new();
    let disk = LoopFilesystem::tmpfs(&scratch, "disk", 8 << 20);
    let stack = Stack::new(1).with_upper_in(disk.path());
    let mount = stack.mount();
    let content = vec![b'x'; 6 << 20];
    std::thread::scope(|scope| {
        for writer in ["a", "b"] {
            let (mount, content) = (&mount, &content[..content.len() / 2]);
            scope.spawn(move || {
                for round in 0..100 {
                    let path = mount.join(format!("{writer}{round}"));
                    let mut file = File::create(&path).unwrap();
                    file.write_all(content).and_then(|()| file.sync_data()).unwrap();
                    drop(file);
                    match round % 3 {
                        0 => fs::remove_file(&path).unwrap(),
                        1 => fs::write(&path, "").unwrap(),
                        _ => {
                            File::create(mount.join(writer)).unwrap();
                            fs::rename(mount.join(writer), &path).unwrap();
                        }
                    }
                }
            });
        }
    });
    mount.unmount();
    stack.assert_workdir_clean();
}

/// A change of flags that copies up waits for the room of a deleted file that is just being closed, as every change does.
#[test]
fn what_is_closed_makes_room_for_a_change_of_flags() {
    const ROUNDS: usize = 20;
    support::needs_root!();
    let scratch = Scratch::new();
    let disk = LoopFilesystem::tmpfs(&scratch, "disk", 8 << 20);
    let stack = Stack::new(1).with_upper_in(disk.path());
    for round in 0..ROUNDS {
        stack.lower(0).file(format!("lower{round}"), vec![b'x'; 512 << 10]);
    }
    let mount = stack.mount();
    for round in 0..ROUNDS {
        let (filler, lower) = (mount.join("filler"), mount.join(format!("lower{round}")));
        let mut deleted = File::create(&filler).unwrap();
        let filled = (0..).find_map(|_| deleted.write_all(&[b'f'; 64 << 10]).err()).unwrap();
        assert_eq!(support::errno_of(&filled), Errno::NOSPC);
        fs::remove_file(&filler).unwrap();
        let file = File::open(&lower).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let change = scope.spawn(move || {
                tell.send(rustix::thread::gettid().as_raw_nonzero()).unwrap();
                rustix::fs::ioctl_setflags(&file, rustix::fs::IFlags::NODUMP)
            });
            let state = format!("/proc/self/task/{}/stat", told.recv().unwrap());
            let waits = || fs::read_to_string(&state).is_ok_and(|stat| stat.contains(") S "));
            while !waits() && !change.is_finished() {
                std::thread::yield_now();
            }
            drop(deleted);
            change.join().unwrap().unwrap();
        });
        fs::remove_file(&lower).unwrap();
    }
    mount.unmount();
    stack.assert_workdir_clean();
}

#[test]
fn no_inodes_left() {
    support::needs_root!();
    let scratch = Scratch::new();
    let disk = LoopFilesystem::new(&scratch, "disk", "ext4", 8 << 20);
    let stack = Stack::new(1).with_upper_in(disk.path());
    stack.lower(0).file("d/e/f", "lower").file("g", "g");
    let mount = stack.mount();
    let mut count = 0;
    let error = loop {
        match File::create(mount.join(format!("n{count}"))) {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(support::errno_of(&error), Errno::NOSPC);
    support::assert_errno!(
        fs::set_permissions(mount.join("d/e/f"), PermissionsExt::from_mode(0o600)),
        Errno::NOSPC
    );
    support::assert_errno!(fs::create_dir(mount.join("new")), Errno::NOSPC);
    support::assert_errno!(fs::hard_link(mount.join("g"), mount.join("h")), Errno::NOSPC);
    assert_eq!(fs::read(mount.join("d/e/f")).unwrap(), b"lower");
    fs::remove_file(mount.join("n0")).unwrap();
    for index in 1..20 {
        fs::remove_file(mount.join(format!("n{index}"))).unwrap();
    }
    fs::write(mount.join("d/e/f"), "changed").unwrap();
    assert_eq!(fs::read(mount.join("d/e/f")).unwrap(), b"changed");
    mount.unmount();
    stack.assert_workdir_clean();
}

/// A quota is used up: EDQUOT instead of ENOSPC, and the same care.
#[test]
fn a_used_up_quota() {
    support::needs_root!();
    let scratch = Scratch::new();
    let disk = LoopFilesystem::new(&scratch, "disk", "btrfs", 160 << 20);
    let path = disk.path().to_str().unwrap();
    support::run("btrfs", &["quota", "enable", path]);
    support::run("btrfs", &["qgroup", "limit", "20M", path]);
    let stack = Stack::new(1).with_upper_in(disk.path());
    stack.lower(0).file("big", vec![b'b'; 30 << 20]).file("small", "small");
    let before = stack.lower_snapshots();
    let mount = stack.mount();
    let error = fs::set_permissions(mount.join("big"), PermissionsExt::from_mode(0o600))
        .and_then(|()| File::open(mount.join("big"))?.sync_all())
        .expect_err("more than the quota was copied up");
    assert_eq!(support::errno_of(&error), Errno::DQUOT);
    assert!(fs::symlink_metadata(stack.upper().root().join("big")).is_err(), "a partial copy");
    assert_nothing_staged(&stack);
    let mut filler = File::create(mount.join("filler")).unwrap();
    let error = loop {
        match filler.write_all(&[b'f'; 65536]).and_then(|()| filler.sync_data()) {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(support::errno_of(&error), Errno::DQUOT);
    drop(filler);
    assert!(fs::read(mount.join("big")).unwrap() == vec![b'b'; 30 << 20], "the lower's file shows whole");
    fs::remove_file(mount.join("filler")).unwrap();
    mount.unmount();
    stack.assert_workdir_clean();
    stack.assert_lowers_unchanged(&before);
}

/// A lower's disk has a bad sector: btrfs finds by its checksum that a file was torn, and says EIO.
#[test]
fn a_lower_that_cannot_be_read() {
    support::needs_root!();
    let scratch = Scratch::new();
    let mark = b"here is where the disk will fail";
    let disk = LoopFilesystem::new(&scratch, "disk", "btrfs", 128 << 20);
    let mut content = vec![b'c'; 1 << 20];
    content[700_000..][..mark.len()].copy_from_slice(mark);
    fs::create_dir(disk.path().join("layer")).unwrap();
    fs::write(disk.path().join("layer/torn"), &content).unwrap();
    fs::write(disk.path().join("layer/whole"), "whole").unwrap();
    support::run("umount", &[disk.path()]);
    drop(disk);
    let path = scratch.path().join("disk.img");
    let image = fs::read(&path).unwrap();
    let places: Vec<_> = (0..image.len() - mark.len()).filter(|&at| image[at..].starts_with(mark)).collect();
    assert!(!places.is_empty(), "the file is not in the image");
    for at in places {
        File::options().write(true).open(&path).unwrap().write_all_at(b"X", at as u64).unwrap();
    }
    let disk = LoopFilesystem::again(&scratch, "disk");
    support::assert_errno!(fs::read(disk.path().join("layer/torn")), Errno::IO);

    let stack = Stack::new(1);
    let lower = disk.path().join("layer");
    let options = Options { lowers: vec![lower], ..stack.options() };
    let mount = support::Mount::new(&options, stack.mountpoint());
    support::assert_errno!(fs::read(mount.join("torn")), Errno::IO);
    support::assert_errno!(
        fs::set_permissions(mount.join("torn"), PermissionsExt::from_mode(0o600)),
        Errno::IO
    );
    assert!(fs::symlink_metadata(stack.upper().root().join("torn")).is_err(), "a partial copy");
    assert_eq!(fs::read(mount.join("whole")).unwrap(), b"whole", "the mount goes on");
    fs::set_permissions(mount.join("whole"), PermissionsExt::from_mode(0o600)).unwrap();
    mount.unmount();
    stack.assert_workdir_clean();
}

#[test]
fn an_upper_that_becomes_read_only() {
    support::needs_root!();
    let scratch = Scratch::new();
    let disk = LoopFilesystem::new(&scratch, "disk", "ext4", 16 << 20);
    let stack = Stack::new(1).with_upper_in(disk.path());
    stack.lower(0).file("low", "low");
    let mount = stack.mount();
    fs::write(mount.join("up"), "up").unwrap();
    File::open(mount.join("up")).unwrap().sync_all().unwrap();
    disk.abort();
    // ext4 says EROFS, or EIO where it was in the middle of something.
    let path = mount.join("low");
    support::assert_errno!(
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)),
        Errno::ROFS | Errno::IO
    );
    support::assert_errno!(File::create(mount.join("new")), Errno::ROFS | Errno::IO);
    support::assert_errno!(fs::remove_file(&path), Errno::ROFS | Errno::IO);
    support::assert_errno!(fs::rename(mount.join("up"), mount.join("other")), Errno::ROFS | Errno::IO);
    assert_eq!(fs::read(&path).unwrap(), b"low");
    assert_eq!(fs::read(mount.join("up")).unwrap(), b"up");
    assert!(!mount.join("new").exists() && !mount.join("other").exists());
    mount.unmount();
}

#[test]
fn an_upper_on_a_read_only_filesystem_is_refused() {
    support::needs_root!();
    if !Program::under_test().is_unionmount() {
        support::skip!("the peers have other words");
    }
    let scratch = Scratch::new();
    let disk = LoopFilesystem::tmpfs(&scratch, "disk", 1 << 20);
    let stack = Stack::new(1).with_upper_in(disk.path());
    disk.remount("ro");
    let refused =
        support::Mount::try_with_program(&Program::under_test(), &stack.options(), stack.mountpoint());
    let error = refused.err().expect("a mount that cannot write");
    assert_eq!(error.status, Some(1), "{}", error.stderr);
    assert!(error.stderr.contains("upper") || error.stderr.contains("work"), "{}", error.stderr);
    assert!(error.stderr.to_lowercase().contains("read-only"), "{}", error.stderr);
}

/// No promise what is shown; only that nothing crashes and nothing hangs.
#[test]
fn a_lower_that_is_emptied_under_the_mount() {
    let stack = Stack::new(2);
    for index in 0..100 {
        stack.lower(index % 2).file(format!("d{}/f{index}", index % 5), "x");
    }
    let mount = stack.mount();
    Snapshot::take(mount.path());
    let open = File::open(mount.join("d0/f0")).unwrap();
    fs::remove_dir_all(stack.lower(1).root()).unwrap();
    assert_quick("a walk over a lower that went away", || {
        support::output("find", &[mount.path()]);
        support::output(
            "cp",
            &["-r".as_ref(), mount.path().as_os_str(), stack.scratch().path().join("copy").as_os_str()],
        );
        for index in 0..100 {
            let path = mount.join(format!("d{}/f{index}", index % 5));
            // Any errno will do, and success too.
            fs::write(&path, "y").unwrap_or_default();
            fs::remove_file(&path).unwrap_or_default();
        }
        fs::rename(mount.join("d1"), mount.join("e")).unwrap_or_default();
    });
    fs::write(mount.join("still"), "alive").unwrap();
    assert_eq!(fs::read(mount.join("still")).unwrap(), b"alive");
    assert!(
        mount.daemon() > 0 && fs::metadata(format!("/proc/{}", mount.daemon())).is_ok(),
        "the daemon died"
    );
    drop(open);
    mount.unmount();
}

#[test]
fn a_lower_whose_files_change_under_the_mount() {
    let stack = Stack::new(1);
    for index in 0..50 {
        stack.lower(0).file(format!("d/f{index}"), "old content");
    }
    let mount = stack.mount();
    Snapshot::take(mount.path());
    for index in 0..50 {
        let place = stack.lower(0).root().join(format!("d/f{index}"));
        fs::remove_file(&place).unwrap();
        match index % 3 {
            0 => fs::create_dir(&place).unwrap(),
            1 => fs::write(&place, "new").unwrap(),
            _ => {}
        }
    }
    assert_quick("work on a lower that changes", || {
        for index in 0..50 {
            let path = mount.join(format!("d/f{index}"));
            fs::read(&path).unwrap_or_default();
            fs::write(&path, "mine").unwrap_or_default();
            fs::remove_file(&path).unwrap_or_default();
        }
    });
    fs::write(mount.join("still"), "alive").unwrap();
    mount.unmount();
}

#[test]
fn few_file_descriptors() {
    support::needs_root!();
    if Program::under_test() == Program::Kernel {
        support::skip!("the kernel's overlayfs has no daemon");
    }
    let stack = Stack::new(3);
    for index in 0..3000 {
        stack.lower(index % 3).file(format!("d{}/f{index}", index % 300), format!("{index}"));
    }
    let limit = 256;
    let prefix = ["prlimit".to_owned(), format!("--nofile={limit}:{limit}")].to_vec();
    let mount = support::Mount::new(&support::Options { prefix, ..stack.options() }, stack.mountpoint());
    // Many directories and files, one after the other: a known node holds no descriptor.
    for index in 0..3000 {
        let path = mount.join(format!("d{}/f{index}", index % 300));
        assert_eq!(fs::read(path).unwrap(), index.to_string().into_bytes());
    }
    // More at once than there are descriptors: EMFILE or ENFILE at some point, and after that all is well.
    let mut open = Vec::new();
    for index in 0..2 * limit {
        match File::open(mount.join(format!("d{}/f{index}", index % 300))) {
            Ok(file) => open.push(file),
            Err(error) => {
                assert!([Errno::MFILE, Errno::NFILE].contains(&support::errno_of(&error)), "{error}")
            }
        }
    }
    drop(open);
    fs::write(mount.join("d1/f1"), "changed").unwrap();
    assert_eq!(fs::read(mount.join("d1/f1")).unwrap(), b"changed");
    mount.unmount();
    stack.assert_workdir_clean();
}

/// Two mounts must not write into one upper.
#[test]
fn an_upper_in_use_is_refused() {
    if !Program::under_test().is_unionmount() {
        support::skip!("the peers do not lock");
    }
    let stack = Stack::new(1);
    stack.lower(0).file("f", "x");
    let mount = stack.mount();
    let other = stack.scratch().dir("other");
    let options = stack.options();
    let refused = support::Mount::try_with_program(&Program::under_test(), &options, &other);
    let error = refused.err().expect("a second mount of one upper");
    assert_eq!(error.status, Some(1), "{}", error.stderr);
    mount.kill();
    // A killed daemon holds no lock.
    stack.mount().unmount();
}
