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

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use crate::image::error::{Result, StoreError};
use crate::sys::flock::Access;
use crate::sys::flock::{lock, lock_until, try_lock};

/// How long those who come later are kept out while somebody waits to be alone, and how long they are let in again.
const GATE_CLOSED: Duration = Duration::from_millis(500);
const GATE_OPEN: Duration = Duration::from_millis(50);

/// A lock, held as long as this lives.
#[derive(Debug)]
pub struct Lock {
    held: OwnedFd,
}

impl From<Lock> for OwnedFd {
    fn from(lock: Lock) -> OwnedFd {
        lock.held
    }
}

impl Lock {
    /// Waits for the lock.
    pub(super) fn wait(path: &Path, access: Access) -> Result<Lock> {
        let held = open(path)?;
        lock(&held, access).map_err(StoreError::io("lock it", path))?;
        Ok(Lock { held })
    }

    /// Takes the lock alone, and waits no longer than `patience` for others to let go of it; `None` when they don't. `gate`
    /// is what they pass before they take it.
    pub(super) fn alone_within(path: &Path, gate: &Path, patience: Duration) -> Result<Option<Lock>> {
        let held = open(path)?;
        let deadline = Instant::now() + patience;
        loop {
            let closed = Lock::wait(gate, Access::Exclusive)?;
            let open_again = deadline.min(Instant::now() + GATE_CLOSED);
            let alone = lock_until(&held, Access::Exclusive, open_again);
            if alone.map_err(StoreError::io("lock it", path))? {
                return Ok(Some(Lock { held }));
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
        let locked = try_lock(&held, access).map_err(StoreError::io("lock it", path))?;
        Ok(locked.then_some(Lock { held }))
    }
}

fn open(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(StoreError::io("open it", path))
}
