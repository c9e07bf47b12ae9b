//! Locks, and that they hold across copy-up.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::{for_reading, for_writing};
use support::raw::{LockKind, lock};
use support::{Stack, run};

/// A program that a test beside this one is starting has all open files, and so their locks, until it is another program.
const FORKED: Duration = Duration::from_secs(20);

#[test]
fn open_file_locks_exclude_each_other_across_copy_up() {
    support::needs_opens_that_follow!();
    let stack = Stack::new(1);
    stack.lower(0).file("f", "0123456789");
    let mount = stack.mount();
    let reader = for_reading(mount.join("f"));
    lock(&reader, LockKind::OpenFile, libc::F_RDLCK, 0, 5).unwrap();
    let writer = for_writing(mount.join("f"));
    support::assert_errno!(lock(&writer, LockKind::OpenFile, libc::F_WRLCK, 0, 3), Errno::AGAIN);
    lock(&writer, LockKind::OpenFile, libc::F_WRLCK, 5, 5).unwrap();
    support::assert_errno!(lock(&reader, LockKind::OpenFile, libc::F_RDLCK, 4, 2), Errno::AGAIN);
    lock(&reader, LockKind::OpenFile, libc::F_UNLCK, 0, 0).unwrap();
    lock(&writer, LockKind::OpenFile, libc::F_WRLCK, 0, 0).unwrap();
    drop(writer);
    let free = || lock(&reader, LockKind::OpenFile, libc::F_RDLCK, 0, 0).is_ok();
    assert!(support::wait_until(FORKED, free), "the lock goes with the open file");
    drop(reader);
    mount.unmount();
}

#[test]
fn flock_excludes_across_copy_up() {
    support::needs_opens_that_follow!();
    let stack = Stack::new(1);
    stack.lower(0).file("f", "x");
    let mount = stack.mount();
    let one = for_reading(mount.join("f"));
    flock(one.as_fd(), FlockOperation::LockExclusive).unwrap();
    let two = for_writing(mount.join("f"));
    assert_eq!(flock(&two, FlockOperation::NonBlockingLockShared), Err(Errno::AGAIN));
    flock(&one, FlockOperation::Unlock).unwrap();
    flock(&two, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert_eq!(flock(&one, FlockOperation::NonBlockingLockShared), Err(Errno::AGAIN));
    // Another process is excluded too.
    let said = support::output("flock", &["-n", mount.join("f").to_str().unwrap(), "true"]);
    assert_eq!(said.status.code(), Some(1));
    drop(two);
    run("flock", &["-w", &FORKED.as_secs().to_string(), mount.join("f").to_str().unwrap(), "true"]);
    drop(one);
    mount.unmount();
}

/// fcntl's locks belong to a process, so another one has to ask.
#[test]
fn process_locks_exclude_other_processes_across_copy_up() {
    support::needs_opens_that_follow!();
    let stack = Stack::new(1);
    stack.lower(0).file("f", "0123456789");
    let mount = stack.mount();
    let path = mount.join("f");
    let held = for_reading(&path);
    lock(&held, LockKind::Process, libc::F_RDLCK, 0, 5).unwrap();
    assert!(other_process_can_lock(&path, 5, 10), "outside the range");
    assert!(!other_process_can_lock(&path, 0, 5), "a read lock excludes a writer");
    // A copy-up by writing: the lock stays.
    let writer = for_writing(&path);
    lock(&writer, LockKind::Process, libc::F_WRLCK, 8, 1).unwrap();
    assert!(!other_process_can_lock(&path, 2, 1), "the lock was lost by the copy-up");
    assert!(!other_process_can_lock(&path, 8, 1));
    drop(writer);
    // Closing any descriptor of the file drops a process's locks: POSIX.
    assert!(other_process_can_lock(&path, 0, 5));
    drop(held);
    mount.unmount();
}

/// Whether another process gets a write lock on the range: this test binary again, running [`try_lock`].
fn other_process_can_lock(path: &std::path::Path, start: i64, length: i64) -> bool {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "locks::try_lock", "--ignored", "--nocapture"])
        .env("UNIONMOUNT_TEST_LOCK", format!("{start} {length}"))
        .env("UNIONMOUNT_TEST_PATH", path)
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    match (text.contains("LOCKED"), text.contains("BUSY")) {
        (true, false) => true,
        (false, true) => false,
        _ => panic!("the helper said: {text}"),
    }
}

/// Not a test: the other process of [`other_process_can_lock`].
#[test]
#[ignore = "the other process of another test"]
fn try_lock() {
    let range = std::env::var("UNIONMOUNT_TEST_LOCK").unwrap();
    let (start, length) = range.split_once(' ').unwrap();
    let file = for_writing(std::env::var_os("UNIONMOUNT_TEST_PATH").unwrap());
    match lock(&file, LockKind::Process, libc::F_WRLCK, start.parse().unwrap(), length.parse().unwrap()) {
        Ok(()) => println!("LOCKED"),
        Err(error) if [Some(libc::EAGAIN), Some(libc::EACCES)].contains(&error.raw_os_error()) => {
            println!("BUSY")
        }
        Err(error) => panic!("{error}"),
    }
}

/// A waiting lock is granted when the other is released.
#[test]
fn a_waiter_gets_the_lock() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "x");
    let mount = stack.mount();
    let holder = for_writing(mount.join("f"));
    flock(&holder, FlockOperation::LockExclusive).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let path = mount.join("f");
        scope.spawn(move || {
            let waiter = for_writing(path);
            sender.send("waiting").unwrap();
            flock(&waiter, FlockOperation::LockExclusive).unwrap();
            sender.send("locked").unwrap();
        });
        assert_eq!(receiver.recv().unwrap(), "waiting");
        assert!(
            receiver.recv_timeout(std::time::Duration::from_millis(100)).is_err(),
            "the lock was not exclusive"
        );
        flock(&holder, FlockOperation::Unlock).unwrap();
        assert_eq!(receiver.recv_timeout(support::PATIENCE), Ok("locked"));
    });
    drop(holder);
    mount.unmount();
}
