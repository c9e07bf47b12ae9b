//! flock(2): locks of open files and directories, gone with the last descriptor of their open file description, and so
//! with the process that held them whatever its end.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, Result};

/// How often a lock is tried by who doesn't wait for ever: flock(2) has no time limit.
const RETRY: Duration = Duration::from_millis(5);

/// What a lock on a file or a directory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Beside others who share.
    Shared,
    /// Alone.
    Exclusive,
}

/// Waits for the lock.
///
/// # Errors
/// Those of flock(2), a signal aside.
pub fn lock(file: impl AsFd, access: Access) -> Result<()> {
    retried(
        file,
        match access {
            Access::Shared => FlockOperation::LockShared,
            Access::Exclusive => FlockOperation::LockExclusive,
        },
    )
}

/// Takes the lock without waiting; false when somebody else has it.
///
/// # Errors
/// Those of flock(2), as on a filesystem that cannot lock directories.
pub fn try_lock(file: impl AsFd, access: Access) -> Result<bool> {
    let operation = match access {
        Access::Shared => FlockOperation::NonBlockingLockShared,
        Access::Exclusive => FlockOperation::NonBlockingLockExclusive,
    };
    match retried(file, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Takes the lock, and waits no longer than until `deadline` for others to let go of it; false when they don't.
///
/// # Errors
/// Those of [`try_lock`].
pub fn lock_until(file: impl AsFd, access: Access, deadline: Instant) -> Result<bool> {
    loop {
        if try_lock(&file, access)? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(RETRY);
    }
}

fn retried(file: impl AsFd, operation: FlockOperation) -> Result<()> {
    loop {
        match flock(&file, operation) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_lock_keeps_others_away_until_it_is_let_go() {
        let top = tempfile::tempdir().unwrap();
        let open = || File::open(top.path()).unwrap();
        let shared = open();
        lock(&shared, Access::Shared).unwrap();
        assert!(try_lock(open(), Access::Shared).unwrap());
        let now = Instant::now();
        assert!(!lock_until(open(), Access::Exclusive, now).unwrap());
        assert!(!lock_until(open(), Access::Exclusive, now + RETRY).unwrap() && now.elapsed() >= RETRY);
        drop(shared);
        assert!(lock_until(open(), Access::Exclusive, now).unwrap());
    }
}
