//! The store's two locks, both flock(2), both gone with the process that held them whatever its end.
//!
//! | file | shared | exclusive |
//! |---|---|---|
//! | `lock` | whoever adds blobs or layers, from its first look at what is there to their publication | whoever deletes blobs or layers |
//! | `index.lock` | whoever needs an image not to lose its last name meanwhile, for a moment | whoever changes index.json, for a moment |
//!
//! A load from a pipe may hold the first for as long as the pipe is open, so nobody waits for it: what can't be deleted
//! now is left to `prune`. Order: `lock` before `index.lock`. One process must not take the same lock twice.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

use crate::image::error::{Result, StoreError};

/// What a lock on a file or a directory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Beside others who share.
    Shared,
    /// Alone.
    Exclusive,
}

/// A lock, held as long as this lives.
#[derive(Debug)]
pub struct Lock {
    _held: OwnedFd,
}

impl Lock {
    /// Waits for the lock.
    pub(super) fn wait(path: &Path, access: Access) -> Result<Lock> {
        let held = open(path)?;
        let operation = match access {
            Access::Shared => FlockOperation::LockShared,
            Access::Exclusive => FlockOperation::LockExclusive,
        };
        retry(held.as_fd(), operation).map_err(StoreError::io("lock it", path))?;
        Ok(Lock { _held: held })
    }

    /// Takes the lock, or `None` when somebody else has it.
    pub(super) fn now(path: &Path, access: Access) -> Result<Option<Lock>> {
        let held = open(path)?;
        let locked = Lock::on(&held, access).map_err(StoreError::io("lock it", path))?;
        Ok(locked.then_some(Lock { _held: held }))
    }

    /// Locks an open file or directory without waiting; false when somebody else has it.
    pub(super) fn on(file: impl AsFd, access: Access) -> std::result::Result<bool, Errno> {
        let operation = match access {
            Access::Shared => FlockOperation::NonBlockingLockShared,
            Access::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        match retry(file.as_fd(), operation) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}

fn open(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(StoreError::io("open it", path))
}

fn retry(file: BorrowedFd<'_>, operation: FlockOperation) -> std::result::Result<(), Errno> {
    loop {
        match flock(file, operation) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}
