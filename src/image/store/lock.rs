//! The store's locks, all flock(2), gone with the process that held them whatever its end.
//!
//! | file | shared | exclusive |
//! |---|---|---|
//! | `lock` | whoever adds blobs or layers, from its first look at what is there to their publication | whoever deletes blobs or layers |
//! | `gate.lock` | whoever is about to take `lock`, for a moment | whoever waits for `lock` alone, for a while |
//! | `index.lock` | whoever needs an image not to lose its last name meanwhile, for a moment | whoever changes index.json, for a moment |
//!
//! A load from a pipe may hold the first for as long as the pipe is open, so `rmi` doesn't wait for it: what can't be
//! deleted now is left to `prune`, which waits as long as it is told. While it waits it closes the gate, for half a second
//! at a time, or a row of short calls that overlap would never let it in; whoever comes then waits behind it.
//!
//! Order: `gate.lock`, `lock`, `index.lock`. One process must not take the same lock twice.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

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

/// How long those who come later are kept out while somebody waits to be alone, and how long they are let in again.
const GATE_CLOSED: Duration = Duration::from_millis(500);
const GATE_OPEN: Duration = Duration::from_millis(50);
/// How often the lock is tried meanwhile.
const RETRY: Duration = Duration::from_millis(5);

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

    /// Takes the lock alone, and waits no longer than `patience` for others to let go of it; `None` when they don't. `gate`
    /// is what they pass before they take it.
    pub(super) fn alone_within(path: &Path, gate: &Path, patience: Duration) -> Result<Option<Lock>> {
        let held = open(path)?;
        let deadline = Instant::now() + patience;
        loop {
            let closed = Lock::wait(gate, Access::Exclusive)?;
            let open_again = deadline.min(Instant::now() + GATE_CLOSED);
            loop {
                if Lock::on(&held, Access::Exclusive).map_err(StoreError::io("lock it", path))? {
                    return Ok(Some(Lock { _held: held }));
                }
                if Instant::now() >= open_again {
                    break;
                }
                // flock(2) has no time limit.
                std::thread::sleep(RETRY);
            }
            drop(closed);
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(GATE_OPEN);
        }
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
