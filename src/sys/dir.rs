//! Directories: opening them beneath a root, and reading their entries.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::{Errno, Result};

use super::object::{Kind, has_openat2, open_in, unnoticed};

/// The flags of a descriptor that stands for a directory.
const DIR_PATH: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens the directory `path` (components joined by `/`, no `.` or `..`) beneath `root` as an O_PATH descriptor,
/// following no symbolic link anywhere on the way.
///
/// # Errors
/// `ENOTDIR` or `ELOOP` where a component isn't a directory, `ENOENT` where it is missing, `EBUSY` where it lies in a
/// mount of this process's own.
pub fn open_beneath(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd> {
    if has_openat2() && path.contains(&b'/') {
        let resolve = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        match fs::openat2(root, path, DIR_PATH, Mode::empty(), resolve) {
            // Something is mounted on the way, or a rename elsewhere raced with the walk: by steps, then.
            Err(Errno::XDEV | Errno::AGAIN) => {}
            other => return other,
        }
    }
    let mut at = None::<OwnedFd>;
    for component in path.split(|&b| b == b'/').filter(|c| !c.is_empty()) {
        let dir = at.as_ref().map_or(root, |fd| fd.as_fd());
        at = Some(open_in(dir, component, DIR_PATH)?);
    }
    at.ok_or(Errno::INVAL)
}

/// Opens a directory that a user names; links on the way are followed. What is there instead of one isn't opened: a fifo would
/// keep this waiting, and to open a device can do something.
///
/// # Errors
/// Those of open(2), `ENOTDIR` for anything else.
pub fn open_named(path: &Path) -> Result<OwnedFd> {
    fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// How deep a tree is walked by who holds a descriptor of each directory above: beyond what is meant, below what a process may have open.
pub const DEEPEST: usize = 400;

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
