//! Directories: opening them beneath a root, and reading their entries.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{self, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::{Errno, Result};

use super::object::{Kind, unnoticed};

/// The flags of a descriptor that stands for a directory.
const DIR_PATH: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Set once openat2 was refused (ENOSYS on kernels before 5.6, EPERM under old seccomp filters).
static NO_OPENAT2: AtomicBool = AtomicBool::new(false);

/// Opens the directory `path` (components joined by `/`, no `.` or `..`) beneath `root` as an O_PATH descriptor,
/// following no symbolic link anywhere on the way.
///
/// # Errors
/// `ENOTDIR` or `ELOOP` where a component isn't a directory, `ENOENT` where it is missing.
pub fn open_beneath(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd> {
    if !path.contains(&b'/') {
        return fs::openat(root, path, DIR_PATH, Mode::empty());
    }
    if !NO_OPENAT2.load(Ordering::Relaxed) {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match fs::openat2(root, path, DIR_PATH, Mode::empty(), resolve) {
            Err(Errno::NOSYS | Errno::PERM) => NO_OPENAT2.store(true, Ordering::Relaxed),
            // A rename elsewhere raced with the walk; the walk by steps below doesn't mind.
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    let mut at = None::<OwnedFd>;
    for component in path.split(|&b| b == b'/').filter(|c| !c.is_empty()) {
        let dir = at.as_ref().map_or(root, |fd| fd.as_fd());
        at = Some(fs::openat(dir, component, DIR_PATH, Mode::empty())?);
    }
    at.ok_or(Errno::INVAL)
}

/// One entry as the filesystem lists it.
#[derive(Debug)]
pub struct RawEntry<'a> {
    /// The name.
    pub name: &'a [u8],
    /// Inode number.
    pub ino: u64,
    /// Type, where the filesystem tells it.
    pub kind: Option<Kind>,
}

/// Calls `each` for every entry of the directory but `.` and `..`, in the filesystem's own order.
///
/// # Errors
/// Those of openat and getdents64, and whatever `each` answers.
pub fn for_each_entry<E: From<Errno>>(
    dir: BorrowedFd<'_>,
    mut each: impl FnMut(RawEntry<'_>) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let readable = unnoticed(|noatime| fs::openat(dir, ".", flags | noatime, Mode::empty()))?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); 32 << 10];
    let mut raw = RawDir::new(readable, &mut buffer);
    while let Some(entry) = raw.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        each(RawEntry { name, ino: entry.ino(), kind: Kind::of_d_type(entry.file_type()) })?;
    }
    Ok(())
}
