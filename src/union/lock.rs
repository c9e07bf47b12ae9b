//! One live mount for each upper and each workdir.
//!
//! The lock is flock(2) on the directory itself: it needs no file in the upper, works for ordinary users (a directory
//! may be locked through a read-only descriptor, which OFD locks refuse), belongs to the open file description and so
//! survives the daemon's fork, and goes with the process whatever its end. The kernel's overlayfs keeps its own mark in
//! the inode and does not see this lock, nor we that mark.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, openat};
use rustix::io::Errno;

use super::stack_error::{Role, StackError};

/// How long a new mount waits for the daemon of one that was just unmounted: umount(2) returns before the daemon has
/// seen the end of its session.
pub const LOCK_WAIT: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_millis(5);

/// The lock on a directory, held as long as this lives.
#[derive(Debug)]
pub struct DirLock {
    _held: OwnedFd,
}

impl DirLock {
    /// Locks `dir`, waiting at most `wait` for another holder to let go.
    pub(super) fn acquire(
        dir: BorrowedFd<'_>,
        role: Role,
        path: &Path,
        wait: Duration,
    ) -> Result<DirLock, StackError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let io = |what, errno| StackError::Io { role, path: path.to_owned(), what, errno };
        let held =
            openat(dir, c".", flags, Mode::empty()).map_err(|errno| io("open it for reading", errno))?;
        let deadline = Instant::now() + wait;
        loop {
            match flock(&held, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(RETRY),
                Err(Errno::WOULDBLOCK) => return Err(StackError::InUse { role, path: path.to_owned() }),
                Err(Errno::INTR) => {}
                // Network filesystems that cannot lock directories: better without the check than no mount.
                Err(
                    errno @ (Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS | Errno::BADF | Errno::INVAL),
                ) => {
                    log::warn!(
                        "{role} {} cannot be locked ({errno}): take care to mount it only once",
                        path.display()
                    );
                    break;
                }
                Err(errno) => return Err(io("lock it", errno)),
            }
        }
        // The holder before us may have removed the directory on its way out.
        let stat = fstat(held.as_fd()).map_err(|errno| io("stat it", errno))?;
        if stat.st_nlink == 0 {
            return Err(StackError::Missing { role, path: path.to_owned() });
        }
        Ok(DirLock { _held: held })
    }
}
