//! One live mount for each upper and each workdir.
//!
//! The lock is flock(2) on the directory itself: it needs no file in the upper, works for ordinary users (a directory
//! may be locked through a read-only descriptor, which OFD locks refuse), belongs to the open file description and so
//! survives the daemon's fork, and goes with the process whatever its end. The kernel's overlayfs keeps its own mark in
//! the inode and does not see this lock, nor we that mark.
//!
//! Whoever may read a directory may lock it. So a lock keeps a mount away only if a process of root's or of the mounting
//! user's holds it, as the kernel tells (proc_locks(5), and the `lock:` lines of proc_pid_fdinfo(5), which know the holders
//! of a lock that was taken before a fork). Beside the two directories the hardlink index is locked, which nobody else
//! may open: it keeps mounts apart while somebody else has locked the others.

use std::fs::{self, Metadata};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, fstat, openat};
use rustix::io::Errno;

use crate::sys::flock::{Access, try_lock};
use crate::union::stack::stack_error::{Role, StackError};

/// How long a new mount waits for the daemon of one that was just unmounted: umount(2) returns before the daemon has
/// seen the end of its session.
pub const LOCK_WAIT: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_millis(5);
/// So often it is looked who holds a lock that can't be had.
const LOOK: Duration = Duration::from_millis(50);
/// When nobody who counts was found to hold it so often, nobody does: one who lets go as it is looked is found gone.
const STRANGERS: u32 = 3;

/// The lock on a directory, held as long as this or a clone of it lives.
#[derive(Debug, Clone)]
pub struct DirLock {
    _held: Arc<OwnedFd>,
}

impl DirLock {
    /// Returns the descriptor that holds it, for a process that takes it over.
    pub(in crate::union) fn held(&self) -> Arc<OwnedFd> {
        self._held.clone()
    }

    /// Returns the lock that another process has taken by this descriptor: it belongs to the open file, and so to both.
    pub(in crate::union) fn taken_over(held: OwnedFd) -> DirLock {
        DirLock { _held: Arc::new(held) }
    }

    /// Locks `dir`, waiting at most `wait` for another holder to let go.
    pub(in crate::union) fn acquire(
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
        let mut strangers = 0;
        let mut look_at = Instant::now();
        loop {
            match try_lock(&held, Access::Exclusive) {
                Ok(true) => break,
                Ok(false) => {
                    let now = Instant::now();
                    if now >= look_at {
                        look_at = now + LOOK;
                        strangers = if is_held_by_trusted(held.as_fd()) { 0 } else { strangers + 1 };
                    }
                    if strangers >= STRANGERS {
                        log::warn!(
                            "{role} {} is locked by a process of another user, which doesn't count",
                            path.display()
                        );
                        break;
                    }
                    if now >= deadline {
                        return Err(StackError::InUse { role, path: path.to_owned() });
                    }
                    std::thread::sleep(RETRY);
                }
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
        Ok(DirLock { _held: Arc::new(held) })
    }
}

/// Tells whether an flock of the inode is held by a process of root's or of this user's. Where that can't be found out,
/// it is.
fn is_held_by_trusted(inode: BorrowedFd<'_>) -> bool {
    let Ok(stat) = fstat(inode) else { return true };
    #[allow(clippy::unnecessary_cast)] // the width differs by architecture
    let ino = stat.st_ino as u64;
    let own = rustix::process::geteuid().as_raw();
    let counts = |process: &Metadata| process.uid() == own || process.uid() == 0;
    let Ok(table) = fs::read_to_string("/proc/locks") else { return true };
    let takers = table.lines().filter_map(|line| flock_of(line, ino));
    for taker in takers {
        if fs::metadata(format!("/proc/{taker}")).is_ok_and(|process| counts(&process)) {
            return true;
        }
    }
    let Ok(processes) = fs::read_dir("/proc") else { return true };
    processes.flatten().any(|process| {
        let named = process.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok());
        named && process.metadata().is_ok_and(|of| counts(&of)) && holds_flock(&process.path(), ino)
    })
}

/// Tells whether the process has an open file that holds an flock of the inode.
fn holds_flock(process: &Path, ino: u64) -> bool {
    // Those of others can't be read, nor those of a process that has just ended.
    let Ok(files) = fs::read_dir(process.join("fdinfo")) else { return false };
    files.flatten().any(|file| {
        let told = fs::read_to_string(file.path()).unwrap_or_default();
        told.lines().filter_map(|line| line.strip_prefix("lock:")).any(|lock| flock_of(lock, ino).is_some())
    })
}

/// Returns the process that has taken an flock of the inode, by a line such as `1: FLOCK ADVISORY WRITE 359 00:13:11691
/// 0 EOF`.
fn flock_of(line: &str, ino: u64) -> Option<u32> {
    let mut words = line.split_whitespace().skip(1);
    let (kind, pid, place) = (words.next()?, words.nth(2)?, words.next()?);
    let same = kind == "FLOCK" && place.rsplit(':').next()?.parse() == Ok(ino);
    if same { pid.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_read() {
        assert_eq!(flock_of("1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF", 11691), Some(359));
        assert_eq!(flock_of("\t1: FLOCK  ADVISORY  READ 7 08:01:5 0 EOF", 5), Some(7));
        assert_eq!(flock_of("1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF", 1691), None);
        assert_eq!(flock_of("2: POSIX  ADVISORY  WRITE 359 00:13:11691 0 EOF", 11691), None);
        assert_eq!(flock_of("1: -> FLOCK  ADVISORY  WRITE 360 00:13:11691 0 EOF", 11691), None);
        assert_eq!(flock_of("", 1), None);
    }

    #[test]
    fn a_lock_of_this_process_counts_even_if_its_taker_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let open = || rustix::fs::open(dir.path(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let (held, other) = (open(), open());
        assert!(!is_held_by_trusted(other.as_fd()));
        crate::sys::flock::lock(&held, Access::Exclusive).unwrap();
        assert!(is_held_by_trusted(other.as_fd()));
        let ino = fstat(&other).unwrap().st_ino;
        assert!(holds_flock(Path::new("/proc/self"), ino));
    }
}
